"""What an integrator of the vSVF unit has to offer; a new one is a class in a file of its own."""

from __future__ import annotations

from typing import Optional

from torch import Tensor, nn


class Integrator(nn.Module):
    """Integrates the flow of a stationary velocity over unit time (Equation 7's constraint).

    A new integrator defines `advance`, and `refined` where its time steps depend on the grid. It need not lie in this
    package: a network file names it by ``"integrator": {"_target_": "module.Class", ...}`` under ``vsvf``. What it
    computes must be differentiable, and TorchScript must compile it where the network is exported by scripting.

    Displacements and velocities are ``(B, 3, d, h, w)``, in normalised units and units per unit time. Beyond the faces
    a displacement is continued: a constant velocity gives a translation up to the faces.
    """

    def advance(self, displacement: Optional[Tensor], velocity: Tensor) -> Tensor:
        """Carry a map over unit time: ψ ∘ exp(-v).

        Args:
            displacement: ψ - id; None for the identity.
            velocity: v.

        Returns:
            The new map's displacement.
        """
        raise NotImplementedError

    def refined(self, factor: int) -> Integrator:
        """The integrator for a grid finer by ``factor``, its time steps no coarser than the grid; by default itself."""
        return self
