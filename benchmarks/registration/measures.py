"""What is measured of one answer: labels, folds, symmetry and round trip, all on the images' own grids.

The transform is looked at once at the voxels of the fixed image, as ``avsm register`` does; labels follow by nearest
neighbour from the moving label's own grid.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scripts.metrics import label_metrics, world_jacobian
from scripts.spatial import Frame, OutsideFieldWarning, WorldTransform, resample_labels, transform_points

from .cases import Case
from .method import Answer

__all__ = [
    "PAPER_MARGIN",
    "carry",
    "displacement",
    "inverse_consistency",
    "label_means",
    "map_error",
    "measure",
    "symmetry",
]

PAPER_MARGIN = 10
"""Voxels that Figure 7 leaves out at each face of the paper's 192x192x80."""

_BLOCK = 1 << 18
_MOST_POINTS = 500_000
NAMES = ("dice", "hd95", "assd")


def carry(points: np.ndarray, transforms: Sequence[WorldTransform]) -> np.ndarray:
    """Points ``(N, 3)``, RAS mm, through transforms; where a field ends its affine part acts, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OutsideFieldWarning)
        return transform_points(points, transforms, "RAS")


def displacement(transforms: Sequence[WorldTransform], frame: Frame) -> np.ndarray:
    """Where transforms carry a grid's voxels, less where they are, ``(D, H, W, 3)`` float32, RAS mm."""
    result = np.empty((math.prod(frame.shape), 3), dtype=np.float32)
    for start in range(0, len(result), _BLOCK):
        index = np.arange(start, min(start + _BLOCK, len(result)))
        points = frame.voxel_to_world(np.stack(np.unravel_index(index, frame.shape), axis=-1))
        result[index] = carry(points, transforms) - points
    return result.reshape(*frame.shape, 3)


def _label_values(case: Case, field: np.ndarray) -> dict[int, dict[str, float]]:
    """Dice, HD95 and ASSD of every label that occurs in either map."""
    frame, label = case.fixed_label.frame, case.moving_label
    moved = resample_labels(label.array, label.frame, frame, [WorldTransform(np.eye(4), field, frame)], "nearest")
    return label_metrics(moved, case.fixed_label.array, frame.spacing)


def label_means(values: Mapping[int, Mapping[str, float]], labels: Sequence[int]) -> dict[str, float]:
    """Means over labels; one that the moved map has lost counts with a Dice of 0, and has no distances.

    Args:
        values: of `label_metrics`.
        labels: those to take the mean of; empty for all.
    """
    chosen = list(labels) or list(values)
    result = {}
    for name in NAMES:
        found = np.array([values.get(label, {}).get(name, math.nan) for label in chosen], dtype=np.float64)
        result[name] = float(np.nanmean(found)) if np.isfinite(found).any() else math.nan
    return result


def _interior(frame: Frame, margin: int) -> np.ndarray:
    """Evenly spread voxels of a grid without its margin, at most about half a million, ``(N, 3)`` RAS mm."""
    inner = [max(n - 2 * margin, 1) for n in frame.shape]
    step = max(1, math.ceil((math.prod(inner) / _MOST_POINTS) ** (1 / 3)))
    axes = [np.arange(margin, max(n - margin, margin + 1), step) for n in frame.shape]
    return frame.voxel_to_world(np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3))


def margin_of(frame: Frame) -> int:
    """The margin of Figure 7: the paper's 10 voxels, or an eighth of the shortest axis where that is less."""
    return min(PAPER_MARGIN, min(frame.shape) // 8)


def symmetry(
    there: Sequence[WorldTransform], back: Sequence[WorldTransform], fixed: Frame, moving: Frame
) -> dict[str, float]:
    """Figure 7: how far φ⁻¹ ∘ (φᵗˢ)⁻¹ is from the identity, the two found by two registrations.

    The composition begins in the interior of the moving image, where the exchanged registration's map lives. Points
    that it carries out of the fixed image are left out: what lies there is no image's matter.

    Args:
        there: of the pair, fixed to moving points.
        back: of the pair with the images exchanged, moving to fixed points.
        fixed: grid of the fixed image.
        moving: grid of the moving image.

    Returns:
        ``symmetry_ln``: ln of the mean squared length in units where the image is [0, 1]³ (the paper's measure, lower
        is better; -inf for exact inverses); ``symmetry_mm``: mean length in mm; ``symmetry_points``.
    """
    points = _interior(moving, margin_of(moving))
    middle = carry(points, back)
    inside = fixed.contains_voxel(fixed.world_to_voxel(middle))
    points, middle = points[inside], middle[inside]
    if not len(points):
        return {"symmetry_ln": math.nan, "symmetry_mm": math.nan, "symmetry_points": 0}
    error = carry(middle, there) - points
    part = error @ np.linalg.inv(moving.affine[:3, :3]).T / (np.asarray(moving.shape) - 1)
    square = float(np.square(part).sum(axis=1).mean())
    return {
        "symmetry_ln": math.log(square) if square > 0 else -math.inf,
        "symmetry_mm": float(np.linalg.norm(error, axis=1).mean()),
        "symmetry_points": len(points),
    }


def inverse_consistency(
    transform: Sequence[WorldTransform], inverse: Sequence[WorldTransform], fixed: Frame, moving: Frame
) -> dict[str, float]:
    """How far points of the fixed image's interior end from where they began, there and back by the method's inverse.

    Returns:
        ``inverse_consistency_mm`` and ``inverse_consistency_max_mm``, of points that land inside of the moving image.
    """
    points = _interior(fixed, margin_of(fixed))
    there = carry(points, transform)
    inside = moving.contains_voxel(moving.world_to_voxel(there))
    if not inside.any():
        return {"inverse_consistency_mm": math.nan, "inverse_consistency_max_mm": math.nan}
    error = np.linalg.norm(carry(there[inside], inverse) - points[inside], axis=1)
    return {"inverse_consistency_mm": float(error.mean()), "inverse_consistency_max_mm": float(error.max())}


def map_error(case: Case, field: np.ndarray) -> dict[str, float]:
    """Mean distance in mm from the true map, over the labelled voxels of the fixed image; empty where it is unknown."""
    if case.true_map is None:
        return {}
    where = case.fixed_label.array > 0
    index = np.argwhere(where)
    truth = case.moving.frame.normalised_to_world(np.moveaxis(case.true_map, 0, -1)[where])
    found = case.fixed.frame.voxel_to_world(index) + field[where]
    return {"map_error_mm": float(np.linalg.norm(found - truth, axis=1).mean())}


def measure(case: Case, answer: Answer, labels: Sequence[int], back: Answer | None = None) -> dict[str, Any]:
    """All measures of one answer.

    Args:
        case: the pair.
        answer: what the method found.
        labels: values whose mean counts; empty for all.
        back: what it found with the images exchanged, for the symmetry; None where that was not asked for.

    Returns:
        ``labels`` (value → measures), ``dice``, ``hd95``, ``assd`` and ``dice_affine`` (means); ``folds`` by all eight
        corner determinants and ``folds_sum``, the sum of their most negative ones without the sign; ``folds_central``
        and ``folds_central_sum`` by central differences, as the paper counts; the range, mean and standard deviation of
        the log of the Jacobian; `symmetry`, `inverse_consistency` and `map_error` where they can be had.
    """
    frame = case.fixed.frame
    field = displacement(answer.transform, frame)
    values = _label_values(case, field)
    jacobian = world_jacobian([WorldTransform(np.eye(4), field, frame)], frame)
    row: dict[str, Any] = {"labels": {str(label): one for label, one in values.items()}, **label_means(values, labels)}
    if answer.affine is not None:
        stage = _label_values(case, displacement(answer.affine, frame))
        row["dice_affine"] = label_means(stage, labels)["dice"]
    row.update(jacobian.measures)
    row["folds_central_sum"] = float(np.maximum(-jacobian.determinant, 0).sum())
    row.update(map_error(case, field))
    if back is not None:
        row.update(symmetry(answer.transform, back.transform, frame, case.moving.frame))
    if answer.inverse is not None:
        row.update(inverse_consistency(answer.transform, answer.inverse, frame, case.moving.frame))
    return row
