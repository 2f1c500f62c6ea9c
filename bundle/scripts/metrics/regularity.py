"""The Jacobian of a whole world transform, measured on a reference grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import InputError
from ..geometry import jacobian_determinant
from ..geometry.jacobian import smallest_jacobian_determinant
from ..spatial.frame import Frame
from ..spatial.resampling import chain_points, warn_outside
from ..spatial.transform import WorldTransform

FLOOR = 1e-9
"""Determinants are clipped here before the logarithm, as in ``geometry.std_log_jacobian``."""

_BLOCK = 1 << 18  # voxels worked on at once


@dataclass(frozen=True, eq=False)
class WorldJacobian:
    """What `world_jacobian` found.

    Attributes:
        determinant: ``(D, H, W)`` float64: local volume of the moving image for one of the fixed image, central
            differences (one-sided at the faces).
        folds: voxels at which any of the eight corner determinants is negative.
        folds_sum: over these voxels, the sum of the most negative corner determinants, without their sign.
    """

    determinant: np.ndarray
    folds: int
    folds_sum: float

    @property
    def measures(self) -> dict[str, float]:
        """Figures of the whole grid, by the names that the workflows' tables use where they have them."""
        logarithm = np.log(np.maximum(self.determinant, FLOOR))
        return {
            "voxels": int(self.determinant.size),
            "folds": self.folds,
            "folds_sum": self.folds_sum,
            "folds_central": int(np.count_nonzero(self.determinant < 0)),
            "jacobian_min": float(self.determinant.min()),
            "jacobian_max": float(self.determinant.max()),
            "jacobian_mean": float(self.determinant.mean()),
            "std_log_jacobian": float(logarithm.std(ddof=1)),
        }


def _slabs(frame: Frame, block: int) -> Iterator[tuple[slice, slice, Frame]]:
    """Cut a grid along its first axis.

    Yields:
        The slab's rows, the same rows counted within the slab and its neighbouring rows, and the frame of these.
    """
    depth = frame.shape[0]
    rows = max(1, block // (frame.shape[1] * frame.shape[2]))
    for start in range(0, depth, rows):
        stop = min(start + rows, depth)
        low, high = max(start - 1, 0), min(stop + 1, depth)
        affine = frame.affine.copy()
        affine[:3, 3] = frame.voxel_to_world((low, 0, 0))
        yield (
            slice(start, stop),
            slice(start - low, stop - low),
            Frame((high - low, *frame.shape[1:]), affine, frame.name),
        )


def world_jacobian(transforms: Sequence[WorldTransform], reference: Frame, block: int | None = None) -> WorldJacobian:
    """Jacobian determinant of ``q(p)``, dq/dp in mm, all transforms and their affine parts together.

    The map is looked at in the reference's own coordinates, which leaves the determinant as it is in mm, whatever the
    reference's spacing and orientation: 1 for the identity, 8 for a magnification by 2, below 0 for a reflection.

    Args:
        transforms: fixed to moving, first listed, first applied (ANTs' order); empty: the identity.
        reference: the grid to measure on; at least 2 voxels along each axis. Differences are between its voxels.
        block: voxels worked on at once; None: about a quarter of a million.

    Returns:
        The determinants and the folds. Warns (``OutsideFieldWarning``) when voxels lie outside a displacement field,
        at whose end the transform may tear.

    Raises:
        InputError: if the reference is a single voxel thick.
    """
    outside = np.zeros(len(transforms), dtype=np.int64)

    def moved(slab: Frame, rows: slice, within: slice) -> np.ndarray:
        points = slab.voxel_to_world(np.stack(np.indices(slab.shape), axis=-1))
        # The neighbouring rows are counted with the slabs that they belong to.
        before, own, after = np.split(points, [within.start, within.stop])
        parts = [chain_points(before, transforms, np.zeros_like(outside)), chain_points(own, transforms, outside)]
        return np.concatenate([*parts, chain_points(after, transforms, np.zeros_like(outside))])

    result = _measure(moved, reference, block)
    warn_outside(outside, result.determinant.size, "voxels of the reference", stacklevel=3)
    return result


def displacement_jacobian(displacement: np.ndarray, frame: Frame, block: int | None = None) -> WorldJacobian:
    """`world_jacobian` of a displacement that is known at the voxels of the reference itself, with no interpolation.

    Args:
        displacement: ``(D, H, W, 3)``, RAS mm.
        frame: its grid; at least 2 voxels along each axis.
        block: voxels worked on at once; None: about a quarter of a million.

    Raises:
        InputError: if the grid is a single voxel thick.
    """

    def moved(slab: Frame, rows: slice, within: slice) -> np.ndarray:
        own = displacement[rows.start - within.start : rows.start - within.start + slab.shape[0]]
        return slab.voxel_to_world(np.stack(np.indices(slab.shape), axis=-1)) + own

    return _measure(moved, frame, block)


def _measure(moved: Callable[[Frame, slice, slice], np.ndarray], reference: Frame, block: int | None) -> WorldJacobian:
    """The Jacobian of positions ``(n, H, W, 3)``, RAS mm, that are given slab by slab."""
    if min(reference.shape) < 2:
        raise InputError(
            f"{reference.name}: need at least 2 voxels along each axis, got {reference.shape}; a slice has no Jacobian"
        )
    determinant = np.empty(reference.shape)
    folds, folds_sum = 0, 0.0
    for rows, within, slab in _slabs(reference, _BLOCK if block is None else block):
        coordinates = np.moveaxis(slab.world_to_normalised(moved(slab, rows, within)), -1, 0)
        map = torch.from_numpy(np.ascontiguousarray(coordinates))[None]
        determinant[rows] = jacobian_determinant(map)[0, 0, within].numpy()
        lowest = smallest_jacobian_determinant(map)[0, within]
        folds += int((~(lowest >= 0)).sum())
        folds_sum += float(-lowest.clamp(max=0).sum())
    return WorldJacobian(determinant, folds, folds_sum)
