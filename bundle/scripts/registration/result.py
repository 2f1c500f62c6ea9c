"""What a registration made of a pair, in the world: transforms, moved image and label, measures, warnings."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from threading import Lock
from typing import Any

import nibabel as nib
import numpy as np
import torch

from ..formats import Image, names_of, read_label_names
from ..geometry import count_folds
from ..losses import MultiKernelLNCC
from ..metrics import label_metrics, mean_metrics, target_registration_error
from ..networks import AVSM
from ..report.verdict import Verdict, judge, least_sure
from ..settings import STAGES
from ..spatial import Frame, WorldTransform
from ..spatial.grid_map import in_slabs
from ..spatial.resampling import image_sampler, label_sampler, resample_image
from ..transform import Transform
from .accept import Accepted, accept
from .grids import NetworkGrids
from .methods import Found
from .pair import Pair
from .pose import rival
from .sampling import SampledPair
from .voxels import threads
from .world import inverse_consistency

__all__ = ["AcceptPaird", "MeasurePaird", "Result", "WarpPaird", "Warped", "versions"]

_TURNED = 30  # degrees
_LITTLE = 0.3  # of an agreement; below it a mirror image says nothing
_BLOCK = 1 << 17
_PACKAGES = ("avsm", "monai", "torch", "pytorch-ignite", "itk", "nibabel", "numpy", "scipy")


@dataclass
class Warped:
    """The moving image and label on the fixed image's own grid, each interpolated once at every stage.

    Attributes:
        moved: ``before`` and ``final`` → ``(D, H, W)``.
        moved_label: stage → ``(D, H, W)``; empty without a moving label.
        ncc: stage → NCC with the fixed image where all stages and the mask have voxels; NaN where there is nothing.
    """

    moved: dict[str, np.ndarray]
    moved_label: dict[str, np.ndarray]
    ncc: dict[str, float]


# Its arrays would fill pages.
@dataclass(repr=False)
class Result:
    """A registered pair.

    Attributes:
        pair: what was registered.
        accepted: the transforms, and what they do to the fixed image's voxels.
        warped: the moving image and label at every stage.
        initial: the initialisation alone, fixed to moving, without the fields of a transform that was started from.
        metrics: the content of ``metrics.json``.
        source: the object that was given as the moving image; None for a file.
    """

    pair: Pair
    accepted: Accepted
    warped: Warped
    initial: WorldTransform
    metrics: dict[str, Any] = field(default_factory=dict)
    source: Any = None

    def __repr__(self) -> str:
        names = " to ".join(Path(image.path).name for image in (self.pair.moving, self.pair.fixed))
        return f"Result({names}: {self.verdict}, {self.transform!r})"

    @property
    def verdict(self) -> Verdict:
        """PASS, CHECK or FAIL (``str(result.verdict)``), its reasons, and what to do."""
        return Verdict.of(self.metrics)

    @property
    def uncertainty(self) -> Any:
        """How far structures may be off, mm, on the fixed image's grid, in the moving image's kind."""
        return self._like(self.doubt_map())

    def doubt_map(self) -> np.ndarray:
        """`uncertainty` as an array ``(D, H, W)`` float32."""
        grid, doubt = _doubt_grid(self.accepted), self.accepted.doubt
        array = doubt.uncertainty.cpu().numpy()
        # Nearest beyond the grid, which ends half a step within the content's box.
        padded = Frame(tuple(n + 2 for n in grid.shape), _shifted(grid.affine, -1))
        return resample_image(np.pad(array, 1, mode="edge"), padded, self.pair.fixed.frame, [], fill=float(array.max()))

    @property
    def transform(self) -> Transform:
        """Fixed to moving points; it pulls images from moving to fixed."""
        return Transform(self.accepted.chain, inverses=self.accepted.inverse)

    @property
    def inverse(self) -> Transform:
        """Moving to fixed points, sought once for the whole moving image; see `inverse_transform`."""
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
        self,
        folder: str | os.PathLike,
        dtype: str = "float32",
        learn2reg: bool = False,
        report: bool = True,
        uncertainty: bool = False,
    ) -> Path:
        """Write all files of the registration, or none; see `PairWriter`."""
        from .write import PairWriter

        return PairWriter(folder, dtype, learn2reg, report, uncertainty).write(self)


class AcceptPaird:
    """MONAI transform: adds ``accepted``, by `accept`, to a pair with ``found``.

    Args:
        network: whose vSVF unit integrates.
        tolerance: mm, see `accept`.
        max_memory: see `accept`.

    Raises:
        ValueError: when tolerance is not positive.
    """

    def __init__(self, network: AVSM, tolerance: float, max_memory: int | None = None) -> None:
        if not isinstance(tolerance, int | float) or not tolerance > 0:
            raise ValueError(f"AcceptPaird: tolerance={tolerance}; give a positive number of mm.")
        self.network, self.options = network, (tolerance, max_memory)

    def __call__(self, data: Mapping[str, Any]) -> dict:
        """Accept."""
        begin, found, sampled, pair = time.perf_counter(), data["found"], data["sampled"], data["pair"]
        start = sampled.start
        posed = pair if start is None else start.pair
        tolerance, max_memory = self.options
        # What labels, landmarks and further images drive may be less similar than the affine.
        how = tolerance, not found.guided, max_memory
        accepted = accept(found.registration, self.network, sampled, posed, *how, found.similarity)
        if start is not None:
            accepted = start.follow(accepted, pair)
        found.seconds["transform"] = time.perf_counter() - begin
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
        sampled = data["sampled"]
        before = [sampled.grids.initial, *(sampled.start.parts if sampled.start else ())]
        transforms = dict(zip(STAGES, (before, [accepted.affine, *accepted.after], accepted.chain), strict=True))
        fill = float(moving.array.min())
        samplers, label_samplers = {}, {}
        for stage, chain in transforms.items():
            mode = self.interpolation if stage == "final" else "linear"
            samplers[stage] = image_sampler(moving.array, moving.frame, fixed, chain, mode, fill)
            if label is not None:
                label_samplers[stage] = label_sampler(label.array, label.frame, fixed, chain, self.label_interpolation)
        moved = {stage: np.empty(fixed.shape, samplers[stage].dtype) for stage in ("before", "final")}
        moved_label = {stage: np.empty(fixed.shape, sampler.dtype) for stage, sampler in label_samplers.items()}
        sums = _Correlations(pair)

        def work(rows: slice) -> None:
            found = {stage: sampler(rows) for stage, sampler in samplers.items()}
            sums.add(rows, found)
            for stage, array in moved.items():
                array[rows] = found[stage][0]
            for stage, array in moved_label.items():
                array[rows] = label_samplers[stage](rows)[0]

        in_slabs(work, fixed.shape, _BLOCK, threads())
        data["found"].seconds["resample"] = time.perf_counter() - start
        return {**data, "warped": Warped(moved, moved_label, sums.values)}


class MeasurePaird:
    """MONAI transform: adds ``result``, the `Result` of a warped pair.

    Args:
        labels: label values to measure; None for all that occur but 0.
        facts: further entries of the metrics (weights, seed, settings).
        label_names: file of ITK-SNAP's label descriptions; None: labels are called by their values.
    """

    def __init__(
        self,
        labels: Sequence[int] | None,
        facts: Mapping[str, Any] | None = None,
        label_names: str | os.PathLike | None = None,
    ) -> None:
        self.labels = None if labels is None else [int(label) for label in labels]
        self.names = {} if label_names is None else read_label_names(label_names)
        self.facts = {} if facts is None else dict(facts)
        self.similarity = MultiKernelLNCC()

    def __call__(self, data: Mapping[str, Any]) -> dict:
        """Measure."""
        start = time.perf_counter()
        pair, sampled, found, accepted, warped = (
            data[key] for key in ("pair", "sampled", "found", "accepted", "warped")
        )
        grids, jacobian, registration = sampled.grids, accepted.jacobian, accepted.registration
        started = sampled.start
        moving = grids.moving if started is None else pair.moving.frame
        consistency = inverse_consistency(accepted.chain, accepted.inverse, grids.fixed, moving)
        initial = grids.initial if started is None else WorldTransform(started.linear @ grids.initial.linear)
        centre, measures = grids.fixed.centre, jacobian.measures
        metrics: dict[str, Any] = {
            "name": pair.name or None,
            "fixed": _describe(pair.fixed),
            "moving": _describe(pair.moving),
            "initialisation": {
                "method": grids.method,
                "translation_mm": (initial.apply(centre) - centre).round(6).tolist(),
                **({} if started is None else {"transforms": started.start.names}),
                **({} if grids.pose is None else grids.pose.facts),
                "network_grid": list(grids.fixed.shape),
                "network_spacing": grids.fixed.spacing.round(6).tolist(),
            },
            "affine": {
                "kind": accepted.affine.kind,
                "matrix_ras": accepted.affine.linear.tolist(),
                "found_by": found.affine_from,
                "steps_kept": found.affine_steps,
            },
            "similarity": {"ncc": warped.ncc, "mk_lncc": self._similarities(sampled, accepted)},
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
            **({"optimisation": found.facts} if found.facts else {}),
        }
        if warped.moved_label and pair.fixed_label is not None:
            metrics["labels"] = self._labels(pair.fixed_label, warped)
            if self.names:
                metrics["label_names"] = names_of(metrics["labels"], self.names)
        if pair.fixed_points is not None:
            before = [grids.initial, *(started.parts if started else ())]
            metrics["landmarks_mm"] = self._landmarks(pair, before, accepted)
        if driven := sampled.driven:
            metrics["driven_by"] = driven
        metrics["verdict"] = _judged(sampled, accepted, found, metrics)
        metrics["warnings"] = [
            *pair.notes,
            *_pose_notes(grids, pair),
            *found.notes,
            *accepted.notes,
            *_landmark_notes(metrics),
            *_inverse_notes(consistency, pair),
        ]
        metrics.update(versions=dict(versions()), **self.facts)
        metrics["seconds"] = {"start": sampled.seconds, **found.seconds, "measure": time.perf_counter() - start}
        result = Result(pair, accepted, warped, initial, metrics)
        return {**data, "result": result}

    @torch.no_grad()
    def _similarities(self, sampled: SampledPair, accepted: Accepted) -> dict[str, float]:
        """mk-LNCC of every stage on the network's grid, within the mask; 1 is best."""
        registration = accepted.registration
        moving, fixed, mask, _ = sampled.to(registration.affine.device).volumes
        images = {"before": moving, "affine": accepted.affine_moved, "final": registration.moved}
        return {stage: 1 - self.similarity(image, fixed, mask).item() for stage, image in images.items()}

    def _landmarks(self, pair: Pair, before: Sequence[WorldTransform], accepted: Accepted) -> dict[str, Any]:
        """How far the moving landmarks lie from where the fixed ones are carried, mm, at every stage."""
        stages = (before, [accepted.affine, *accepted.after], accepted.chain)
        found = {
            stage: target_registration_error(pair.fixed_points, pair.moving_points, chain)
            for stage, chain in zip(STAGES, stages, strict=True)
        }
        names = ("mean", "median", "max")
        count = found["final"]["count"]
        return {"count": count, **{name: {stage: found[stage][name] for stage in STAGES} for name in names}}

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


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of what the result depends on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


class _Correlations:
    """Gathers the NCC of every stage with the fixed image, rows by rows, where all stages and the mask have voxels."""

    def __init__(self, pair: Pair) -> None:
        self.fixed, self.mask, self.lock = pair.fixed.array, pair.fixed_mask, Lock()
        # Sums of squares about a value amid the others lose no digits.
        self.middle = [
            float(image.array.flat[:: 1 + image.array.size // 1000].mean()) for image in (pair.fixed, pair.moving)
        ]
        self.count, self.sums = 0, {stage: np.zeros(5) for stage in STAGES}

    def add(self, rows: slice, found: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
        """Count the fixed image's rows, and the values of every stage there with what lies outside, in."""
        region = ~np.logical_or.reduce([outside for _, outside in found.values()])
        if self.mask is not None:
            region &= self.mask.array[rows]
        fixed = self.fixed[rows][region] - np.float64(self.middle[0])
        for stage, (values, _) in found.items():
            moved = values[region] - np.float64(self.middle[1])
            sums = [moved.sum(), fixed.sum(), (moved * fixed).sum(), np.square(moved).sum(), np.square(fixed).sum()]
            with self.lock:
                self.sums[stage] += sums
        with self.lock:
            self.count += fixed.size

    @property
    def values(self) -> dict[str, float]:
        """Stage → NCC."""
        result = {}
        with np.errstate(invalid="ignore", divide="ignore"):
            for stage, sums in self.sums.items():
                moved, fixed, product, moved_squares, fixed_squares = sums / max(self.count, 1)
                spread = (moved_squares - moved**2) * (fixed_squares - fixed**2)
                result[stage] = float((product - moved * fixed) / np.sqrt(spread))
        return result if self.count > 1 else dict.fromkeys(STAGES, float("nan"))


def _doubt_grid(accepted: Accepted) -> Frame:
    """The grid of the doubt of a registration."""
    doubt, grid = accepted.doubt, accepted.grid
    affine = _shifted(grid.affine, (doubt.step / 2 - 1) / 2)
    affine[:3, :3] *= doubt.step
    return Frame(tuple(doubt.uncertainty.shape), affine)


def _shifted(affine: np.ndarray, voxels: float) -> np.ndarray:
    """An affine whose first voxel lies so many voxels farther along every axis."""
    affine = affine.copy()
    affine[:3, 3] += affine[:3, :3] @ np.full(3, voxels)
    return affine


def _judged(sampled: SampledPair, accepted: Accepted, found: Found, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The content of ``verdict`` in ``metrics.json``."""
    doubt, grid = accepted.doubt, _doubt_grid(accepted)
    affine = sampled.grids.linear(accepted.registration.affine).linear
    stretches = np.linalg.svd(affine[:3, :3], compute_uv=False)
    stretch = float(np.maximum(stretches, 1 / stretches).max())
    measures = {
        **{name: getattr(doubt, name) for name in ("agreement", "affine_agreement", "settled", "outside")},
        "rival": rival(sampled, affine),
        "mirror": doubt.mirror_agreement / max(doubt.affine_agreement, _LITTLE),
        "stretch": stretch,
        "missed": 1 - (1 - doubt.outside) / stretch,
    }
    points = grid.places.reshape(-1, 3)
    values = (one.cpu().numpy().ravel() for one in (doubt.uncertainty, doubt.weight))
    words, millimetres = least_sure(*values, points, accepted.fixed)
    measures = {name: round(value, 4) for name, value in measures.items()}
    optimised = found.similarity if found.optimised else None
    return {**judge(measures, metrics, words, optimised).facts, "uncertainty_mm": millimetres}


def _pose_notes(grids: NetworkGrids, pair: Pair) -> list[str]:
    """A line where the moving image was mirrored, or turned farther than people lie differently in a scanner."""
    facts = {} if grids.pose is None or grids.method != "search" else grids.pose.facts
    turned, errors = facts.get("turned_by", 0), facts.get("mirrored_gain_standard_errors", 0)
    turn = f"turned by {turned:.0f} degrees" if turned >= _TURNED else ""
    keep = "keep what they say by initialisation geometry or header"
    if facts.get("mirrored"):
        done = f"mirrored ({facts['mirrored']})" + (f" and {turn}" if turn else "")
        return [
            f"{pair.moving.path} was {done}, as its mirror image is surely more like {pair.fixed.path}: the transform "
            f"exchanges the sides. Has a header lost a flip? If both are right, {keep}"
        ]
    notes = []
    if turn:
        notes.append(
            f"{pair.moving.path} was {turn} against the world coordinates of both headers, as the images are more "
            f"alike so; see the headers, or {keep}"
        )
    if errors > 1:
        notes.append(
            f"{pair.moving.path} may be a mirror image: mirrored it is a little more like {pair.fixed.path} (by "
            f"{errors:.1f} standard errors), which may be chance, so that its sides were kept; look at left and right"
        )
    return notes


def _landmark_notes(metrics: Mapping[str, Any]) -> list[str]:
    """A line where landmarks that drove did not come within their tolerance."""
    tolerance = metrics.get("driven_by", {}).get("points", {}).get("tolerance_mm")
    if tolerance is None or (worst := metrics["landmarks_mm"]["max"]["final"]) <= tolerance:
        return []
    return [
        f"landmarks: the farthest is {worst:.2g} mm from its partner, beyond the {tolerance:g} mm asked for; look for "
        "one that is misplaced, or give a larger point_weight"
    ]


def _inverse_notes(consistency: Mapping[str, float], pair: Pair) -> list[str]:
    """A line where transform and inverse undo each other to no better than half a voxel somewhere."""
    worst, voxel = consistency["max"], min(image.frame.spacing.min() for image in (pair.fixed, pair.moving))
    if not worst > voxel / 2:
        return []
    return [
        f"inverse_transform.h5 is {worst:.2g} mm off at the worst point (in the mean {consistency['mean']:.2g} mm), "
        f"more than half a voxel of {voxel:.3g} mm; where that matters, take avsm apply --inverse with transform.h5, "
        "which seeks each point"
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
