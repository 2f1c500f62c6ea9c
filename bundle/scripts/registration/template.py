"""An unbiased average of people or of visits: all are registered to it, and it moves to their middle, round by round.

The transforms T of a round carry points of the average to the N images. Their mean m(x) = Σ T(x) / N is where the
images have, in the mean, what the average has at x. The next average is made by T ∘ m⁻¹, whose mean over the images is
the identity, everywhere: no image, and no order of them, is preferred. What is written are these transforms, each as
one field on the average's grid. A round starts from nothing but the average and the poses that the rigid round found,
so that no error is carried on; images are interpolated once.

Of the visits of one person, poses P are no change, and the mean of turns is no turn but a shrinkage: there, after a
rigid round, the mean is that of P⁻¹ ∘ T, and volumes are those of the visits. An average of so few images holds each
one's noise, which round after round would be fitted anew: every visit is registered to every other one instead, and the
T of all, as each of them sees it, are averaged.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import filelock
import nibabel as nib
import numpy as np
import SimpleITK
from scipy.ndimage import distance_transform_edt, gaussian_filter
from tqdm import tqdm

from ..data.lists import read_table
from ..errors import InputError
from ..formats import Image, read_image, read_label, save_volume
from ..metrics import world_jacobian
from ..processes import launched
from ..settings import default, preset_of
from ..spatial import Frame, NumericalInverse, WorldTransform, linear_of, resample_image, resample_labels
from ..spatial.grid_map import ALL, GridMap
from ..storage import is_there, output_folder, read_json, write_json
from ..transform import Transform
from .grids import box_corners, foreground_box, rescale
from .intensities import window
from .pair import Pair
from .registrar import Registrar
from .start import Start
from .voxels import threads

__all__ = ["Subject", "Template", "round_settings", "subjects_of", "visit_settings"]

_MARGIN = 0.1  # of the images' extent, around it
_ROUGH, _ROUGH_VOXELS = 1 / 8, (8_000, 1_000_000)  # of the average's voxels, for rounds before the last
_MOST = 2_000_000  # nodes of the mean's field
_AROUND = 4  # voxels around the grid on which a mean of transforms is known
_POLL = 0.5  # seconds
_LARGEST = 500_000_000  # voxels of an average
_SHARPENED = 0.25  # how much of an image sharpened by its Laplacian is mixed in, as ANTs' template building does
_SMOOTH = 3.0  # voxels
_SMOOTHED = 0.7  # voxels, of visits: what noise and interpolation add to them is no change
_POSED = {"affine_engine#angles": [], "settled": 0.0}  # where poses are known no affine gets lost
_IDENTITY = Transform([WorldTransform(np.eye(4))])
TEMPLATE, DONE = "template.nii.gz", "template.json"
_TAKEN = ("rounds", TEMPLATE, "deviation.nii.gz", "label.nii.gz", "change.nii.gz", DONE)  # in the folder
_EACH = ("transform.h5", "inverse_transform.h5", "moved.nii.gz", "jacobian.nii.gz", "moved_label.nii.gz")


def visit_settings(shape: Sequence[int], posed: bool) -> dict[str, Any]:
    """Settings of a `Registrar` of one person's visits: where there is no change, they find little.

    A pose that is found again before a deformation, on coarse grids as there, is off by a part of a voxel, and the
    deformation that makes up for it is taken for a change.

    Args:
        shape: voxels of the average along each axis; flows are smooth over three of them at least.
        posed: whether the visits' poses are known.
    """
    if not posed:
        return {"initialisation": "search"}  # of one person, what is most alike is right
    least = _SMOOTH / min(shape)
    return {
        **_POSED,
        "affine_engine#iterations": [0, 0],
        "sampling#transform": "rigid",  # what a deformation begins with: an affine's scales would spread over the image
        "engine#eps": 0.01,
        "engine#radii": [4],
        "engine#edges": 0.0,
        "engine#regularisation": 20.0,
        "engine#stds": [max(std, least) for std in (0.04, 0.08, 0.16)],
    }


def round_settings(preset: str | None, shape: Sequence[int], last: bool, posed: bool) -> dict[str, Any]:
    """Settings of a `Registrar` of one round: those before the last look at fewer voxels, for an average that goes.

    Args:
        preset: as the user gave it.
        shape: voxels of the average along each axis.
        last: whether no round follows.
        posed: whether images lie as a round before has found.
    """
    settings = dict(_POSED) if posed else {}
    if not last and preset_of(preset or default("preset")).native:
        settings["grid_voxels"] = int(np.clip(np.prod(shape, dtype=float) * _ROUGH, *_ROUGH_VOXELS))
    return settings if last or posed else {**settings, "affine_engine#last": 0}


@dataclass(frozen=True)
class Subject:
    """One image of the average.

    Attributes:
        name: of its folder.
        image: a file.
        label: a file on the image's grid, or None.
    """

    name: str
    image: str
    label: str | None = None


def subjects_of(images: str | os.PathLike | Sequence[Any]) -> list[Subject]:
    """The images of an average: files, rows with ``image`` and perhaps ``label`` and ``name``, or a CSV file of such.

    Paths in a CSV file are from its folder; names are made unique.

    Raises:
        InputError: for fewer than two images, a missing file, or a name that occurs twice.
    """
    rows = images
    if isinstance(images, str | os.PathLike):
        columns, rows = read_table(Path(images))
        if "image" not in columns or set(columns) - {"image", "label", "name"}:
            raise InputError(
                f"{images}: has the columns {', '.join(columns)}; its first line must be image,label,name, of "
                "which label and name may be missing"
            )
        for row, key in itertools.product(rows, ("image", "label")):
            row[key] = str(Path(images).parent / row[key]) if row.get(key) else ""
    rows = [{"image": one} if isinstance(one, str | os.PathLike) else one for one in rows]
    if not all(isinstance(row, Mapping) for row in rows):
        raise InputError("images: give files, or dictionaries with image and perhaps label and name; no arrays")
    if len(rows) < 2:
        raise InputError(f"an average needs at least two images, got {len(rows)}; give more")
    found, taken = [], set(_TAKEN)
    for number, row in enumerate(rows, start=1):
        image = row.get("image")
        if not image:
            raise InputError(f"images: row {number} names no image; give a column 'image'")
        for file in filter(None, (image, row.get("label"))):
            if not is_there(file):
                raise InputError(f"{file}: file does not exist; correct the path")
        name = row.get("name") or Path(image).name.split(".")[0]
        if name in taken or not name.isprintable() or "/" in name or name.startswith("."):
            if row.get("name"):
                raise InputError(
                    f"images: row {number}: the name {name!r} occurs twice or cannot be a folder's here; give another"
                )
            name = f"{name}_{number}"
        taken.add(name)
        found.append(Subject(name, str(image), row.get("label") or None))
    return found


@dataclass(frozen=True)
class _Seen:
    """An image in memory, and what its intensities mean."""

    image: Image
    centre: np.ndarray
    low: float
    high: float

    @classmethod
    def read(cls, file: str) -> _Seen:
        image = read_image(file)
        box = foreground_box(image.array)
        low, high = window(image.array, box)
        return cls(image, image.frame.voxel_to_world(box.mean(axis=0)), low, high)

    @functools.cached_property
    def digest(self) -> str:
        """What tells it from other images."""
        content = np.ascontiguousarray(self.image.array).tobytes() + self.image.frame.affine.tobytes()
        return hashlib.sha256(content).hexdigest()

    def smoothed(self, sigma: float) -> _Seen:
        """The image without what is finer than a standard deviation in mm."""
        array = gaussian_filter(np.asarray(self.image.array, np.float32), sigma / self.image.frame.spacing)
        return replace(self, image=replace(self.image, array=array))

    @property
    def scaled(self) -> np.ndarray:
        """Intensities in [0, 1]."""
        return rescale(self.image.array, self.low, self.high)


class Template:
    """Builds an average in a folder; a run that was cut short goes on where it stopped.

    Under ``torchrun``, or as processes that a scheduler numbers by ``RANK`` and ``WORLD_SIZE``, several share the work:
    each registers what no other is at, and what one that dies leaves, the others do. The first writes the results.

    Args:
        subjects: the images.
        folder: for ``template.nii.gz``, ``deviation.nii.gz``, ``label.nii.gz``, ``template.json`` and a folder for each
            image; ``rounds`` keeps what was found on the way.
        registrar: makes the `Registrar` of a kind of transform, the average's shape, whether it is the last round's,
            and whether the images' poses are known.
        average: one of `AVERAGES`.
        spacing: mm of the average's voxels; None for the median of the images'.
        rounds: how many deformable rounds follow a rigid one.
        transform: the last kind: ``rigid``, ``affine`` or ``deformable``.
        visits: whether the images are one person's, see above; ``rounds`` and ``transform`` do not matter then.
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
        folder: str | os.PathLike,
        registrar: Callable[[str, tuple[int, ...], bool, bool], Registrar],
        average: str,
        spacing: float | None,
        rounds: int = 0,
        transform: str = "rigid",
        visits: bool = False,
    ) -> None:
        self.subjects, self.folder, self.registrar = list(subjects), Path(folder), registrar
        after = [] if visits or transform == "rigid" else [transform] * (rounds if transform == "deformable" else 1)
        self.kinds = ["rigid", *after]
        self.average, self.spacing, self.visits = average, spacing, visits
        self.rank = launched()[0]

    def build(self) -> dict[str, Any]:
        """Build, and write everything; returns the content of ``template.json``.

        Raises:
            InputError: for images or labels that cannot be read, or images that cannot be registered.
        """
        with output_folder(self.folder, self.rank or None), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # where fields end
            whole = [_Seen.read(subject.image) for subject in self.subjects]
            for subject, one in zip(self.subjects, whole, strict=True):
                if subject.label is not None:
                    read_label(subject.label, one.image)  # before the work
            # In an order of their own, so that sums do not depend on the list's.
            order = sorted(range(len(whole)), key=lambda index: whole[index].digest)
            listed, self.subjects = self.subjects, [self.subjects[index] for index in order]
            whole = [whole[index] for index in order]
            frame = self._frame(whole)
            sigma = _SMOOTHED * frame.spacing.mean()
            seen = [one.smoothed(sigma) for one in whole] if self.visits else whole
            centre = np.mean([one.centre for one in seen], axis=0)
            chains = [Transform([_shift(one.centre - centre)]) for one in seen]
            inverses = [chain.inverse() for chain in chains]
            average, facts, poses = self._averaged(seen, chains, frame), [], []
            total = len(seen) * (len(self.kinds) + (len(seen) if self.visits else 0))
            with tqdm(total=total, desc="template", disable=None, dynamic_ncols=True) as bar:
                for number, kind in enumerate(self.kinds, start=1):
                    bar.set_description(f"round {number} of {len(self.kinds)}, {kind}")
                    # Visits in unequal poses make a blurred average.
                    fixed = seen[0].image if self.visits else Image(average, frame, "template")
                    last = number == len(self.kinds)
                    found = self._round(f"{number}_{kind}", kind, fixed, seen, frame, bar, last, poses)
                    if kind == "rigid":
                        chains, inverses = _centred_rigid(*found, frame)
                        poses = chains
                    else:
                        chains, inverses = _centred(*found, frame)
                    average = self._averaged(seen, chains, frame, "bspline" if last else "linear")
                    facts.append(self._facts(kind, average, chains, frame))
                if self.visits:
                    chains, inverses = self._between(seen, poses, frame, bar)
                    average = self._averaged(whole, chains, frame, "bspline")
                    facts.append(self._facts("deformable", average, _posed(chains, poses), frame))
            facts = {"average": self.average, "shape": frame.shape, "spacing": frame.spacing.tolist(), "rounds": facts}
            facts = {"images": [vars(subject) for subject in listed], **facts}
            if self.rank == 0:
                self._clear()
            if self.visits:
                first, last = (chains[self.subjects.index(listed[end])] for end in (0, -1))
                facts["change"] = self._change(average, first, last, frame)
            if self.rank == 0:
                self._write(average, whole, chains, inverses, frame)
                write_json(facts, self.folder / DONE)
            return facts

    def _frame(self, seen: Sequence[_Seen]) -> Frame:
        """The average's grid: axes of the world, as large as the largest image along each, about the mean centre."""
        extents, steps = [], []
        for one in seen:
            frame = one.image.frame
            extents.append(np.ptp(frame.voxel_to_world(box_corners(foreground_box(one.image.array))), axis=0))
            order = nib.orientations.io_orientation(frame.affine)[:, 0].astype(int)
            steps.append(frame.spacing[np.argsort(order)])
        step = np.full(3, self.spacing) if self.spacing else np.median(steps, axis=0)
        shape = np.ceil(np.max(extents, axis=0) * (1 + 2 * _MARGIN) / step).astype(int) + 1
        if np.prod(shape, dtype=float) > _LARGEST:
            size = " x ".join(map(str, shape))
            raise InputError(f"spacing={step.min():g}: the average would have {size} voxels; give a larger spacing")
        centre = np.mean([one.centre for one in seen], axis=0)
        return Frame.from_parts(
            tuple(shape.tolist()), step, centre - (shape - 1) / 2 * step, np.eye(3), name="template"
        )

    def _between(
        self, seen: Sequence[_Seen], poses: Sequence[Transform], frame: Frame, bar: tqdm
    ) -> tuple[list[Transform], list[Transform]]:
        """Each visit's transform from their middle, and back: the mean of what each as the fixed image finds."""
        around, grid = _around(frame)
        places = []
        for subject, one, pose in zip(self.subjects, seen, poses, strict=True):
            bar.set_description(f"to {subject.name}")
            starts = [pose.inverse().then(other) for other in poses]
            found, _ = self._round(f"to_{subject.name}", "deformable", one.image, seen, frame, bar, False, starts)
            forward, _ = _centred([pose.then(one) for one in found], [], frame, poses)
            places.append([one.points(grid) for one in forward])
        forward = [_as_transform(grid, np.mean(of_one, axis=0), around) for of_one in zip(*places, strict=True)]
        back = []
        for one, transform in zip(seen, forward, strict=True):
            at, points = _around(one.image.frame)
            back.append(Transform([_as_transform(points, NumericalInverse(transform).apply(points), at)]))
        return _centred([Transform([one]) for one in forward], back, frame, poses)

    def _round(
        self,
        name: str,
        kind: str,
        fixed: Image,
        seen: Sequence[_Seen],
        frame: Frame,
        bar: tqdm,
        last: bool = True,
        poses: Sequence[Transform] = (),
    ) -> tuple[list[Transform], list[Transform]]:
        """Each image's transform to the fixed one, and, of a last round, back; those of an earlier run are read."""
        folder = self.folder / "rounds" / name
        folder.mkdir(parents=True, exist_ok=True)
        registrar = self.registrar(kind, frame.shape, last, bool(poses))
        files = [[folder / f"{one.name}{end}.h5" for end in ("", "_inverse")[: 1 + last]] for one in self.subjects]
        request, first = self._request(seen, frame, registrar), self.rank % len(seen)
        onto = next((one.digest for one in seen if one.image is fixed), "")
        missing, here = [*range(first, len(seen)), *range(first)], {}
        while missing:
            for index in missing.copy():
                name, one = self.subjects[index].name, seen[index].image
                # A name may have been another image's before.
                mark, wanted = folder / f"{name}.json", [request, onto, seen[index].digest]
                with contextlib.suppress(filelock.Timeout), filelock.FileLock(folder / f".{name}.lock", timeout=0):
                    if not (mark.is_file() and json.loads(mark.read_text(encoding="utf-8")).get("request") == wanted):
                        found, start = [_IDENTITY, _IDENTITY], Start(poses[index], "the pose") if poses else None
                        if one is not fixed:
                            accepted = registrar.accepted(Pair(fixed, one, name=name), start)
                            found = [Transform(accepted.chain), *([Transform(accepted.inverse)] if last else [])]
                        for transform, file in zip(found, files[index], strict=False):
                            transform.save(file)
                        write_json({"request": wanted}, mark)
                        here[index] = found
                    missing.remove(index)
                    bar.update()
            if missing:  # others are at them
                time.sleep(_POLL)
        both = [here.get(index) or [*map(Transform.read, of)] for index, of in enumerate(files)]
        return [one[0] for one in both], [one[1] for one in both if last]

    def _request(self, seen: Sequence[_Seen], frame: Frame, registrar: Registrar) -> str:
        """What the rounds depend on, in short; not on the images' order, nor on how a processor rounds."""
        given = [[one.digest for one in seen], self.average, self.visits, frame.affine, registrar.settings]
        return hashlib.sha256(json.dumps(given, default=str).encode()).hexdigest()

    def _averaged(
        self, seen: Sequence[_Seen], chains: Sequence[Transform], frame: Frame, mode: str = "linear"
    ) -> np.ndarray:
        """The average of the images under their transforms, in the mean of their intensities, float32.

        At each voxel those count that have it in their field of view; where less than half have, it is as dark as they
        get: where few look, the average would be theirs. The last one is by cubic splines: they keep what linear
        interpolation blurs, and take longer.
        """
        moved = (
            resample_image(one.scaled, one.image.frame, frame, chain.parts, mode, fill=np.nan, threads=threads())
            for one, chain in zip(seen, chains, strict=True)
        )
        if self.average == "median":
            every = np.ma.masked_invalid(np.stack(list(moved)))
            found, count = np.ma.median(every, axis=0).filled(0), every.count(axis=0)
        else:
            found, count = np.zeros(frame.shape), np.zeros(frame.shape, np.int32)
            for one in moved:
                inside = np.isfinite(one)
                found[inside] += one[inside]
                count += inside
            found /= np.maximum(count, 1)
        few = 2 * count < len(seen)
        if self.average == "sharpened":
            # The largest Laplacian of all sets the filter's strength: it must not be the dark's edge.
            found = found[tuple(distance_transform_edt(few, return_distances=False, return_indices=True))]
            sharp = SimpleITK.GetArrayFromImage(SimpleITK.LaplacianSharpening(SimpleITK.GetImageFromArray(found)))
            found = (1 - _SHARPENED) * found + _SHARPENED * sharp
        found = np.clip(np.where(few, 0, found), 0, 1)
        low, high = _range(seen)
        return (low + found * (high - low)).astype(np.float32)

    def _facts(self, kind: str, average: np.ndarray, chains: Sequence[Transform], frame: Frame) -> dict[str, Any]:
        """How unbiased and how sharp a round's average is."""
        inside = average > average.mean()
        mean = (_mean(chains, frame) - frame.places.reshape(-1, 3))[inside.ravel()]
        slopes = np.linalg.norm(np.gradient(average, *frame.spacing), axis=0)
        low, high = average.min(), average.max()
        return {
            "kind": kind,
            "mean_displacement_mm": float(np.linalg.norm(mean, axis=1).max()),
            "mean_gradient": float(slopes[inside].mean() / (high - low)),
        }

    def _change(self, average: np.ndarray, first: Transform, last: Transform, frame: Frame) -> dict[str, Any]:
        """The last visit's volume over the first one's: its image, and the percentiles where there is a body."""
        after, before = (world_jacobian(one.parts, frame, threads=threads()).determinant for one in (last, first))
        change = after / before
        if self.rank == 0:
            save_volume(change.astype(np.float32), frame.affine, self.folder / "change.nii.gz")
        inside = 100 * (change[average > average.mean()] - 1)
        return {"percent": {str(part): float(np.percentile(inside, part)) for part in (5, 50, 95)}}

    def _clear(self) -> None:
        """Remove what an earlier run has written, but for this run's images, and ``template.json`` last."""
        given = {Path(file).resolve() for one in self.subjects for file in (one.image, one.label) if file}
        earlier = [Path(image["name"]).name for image in (read_json(self.folder / DONE) or {}).get("images", [])]
        for name in (*itertools.product(earlier, _EACH), *((name,) for name in _TAKEN[1:])) if earlier else ():
            if (file := self.folder.joinpath(*name)).resolve() not in given:
                file.unlink(missing_ok=True)
        for name in earlier:
            with contextlib.suppress(OSError):  # where there is more
                (self.folder / name).rmdir()

    def _write(
        self,
        average: np.ndarray,
        seen: Sequence[_Seen],
        chains: Sequence[Transform],
        inverses: Sequence[Transform],
        frame: Frame,
    ) -> None:
        """All files but ``template.json``."""
        total, squares, votes = np.zeros(frame.shape), np.zeros(frame.shape), {}
        for subject, one, chain, inverse in zip(self.subjects, seen, chains, inverses, strict=True):
            folder = self.folder / subject.name
            folder.mkdir(exist_ok=True)
            chain.save(folder / "transform.h5")
            inverse.save(folder / "inverse_transform.h5")
            low = float(one.image.array.min())
            moved = resample_image(one.image.array, one.image.frame, frame, chain.parts, fill=low, threads=threads())
            save_volume(moved.astype(np.float32), frame.affine, folder / "moved.nii.gz")
            volumes = world_jacobian(chain.parts, frame, threads=threads()).determinant
            save_volume(volumes.astype(np.float32), frame.affine, folder / "jacobian.nii.gz")
            scaled = np.clip((moved - one.low) / (one.high - one.low), 0, 1)
            total, squares = total + scaled, squares + np.square(scaled)
            if subject.label is not None:
                label = read_label(subject.label, one.image)
                shown = resample_labels(label.array, label.frame, frame, chain.parts)
                save_volume(shown, frame.affine, folder / "moved_label.nii.gz")
                for value in np.unique(shown):
                    votes[int(value)] = votes.get(int(value), 0) + (shown == value).astype(np.uint16)
        count = len(seen)
        deviation = np.sqrt(np.maximum(squares / count - np.square(total / count), 0))
        save_volume(average, frame.affine, self.folder / TEMPLATE)
        save_volume(deviation.astype(np.float32), frame.affine, self.folder / "deviation.nii.gz")
        if votes:
            values = np.array(sorted(votes))
            won = values[np.argmax(np.stack([votes[value] for value in values]), axis=0)]
            kind = np.uint8 if values.min() >= 0 and values.max() < 256 else np.int32
            save_volume(won.astype(kind), frame.affine, self.folder / "label.nii.gz")


def _range(seen: Sequence[_Seen]) -> tuple[float, float]:
    """The mean intensities that become 0 and 1."""
    return tuple(float(np.mean([getattr(one, end) for one in seen])) for end in ("low", "high"))


def _mean(transforms: Sequence[Transform], grid: Frame) -> np.ndarray:
    """The mean of transforms' places of a grid's voxels, ``(N, 3)``."""
    places = (GridMap(one.parts, grid, np.eye(4)).coordinates((ALL, ALL, ALL)) for one in transforms)
    return (sum(places) / len(transforms)).reshape(3, -1).T


def _posed(chains: Sequence[Transform], poses: Sequence[Transform]) -> list[Transform]:
    """P⁻¹ ∘ T."""
    return [chain.then(pose.inverse()) for chain, pose in zip(chains, poses, strict=True)]


def _around(frame: Frame) -> tuple[Frame, np.ndarray]:
    """A grid on which transforms of a frame's points are known, and its places ``(N, 3)``."""
    around = frame.padded([_AROUND] * 3)
    if 8 * np.prod(around.shape) <= _MOST:
        affine = around.affine.copy()
        affine[:3, :3] /= 2
        around = Frame(tuple(2 * n - 1 for n in around.shape), affine)  # the voxels, and their middles
    return around, around.places.reshape(-1, 3)


def _centred(
    forward: Sequence[Transform], back: Sequence[Transform], frame: Frame, poses: Sequence[Transform] = ()
) -> tuple[list[Transform], list[Transform]]:
    """T ∘ m⁻¹ of each image, a field each, and its inverse m ∘ T⁻¹; m is the mean of T, or of P⁻¹ ∘ T."""
    poses = poses or [_IDENTITY] * len(forward)
    around, grid = _around(frame)
    mean = _as_transform(grid, _mean(_posed(forward, poses), around), around)
    undone = NumericalInverse(mean).apply(grid)
    places = [one.then(pose.inverse()).points(undone) for one, pose in zip(forward, poses, strict=True)]
    # Between the voxels the mean is not quite what its field is.
    left = sum(places) / len(places) - grid
    fields = [_as_transform(grid, pose.points(one - left), around) for one, pose in zip(places, poses, strict=True)]
    forward = [Transform([one]) for one in fields]
    if not back:
        return forward, []
    mean = Transform([_as_transform(grid, NumericalInverse(_as_transform(grid, undone, around)).apply(grid), around)])
    return forward, [one.then(mean) for one in back]


def _centred_rigid(
    forward: Sequence[Transform], back: Sequence[Transform], frame: Frame
) -> tuple[list[Transform], list[Transform]]:
    """T ∘ m⁻¹ of each image, and its inverse, where m is the turn and shift nearest to the mean."""
    mean = np.mean([linear_of(one.parts) for one in forward], axis=0)
    left, _, right = np.linalg.svd(mean[:3, :3])
    middle = frame.voxel_to_world((np.asarray(frame.shape) - 1) / 2)
    turned = np.eye(4)
    turned[:3, :3] = left @ right
    turned[:3, 3] = mean[:3, :3] @ middle + mean[:3, 3] - turned[:3, :3] @ middle
    mean = Transform([WorldTransform(turned)])
    return [mean.inverse().then(one) for one in forward], [one.then(mean) for one in back]


def _shift(by: np.ndarray) -> WorldTransform:
    matrix = np.eye(4)
    matrix[:3, 3] = by
    return WorldTransform(matrix)


def _as_transform(grid: np.ndarray, places: np.ndarray, frame: Frame) -> WorldTransform:
    """The transform that carries a frame's voxels ``(N, 3)`` to places: their best affine, and a field inside of it."""
    points = np.concatenate([grid, np.ones((len(grid), 1))], axis=1)
    matrix = np.eye(4)
    matrix[:3] = np.linalg.solve(points.T @ points, points.T @ places).T  # in a tenth of lstsq's time
    inside = (places - matrix[:3, 3]) @ np.linalg.inv(matrix[:3, :3]).T - grid
    return WorldTransform(matrix, inside.reshape(*frame.shape, 3).astype(np.float32), frame)
