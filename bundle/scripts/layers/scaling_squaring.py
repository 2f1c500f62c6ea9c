"""Exponential of a stationary velocity field by scaling and squaring."""

from __future__ import annotations

from torch import Tensor

from ..geometry import compose_displacements


def exponential(velocity: Tensor, squarings: int) -> Tensor:
    """Displacement of exp(v), the flow of v at time 1.

    The characteristics' solution of Equation 7: Φ⁻¹(x, 1) = Φ⁻¹(0)(exp(-v)(x)), so pass ``-v`` for the map and ``v``
    for its inverse. Beyond the faces the displacement is continued, not set to zero: a constant velocity gives that
    translation up to the faces.

    Args:
        velocity: v, ``(B, 3, D, H, W)`` normalised units per unit time.
        squarings: number n of compositions; the flow of time 2⁻ⁿ is taken as v 2⁻ⁿ.

    Returns:
        exp(v) - id, ``(B, 3, D, H, W)``.

    Raises:
        ValueError: when ``squarings`` is negative.
    """
    if squarings < 0:
        raise ValueError("exponential: squarings must not be negative.")
    displacement = velocity * (0.5**squarings)
    for _ in range(squarings):
        displacement = compose_displacements(displacement, displacement)
    return displacement
