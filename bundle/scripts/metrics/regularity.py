"""The Jacobian of a whole world transform, measured on a reference grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from threading import Lock

import numpy as np

from ..errors import InputError
from ..spatial.frame import Frame
from ..spatial.grid_map import ALL, GridMap, in_slabs
from ..spatial.resampling import warn_outside
from ..spatial.transform import WorldTransform

FLOOR = 1e-9
"""Determinants are clipped here before the logarithm, as in ``geometry.std_log_jacobian``."""

_BLOCK = 1 << 17  # voxels worked on at once


@dataclass(frozen=True, eq=False)
class WorldJacobian:
    """What `world_jacobian` found.

    Attributes:
        determinant: ``(D, H, W)``, of the displacement field's type: local volume of the moving image for one of the
            fixed image, central differences (one-sided at the faces).
        folds: voxels at which any of the eight corner determinants is negative.
        folds_sum: over these voxels, the sum of the most negative corner determinants, without their sign.
        measures: figures of the whole grid, by the names that the workflows' tables use where they have them.
    """

    determinant: np.ndarray
    folds: int
    folds_sum: float
    measures: dict[str, float]


def world_jacobian(
    transforms: Sequence[WorldTransform], reference: Frame, block: int | None = None, threads: int = 1
) -> WorldJacobian:
    """Jacobian determinant of ``q(p)``, dq/dp in mm, all transforms and their affine parts together.

    The map is looked at in the reference's own coordinates, which leaves the determinant as it is in mm, whatever the
    reference's spacing and orientation: 1 for the identity, 8 for a magnification by 2. Where the affine parts together
    mirror the image, the determinant is that of the map and that mirror: a mirror image is no fold. Warns
    (``OutsideFieldWarning``) when voxels lie outside a displacement field, at whose end the transform may tear.

    Args:
        transforms: fixed to moving, first listed, first applied (ANTs' order); empty: the identity.
        reference: the grid to measure on; at least 2 voxels along each axis. Differences are between its voxels.
        block: voxels worked on at once; None: about an eighth of a million, and with few threads three rows at least.
        threads: that work at once.

    Raises:
        InputError: if the reference is a single voxel thick.
    """
    if min(reference.shape) < 2:
        raise InputError(
            f"{reference.name}: need at least 2 voxels along each axis, got {reference.shape}; a slice has no Jacobian"
        )
    grid = GridMap(transforms, reference, np.linalg.inv(reference.affine))
    linear = grid.linear[:3, :3].copy()
    affines = [getattr(one, "linear", None) for one in transforms]
    affines = [one.forward.linear if m is None else m for one, m in zip(transforms, affines, strict=True)]
    mirrored = sum(np.linalg.det(matrix[:3, :3]) < 0 for matrix in affines) % 2 == 1
    linear[0] *= -1 if mirrored else 1
    types = [one.displacement.dtype for one in transforms if getattr(one, "displacement", None) is not None]
    determinant = np.empty(reference.shape, types[0] if len(types) == len(transforms) == 1 else np.float64)
    sums, lock = _Sums(), Lock()

    def work(rows: slice) -> None:
        low, high = max(rows.start - 1, 0), min(rows.stop + 1, reference.shape[0])
        within = slice(rows.start - low, rows.stop - low)
        shift = grid.shift((slice(low, high), ALL, ALL), within)
        if shift is None:
            whole = float(np.linalg.det(linear))
            determinant[rows] = lowest = np.full(determinant[rows].shape, whole)
        else:
            if mirrored:
                np.negative(shift[0], out=shift[0])
            determinant[rows], lowest = _determinants(shift, linear, within)
        with lock:
            sums.add(determinant[rows], lowest)

    # The neighbours of a slab are worked out with it, and of a single row they would be twice as much.
    rows = 3 if threads < 4 else 1
    block = max(_BLOCK, rows * reference.shape[1] * reference.shape[2]) if block is None else block
    in_slabs(work, reference.shape, block, threads)
    warn_outside(grid.outside, determinant.size, "voxels of the reference", stacklevel=3)
    return WorldJacobian(determinant, sums.folds, sums.folds_sum, sums.measures)


class _Sums:
    """Gathers the figures of a grid slab by slab."""

    def __init__(self) -> None:
        self.folds, self.folds_sum = 0, 0.0
        self._voxels = self._central = 0
        self._least, self._most = np.inf, -np.inf
        # Of the logarithms, their mean and the sum of squares about it.
        self._total = self._mean = self._squares = 0.0

    def add(self, determinant: np.ndarray, lowest: np.ndarray) -> None:
        """Count determinants, and the lowest of the eight of each voxel, in."""
        folded = ~(lowest >= 0)
        if folded.any():
            self.folds += int(np.count_nonzero(folded))
            self.folds_sum += float(-np.minimum(lowest, 0).sum(dtype=np.float64))
        self._central += int(np.count_nonzero(determinant < 0))
        self._least, self._most = min(self._least, determinant.min()), max(self._most, determinant.max())
        self._total += determinant.sum(dtype=np.float64)
        logarithm = np.log(np.maximum(determinant, FLOOR))
        # Chan, Golub, LeVeque: what two parts' squares come to together.
        mean, count = logarithm.mean(dtype=np.float64), determinant.size
        logarithm -= mean
        both, off = self._voxels + count, mean - self._mean
        self._squares += np.square(logarithm).sum(dtype=np.float64) + off**2 * self._voxels * count / both
        self._mean += off * count / both
        self._voxels = both

    @property
    def measures(self) -> dict[str, float]:
        """See `WorldJacobian`."""
        return {
            "voxels": self._voxels,
            "folds": self.folds,
            "folds_sum": self.folds_sum,
            "folds_central": self._central,
            "jacobian_min": float(self._least),
            "jacobian_max": float(self._most),
            "jacobian_mean": float(self._total / self._voxels),
            "std_log_jacobian": float(np.sqrt(self._squares / (self._voxels - 1))),
        }


def _determinants(shift: np.ndarray, linear: np.ndarray, within: slice) -> tuple[np.ndarray, np.ndarray]:
    """The determinant by central differences, and the lowest of the eight by forward and backward ones.

    ``shift`` is what the map adds to ``linear``, ``(3, d, h, w)`` voxels; ``within`` are the rows wanted.
    """
    first, second, third = (list(_sides(shift, axis, linear[:, axis], within)) for axis in range(3))
    lowest = None
    for b, c in product(second, third):
        normal = _cross(b, c)
        for a in first:
            one = _dot(a, normal)
            lowest = one if lowest is None else np.minimum(lowest, one, out=lowest)
    a, b, c = (np.add(*sides) for sides in (first, second, third))
    central = _dot(a, _cross(b, c))
    central *= 0.125
    return central, lowest


def _sides(shift: np.ndarray, axis: int, column: np.ndarray, within: slice) -> Iterator[np.ndarray]:
    """Backward and forward differences along an axis, ``(3, d, h, w)``; at a face the one there stands for both."""
    if axis > 0:
        shift = shift[:, within]
    shift = np.moveaxis(shift, axis + 1, 1)
    count = shift.shape[1]
    steps = np.empty_like(shift, shape=(3, count + 1, *shift.shape[2:]))
    np.subtract(shift[:, 1:], shift[:, :-1], out=steps[:, 1:-1])
    steps[:, 0], steps[:, -1] = steps[:, 1], steps[:, -2]
    steps += column.astype(shift.dtype).reshape(3, 1, 1, 1)
    rows = within if axis == 0 else slice(0, count)
    for side in (0, 1):
        yield np.moveaxis(steps[:, rows.start + side : rows.stop + side], 1, axis + 1)


def _cross(b: np.ndarray, c: np.ndarray) -> list[np.ndarray]:
    return [b[k] * c[m] - b[m] * c[k] for k, m in ((1, 2), (2, 0), (0, 1))]


def _dot(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> np.ndarray:
    result = a[0] * b[0]
    result += a[1] * b[1]
    result += a[2] * b[2]
    return result
