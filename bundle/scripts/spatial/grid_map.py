"""Where transforms carry the voxels of a grid, a box of voxels at a time.

The field of a registration runs along the axes of the image that it was made for. At that image's voxels its linear
interpolation is one along each axis after the other, which takes a tenth of the time of looking up voxel by voxel.
Where a field runs along other axes, or there are several, the voxels are carried as points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from threading import Lock

import numpy as np

from .frame import Frame, apply_matrix
from .transform import WorldTransform

__all__ = ["ALL", "Box", "GridMap", "chain_points", "combined", "in_slabs"]

Box = tuple[slice, slice, slice]
ALL = slice(None)
# Voxels of the field by which its axes may be off the grid's, all along the grid.
_DRIFT = 1e-5
# Nearer than this to a voxel of the field is on it.
_ON = 1e-7


def chain_points(points: np.ndarray, transforms: Sequence[WorldTransform], outside: np.ndarray) -> np.ndarray:
    """Carry RAS points ``(N, 3)`` through all transforms, adding to ``outside`` how many missed each one's field."""
    for index, transform in enumerate(transforms):
        outside[index] += np.count_nonzero(~transform.covers(points))
        points = transform.apply(points)
    return points


def combined(matrix: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """A matrix ``(3, 3)`` times vectors ``(3, ...)``, in the vectors' type.

    Not NumPy's product: for so small a matrix it is slow, and it takes threads that nobody asked for.
    """
    result = np.zeros(vectors.shape, vectors.dtype)
    for row, line in zip(result, matrix, strict=True):
        for factor, vector in zip(line, vectors, strict=True):
            if factor != 0:
                row += vectors.dtype.type(factor) * vector
    return result


def in_slabs(work: Callable[[slice], None], shape: Sequence[int], voxels: int, threads: int = 1) -> None:
    """Do a work for all rows of a grid, about so many voxels at a time.

    Args:
        work: is given rows of the first axis.
        shape: of the grid.
        voxels: of a slab; one row at least.
        threads: that work at once.
    """
    rows = max(1, voxels // max(1, shape[1] * shape[2]))
    slabs = [slice(start, min(start + rows, shape[0])) for start in range(0, shape[0], rows)]
    if threads == 1:
        for slab in slabs:
            work(slab)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, slabs):
            pass


@dataclass(frozen=True, eq=False)
class _Line:
    """Linear interpolation along one axis: from two nodes each, by ``(n,)`` indices and weights."""

    nodes: tuple[np.ndarray, np.ndarray]
    weights: tuple[np.ndarray, np.ndarray]

    @classmethod
    def at(cls, places: np.ndarray, count: int, dtype: np.dtype) -> _Line:
        """At places, of a field with so many nodes; as ITK has it, 0 farther than half a node beyond its ends."""
        places = np.where(np.abs(places - np.rint(places)) < _ON, np.rint(places), places)
        acts = (places >= -0.5) & (places < count - 0.5)
        places = np.clip(places, 0, count - 1)
        low = np.minimum(np.floor(places).astype(np.intp), max(count - 2, 0))
        part = places - low
        weights = ((1 - part) * acts).astype(dtype), (part * acts).astype(dtype)
        return cls((low, np.minimum(low + 1, count - 1)), weights)

    @property
    def acting(self) -> int:
        """At how many places the field acts."""
        return int(np.count_nonzero(self.weights[0] + self.weights[1]))

    def __call__(self, array: np.ndarray, axis: int, rows: slice) -> np.ndarray:
        """Interpolate an array along an axis, at some of the places."""
        shape = [-1 if a == axis else 1 for a in range(array.ndim)]
        parts = []
        for nodes, weights in zip(self.nodes, self.weights, strict=True):
            part = np.take(array, nodes[rows], axis=axis)
            part *= weights[rows].reshape(shape)
            parts.append(part)
        return np.add(*parts, out=parts[0])


class GridMap:
    """Where transforms carry the voxels of a grid: ``linear`` of the voxel's index, and a `shift`.

    Args:
        transforms: first listed, first applied (ANTs' order).
        reference: the grid.
        to_target: ``(4, 4)``, from RAS mm to the coordinates wanted, such as another grid's voxels.

    Attributes:
        shape: of the grid.
        linear: ``(4, 4)``, voxel index to coordinates, without the shift.
        outside: how many voxels missed each transform's field. Where voxels are carried as points, those that a box
            has counted so far.
    """

    def __init__(self, transforms: Sequence[WorldTransform], reference: Frame, to_target: np.ndarray) -> None:
        self.shape = reference.shape
        self.outside = np.zeros(len(transforms), dtype=np.int64)
        self._points: tuple[Frame, list[WorldTransform], np.ndarray] | None = None
        self._nodes, self._lines, self._lock = None, None, Lock()
        fields = [index for index, one in enumerate(transforms) if getattr(one, "displacement", one) is not None]
        linear = [getattr(one, "linear", None) for one in transforms]
        at = fields[0] if fields else len(transforms)
        before = reduce(lambda matrix, one: one @ matrix, linear[:at], reference.affine)
        lines = self._along(transforms[at], before) if len(fields) == 1 else None
        if fields and lines is None:
            self._points, self.linear = (reference, list(transforms), to_target), to_target @ reference.affine
            return
        after = reduce(lambda matrix, one: one @ matrix, linear[at:], np.eye(4))
        self.linear = to_target @ after @ before
        if lines is not None:
            order, self._lines = lines
            field = np.moveaxis(transforms[at].displacement, -1, 0).transpose(0, *(axis + 1 for axis in order))
            self._nodes = combined((to_target @ after)[:3, :3], field)
            acting = [line.acting for line in self._lines]
            self.outside[at] = int(np.prod(self.shape, dtype=np.int64) - np.prod(acting, dtype=np.int64))

    def _along(self, field: WorldTransform, before: np.ndarray) -> tuple[list[int], list[_Line]] | None:
        """The field's axis along each axis of the grid, and the interpolations; None where there is no such."""
        if not isinstance(field, WorldTransform) or field.spline is not None:
            return None
        step = np.linalg.inv(field.frame.affine) @ before
        order = np.abs(step[:3, :3] * np.asarray(self.shape)).argmax(axis=0).tolist()
        rest = step[:3, :3].copy()
        rest[order, range(3)] = 0
        if sorted(order) != [0, 1, 2] or (np.abs(rest) @ np.asarray(self.shape)).max() > _DRIFT:
            return None
        return order, [
            _Line.at(step[axis, k] * np.arange(n) + step[axis, 3], field.frame.shape[axis], field.displacement.dtype)
            for k, (axis, n) in enumerate(zip(order, self.shape, strict=True))
        ]

    def ramp(self, matrix: np.ndarray, box: Box, parts: slice = ALL) -> np.ndarray:
        """An affine of the voxels' indices in a box, ``(3, d, h, w)`` float64, or some of its components."""
        matrix = matrix[:3][parts]
        i, j, k = (np.arange(n, dtype=np.float64)[rows] for n, rows in zip(self.shape, box, strict=True))
        plane = matrix[:, 1, None, None] * j[:, None] + (matrix[:, 2, None, None] * k + matrix[:, 3, None, None])
        return (matrix[:, 0, None] * i)[:, :, None, None] + plane[:, None]

    def shift(self, box: Box, counted: slice | None = None, parts: slice = ALL) -> np.ndarray | None:
        """How far from ``linear`` the voxels of a box lie, ``(3, d, h, w)`` of the field's type; None: nowhere.

        Args:
            box: slices of the grid.
            counted: rows of the box whose voxels count for ``outside`` where they are carried as points; None: all.
            parts: components that are wanted.
        """
        if self._points is not None:
            reference, transforms, to_target = self._points
            start = self.ramp(reference.affine, box)
            outside, uncounted = np.zeros((2, len(transforms)), dtype=np.int64)
            rows = slice(0, start.shape[1]) if counted is None else counted
            result = -self.ramp(self.linear, box)
            around = slice(0, rows.start), slice(rows.stop, None)
            for part, count in ((rows, outside), (around[0], uncounted), (around[1], uncounted)):
                points = start[:, part].reshape(3, -1).T
                there = apply_matrix(to_target, chain_points(points, transforms, count))
                result[:, part] += there.T.reshape(start[:, part].shape)
            with self._lock:
                self.outside += outside
            return result[parts]
        if self._nodes is None:
            return None
        first, second, third = self._lines
        # The longest rows last, where whole rows are looked up.
        return second(third(first(self._nodes[parts], 1, box[0]), 3, box[2]), 2, box[1])

    def coordinates(self, box: Box) -> np.ndarray:
        """Where the voxels of a box lie, ``(3, d, h, w)`` float64."""
        shift = self.shift(box)
        result = self.ramp(self.linear, box)
        return result if shift is None else np.add(result, shift, out=result)
