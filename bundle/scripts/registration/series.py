"""Motion correction: the volumes of a series, each registered to one fixed image or to the series' own mean.

Without a fixed image there are two passes: all volumes to the one in the middle, by coarse grids, each from the
transform of the one before; then to the mean of what that gives, each from its first transform. What is told is the
motion against the volume in the middle. With a fixed image there is one pass. One volume is in memory at a time; what
is found is kept, and an interrupted run goes on from there.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from ..errors import InputError
from ..formats import Frames, Image, read_image, read_mask, read_transforms, save_volume, write_transform
from ..formats.volumes import nifti_image, storable, write_nifti
from ..optimize import AffineEngine
from ..spatial import Frame, WorldTransform, nearest_of_kind, resample_image
from ..storage import atomic_path, file_state, guarded, output_folder, read_json, staged, write_json
from ..transform import Transform
from .pair import Pair
from .registrar import inference_parser
from .result import versions
from .sampling import SamplePaird
from .start import Start
from .voxels import threads
from .write import METRICS

__all__ = ["MOTION", "Series", "motion_of", "register_series"]

MOTION, MOVED, MEAN, PLOT = "motion.tsv", "moved.nii.gz", "mean.nii.gz", "motion.png"
TRANSFORMS = "transforms"
_UNFINISHED, _FIRST, _LAST, _REFERENCE, _REQUEST = "unfinished", "first", "last", "reference.nii.gz", "request.json"
_OUTPUTS = (MOTION, MOVED, MEAN, PLOT, METRICS)
_RADIUS = 50.0  # mm, of the head of the framewise displacement (Power et al., NeuroImage 2012)
_MISSING = "n/a"  # as BIDS writes it
logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Series:
    """A registered series.

    Attributes:
        folder: with all files.
        transforms: of each volume, fixed to its points.
        motion: column of ``motion.tsv`` → ``(volumes,)``.
        metrics: the content of ``metrics.json``.
    """

    folder: Path
    transforms: list[Transform]
    motion: dict[str, np.ndarray]
    metrics: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Series:
        """What `register_series` has left in a folder."""
        with open(folder / MOTION, encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t"))
        motion = {
            name: np.array([float("nan") if row[name] == _MISSING else float(row[name]) for row in rows])
            for name in rows[0]
        }
        transforms = [Transform.read(folder / TRANSFORMS / _name(number)) for number in range(len(rows))]
        return cls(folder, transforms, motion, read_json(folder / METRICS) or {})


def motion_of(linears: Sequence[np.ndarray], fixed: Frame) -> dict[str, np.ndarray]:
    """How each volume lies against the fixed image.

    Args:
        linears: fixed to the volume's points, ``(4, 4)`` RAS mm.
        fixed: about whose middle volumes are turned.

    Returns:
        ``trans_*_mm``: where the middle of the fixed image went; ``rot_*_deg``: turns about the axes to the right, to
        the front and up, in this order; ``framewise_displacement_mm``: the sum of the changes of all six since the
        volume before, turns as arcs on a sphere of 50 mm, NaN for the first; ``scale`` where there is one. Of an affine
        they are those of the nearest rigid transform.
    """
    rigid = np.stack([nearest_of_kind(linear, "rigid", fixed) for linear in linears])
    shift = rigid[:, :3, :3] @ fixed.centre + rigid[:, :3, 3] - fixed.centre
    turn = Rotation.from_matrix(rigid[:, :3, :3]).as_euler("xyz", degrees=True)
    change = np.abs(np.diff(np.hstack([shift, np.radians(turn) * _RADIUS]), axis=0)).sum(axis=1)
    found = {f"trans_{axis}_mm": shift[:, k] for k, axis in enumerate("xyz")}
    found |= {f"rot_{axis}_deg": turn[:, k] for k, axis in enumerate("xyz")}
    found["framewise_displacement_mm"] = np.concatenate([[np.nan], change])
    scale = np.cbrt([np.linalg.det(linear[:3, :3]) for linear in linears])
    return found if np.allclose(scale, 1, atol=1e-9) else {**found, "scale": scale}


def register_series(
    moving: str | os.PathLike | Sequence[str | os.PathLike],
    output: str | os.PathLike,
    fixed: str | os.PathLike | None = None,
    fixed_mask: str | os.PathLike | None = None,
    output_dtype: str = "float32",
    interpolation: str = "linear",
    **settings: Any,
) -> Series:
    """Register every volume of a series, and write the files.

    Args:
        moving: a 4-D NIfTI file, or the files of its volumes in order.
        output: folder. A run that was interrupted goes on there; one that is complete is read.
        fixed: what all are registered to; None for the series' own mean, in the place of the volume in the middle.
        fixed_mask: where in the fixed image, or the mean, the similarity counts.
        output_dtype: of the volumes on disk, or ``"same"``.
        interpolation: of the moved volumes.
        settings: ids of ``configs/inference.json``, such as ``transform``.

    Raises:
        InputError: for files that cannot be used or written.
    """
    begin, frames = time.perf_counter(), Frames(moving)
    target = None if fixed is None else read_image(fixed)
    search = _Search(**settings)
    asked = [frames.count, *map(file_state, frames.files), *(file_state(Path(f)) for f in (fixed, fixed_mask) if f)]
    asked += [output_dtype, interpolation, search.facts]
    request = hashlib.sha256(json.dumps(asked, default=str).encode()).hexdigest()
    with output_folder(output) as folder:
        _check_sources(folder, frames, fixed, fixed_mask)
        if (read_json(folder / METRICS) or {}).get("request") == request:
            logger.info(f"{folder}: is done already")
            return Series.read(folder)
        work = _begun(folder, request)
        firsts = None
        if target is None:
            target = _own_mean(frames, search, work, fixed_mask)
            firsts = [read_transforms(work / _FIRST / _name(number))[0].linear for number in range(frames.count)]
        mask = None if fixed_mask is None else read_mask(fixed_mask, target)
        linears, notes = [], dict.fromkeys(target.notes)
        for image, linear in _each(frames, search, target, mask, work / _LAST, "register", firsts):
            linears.append(linear)
            notes.update(dict.fromkeys(image.notes))
        kind = search.sampling.kind
        if fixed is None:
            back = np.linalg.inv(linears[frames.count // 2])
            linears = [nearest_of_kind(linear @ back, kind, target.frame) for linear in linears]
        motion = motion_of(linears, target.frame)
        with staged(folder, METRICS, _OUTPUTS) as stage:
            motion["correlation"] = _write_moved(stage, frames, target, linears, output_dtype, interpolation)
            displacement = motion["framewise_displacement_mm"][1:]
            metrics = {
                "request": request,
                "volumes": frames.count,
                "moving": [str(path) for path in frames.paths],
                "fixed": "own mean" if fixed is None else str(target.path),
                "settings": search.facts,
                "framewise_displacement_mm": {"mean": displacement.mean(), "max": displacement.max()},
                "correlation": {"mean": motion["correlation"].mean(), "min": motion["correlation"].min()},
                "warnings": list(notes),
                "versions": versions(),
                "seconds": time.perf_counter() - begin,
            }
            guarded(folder / MOTION, stage, lambda path: _write_table(motion, path))
            from ..report.motion import save_motion  # loads matplotlib

            guarded(folder / PLOT, stage, lambda path: save_motion(motion, path))
            _write_transforms(linears, kind, folder)
            guarded(folder / METRICS, stage, lambda path: write_json(metrics, path))
        shutil.rmtree(work)
    for note in metrics["warnings"]:
        logger.warning(f"warning: {note}")
    logger.info(
        f"{folder}: {frames.count} volumes; framewise displacement {displacement.mean():.2f} mm in the mean, "
        f"{displacement.max():.2f} at most; {metrics['seconds']:.1f} s"
    )
    return Series.read(folder)


class _Search:
    """Finds the transform of one volume, by the sampling and the affine engine of the settings."""

    def __init__(self, **settings: Any) -> None:
        parser = inference_parser(**settings)
        self.sampling: SamplePaird = parser.get_parsed_content("sampling")
        similarity, engine = parser["similarity"], parser.get_parsed_content("affine_engine")
        if similarity != "auto":
            engine = engine.by("nmi" if similarity == "mind" else similarity)
        self.engine: AffineEngine = engine
        self.device = parser.get_parsed_content("device")
        self.facts = {"device": str(self.device).split(":")[0], **settings}

    def rough(self) -> _Search:
        """The same without the last level."""
        other = copy(self)
        other.engine = copy(self.engine)
        other.engine.last = 0
        return other

    def __call__(self, fixed: Image, moving: Image, mask: Image | None, start: np.ndarray | None) -> np.ndarray:
        """Fixed to moving points, ``(4, 4)``, from a start, or None for the initialisation of the settings."""
        item: dict[str, Any] = {"pair": Pair(fixed, moving, fixed_mask=mask)}
        if start is not None:
            item["start"] = Start(Transform([WorldTransform(start)]), "the volume before")
        sampled = self.sampling(item)["sampled"].to(self.device)
        # What lies outside the volume counts for nothing.
        volume, target, weight, view = sampled.seen_by("nmi")
        grids, identity = sampled.grids, volume.new_tensor(np.eye(3, 4)[None])
        found = self.engine(volume, target, grids.nearest(identity), weight, view, grids.moving.spacing, grids.kind)
        linear = grids.linear(found.affine).linear
        return nearest_of_kind(linear if start is None else start @ linear, grids.kind, fixed.frame)


def _each(
    frames: Frames,
    search: _Search,
    fixed: Image,
    mask: Image | None,
    folder: Path,
    label: str,
    starts: Sequence[np.ndarray] | None = None,
    linear: np.ndarray | None = None,
) -> Iterator[tuple[Image, np.ndarray]]:
    """Each volume and its transform, which is kept in a folder and found where it is not there.

    Args:
        frames: the series.
        search: what finds it.
        fixed: what it is registered to.
        mask: of ``fixed``.
        folder: for the transforms.
        label: of the progress bar.
        starts: for each; None for the transform of the volume before.
        linear: that of the first.
    """
    folder.mkdir(exist_ok=True)
    for number, image in enumerate(tqdm(frames, label, frames.count, dynamic_ncols=True)):
        file = folder / _name(number)
        if file.exists():
            linear = read_transforms(file)[0].linear
        else:
            linear = search(fixed, image, mask, linear if starts is None else starts[number])
            write_transform(WorldTransform(linear, kind=search.sampling.kind), file)
        yield image, linear


def _own_mean(frames: Frames, search: _Search, work: Path, mask: str | os.PathLike | None) -> Image:
    """The mean of all volumes in the place of the one in the middle."""
    file = work / _REFERENCE
    if not file.exists():
        middle = next(image for number, image in enumerate(frames) if number == frames.count // 2)
        within = None if mask is None else read_mask(mask, middle)
        mean = _Mean(middle.frame)
        for image, linear in _each(
            frames, search.rough(), middle, within, work / _FIRST, "first pass", linear=np.eye(4)
        ):
            mean.add(image, linear)
        save_volume(mean.volume, middle.frame.affine, file)
    return read_image(file)


class _Mean:
    """The mean of volumes on one grid, where they have voxels."""

    def __init__(self, frame: Frame) -> None:
        self.frame, self.sums, self.counts = frame, np.zeros(frame.shape), np.zeros(frame.shape, np.int32)

    def add(self, image: Image, linear: np.ndarray, mode: str = "linear") -> tuple[np.ndarray, np.ndarray]:
        """Count a volume in; the moved volume, and where it has voxels."""
        volume, parts = image.array.astype(np.float32), [WorldTransform(linear)]
        moved = resample_image(volume, image.frame, self.frame, parts, mode, np.nan, threads())
        inside = np.isfinite(moved)
        moved[~inside] = volume.min()
        self.sums[inside] += moved[inside]
        self.counts += inside
        return moved, inside

    @property
    def volume(self) -> np.ndarray:
        """``(D, H, W)`` float32; the lowest value where no volume has a voxel."""
        mean = self.sums / np.maximum(self.counts, 1)
        seen = self.counts > 0
        return np.where(seen, mean, mean[seen].min()).astype(np.float32)


def _write_moved(
    stage: Path, frames: Frames, fixed: Image, linears: Sequence[np.ndarray], dtype: str, mode: str
) -> np.ndarray:
    """Write the moved series and its mean; the correlation of each volume with the fixed image."""
    first = next(iter(frames)).array.dtype
    kind = np.dtype(first if dtype == "same" else dtype)
    mean, correlations = _Mean(fixed.frame), []
    image = nifti_image(np.broadcast_to(kind.type(0), (*fixed.frame.shape, frames.count)), fixed.frame.affine)
    image.header["pixdim"][4] = frames.step[0]
    image.header["xyzt_units"] = (int(image.header["xyzt_units"]) & 7) | frames.step[1]

    def blocks() -> Iterator[np.ndarray]:
        for volume, linear in zip(tqdm(frames, "resample", frames.count, dynamic_ncols=True), linears, strict=True):
            moved, inside = mean.add(volume, linear, mode)
            pair = np.stack([moved[inside], fixed.array[inside]]).astype(np.float64)
            correlations.append(float(np.corrcoef(pair)[0, 1]) if inside.sum() > 1 else float("nan"))
            yield storable(moved, kind, clip=True, name=str(volume.path))

    guarded(stage / MOVED, stage, lambda path: write_nifti(image, path, blocks()))
    guarded(stage / MEAN, stage, lambda path: save_volume(mean.volume, fixed.frame.affine, path))
    return np.array(correlations)


def _write_table(columns: dict[str, np.ndarray], path: Path) -> None:
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream, delimiter="\t", lineterminator="\n")
        table.writerow(columns)
        for row in zip(*columns.values(), strict=True):
            table.writerow([f"{value:.6f}" if np.isfinite(value) else _MISSING for value in row])


def _write_transforms(linears: Sequence[np.ndarray], kind: str, folder: Path) -> None:
    """One file a volume; those of an earlier series go."""
    (folder / METRICS).unlink(missing_ok=True)
    shutil.rmtree(folder / TRANSFORMS, ignore_errors=True)
    (folder / TRANSFORMS).mkdir()
    for number, linear in enumerate(linears):
        write_transform(WorldTransform(linear, kind=kind), folder / TRANSFORMS / _name(number))


def _begun(folder: Path, request: str) -> Path:
    """The folder for what is unfinished; what another request has left goes."""
    work = folder / _UNFINISHED
    if (read_json(work / _REQUEST) or {}).get("request") != request:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        write_json({"request": request}, work / _REQUEST)
    return work


def _check_sources(folder: Path, frames: Frames, *others: str | os.PathLike | None) -> None:
    """Refuse a folder whose results would overwrite what is read."""
    for path in (*frames.files, *(Path(one) for one in others if one is not None)):
        if path.resolve().parent == folder.resolve() and path.name in _OUTPUTS:
            raise InputError(f"{path}: would be overwritten by the result; write to another folder")


def _name(number: int) -> str:
    return f"{number:04d}.tfm"
