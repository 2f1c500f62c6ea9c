"""One step of the vSVF component: momentum → velocity → advanced map."""

from __future__ import annotations

import copy
import math
from typing import Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from ..geometry import compose_displacements, voxels_per_unit
from .gaussian import MultiGaussianSmoother
from .rk4 import advect
from .scaling_squaring import exponential

INTEGRATORS = ("scaling_squaring", "rk4")


def bound_velocity(velocity: Tensor, limit: float) -> Tuple[Tensor, Tensor]:
    """Shorten velocities beyond a length, keeping their direction and a non-zero gradient.

    Args:
        velocity: ``(B, 3, D, H, W)`` normalised units per unit time.
        limit: largest length in voxels of this grid per unit time.

    Returns:
        The bounded velocity and the part of voxels at which the bound acted, ``(B,)``.
    """
    shape = [velocity.shape[2], velocity.shape[3], velocity.shape[4]]
    scale = voxels_per_unit(shape, velocity.device, velocity.dtype).view(1, 3, 1, 1, 1)
    length = (velocity * scale).square().sum(dim=1, keepdim=True).clamp(min=1e-12).sqrt()
    return velocity * (limit / length).clamp(max=1.0), (length > limit).float().flatten(1).mean(dim=1)


class VSVF(nn.Module):
    """Vector-momentum stationary velocity field: Equation 8's constraint over unit time.

    Both integrators solve the same equation on the momentum's own (low-resolution) grid. ``scaling_squaring`` is the
    default: it costs a quarter to an eighth of ten RK4 steps and, up to 20 voxels of velocity, folds an eighth or fewer
    of the voxels that they fold. For small, well resolved motion ``rk4`` is the more exact, by about a hundredth of a
    voxel (figures in ``benchmarks/results/integrators.md``).

    Args:
        stds: the smoother's standard deviations, see `MultiGaussianSmoother`.
        weights: the smoother's weights.
        axis_lengths: relative physical axis lengths for an isotropic kernel, see `MultiGaussianSmoother`.
        integrator: ``"scaling_squaring"`` or ``"rk4"`` (the paper's).
        steps: squarings (default 3) or RK4 time steps (the paper's 10).
        midpoint: begin scaling and squaring by the midpoint rule, see `exponential`.
        max_velocity: bound on the velocity in low-resolution voxels per unit time; None (default) bounds nothing.

    Raises:
        ValueError: when the integrator is unknown or a number is out of range.
    """

    def __init__(
        self,
        stds: Sequence[float | Sequence[float]] = (0.05, 0.1, 0.15, 0.2, 0.25),
        weights: Sequence[float] = (0.067, 0.133, 0.2, 0.267, 0.333),
        axis_lengths: Sequence[float] | None = None,
        integrator: str = "scaling_squaring",
        steps: int | None = None,
        max_velocity: float | None = None,
        midpoint: bool = True,
    ) -> None:
        super().__init__()
        if integrator not in INTEGRATORS:
            raise ValueError(f"VSVF: integrator must be one of {', '.join(INTEGRATORS)}, got '{integrator}'.")
        if steps is None:
            steps = 3 if integrator == "scaling_squaring" else 10
        if steps < 1:
            raise ValueError(f"VSVF: steps must be at least 1, got {steps}.")
        if max_velocity is not None and max_velocity <= 0:
            raise ValueError(f"VSVF: max_velocity must be positive or null, got {max_velocity}.")
        self.smoother = MultiGaussianSmoother(stds, weights, axis_lengths)
        self.integrator = integrator
        self.steps = steps
        self.max_velocity = 0.0 if max_velocity is None else float(max_velocity)
        self.midpoint = midpoint

    def refined(self, factor: int) -> VSVF:
        """The unit for a grid that is finer by ``factor``, when the time steps are to be no coarser than the grid.

        It shares its smoother. Scaling and squaring begins by the midpoint rule and squares once more for each
        doubling, RK4 takes ``factor`` times the steps.
        """
        unit = copy.copy(self)
        unit.midpoint = True
        if self.integrator == "rk4":
            unit.steps = self.steps * factor
        else:
            unit.steps = self.steps + math.ceil(math.log2(factor))
        return unit

    def velocity(self, momentum: Tensor) -> Tuple[Tensor, Tensor]:
        """Velocity v₀ = (L†L)⁻¹ m₀ and the part of voxels at which the velocity bound acted.

        Args:
            momentum: m₀, ``(B, 3, d, h, w)`` normalised units.

        Returns:
            ``(B, 3, d, h, w)`` normalised units per unit time, and ``(B,)`` (all zero without a bound).
        """
        velocity = self.smoother(momentum)
        if self.max_velocity > 0:
            return bound_velocity(velocity, self.max_velocity)
        return velocity, torch.zeros(velocity.shape[0], device=velocity.device)

    def advance(self, displacement: Optional[Tensor], velocity: Tensor) -> Tensor:
        """Carry the map over unit time: ψ_τ = ψ_{τ-1} ∘ exp(-v).

        An affine factor on the outside of ψ commutes with this and is left to the caller.

        Args:
            displacement: ψ_{τ-1} - id, ``(B, 3, d, h, w)`` normalised; None for the identity, which costs less.
            velocity: ``(B, 3, d, h, w)``.

        Returns:
            ψ_τ - id.
        """
        if self.integrator == "rk4":
            return advect(torch.zeros_like(velocity) if displacement is None else displacement, velocity, self.steps)
        flow = exponential(-velocity, self.steps, self.midpoint)
        return flow if displacement is None else compose_displacements(displacement, flow)

    def retreat(self, displacement: Optional[Tensor], velocity: Tensor) -> Tensor:
        """Carry the inverse map over unit time: ψ⁻¹_τ = exp(v) ∘ ψ⁻¹_{τ-1}.

        Args:
            displacement: ψ⁻¹_{τ-1} - id, ``(B, 3, d, h, w)`` normalised; None for the identity.
            velocity: ``(B, 3, d, h, w)``, the same as given to `advance`.

        Returns:
            ψ⁻¹_τ - id.
        """
        if self.integrator == "rk4":
            flow = advect(torch.zeros_like(velocity), -velocity, self.steps)
        else:
            flow = exponential(velocity, self.steps, self.midpoint)
        return flow if displacement is None else compose_displacements(flow, displacement)

    def forward(self, momentum: Tensor, displacement: Optional[Tensor] = None) -> Tuple[Tensor, Tensor]:
        """One vSVF step.

        Args:
            momentum: m₀, ``(B, 3, d, h, w)`` normalised units.
            displacement: ψ_{τ-1} - id, ``(B, 3, d, h, w)``; None for the identity.

        Returns:
            ψ_τ - id and the velocity, both ``(B, 3, d, h, w)``.
        """
        velocity, _ = self.velocity(momentum)
        return self.advance(displacement, velocity), velocity
