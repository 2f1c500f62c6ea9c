"""Random invertible warps of generated subjects: an affine map in mm and the flow of a smooth velocity.

Flows are steps of the phantom's `Warp`, which chains and inverts them: a scan is `image(x) = template(T(x))`, and the
true map from the fixed to the moving scan is `T_moving^-1(T_fixed(x))`. Points are normalised coordinates (3, N).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..geometry import identity_map, resize_map, warp
from ..layers.scaling_squaring import exponential
from .phantom_warp import AffineStep, Warp
from .smooth_fields import channels_last, draw, smooth_noise

__all__ = ["FlowStep", "WarpRange", "grid_points", "map_on_grid", "random_affine", "random_flow", "random_warp"]

_SQUARINGS = 5
_LARGEST = 32  # points of a velocity's grid along an axis; it has at most a quarter as many coefficients


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


@dataclass(frozen=True, eq=False)
class FlowStep:
    """`x -> x + u(x)` with the displacement of a flow and that of the flow back.

    Attributes:
        forward: u, (1, 3, d, h, w), normalised units; beyond the faces that of the nearest face holds.
        backward: displacement of the inverse.
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


def grid_points(shape: Sequence[int]) -> Tensor:
    """Normalised coordinates (3, D H W) of a grid."""
    return identity_map(list(shape)).flatten(2)[0]


def map_on_grid(chain: Warp, shape: Sequence[int]) -> Tensor:
    """A warp on a grid, (3, D, H, W), evaluated at every second point along each axis and interpolated between.

    Affine maps stay exact and flows bend little over two voxels, so the result is off by 0.03 voxels on average.
    """
    coarse = [n // 2 + 1 if n >= 16 else n for n in shape]
    return resize_map(chain(grid_points(coarse)).reshape(1, 3, *coarse), list(shape))[0]


def random_affine(generator: torch.Generator, extent: Sequence[float], bounds: WarpRange) -> AffineStep:
    """A random affine map about the grid's centre: rotation, scale and shear as of mm, whatever the field of view.

    Args:
        generator: source of the draws.
        extent: mm between the first and the last voxel along each axis.
        bounds: see `WarpRange`.
    """
    angles, shifts, scales, shears = torch.rand(4, 3, generator=generator, dtype=torch.float64) * 2 - 1
    skew, upper = torch.zeros(2, 3, 3, dtype=torch.float64)
    skew[[0, 0, 1], [1, 2, 2]] = torch.deg2rad(angles * bounds.degrees)
    upper[[0, 0, 1], [1, 2, 2]] = shears * bounds.shear
    matrix = torch.matrix_exp(skew - skew.T) @ torch.diag(torch.exp(scales * bounds.scale)) @ torch.matrix_exp(upper)
    half = torch.tensor(extent, dtype=torch.float64) / 2
    return AffineStep(matrix * half[None, :] / half[:, None], shifts * bounds.shift * 2 * half.min() / half)


def random_flow(
    generator: torch.Generator, shape: Sequence[int], extent: Sequence[float], bounds: WarpRange
) -> FlowStep:
    """The flow of a random smooth velocity, by scaling and squaring.

    Args:
        generator: source of the draws.
        shape: grid (D, H, W) that the warp is meant for; the velocity lives on a third of it, at least 16 points.
        extent: mm between the first and the last voxel along each axis.
        bounds: see `WarpRange`.
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
