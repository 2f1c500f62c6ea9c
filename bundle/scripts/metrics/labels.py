"""Overlap and surface distances of two label maps on one grid."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from monai.metrics import compute_average_surface_distance, compute_dice, compute_hausdorff_distance

from ..errors import InputError

NAMES = ("dice", "hd95", "assd")


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    """The smallest box around a mask that is not empty; an edge voxel stays one when the mask is cut out by it."""
    spans = (np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3))
    return tuple(slice(int(span[0]), int(span[-1]) + 1) for span in spans)


def _one_label(moved: np.ndarray, fixed: np.ndarray, spacing: Sequence[float]) -> dict[str, float]:
    """The measures of one label from two masks."""
    either = moved | fixed
    if not either.any():
        return dict.fromkeys(NAMES, float("nan"))
    # Distances are between surfaces, so what lies around both labels costs time and says nothing.
    box = _box(either)
    pair = [torch.from_numpy(np.ascontiguousarray(mask[box]))[None, None] for mask in (moved, fixed)]
    result = {"dice": compute_dice(pair[0].float(), pair[1].float()).item()}
    if not (moved.any() and fixed.any()):
        return {**result, "hd95": float("nan"), "assd": float("nan")}
    options = {"include_background": True, "spacing": list(spacing)}
    with warnings.catch_warnings():
        # MONAI warns of its own use of an argument that it will drop.
        warnings.simplefilter("ignore", FutureWarning)
        result["hd95"] = compute_hausdorff_distance(*pair, percentile=95, **options).item()
        result["assd"] = compute_average_surface_distance(*pair, symmetric=True, **options).item()
    return result


def label_metrics(
    moved: np.ndarray, fixed: np.ndarray, spacing: Sequence[float], labels: Iterable[int] | None = None
) -> dict[int, dict[str, float]]:
    """Dice, HD95 and ASSD of each label.

    A surface is the voxels of a label that have one of their six neighbours outside of it (or the image's end).
    Distances are those of voxel centres in mm. HD95 is the larger of the two directed 95th percentiles, ASSD the mean
    over both surfaces together.

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
