"""What a registration made of a pair, in the world: transforms, moved image and label, measures, warnings."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from ..formats import Image
from ..geometry import affine_map, count_folds, warp
from ..losses import MultiKernelLNCC, global_correlation
from ..metrics import label_metrics, mean_metrics
from ..metrics.maps import STAGES
from ..networks import AVSM
from ..spatial import WorldTransform, resample_image, resample_labels
from ..transform import Transform
from .accept import Accepted, accept
from .methods import Found
from .pair import Pair
from .sampling import SampledPair
from .voxels import lands_inside
from .world import inverse_consistency

__all__ = ["AcceptPaird", "MeasurePaird", "Result", "WarpPaird", "Warped", "versions"]

_STRETCH = 1.15
_PACKAGES = ("avsm", "monai", "torch", "pytorch-ignite", "itk", "nibabel", "numpy", "scipy")


@dataclass
class Warped:
    """The moving image and label on the fixed image's own grid, each interpolated once, at every stage.

    Attributes:
        moved: stage → ``(D, H, W)``.
        moved_label: stage → ``(D, H, W)``; empty without a moving label.
        inside: where every stage stays inside the moving image, ``(D, H, W)`` bool.
    """

    moved: dict[str, np.ndarray]
    moved_label: dict[str, np.ndarray]
    inside: np.ndarray


@dataclass
class Result:
    """A registered pair.

    Attributes:
        pair: what was registered.
        accepted: the transforms, and what they do to the fixed image's voxels.
        warped: the moving image and label at every stage.
        initial: the initialisation alone, fixed to moving.
        metrics: the content of ``metrics.json``.
        source: the object that was given as the moving image; None for a file.
    """

    pair: Pair
    accepted: Accepted
    warped: Warped
    initial: WorldTransform
    metrics: dict[str, Any] = field(default_factory=dict)
    source: Any = None

    @property
    def transform(self) -> Transform:
        """Fixed to moving points; it pulls images from moving to fixed."""
        return Transform([self.accepted.transform], inverses=self.accepted.inverse)

    @property
    def inverse(self) -> Transform:
        """Moving to fixed points, from the model itself (the flow of -v), not sought numerically."""
        return self.transform.inverse()

    @property
    def moved(self) -> Any:
        """The moving image on the fixed image's grid, in the kind that was given; a nibabel image for a file."""
        return self._like(self.warped.moved["final"])

    @property
    def moved_label(self) -> Any:
        """The moving label on the fixed image's grid, in the moving image's kind; None without one."""
        return self._like(self.warped.moved_label["final"]) if self.warped.moved_label else None

    @property
    def warnings(self) -> list[str]:
        """What the user should know, one line each."""
        return self.metrics["warnings"]

    def _like(self, array: np.ndarray) -> Any:
        from ..formats import image_like

        return image_like(self.source, array, self.pair.fixed.frame)

    def save(
        self, folder: str | os.PathLike, dtype: str = "float32", learn2reg: bool = False, report: bool = True
    ) -> Path:
        """Write all files of the registration, or none; see `PairWriter`."""
        from .write import PairWriter

        return PairWriter(folder, dtype, learn2reg, report).write(self)


class AcceptPaird:
    """MONAI transform: adds ``accepted``, by `accept`, to a pair with ``found``.

    Args:
        network: whose vSVF unit integrates.
        field_spacing: see `world_transforms`.
        tolerance: see `world_transforms`.
        keep_better: see `accept`.

    Raises:
        ValueError: when field_spacing or tolerance is not positive.
    """

    def __init__(self, network: AVSM, field_spacing: float, tolerance: float | None, keep_better: bool = True) -> None:
        for name, value in (("field_spacing", field_spacing), ("tolerance", tolerance)):
            if value is not None and not value > 0:
                raise ValueError(f"AcceptPaird: {name}={value}; give a positive number of mm.")
        self.network, self.options = network, (field_spacing, tolerance, keep_better)

    def __call__(self, data: Mapping[str, Any]) -> dict:
        """Accept."""
        start, found = time.perf_counter(), data["found"]
        accepted = accept(found.registration, self.network, data["sampled"], data["pair"], *self.options)
        found.seconds["transform"] = time.perf_counter() - start
        return {**data, "accepted": accepted}


class WarpPaird:
    """MONAI transform: adds ``warped``, a `Warped`, to an accepted pair.

    Args:
        interpolation: ``"linear"`` or ``"bspline"`` for the final image; the stages before are linear.
        label_interpolation: ``"nearest"``, or ``"linear"`` for each label on its own, then the largest.
    """

    def __init__(self, interpolation: str, label_interpolation: str) -> None:
        self.interpolation, self.label_interpolation = interpolation, label_interpolation

    def __call__(self, data: Mapping[str, Any]) -> dict:
        """Warp."""
        start = time.perf_counter()
        pair, accepted = data["pair"], data["accepted"]
        fixed, moving, label = pair.fixed.frame, pair.moving, pair.moving_label
        # The displacement is known at the fixed voxels, and serves image, label, field and Jacobian alike.
        final = WorldTransform(np.eye(4), accepted.displacement, fixed)
        transforms = dict(zip(STAGES, (data["sampled"].grids.initial, accepted.affine, final), strict=True))
        fill = float(moving.array.min())
        warped = Warped({}, {}, np.ones(fixed.shape, dtype=bool))
        for stage, transform in transforms.items():
            mode = self.interpolation if stage == "final" else "linear"
            warped.moved[stage] = resample_image(moving.array, moving.frame, fixed, [transform], mode, fill)
            warped.inside &= lands_inside(transform, fixed, moving.frame)
            if label is not None:
                warped.moved_label[stage] = resample_labels(
                    label.array, label.frame, fixed, [transform], self.label_interpolation
                )
        data["found"].seconds["resample"] = time.perf_counter() - start
        return {**data, "warped": warped}


class MeasurePaird:
    """MONAI transform: adds ``result``, the `Result` of a warped pair.

    Args:
        labels: label values to measure; None for all that occur but 0.
        tolerance: mm; an inverse that is less exact anywhere is told in the warnings. None tells nothing.
        facts: further entries of the metrics (weights, seed, settings).
    """

    def __init__(
        self, labels: Sequence[int] | None, tolerance: float | None, facts: Mapping[str, Any] | None = None
    ) -> None:
        self.labels = None if labels is None else [int(label) for label in labels]
        self.tolerance = tolerance
        self.facts = {} if facts is None else dict(facts)
        self.similarity = MultiKernelLNCC(reduction="none")

    def __call__(self, data: Mapping[str, Any]) -> dict:
        """Measure."""
        start = time.perf_counter()
        pair, sampled, found, accepted, warped = (
            data[key] for key in ("pair", "sampled", "found", "accepted", "warped")
        )
        grids, jacobian, registration = sampled.grids, accepted.jacobian, accepted.registration
        consistency = inverse_consistency(accepted.transform, accepted.inverse, grids.fixed, grids.moving)
        centre, measures = grids.fixed.centre, jacobian.measures
        metrics: dict[str, Any] = {
            "name": pair.name or None,
            "fixed": _describe(pair.fixed),
            "moving": _describe(pair.moving),
            "initialisation": {
                "method": grids.method,
                "translation_mm": (grids.initial.apply(centre) - centre).round(6).tolist(),
                "network_grid": list(grids.fixed.shape),
                "network_spacing": grids.fixed.spacing.round(6).tolist(),
            },
            "affine": {"matrix_ras": accepted.affine.linear.tolist(), "steps_kept": found.affine_steps},
            "similarity": {
                "ncc": _correlations(pair, warped),
                "mk_lncc": self._similarities(sampled, found, accepted),
            },
            "folds": jacobian.folds,
            "folds_network_grid": int(count_folds(registration.map)[0].item()),
            "jacobian": {
                "min": measures["jacobian_min"],
                "max": measures["jacobian_max"],
                "std_log": measures["std_log_jacobian"],
                "folds_sum": jacobian.folds_sum,
                "folds_central": measures["folds_central"],
            },
            "inverse_consistency_mm": consistency,
            **found.facts_of(registration, accepted.length),
        }
        if warped.moved_label and pair.fixed_label is not None:
            metrics["labels"] = self._labels(pair.fixed_label, warped)
        metrics["warnings"] = [
            *pair.notes,
            *found.notes,
            *accepted.notes,
            *_stretch_notes(accepted.affine, pair),
            *self._inverse_notes(consistency),
        ]
        metrics.update(versions=versions(), **self.facts)
        metrics["seconds"] = {**found.seconds, "measure": time.perf_counter() - start}
        result = Result(pair, accepted, warped, grids.initial, metrics)
        return {**data, "result": result}

    @torch.no_grad()
    def _similarities(self, sampled: SampledPair, found: Found, accepted: Accepted) -> dict[str, float]:
        """mk-LNCC of every stage on the network's grid, within the mask; 1 is best."""
        registration = accepted.registration
        moving, fixed, mask, _ = sampled.to(registration.affine.device).volumes
        images = {
            "before": moving,
            "affine": warp(moving, affine_map(registration.affine, list(moving.shape[2:]))),
            "final": registration.moved,
        }
        return {stage: 1 - self.similarity(image, fixed, mask).item() for stage, image in images.items()}

    def _labels(self, fixed: Image, warped: Warped) -> dict[str, dict]:
        """Dice, HD95 and ASSD of every label, and their means, at every stage."""
        found = {
            stage: label_metrics(moved, fixed.array, fixed.frame.spacing, self.labels)
            for stage, moved in warped.moved_label.items()
        }
        every = sorted({label for measures in found.values() for label in measures})
        rows = {str(label): {stage: found[stage].get(label, {}) for stage in STAGES} for label in every}
        rows["mean"] = {stage: mean_metrics(found[stage]) for stage in STAGES}
        return {
            label: {
                name: {stage: stages[stage].get(name, float("nan")) for stage in STAGES}
                for name in ("dice", "hd95", "assd")
            }
            for label, stages in rows.items()
        }

    def _inverse_notes(self, consistency: Mapping[str, float]) -> list[str]:
        worst = consistency["max"]
        if self.tolerance is None or not worst > self.tolerance:
            return []
        return [
            f"transform and inverse undo each other to {consistency['mean']:.2g} mm in the mean, but to {worst:.2g} mm "
            f"at the worst point, past inverse_tolerance {self.tolerance:g}: a finer field would be too large or gain "
            "nothing; where that point matters, crop the images to what does"
        ]


def versions() -> dict[str, str]:
    """Versions of Python and of what the result depends on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _correlations(pair: Pair, warped: Warped) -> dict[str, float]:
    """NCC of every stage with the fixed image, where all stages and the mask have voxels."""
    region = warped.inside if pair.fixed_mask is None else warped.inside & pair.fixed_mask.array
    if np.count_nonzero(region) < 2:
        return dict.fromkeys(STAGES, float("nan"))

    def values(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array[region].astype(np.float64)).view(1, 1, 1, 1, -1)

    fixed = values(pair.fixed.array)
    return {stage: global_correlation(values(warped.moved[stage]), fixed, eps=0.0).item() for stage in STAGES}


def _stretch_notes(affine: WorldTransform, pair: Pair) -> list[str]:
    """A line where the affine stretches an axis so much that a spacing in a header may be wrong."""
    factors = np.linalg.norm(affine.linear[:3, :3] @ pair.fixed.frame.direction, axis=0)
    return [
        f"the affine scales the fixed image's axis {axis} by {factor:.3f}: between scans of one person, look at "
        "the spacing in both headers"
        for axis, factor in enumerate(factors)
        if not 1 / _STRETCH < factor < _STRETCH
    ]


def _describe(image: Image) -> dict[str, Any]:
    """The grid of an image, for people and for repeating the run."""
    return {
        "path": str(image.path),
        "shape": list(image.frame.shape),
        "spacing": image.frame.spacing.round(6).tolist(),
        "origin_ras": image.frame.origin.round(6).tolist(),
        "axcodes": "".join(nib.aff2axcodes(image.frame.affine)),
    }
