"""Diffeomorphisms in closed form, for phantoms whose true map must be exact.

Each step is an affine map or the time-one flow of a stationary velocity along one coordinate axis,
`w(x) = a(x_j, x_k) g(x_i) e_i`. The other two coordinates stay fixed along such a flow, so it is an ordinary
differential equation in one variable with a known solution, for `g = 1` (a shear) and `g = sin` (a stretch).
So every step is inverted exactly by reversing the sign of time, and no composition of steps can fold.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

__all__ = ["AffineStep", "ShearStep", "StretchStep", "Warp"]


@dataclass(frozen=True, eq=False)
class AffineStep:
    """`x -> A x + b` on points (3, N).

    Attributes:
        matrix: A, (3, 3), float64.
        offset: b, (3,), float64.
    """

    matrix: torch.Tensor
    offset: torch.Tensor

    def __call__(self, points: torch.Tensor) -> torch.Tensor:
        """Map points (3, N)."""
        return torch.addmm(self.offset.to(points)[:, None], self.matrix.to(points), points)

    def inverse(self) -> "AffineStep":
        """The inverse map."""
        matrix = torch.linalg.inv(self.matrix)
        return AffineStep(matrix, -(matrix @ self.offset))


@dataclass(frozen=True)
class _Amplitude:
    """Velocity along `axis` as a plane wave of the other two coordinates: `height sin(f . (x_j, x_k) + phase)`."""

    axis: int
    height: float
    frequency: tuple[float, float]
    phase: float

    def amplitude(self, points: torch.Tensor) -> torch.Tensor:
        j, k = (a for a in range(3) if a != self.axis)
        wave = self.frequency[0] * points[j] + self.frequency[1] * points[k] + self.phase
        return torch.sin(wave).mul_(self.height)

    def moved(self, points: torch.Tensor, coordinate: torch.Tensor) -> torch.Tensor:
        return torch.stack([coordinate if a == self.axis else points[a] for a in range(3)])


@dataclass(frozen=True)
class ShearStep(_Amplitude):
    """Flow of `w = a(x_j, x_k) e_i`: adds a wave of the other coordinates to coordinate i; keeps volumes."""

    def __call__(self, points: torch.Tensor) -> torch.Tensor:
        """Map points (3, N)."""
        return self.moved(points, points[self.axis] + self.amplitude(points))

    def inverse(self) -> "ShearStep":
        """The inverse map."""
        return ShearStep(self.axis, -self.height, self.frequency, self.phase)


@dataclass(frozen=True)
class StretchStep(_Amplitude):
    """Flow of `w = a(x_j, x_k) sin(r x_i + s) e_i`: widens some slabs across coordinate i and narrows others.

    With `u = r x_i + s` the flow solves `tan(u(1) / 2) = exp(a r) tan(u(0) / 2)` on each branch of the tangent.

    Attributes:
        rate: r, radian per unit of length.
        shift: s, radian.
    """

    rate: float = field(kw_only=True)
    shift: float = field(kw_only=True)

    def __call__(self, points: torch.Tensor) -> torch.Tensor:
        """Map points (3, N)."""
        angle = points[self.axis] * self.rate + self.shift
        turns = torch.round(angle / (2 * torch.pi)) * (2 * torch.pi)
        half = (angle - turns) / 2
        growth = torch.exp(self.amplitude(points) * self.rate)
        flowed = 2 * torch.atan2(growth * torch.sin(half), torch.cos(half)) + turns
        return self.moved(points, (flowed - self.shift) / self.rate)

    def inverse(self) -> "StretchStep":
        """The inverse map."""
        return StretchStep(self.axis, -self.height, self.frequency, self.phase, rate=self.rate, shift=self.shift)


@dataclass(frozen=True, eq=False)
class Warp:
    """A diffeomorphism of space as steps applied one after the other.

    Attributes:
        steps: first applied first.
    """

    steps: tuple = ()

    def __call__(self, points: torch.Tensor) -> torch.Tensor:
        """Map points (3, N), in the type they come in."""
        for step in self.steps:
            points = step(points)
        return points

    def then(self, outer: "Warp") -> "Warp":
        """The composition `outer(self(x))`."""
        return Warp((*self.steps, *outer.steps))

    def inverse(self) -> "Warp":
        """The exact inverse."""
        return Warp(tuple(step.inverse() for step in reversed(self.steps)))


def random_flows(
    generator: torch.Generator, shear: float, stretch: float, count: int, frequencies: Sequence[float] = (1.2, 3.4)
) -> tuple:
    """Random smooth steps, `count` shears and `count` stretches per axis.

    Args:
        generator: source of all draws.
        shear: standard deviation of a shear's height, in units of length.
        stretch: the same of a stretch's velocity.
        count: number of each kind per axis.
        frequencies: smallest and largest frequency, radian per unit of length.

    Returns:
        Steps, the three axes taking turns.
    """
    low, high = frequencies
    steps = []
    for _ in range(count):
        for axis in range(3):
            normal = torch.randn(2, generator=generator).clamp_(-2, 2).tolist()
            u = torch.rand(8, generator=generator).tolist()
            waves = []
            for k in range(2):
                size, turn = low + (high - low) * u[k], 2 * torch.pi * u[2 + k]
                direction = torch.tensor(turn)
                waves.append((float(size * torch.cos(direction)), float(size * torch.sin(direction))))
            phases = [2 * torch.pi * v for v in u[4:6]]
            steps.append(ShearStep(axis, shear * normal[0], waves[0], phases[0]))
            rate, shift = low + (high - low) * u[6], 2 * torch.pi * u[7]
            steps.append(StretchStep(axis, stretch * normal[1], waves[1], phases[1], rate=rate, shift=shift))
    return tuple(steps)
