"""How well a transform and its inverse undo each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..spatial.frame import Frame
from ..spatial.transform import WorldTransform

__all__ = ["round_trip"]

_INTERIOR = 0.85


def round_trip(
    transform: WorldTransform, inverse: Sequence[WorldTransform], fixed: Frame, moving: Frame
) -> dict[str, float]:
    """How far points end from where they began when carried to the moving image and back, mm.

    Points are the voxels of ``fixed`` in the inner 85 % of its extent that also land in the inner 85 % of ``moving``'s:
    farther out, the end of the grids has its say.

    Args:
        transform: fixed to moving.
        inverse: moving to fixed, first listed, first applied.
        fixed: a grid over the fixed image.
        moving: a grid over the moving image.

    Returns:
        ``mean``, ``p99``, ``max`` in mm and ``points``, their number; NaN without points.
    """
    index = np.stack(np.indices(fixed.shape), axis=-1).reshape(-1, 3)
    points = fixed.voxel_to_world(index)
    there = transform.apply(points)
    inner = np.abs(fixed.world_to_normalised(points)).max(axis=1) <= _INTERIOR
    inner &= np.abs(moving.world_to_normalised(there)).max(axis=1) <= _INTERIOR
    back = there[inner]
    for part in inverse:
        back = part.apply(back)
    error = np.linalg.norm(back - points[inner], axis=1)
    if not error.size:
        return {"mean": float("nan"), "p99": float("nan"), "max": float("nan"), "points": 0}
    return {
        "mean": float(error.mean()),
        "p99": float(np.percentile(error, 99)),
        "max": float(error.max()),
        "points": int(error.size),
    }
