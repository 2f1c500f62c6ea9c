"""Exponential of a stationary velocity field by scaling and squaring."""

from __future__ import annotations

from torch import Tensor

from ..geometry import compose_displacements


def exponential(velocity: Tensor, squarings: int, midpoint: bool = False) -> Tensor:
    """Displacement of exp(v), the flow of v at time 1.

    The characteristics' solution of Equation 7: Φ⁻¹(x, 1) = Φ⁻¹(0)(exp(-v)(x)), so pass ``-v`` for the map and ``v``
    for its inverse. Beyond the faces the displacement is continued, not set to zero: a constant velocity gives that
    translation up to the faces.

    Args:
        velocity: v, ``(B, 3, D, H, W)`` normalised units per unit time.
        squarings: number n of compositions, from the flow of time 2⁻ⁿ.
        midpoint: take that flow by the midpoint rule, v(x + v(x) 2⁻ⁿ⁻¹) 2⁻ⁿ, rather than by Euler's, v(x) 2⁻ⁿ. One more
            look-up makes the error fall with 4⁻ⁿ instead of 2⁻ⁿ, and with it that of exp(v) ∘ exp(-v).

    Returns:
        exp(v) - id, ``(B, 3, D, H, W)``.

    Raises:
        ValueError: when ``squarings`` is negative.
    """
    if squarings < 0:
        raise ValueError("exponential: squarings must not be negative.")
    displacement = velocity * (0.5**squarings)
    if midpoint:
        # compose(u, w)(x) = w(x) + u(x + w(x)); the half step w itself is not part of the midpoint rule.
        displacement = compose_displacements(displacement, 0.5 * displacement) - 0.5 * displacement
    for _ in range(squarings):
        displacement = compose_displacements(displacement, displacement)
    return displacement
