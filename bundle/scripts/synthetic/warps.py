"""Random invertible warps of generated subjects, as steps that are chained and inverted.

A scan is `image(x) = template(T(x))`, so the true map from the fixed to the moving scan is `T_moving^-1(T_fixed(x))`.
Points are normalised coordinates (3, N). A step is one of
- an affine map;
- the time-one flow of a velocity along one axis, `w(x) = a(x_j, x_k) g(x_i) e_i`, an ordinary differential equation
  in one variable with a known solution for `g = 1` (a shear) and `g = sin` (a stretch); it is inverted exactly by
  reversing the sign of time, and no composition of such steps can fold;
- the flow of a random smooth velocity by scaling and squaring, inverted up to interpolation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..geometry import identity_map, resize_map, warp
from ..layers.scaling_squaring import exponential
from .fields import channels_last, smooth_noise
from .seeded import draw

_SQUARINGS = 5
_LARGEST = 32  # points of a velocity's grid along an axis; it has at most a quarter as many coefficients
_FREQUENCIES = (1.2, 3.4)  # smallest and largest of the waves, radian per unit of length


@dataclass(frozen=True, eq=False)
class AffineStep:
    """`x -> A x + b` on points (3, N), with matrix A (3, 3) and offset b (3,), both float64."""

    matrix: Tensor
    offset: Tensor

    def __call__(self, points: Tensor) -> Tensor:
        """Map points (3, N)."""
        return torch.addmm(self.offset.to(points)[:, None], self.matrix.to(points), points)

    def inverse(self) -> AffineStep:
        """The inverse map."""
        matrix = torch.linalg.inv(self.matrix)
        return AffineStep(matrix, -(matrix @ self.offset))


@dataclass(frozen=True)
class ShearStep:
    """Flow of `w = a(x_j, x_k) e_i`: adds a wave of the other coordinates to coordinate i; keeps volumes.

    The wave is `a = height sin(frequency . (x_j, x_k) + phase)`, in radian and radian per unit of length; `axis` is i.
    """

    axis: int
    height: float
    frequency: tuple[float, float]
    phase: float

    def amplitude(self, points: Tensor) -> Tensor:
        """The wave a (N,) at points (3, N)."""
        j, k = (a for a in range(3) if a != self.axis)
        wave = self.frequency[0] * points[j] + self.frequency[1] * points[k] + self.phase
        return torch.sin(wave).mul_(self.height)

    def flowed(self, points: Tensor) -> Tensor:
        """Coordinate i (N,) after the flow."""
        return points[self.axis] + self.amplitude(points)

    def __call__(self, points: Tensor) -> Tensor:
        """Map points (3, N)."""
        flowed = self.flowed(points)
        return torch.stack([flowed if a == self.axis else points[a] for a in range(3)])

    def inverse(self) -> ShearStep:
        """The inverse map."""
        return replace(self, height=-self.height)


@dataclass(frozen=True)
class StretchStep(ShearStep):
    """Flow of `w = a(x_j, x_k) sin(r x_i + s) e_i`: widens some slabs across coordinate i and narrows others.

    With `u = r x_i + s` the flow solves `tan(u(1) / 2) = exp(a r) tan(u(0) / 2)` on each branch of the tangent. `rate`
    is r, radian per unit of length, `shift` s, radian.
    """

    rate: float = field(kw_only=True)
    shift: float = field(kw_only=True)

    def flowed(self, points: Tensor) -> Tensor:
        """Coordinate i (N,) after the flow."""
        angle = points[self.axis] * self.rate + self.shift
        turns = torch.round(angle / (2 * torch.pi)) * (2 * torch.pi)
        half = (angle - turns) / 2
        growth = torch.exp(self.amplitude(points) * self.rate)
        flowed = 2 * torch.atan2(growth * torch.sin(half), torch.cos(half)) + turns
        return (flowed - self.shift) / self.rate


@dataclass(frozen=True, eq=False)
class FlowStep:
    """`x -> x + u(x)` with the displacement u (1, 3, d, h, w) of a flow and that of the flow back, normalised units.

    Beyond the faces that of the nearest face holds.
    """

    forward: Tensor
    backward: Tensor

    def __call__(self, points: Tensor) -> Tensor:
        """Map points (3, N)."""
        where = points.reshape(1, 3, -1, 1, 1)
        return points + warp(self.forward, where, padding="border").reshape(points.shape)

    def inverse(self) -> FlowStep:
        """The inverse map, up to the interpolation of the displacements."""
        return FlowStep(self.backward, self.forward)


@dataclass(frozen=True, eq=False)
class Warp:
    """A diffeomorphism of space: `steps`, the first applied first."""

    steps: tuple = ()

    def __call__(self, points: Tensor) -> Tensor:
        """Map points (3, N), in the type they come in."""
        for step in self.steps:
            points = step(points)
        return points

    def then(self, outer: Warp) -> Warp:
        """The composition `outer(self(x))`."""
        return Warp((*self.steps, *outer.steps))

    def inverse(self) -> Warp:
        """The inverse, as exact as that of the steps."""
        return Warp(tuple(step.inverse() for step in reversed(self.steps)))


@dataclass(frozen=True)
class WarpRange:
    """How far random warps go; every quantity is drawn uniformly up to these bounds, or on either side of 0.

    Attributes:
        degrees: rotation about each axis.
        shift: as a part of the shortest extent.
        scale: logarithm of the scale along each axis.
        shear: tangent of the angle.
        displacement: root mean square of the velocity, as a part of the shortest extent.
        gradient: bound of the velocity's gradient (Frobenius norm), which keeps the flow free of folds on its grid.
        controls: fewest and most spline coefficients along an axis: how fine the deformation is.
    """

    degrees: float = 15.0
    shift: float = 0.08
    scale: float = 0.15
    shear: float = 0.1
    displacement: float = 0.09
    gradient: float = 1.3
    controls: tuple[int, int] = (4, 8)

    def scaled(self, factor: float) -> WarpRange:
        """The same with all strengths times a factor."""
        names = ("degrees", "shift", "scale", "shear", "displacement", "gradient")
        return replace(self, **{name: getattr(self, name) * factor for name in names})


def warp_range(bounds: WarpRange | Mapping[str, Any] | None) -> WarpRange:
    """Bounds as they are, or of a dict of their fields, as a config gives them; InputError for unknown ones."""
    try:
        return bounds if isinstance(bounds, WarpRange) else WarpRange(**(bounds or {}))
    except TypeError as error:
        raise InputError(f"bounds={bounds}: {str(error).split('() ')[-1]}; see the fields of WarpRange") from error


def grid_points(shape: Sequence[int]) -> Tensor:
    """Normalised coordinates (3, D H W) of a grid."""
    return identity_map(list(shape)).flatten(2)[0]


def map_on_grid(chain: Warp, shape: Sequence[int]) -> Tensor:
    """A warp on a grid, (3, D, H, W), evaluated at every second point along each axis and interpolated between.

    Affine maps stay exact and flows bend little over two voxels, so the result is off by 0.03 voxels on average.
    """
    coarse = [n // 2 + 1 if n >= 16 else n for n in shape]
    return resize_map(chain(grid_points(coarse)).reshape(1, 3, *coarse), list(shape))[0]


def affine_step(degrees: Tensor, shifts: Tensor, scales: Tensor, shears: Tensor, extent: Sequence[float]) -> AffineStep:
    """An affine map about the grid's centre whose rotation, scale and shear are those of mm, whatever the grid.

    Rotations in degrees, normalised shifts, logarithms of scales and tangents of shears, (3,) float64 each; `extent` is
    mm between the first and the last voxel along each axis.
    """
    skew, upper = torch.zeros(2, 3, 3, dtype=torch.float64)
    skew[[0, 0, 1], [1, 2, 2]] = torch.deg2rad(degrees)
    upper[[0, 0, 1], [1, 2, 2]] = shears
    matrix = torch.matrix_exp(skew - skew.T) @ torch.diag(torch.exp(scales)) @ torch.matrix_exp(upper)
    half = torch.tensor(extent, dtype=torch.float64) / 2
    return AffineStep(matrix * half[None, :] / half[:, None], shifts)


def random_affine(generator: torch.Generator, extent: Sequence[float], bounds: WarpRange) -> AffineStep:
    """A random affine map within bounds, see `affine_step`."""
    angles, shifts, scales, shears = torch.rand(4, 3, generator=generator, dtype=torch.float64) * 2 - 1
    half = torch.tensor(extent, dtype=torch.float64) / 2
    shifts = shifts * bounds.shift * 2 * half.min() / half
    return affine_step(angles * bounds.degrees, shifts, scales * bounds.scale, shears * bounds.shear, extent)


def random_flow(
    generator: torch.Generator, shape: Sequence[int], extent: Sequence[float], bounds: WarpRange
) -> FlowStep:
    """The flow of a random smooth velocity, by scaling and squaring, for a grid (D, H, W) of `extent` mm.

    The velocity lives on a third of the grid, at least 16 points along each axis.
    """
    low, high = bounds.controls
    controls = int(torch.randint(low, high + 1, (), generator=generator))
    size = [min(_LARGEST, max(16, n // 3)) for n in shape]
    velocity = smooth_noise(generator, 3, controls, size)[None]
    extent = torch.tensor(extent)
    velocity = velocity * (draw(generator, 0.15, 1.0) * bounds.displacement * extent.min() / 3**0.5)
    steps = [e / (n - 1) for e, n in zip(extent.tolist(), size, strict=True)]
    squares = sum(g.square().sum(1) for g in torch.gradient(velocity, spacing=steps, dim=(2, 3, 4)))
    velocity = velocity * (bounds.gradient / squares.max().sqrt()).clamp(max=1)
    velocity = velocity / (extent / 2).view(1, 3, 1, 1, 1)
    both = exponential(torch.cat([velocity, -velocity]), _SQUARINGS)
    return FlowStep(*(channels_last(field)[None] for field in both))


def random_warp(generator: torch.Generator, shape: Sequence[int], extent: Sequence[float], bounds: WarpRange) -> Warp:
    """A flow and an affine map, see `random_flow` and `random_affine`."""
    return Warp((random_flow(generator, shape, extent, bounds), random_affine(generator, extent, bounds)))


def random_waves(generator: torch.Generator, strength: float) -> tuple[ShearStep, ...]:
    """A random shear and a random stretch along each axis; strength: standard deviation of their heights."""
    low, high = _FREQUENCIES
    steps: list[ShearStep] = []
    for axis in range(3):
        heights = torch.randn(2, generator=generator).clamp_(-2, 2).tolist()
        u = torch.rand(8, generator=generator).tolist()
        waves = []
        for k in range(2):
            size, direction = low + (high - low) * u[k], torch.tensor(2 * torch.pi * u[2 + k])
            waves.append((float(size * torch.cos(direction)), float(size * torch.sin(direction))))
        phases = [2 * torch.pi * v for v in u[4:6]]
        steps.append(ShearStep(axis, strength * heights[0], waves[0], phases[0]))
        rate, shift = low + (high - low) * u[6], 2 * torch.pi * u[7]
        steps.append(StretchStep(axis, strength * heights[1], waves[1], phases[1], rate=rate, shift=shift))
    return tuple(steps)
