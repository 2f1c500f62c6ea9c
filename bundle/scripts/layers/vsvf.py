"""One step of the vSVF component: momentum → velocity → advanced map."""

from __future__ import annotations

from typing import Optional, Sequence, Tuple

from torch import Tensor, nn

from .gaussian import PAPER_STDS, PAPER_WEIGHTS, MultiGaussianSmoother
from .integrator import Integrator
from .rk4 import RK4
from .scaling_squaring import ScalingSquaring

INTEGRATORS = {"scaling_squaring": ScalingSquaring, "rk4": RK4}


class VSVF(nn.Module):
    """Vector-momentum stationary velocity field: Equation 8's constraint over unit time, on the momentum's own grid.

    Args:
        stds: the smoother's standard deviations, see `MultiGaussianSmoother`.
        weights: the smoother's weights.
        integrator: an `Integrator`, or the name of one with its defaults: ``"scaling_squaring"`` or ``"rk4"`` (the
            paper's). Figures on both are in ``benchmarks/results/integrators.md``.

    Raises:
        ValueError: when the integrator's name is unknown.
    """

    def __init__(
        self,
        stds: Sequence[float | Sequence[float]] = PAPER_STDS,
        weights: Sequence[float] = PAPER_WEIGHTS,
        integrator: str | Integrator = "scaling_squaring",
    ) -> None:
        super().__init__()
        if isinstance(integrator, str):
            if integrator not in INTEGRATORS:
                raise ValueError(f"VSVF: integrator must be one of {', '.join(INTEGRATORS)}, got '{integrator}'.")
            integrator = INTEGRATORS[integrator]()
        self.smoother = MultiGaussianSmoother(stds, weights)
        self.integrator = integrator

    def advance(self, displacement: Optional[Tensor], velocity: Tensor) -> Tensor:
        """Carry the map over unit time, ψ_τ = ψ_{τ-1} ∘ exp(-v); see `Integrator.advance`.

        An affine factor on the outside of ψ commutes with this and is left to the caller.
        """
        return self.integrator.advance(displacement, velocity)

    def forward(self, momentum: Tensor, displacement: Optional[Tensor] = None) -> Tuple[Tensor, Tensor]:
        """One vSVF step.

        Args:
            momentum: m₀, ``(B, 3, d, h, w)`` normalised units.
            displacement: ψ_{τ-1} - id, ``(B, 3, d, h, w)``; None for the identity.

        Returns:
            ψ_τ - id and the velocity v₀ = (L†L)⁻¹ m₀, both ``(B, 3, d, h, w)``.
        """
        velocity = self.smoother(momentum)
        return self.advance(displacement, velocity), velocity
