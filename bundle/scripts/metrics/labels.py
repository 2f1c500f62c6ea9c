"""Overlap and surface distances of two label maps on one grid."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from scipy.ndimage import find_objects
from scipy.spatial import KDTree

from ..errors import InputError

NAMES = ("dice", "hd95", "assd")


def _one_label(moved: np.ndarray, fixed: np.ndarray, spacing: Sequence[float]) -> dict[str, float]:
    """The measures of one label from two masks."""
    result = dict.fromkeys(NAMES, float("nan"))
    sizes = np.count_nonzero(moved), np.count_nonzero(fixed)
    if sizes[1]:
        result["dice"] = 2 * np.count_nonzero(moved & fixed) / sum(sizes)
    if all(sizes):
        # Distances are between surfaces, so what lies around both labels costs time and says nothing. An edge voxel
        # stays one when its mask is cut out.
        box = find_objects((moved | fixed).view(np.int8), max_label=1)[0]
        surfaces = [np.argwhere(_surface(mask[box])) * np.asarray(spacing) for mask in (moved, fixed)]
        # Of points alone, as a distance transform of a large label takes gigabytes and minutes.
        there, back = (KDTree(other).query(own)[0] for own, other in (surfaces, surfaces[::-1]))
        result["hd95"] = float(max(np.percentile(there, 95), np.percentile(back, 95)))
        result["assd"] = float(np.concatenate([there, back]).mean())
    return result


def _surface(mask: np.ndarray) -> np.ndarray:
    """The voxels of a mask with one of their six neighbours outside of it, or none there."""
    inner = mask.copy(order="K")
    for axis in range(3):
        here, there = np.moveaxis(inner, axis, 0), np.moveaxis(mask, axis, 0)
        here[1:] &= there[:-1]
        here[:-1] &= there[1:]
        here[0] = here[-1] = False
    return mask & ~inner


def label_metrics(
    moved: np.ndarray, fixed: np.ndarray, spacing: Sequence[float], labels: Iterable[int] | None = None
) -> dict[int, dict[str, float]]:
    """Dice, HD95 and ASSD of each label.

    A surface is the voxels of a label that have one of their six neighbours outside of it (or the image's end).
    Distances are those of voxel centres in mm. HD95 is the larger of the two directed 95th percentiles, ASSD the mean
    over both surfaces together. The values are those of ``monai.metrics``, which takes seconds to import.

    Args:
        moved: moving label map, already on the fixed grid, ``(D, H, W)``, whole numbers.
        fixed: ``(D, H, W)``.
        spacing: mm along each array axis.
        labels: the values to measure; None: all but 0 that occur in either map.

    Returns:
        label → ``dice``, ``hd95``, ``assd`` (mm). Dice is NaN where the fixed map lacks the label, as in the
        workflows' ``pairs.csv``; distances are NaN where either map lacks it.

    Raises:
        InputError: if the shapes differ or are not 3-D, or the spacing is not three positive numbers.
    """
    if moved.shape != fixed.shape or moved.ndim != 3:
        raise InputError(
            f"labels: need two label maps (D, H, W) on one grid, got {moved.shape} and {fixed.shape}; resample one"
        )
    steps = np.asarray(spacing, dtype=np.float64)
    if steps.shape != (3,) or not (np.isfinite(steps) & (steps > 0)).all():
        raise InputError(f"spacing: need three positive numbers of mm, got {steps.tolist()}")
    if labels is None:
        labels = np.setdiff1d(np.union1d(np.unique(moved), np.unique(fixed)), [0])
    return {int(label): _one_label(moved == label, fixed == label, steps.tolist()) for label in labels}


def mean_metrics(metrics: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """The mean of each measure of `label_metrics` over the labels that have one; NaN where none has."""
    result = {}
    for name in NAMES:
        values = np.array([values[name] for values in metrics.values()], dtype=np.float64)
        values = values[np.isfinite(values)]
        result[name] = float(values.mean()) if values.size else float("nan")
    return result
