"""An unbiased average of images: all are registered to it, and it moves to the middle of them all, round by round.

The transforms T of a round carry points of the average to the N images. Their mean m(x) = Σ T(x) / N is where the
images have, in the mean, what the average has at x. The next average is made by T ∘ m⁻¹, whose mean over the images is
the identity, everywhere: no image, and no order of them, is preferred. What is written are these transforms. A round
starts from nothing but the average, so that no error is carried on; images are interpolated once.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from tqdm import tqdm

from ..errors import InputError
from ..formats import Image, read_image, read_label, save_volume
from ..settings import AVERAGES
from ..spatial import Frame, NumericalInverse, WorldTransform, resample_image, resample_labels
from ..storage import output_folder, write_json
from ..transform import Transform
from .grids import box_corners, foreground_box, rescale
from .intensities import window
from .pair import Pair
from .registrar import Registrar
from .voxels import threads

__all__ = ["Subject", "Template", "subjects_of"]

_MARGIN = 0.1  # of the images' extent, around it
_CORRECTIONS = 4
_MOST = 2_000_000  # nodes of the mean's field
_AROUND = 4  # voxels around the grid on which a mean of transforms is known
_KINDS = ("rigid", "affine", "deformable")
_SHARPENED = 0.25  # how much of an image sharpened by its Laplacian is mixed in, as ANTs' template building does
TEMPLATE = "template.nii.gz"


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


def subjects_of(rows: Sequence[dict[str, Any]]) -> list[Subject]:
    """The images of a list with the columns ``image``, and perhaps ``label`` and ``name``; names are made unique.

    Raises:
        InputError: for fewer than two images, a missing file, or a name that occurs twice.
    """
    if len(rows) < 2:
        raise InputError(f"images: an average needs at least two, got {len(rows)}")
    found, taken = [], set()
    for number, row in enumerate(rows, start=1):
        image = row.get("image")
        if not image:
            raise InputError(f"images: row {number} names no image; give a column 'image'")
        for file in filter(None, (image, row.get("label"))):
            if not Path(file).exists():
                raise InputError(f"{file}: file does not exist; correct the path")
        name = row.get("name") or Path(image).name.split(".")[0]
        if name in taken or not name.isprintable() or "/" in name or name.startswith("."):
            if row.get("name"):
                raise InputError(f"images: the name {name!r} occurs twice or cannot be a folder's; give another")
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

    @property
    def scaled(self) -> np.ndarray:
        """Intensities in [0, 1]."""
        return rescale(self.image.array, self.low, self.high)


class Template:
    """Builds an average in a folder; a run that was cut short goes on where it stopped.

    Args:
        subjects: the images.
        folder: for ``template.nii.gz``, ``deviation.nii.gz``, ``label.nii.gz``, ``template.json`` and a folder for each
            image; ``rounds`` keeps what was found on the way.
        registrar: makes the `Registrar` of a kind of transform.
        rounds: how many deformable rounds follow a rigid and an affine one.
        kind: the last kind: ``rigid``, ``affine`` or ``deformable``.
        average: one of `AVERAGES`.
        spacing: mm of the average's voxels; None for the median of the images'.
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
        folder: str | os.PathLike,
        registrar: Callable[[str], Registrar],
        rounds: int = 4,
        kind: str = "deformable",
        average: str = AVERAGES[0],
        spacing: float | None = None,
    ) -> None:
        self.subjects, self.folder, self.registrar = list(subjects), Path(folder), registrar
        kinds = _KINDS[: _KINDS.index(kind) + 1]
        self.kinds = [*kinds[:2], *kinds[2:] * rounds]
        self.average, self.spacing = average, spacing

    def build(self) -> dict[str, Any]:
        """Build, and write everything; returns the content of ``template.json``.

        Raises:
            InputError: for images that cannot be read or registered.
        """
        with output_folder(self.folder), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # where fields end
            seen = [_Seen.read(subject.image) for subject in self.subjects]
            frame = self._frame(seen)
            centre = np.mean([one.centre for one in seen], axis=0)
            chains = [Transform([_shift(one.centre - centre)]) for one in seen]
            inverses = [chain.inverse() for chain in chains]
            average, facts = self._averaged(seen, chains, frame), []
            total = len(self.kinds) * len(seen)
            with tqdm(total=total, desc="template", disable=None, dynamic_ncols=True) as bar:
                for number, kind in enumerate(self.kinds, start=1):
                    bar.set_description(f"round {number} of {len(self.kinds)}, {kind}")
                    found = list(self._round(number, kind, average, seen, frame, bar))
                    chains, inverses = self._centred(*zip(*found, strict=True), frame)
                    average = self._averaged(seen, chains, frame)
                    facts.append(self._facts(kind, average, seen, chains, frame))
            return self._write(average, seen, chains, inverses, frame, facts)

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
        centre = np.mean([one.centre for one in seen], axis=0)
        return Frame.from_parts(
            tuple(shape.tolist()), step, centre - (shape - 1) / 2 * step, np.eye(3), name="template"
        )

    def _round(
        self, number: int, kind: str, average: np.ndarray, seen: Sequence[_Seen], frame: Frame, bar: tqdm
    ) -> Iterator[tuple[Transform, Transform]]:
        """Each image's transform to the average, forth and back; those of an earlier run are read."""
        folder = self.folder / "rounds" / f"{number}_{kind}"
        folder.mkdir(parents=True, exist_ok=True)
        fixed = Image(average, frame, "template")
        registrar = None
        for subject, one in zip(self.subjects, seen, strict=True):
            files = [folder / f"{subject.name}{end}.h5" for end in ("", "_inverse")]
            request = self._request(kind, average, one, registrar or self.registrar(kind))
            mark = folder / f"{subject.name}.json"
            if not (mark.is_file() and json.loads(mark.read_text()).get("request") == request):
                registrar = registrar or self.registrar(kind)
                result = registrar(Pair(fixed, one.image, name=subject.name))
                for transform, file in zip((result.transform, result.inverse), files, strict=True):
                    transform.save(file)
                write_json({"request": request, "verdict": result.metrics["verdict"]["outcome"]}, mark)
            bar.update()
            yield Transform.read(files[0]), Transform.read(files[1])

    def _request(self, kind: str, average: np.ndarray, one: _Seen, registrar: Registrar) -> str:
        """What a registration of a round depends on, in short."""
        digest = hashlib.sha256(np.ascontiguousarray(average).tobytes())
        digest.update(np.ascontiguousarray(one.image.array).tobytes() + one.image.frame.affine.tobytes())
        digest.update(json.dumps([kind, registrar.settings], default=str).encode())
        return digest.hexdigest()

    def _centred(
        self, forward: Sequence[Transform], back: Sequence[Transform], frame: Frame
    ) -> tuple[list[Transform], list[Transform]]:
        """T ∘ m⁻¹ of each image, and its inverse m ∘ T⁻¹."""
        around = frame.padded([_AROUND] * 3)
        if 8 * np.prod(around.shape) <= _MOST:
            affine = around.affine.copy()
            affine[:3, :3] /= 2
            around = Frame(tuple(2 * n - 1 for n in around.shape), affine)  # the voxels, and their middles
        grid = around.voxel_to_world(np.stack(np.indices(around.shape), axis=-1).reshape(-1, 3))
        mean = _as_transform(grid, _mean(forward, grid), around)
        places = NumericalInverse(mean).apply(grid)
        # Between the voxels the mean is not quite what its field is.
        back_again = np.linalg.inv(mean.linear[:3, :3]).T
        for _ in range(_CORRECTIONS):
            places = places - (_mean(forward, places) - grid) @ back_again
        undone = _as_transform(grid, places, around)
        mean = _as_transform(grid, NumericalInverse(undone).apply(grid), around)
        return [Transform([undone]).then(one) for one in forward], [one.then(Transform([mean])) for one in back]

    def _averaged(self, seen: Sequence[_Seen], chains: Sequence[Transform], frame: Frame) -> np.ndarray:
        """The average of the images under their transforms, in the mean of their intensities, float32."""
        moved = (
            resample_image(one.scaled, one.image.frame, frame, chain.parts, fill=0.0, threads=threads())
            for one, chain in zip(seen, chains, strict=True)
        )
        if self.average == "median":
            found = np.median(np.stack(list(moved)), axis=0)
        else:
            found = sum(one.astype(np.float64) for one in moved) / len(seen)
        if self.average == "sharpened":
            sharp = sitk.GetArrayFromImage(sitk.LaplacianSharpening(sitk.GetImageFromArray(found)))
            found = np.clip((1 - _SHARPENED) * found + _SHARPENED * sharp, 0, 1)
        low, high = _range(seen)
        return (low + found * (high - low)).astype(np.float32)

    def _facts(
        self, kind: str, average: np.ndarray, seen: Sequence[_Seen], chains: Sequence[Transform], frame: Frame
    ) -> dict[str, Any]:
        """How unbiased and how sharp a round's average is."""
        points = frame.voxel_to_world(np.argwhere(average > average.mean())[:: max(1, average.size // 20_000)])
        mean = _mean(chains, points) - points
        slopes = np.linalg.norm(np.gradient(average, *frame.spacing), axis=0)
        low, high = _range(seen)
        return {
            "kind": kind,
            "mean_displacement_mm": float(np.linalg.norm(mean, axis=1).max()),
            "mean_gradient": float(slopes[average > average.mean()].mean() / (high - low)),
        }

    def _write(
        self,
        average: np.ndarray,
        seen: Sequence[_Seen],
        chains: Sequence[Transform],
        inverses: Sequence[Transform],
        frame: Frame,
        rounds: list[dict[str, Any]],
    ) -> dict[str, Any]:
        """All files; ``template.json`` is the last."""
        total, squares, votes = np.zeros(frame.shape), np.zeros(frame.shape), {}
        for subject, one, chain, inverse in zip(self.subjects, seen, chains, inverses, strict=True):
            folder = self.folder / subject.name
            folder.mkdir(exist_ok=True)
            chain.save(folder / "transform.h5")
            inverse.save(folder / "inverse_transform.h5")
            low = float(one.image.array.min())
            moved = resample_image(one.image.array, one.image.frame, frame, chain.parts, fill=low, threads=threads())
            save_volume(moved.astype(np.float32), frame.affine, folder / "moved.nii.gz")
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
        facts = {
            "images": [vars(subject) for subject in self.subjects],
            "average": self.average,
            "shape": list(frame.shape),
            "spacing": frame.spacing.tolist(),
            "rounds": rounds,
        }
        write_json(facts, self.folder / "template.json")
        return facts


def _range(seen: Sequence[_Seen]) -> tuple[float, float]:
    """The mean intensities that become 0 and 1."""
    return tuple(float(np.mean([getattr(one, end) for one in seen])) for end in ("low", "high"))


def _mean(transforms: Sequence[Transform], points: np.ndarray) -> np.ndarray:
    """The mean of transforms' places of points ``(N, 3)``; sorted, so that it does not depend on their order."""
    return np.sort(np.stack([transform.points(points) for transform in transforms]), axis=0).mean(axis=0)


def _shift(by: np.ndarray) -> WorldTransform:
    matrix = np.eye(4)
    matrix[:3, 3] = by
    return WorldTransform(matrix)


def _as_transform(grid: np.ndarray, places: np.ndarray, frame: Frame) -> WorldTransform:
    """The transform that carries a frame's voxels ``(N, 3)`` to places: their best affine, and a field inside of it."""
    points = np.concatenate([grid, np.ones((len(grid), 1))], axis=1)
    matrix = np.eye(4)
    matrix[:3] = np.linalg.lstsq(points, places, rcond=None)[0].T
    inside = (places - matrix[:3, 3]) @ np.linalg.inv(matrix[:3, :3]).T - grid
    return WorldTransform(matrix, inside.reshape(*frame.shape, 3), frame)
