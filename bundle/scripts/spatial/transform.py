"""A transform in the world: fixed to moving points, in millimetres.

`WorldTransform` is ``q = L(p + d(p))``: a dense displacement d on a grid of its own, then an affine L. This is what the
network makes (map = affine of psi) and what ITK and ANTs keep as a composite of an affine and a displacement field. The
displacement may stay on the network's low-resolution grid: its linear interpolation is the network's own upsampling,
so that the file takes an eighth of the space and loses nothing.

Where the field ends: ITK lets a displacement field act up to half a voxel beyond its outermost voxel centres (there
with the value of the nearest voxel) and takes the displacement as zero farther out, so only L acts there. `apply` does
the same, so that points and images come out alike here and in ITK, ANTs and Slicer. The step at the border can be a
visible tear: `covers` says which points are affected, and `covering` continues the displacement from the face, which
is how the network itself sees the world beyond its grid.

d may also be a B-spline, whose coefficients then lie on the grid (ITK's ``BSplineTransform``, elastix). It acts where
all its coefficients are known, and ends there at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import map_coordinates

from ..errors import InputError
from .arrays import as_map, to_numpy
from .frame import Frame, apply_matrix

if TYPE_CHECKING:
    from .arrays import ArrayLike as MapLike

_WHAT = "transform"
_ROUNDING = 1e-9  # voxels


def _homogeneous(affine: MapLike) -> np.ndarray:
    """Return a normalised affine ``(3, 4)`` or ``(1, 3, 4)`` as ``(4, 4)`` float64."""
    matrix = to_numpy(affine).astype(np.float64)
    if matrix.shape == (1, 3, 4):
        matrix = matrix[0]
    if matrix.shape != (3, 4):
        raise ValueError(f"affine: need one affine, (3, 4) or (1, 3, 4), got shape {matrix.shape}.")
    return np.concatenate([matrix, [[0.0, 0.0, 0.0, 1.0]]])


def _check_linear(linear: ArrayLike) -> np.ndarray:
    """Return a finite, invertible homogeneous ``(4, 4)`` as a read-only copy."""
    matrix = np.array(linear, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or not np.allclose(matrix[3], (0, 0, 0, 1), atol=1e-8):
        raise InputError(
            f"{_WHAT}: its linear part must be a finite 4x4 matrix with last row 0 0 0 1, got {matrix.tolist()}"
        )
    scale = np.linalg.norm(matrix[:3, :3], axis=0)
    if (scale == 0).any() or abs(np.linalg.det(matrix[:3, :3] / np.where(scale == 0, 1, scale))) < 1e-9:
        raise InputError(
            f"{_WHAT}: its linear part {matrix.tolist()} is singular and crushes the volume; register anew"
        )
    matrix.setflags(write=False)
    return matrix


@dataclass(frozen=True, eq=False)
class WorldTransform:
    """``q = L(p + d(p))``, fixed to moving points in RAS mm; images move the other way.

    Args:
        linear: L, ``(4, 4)``, RAS mm.
        displacement: d, ``(D, H, W, 3)``, RAS mm, on ``frame``, kept in float32 if it is, else in float64; None for an
            affine transform.
        frame: the grid of ``displacement``, of the same shape; None with it.
        spline: None: ``displacement`` holds d at the voxels, linear in between. 1, 2 or 3: it holds the coefficients of
            a B-spline of this order.
        kind: one of `KINDS`, as files name L; ``linear`` is of it.

    Raises:
        InputError: if ``linear`` is not a finite invertible affine, ``displacement`` is not finite, or its shape is not
            that of ``frame``, or too small for the spline.
    """

    linear: np.ndarray
    displacement: np.ndarray | None = None
    frame: Frame | None = None
    spline: int | None = None
    kind: str = "affine"

    def __post_init__(self) -> None:
        object.__setattr__(self, "linear", _check_linear(self.linear))
        if (self.displacement is None) != (self.frame is None):
            raise InputError(f"{_WHAT}: a displacement field needs its frame, and a frame its field; give both or none")
        if self.spline not in (None, 1, 2, 3) or (self.spline and self.frame is None):
            raise InputError(f"{_WHAT}: spline must be the order, 1 to 3, of the coefficients given, got {self.spline}")
        if self.displacement is None:
            return
        field = np.asarray(self.displacement)
        if field.dtype != np.float32:
            field = field.astype(np.float64, copy=False)
        if field.shape != (*self.frame.shape, 3):
            raise InputError(
                f"{_WHAT}: the field's shape {field.shape} must be that of its frame, {(*self.frame.shape, 3)}"
            )
        if not np.isfinite(field).all():
            raise InputError(f"{_WHAT}: the displacement field holds NaN or infinity; register anew")
        if self.spline and min(self.frame.shape) <= self.spline:
            raise InputError(
                f"{_WHAT}: a B-spline of order {self.spline} needs {self.spline + 1} coefficients along each axis, got "
                f"{self.frame.shape}"
            )
        object.__setattr__(self, "displacement", field)

    @classmethod
    def from_network(
        cls, fixed: Frame, moving: Frame, affine: MapLike, displacement: MapLike | None = None
    ) -> WorldTransform:
        """Make the transform of what `AVSM` yields: ``map = affine of (id + displacement)``.

        Args:
            fixed: frame of the fixed network grid (full resolution).
            moving: frame of the moving network grid; its shape may differ.
            affine: ``(3, 4)`` or ``(1, 3, 4)``, normalised, fixed to moving.
            displacement: psi - id, ``(3, d, h, w)`` or ``(1, 3, d, h, w)``, normalised, on any grid over the extent of
                ``fixed``, such as the network's low-resolution one; None for the affine alone.

        Raises:
            ValueError: for tensors of another shape, or a displacement that is not finite.
            InputError: for a singular affine.
        """
        to_world = fixed.normalised_affine
        linear = moving.normalised_affine @ _homogeneous(affine) @ np.linalg.inv(to_world)
        if displacement is None:
            return cls(linear)
        field = as_map(displacement, "displacement").astype(np.float64)
        world = np.tensordot(field, to_world[:3, :3], axes=(0, 1))
        return cls(linear, world, fixed.resized(field.shape[1:]))

    @property
    def affine_part(self) -> WorldTransform:
        """The transform without its displacement field: q = L p."""
        return WorldTransform(self.linear, kind=self.kind)

    def covers(self, points: ArrayLike) -> np.ndarray:
        """Whether points ``(..., 3)``, RAS mm, lie where the field acts, ``(...)`` bool; an affine acts everywhere."""
        if self.frame is None:
            return np.ones(np.shape(points)[:-1], dtype=bool)
        return self._acts_at(self.frame.world_to_voxel(points))

    @property
    def faces(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest voxel coordinates, ``(3,)`` each, up to which d is more than its nearest neighbour."""
        inset = 0.5 * (self.spline - 1) if self.spline else 0.0
        return np.full(3, inset), np.asarray(self.frame.shape) - 1 - inset

    def _acts_at(self, voxels: np.ndarray) -> np.ndarray:
        """Whether d acts at voxel coordinates ``(..., 3)``."""
        if self.spline is None:
            return self.frame.contains_voxel(voxels)
        low, high = self.faces
        # ITK lets some units in the last place pass.
        return ((voxels >= low - _ROUNDING) & (voxels <= high + _ROUNDING)).all(axis=-1)

    def apply(self, points: ArrayLike) -> np.ndarray:
        """Carry points of the fixed image to the moving one.

        Args:
            points: ``(..., 3)``, RAS mm. Where `covers` is false, only the linear part acts, as in ITK.

        Returns:
            ``(..., 3)`` float64, RAS mm.
        """
        points = np.asarray(points, dtype=np.float64)
        if self.displacement is None:
            return apply_matrix(self.linear, points)
        voxels = self.frame.world_to_voxel(points)
        inside = self._acts_at(voxels)
        where = np.moveaxis(voxels, -1, 0)
        how = {"output": np.float64, "order": self.spline or 1, "mode": "nearest", "prefilter": False}
        shift = np.stack([map_coordinates(self.displacement[..., c], where, **how) for c in range(3)], axis=-1)
        return apply_matrix(self.linear, points + np.where(inside[..., None], shift, 0.0))

    def covering(self, frame: Frame) -> WorldTransform:
        """The same transform with its field continued from its faces, so that it acts in all of ``frame``.

        Args:
            frame: the grid of the image that is to be made; its outermost voxel centres shall be covered.

        Returns:
            A transform with a larger field, or this one if it covers ``frame`` already.
        """
        return self.covering_points(frame.corners)

    def covering_points(self, points: ArrayLike) -> WorldTransform:
        """As `covering`, for points ``(N, 3)``, RAS mm; ValueError for a B-spline, which has nothing to go on with."""
        if self.frame is None:
            return self
        if self.spline is not None:
            raise ValueError("transform: a B-spline cannot be continued beyond its coefficients.")
        voxels = self.frame.world_to_voxel(points)
        # Rounding must not add a voxel to a grid that ends where the frame ends.
        over = np.maximum(-voxels.min(axis=0), voxels.max(axis=0) - np.asarray(self.frame.shape) + 1) - 1e-6
        margin = np.maximum(np.ceil(over), 0).astype(int)
        if not margin.any():
            return self
        parts = np.pad(np.moveaxis(self.displacement, -1, 0), [(0, 0), *((m, m) for m in margin)], mode="edge")
        return WorldTransform(self.linear, np.moveaxis(parts, 0, -1), self.frame.padded(margin))


def linear_of(parts: Sequence[WorldTransform]) -> np.ndarray:
    """The affine parts together, ``(4, 4)``, first listed, first applied; fields are left out."""
    return reduce(lambda matrix, part: part.linear @ matrix, parts, np.eye(4))
