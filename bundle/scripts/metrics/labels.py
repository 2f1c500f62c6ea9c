"""Overlap and surface distances of two label maps on one grid."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from scipy.ndimage import binary_erosion, find_objects
from scipy.spatial import KDTree

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
        masks = (moved[box], fixed[box])
        surfaces = [np.argwhere(mask & ~binary_erosion(mask)) * np.asarray(spacing) for mask in masks]
        # Of points alone, as a distance transform of a large label takes gigabytes and minutes.
        there, back = (KDTree(other).query(own)[0] for own, other in (surfaces, surfaces[::-1]))
        result["hd95"] = float(max(np.percentile(there, 95), np.percentile(back, 95)))
        result["assd"] = float(np.concatenate([there, back]).mean())
    return result


def label_metrics(
    moved: np.ndarray, fixed: np.ndarray, spacing: Sequence[float], labels: Iterable[int] | None = None
) -> dict[int, dict[str, float]]:
    """Dice, HD95 and ASSD of each label of two label maps ``(D, H, W)`` of whole numbers on one grid.

    A surface is the voxels of a label that have one of their six neighbours outside of it (or the image's end).
    Distances are those of voxel centres in mm. HD95 is the larger of the two directed 95th percentiles, ASSD the mean
    over both surfaces together. The values are those of ``monai.metrics``, which takes seconds to import.

    Args:
        moved: moving label map, already on the fixed grid.
        fixed: the fixed one.
        spacing: mm along each array axis.
        labels: the values to measure; None: all but 0 that occur in either map.

    Returns:
        label → ``dice``, ``hd95``, ``assd`` (mm). Dice is NaN where the fixed map lacks the label, as in the
        workflows' ``pairs.csv``; distances are NaN where either map lacks it.
    """
    if labels is None:
        labels = np.setdiff1d(np.union1d(np.unique(moved), np.unique(fixed)), [0])
    return {int(label): _one_label(moved == label, fixed == label, spacing) for label in labels}


def mean_metrics(metrics: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """The mean of each measure of `label_metrics` over the labels that have one; NaN where none has."""
    found = {name: [one[name] for one in metrics.values() if np.isfinite(one[name])] for name in NAMES}
    return {name: float(np.mean(values)) if values else float("nan") for name, values in found.items()}
