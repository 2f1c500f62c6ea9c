"""What a user is told of a registration: similarity, folds, round trip in mm, and label measures."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np
import torch

from ..geometry import count_folds
from ..losses import global_correlation
from ..metrics import displacement_jacobian, label_metrics, mean_metrics
from ..spatial.frame import Frame
from .round_trip import round_trip
from .world import STAGES

__all__ = ["MeasurePaird", "stretches"]

_STRETCH = 1.15


def stretches(linear: np.ndarray, frame: Frame) -> np.ndarray:
    """By how much an affine stretches along each axis of a grid, ``(3,)``."""
    return np.linalg.norm(linear[:3, :3] @ frame.direction, axis=0)


class MeasurePaird:
    """Adds ``jacobian`` ``(D, H, W)`` and ``metrics``, the content of ``metrics.json`` that comes from the pair itself.

    Args:
        labels: label values to measure; None for all that occur but 0.
    """

    def __init__(self, labels: Sequence[int] | None = None) -> None:
        self.labels = None if labels is None else [int(label) for label in labels]

    def __call__(self, data: Mapping[str, Any]) -> dict:
        """Measure."""
        item, start = dict(data), time.perf_counter()
        images, registered = item["images"], item["registered"]
        fixed = images["fixed"]
        jacobian = item.get("regularity")
        if jacobian is None:
            jacobian = displacement_jacobian(item["displacement"], fixed.frame)
        item["jacobian"] = jacobian.determinant.astype(np.float32)
        consistency = round_trip(item["transform"], item["inverse"], item["grids"].fixed, item["grids"].moving)
        notes = [*item["notes"], *registered.notes, *self._stretch_notes(item), *_round_trip_notes(consistency, item)]
        metrics: dict[str, Any] = {
            "name": item.get("name"),
            "fixed": _describe(fixed),
            "moving": _describe(images["moving"]),
            "initialisation": {
                "method": item["grids"].method,
                "translation_mm": _initial_shift(item),
                "network_grid": list(item["grids"].fixed.shape),
                "network_spacing": item["grids"].fixed.spacing.round(6).tolist(),
            },
            "affine": {
                "matrix_ras": item["affine_transform"].linear.tolist(),
                "steps_kept": registered.affine_steps,
            },
            "similarity": {
                "ncc": self._correlations(item),
                "mk_lncc": {stage: 1 - registered.similarity[stage] for stage in STAGES},
            },
            "folds": jacobian.folds,
            "folds_network_grid": int(count_folds(registered.registration.map)[0].item()),
            "jacobian": {
                "min": float(jacobian.determinant.min()),
                "max": float(jacobian.determinant.max()),
                "std_log": jacobian.measures["std_log_jacobian"],
                "folds_sum": jacobian.folds_sum,
                "folds_central": jacobian.measures["folds_central"],
            },
            "inverse_consistency_mm": consistency,
        }
        if item["moved_label"] and "fixed_label" in images:
            metrics["labels"] = self._labels(item)
        if registered.refinement is not None:
            found = registered.refinement
            metrics["instance_optimisation"] = {
                "steps": found.steps,
                "before": found.before.item(),
                "after": found.after.item(),
                "folds_before": int(found.folds_before.item()),
                "folds_after": int(found.folds_after.item()),
            }
        if registered.twin:
            metrics["optimisation"] = registered.twin
        metrics["warnings"] = notes
        registered.seconds["measure"] = time.perf_counter() - start
        item["metrics"] = metrics
        return item

    def _correlations(self, item: Mapping[str, Any]) -> dict[str, float]:
        """NCC of every stage with the fixed image, where all stages and the mask have voxels."""
        images = item["images"]
        region = item["inside"]
        if "fixed_mask" in images:
            region = region & images["fixed_mask"].array
        if np.count_nonzero(region) < 2:
            return dict.fromkeys(STAGES, float("nan"))
        fixed = torch.from_numpy(images["fixed"].array[region].astype(np.float64)).view(1, 1, 1, 1, -1)
        return {
            stage: global_correlation(
                torch.from_numpy(item["moved"][stage][region].astype(np.float64)).view(1, 1, 1, 1, -1), fixed, eps=0.0
            ).item()
            for stage in STAGES
        }

    def _labels(self, item: Mapping[str, Any]) -> dict[str, dict]:
        """Dice, HD95 and ASSD of every label and their means, for every stage."""
        fixed = item["images"]["fixed_label"]
        found = {
            stage: label_metrics(item["moved_label"][stage], fixed.array, fixed.frame.spacing, self.labels)
            for stage in STAGES
        }
        every = {label for measures in found.values() for label in measures}
        table: dict[str, dict] = {}
        for label in [*sorted(every), "mean"]:
            rows = {
                stage: mean_metrics(found[stage]) if label == "mean" else found[stage].get(label, {})
                for stage in STAGES
            }
            table[str(label)] = {
                name: {stage: rows[stage].get(name, float("nan")) for stage in STAGES}
                for name in ("dice", "hd95", "assd")
            }
        return table

    def _stretch_notes(self, item: Mapping[str, Any]) -> list[str]:
        """A line where the affine stretches an axis so much that a spacing in a header may be wrong."""
        frame = item["images"]["fixed"].frame
        factors = stretches(item["affine_transform"].linear, frame)
        return [
            f"the affine scales the fixed image's axis {axis} by {factor:.3f}: between scans of one person, look at "
            "the spacing in both headers"
            for axis, factor in enumerate(factors)
            if not 1 / _STRETCH < factor < _STRETCH
        ]


def _round_trip_notes(consistency: Mapping[str, float], item: Mapping[str, Any]) -> list[str]:
    """A line where the inverse is not as exact as `WorldTransformsd` was asked for."""
    worst, tolerance = consistency["max"], item["round_trip_tolerance"]
    if tolerance is None or not worst > tolerance:
        return []
    return [
        f"transform and inverse undo each other to {consistency['mean']:.2g} mm in the mean, but to {worst:.2g} mm at "
        f"the worst point, past round_trip_tolerance {tolerance:g}: a finer field would be too large or gain nothing; "
        "where that point matters, crop the images to what does"
    ]


def _initial_shift(item: Mapping[str, Any]) -> list[float]:
    """What the initialisation does to the middle of the fixed network grid, RAS mm."""
    centre = item["grids"].fixed.centre
    return (item["initial_transform"].apply(centre) - centre).round(6).tolist()


def _describe(image: Any) -> dict[str, Any]:
    """The grid of an image, for people and for repeating the run."""
    return {
        "path": str(image.path),
        "shape": list(image.frame.shape),
        "spacing": image.frame.spacing.round(6).tolist(),
        "origin_ras": image.frame.origin.round(6).tolist(),
        "axcodes": "".join(nib.aff2axcodes(image.frame.affine)),
    }
