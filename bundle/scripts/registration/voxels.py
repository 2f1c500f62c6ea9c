"""Where a transform carries the voxels of a grid, worked out block by block."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from ..spatial.frame import Frame
from ..spatial.transform import WorldTransform

__all__ = ["displacement_of", "lands_inside"]


def _blocks(frame: Frame, block: int = 1 << 18) -> Iterator[tuple[slice, np.ndarray]]:
    """The voxels of a grid, block by block: the slice of the flattened grid, and the points ``(n, 3)`` in RAS mm."""
    total = math.prod(frame.shape)
    for start in range(0, total, block):
        stop = min(start + block, total)
        index = np.stack(np.unravel_index(np.arange(start, stop), frame.shape), axis=-1)
        yield slice(start, stop), frame.voxel_to_world(index)


def displacement_of(transform: WorldTransform, frame: Frame) -> np.ndarray:
    """Where a transform carries a grid's voxels, less where they are, ``(D, H, W, 3)`` float32, RAS mm."""
    result = np.empty((math.prod(frame.shape), 3), dtype=np.float32)
    for block, points in _blocks(frame):
        result[block] = transform.apply(points) - points
    return result.reshape(*frame.shape, 3)


def lands_inside(transform: WorldTransform, fixed: Frame, moving: Frame) -> np.ndarray:
    """Which voxels of the fixed grid a transform carries into the moving image, ``(D, H, W)`` bool."""
    result = np.empty(math.prod(fixed.shape), dtype=bool)
    for block, points in _blocks(fixed):
        if transform.frame is None:
            points = transform.apply(points)
        else:
            points = points + transform.displacement.reshape(-1, 3)[block]
        result[block] = moving.contains_voxel(moving.world_to_voxel(points))
    return result.reshape(fixed.shape)
