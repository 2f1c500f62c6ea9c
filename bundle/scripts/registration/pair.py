"""A pair of images to register: what it holds, how it is read, and what its headers say that looks wrong."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ..data import list_pairs
from ..errors import InputError
from ..formats import Image, Points, image_from, points_from, read_image, read_label, read_mask
from ..metrics.landmarks import check_correspondence
from ..settings import CHANNELS, FILES

__all__ = ["Pair", "ReadPaird", "requested_pairs"]

ROLES = ("fixed", "moving")

_SUSPECT_RATIO = 1.02
_BLOCK = 64  # voxels along each axis, in the middle, that are looked at for noise
_NOISE = 0.25  # correlation of neighbours; chance alone stays below in 8 voxels cubed
_SEEN = 24  # places along each axis at which two images are compared
_MIRRORED, _MIRRORED_GAIN = 0.9, 0.5
_LARGEST = 1e37  # sums and differences of a few such values are finite in single precision


@dataclass(frozen=True, eq=False)
class Pair:
    """Two images and what belongs to them; labels and masks lie on their image's grid.

    Attributes:
        fixed: the paper's target I1.
        moving: the paper's source I0.
        fixed_label: label map of the fixed image; measured with, and registered by where it is asked for.
        moving_label: label map of the moving image; warped with it.
        fixed_mask: where the similarity counts.
        moving_mask: the same of the moving image.
        fixed_points: landmarks of the fixed image.
        moving_points: the same landmarks in the moving image.
        name: of a pair in a list; empty for a single pair.
        fixed_channels: further images in the space of the fixed one, on grids of their own.
        moving_channels: those that belong to them, in the space of the moving image.

    Raises:
        InputError: for an image that single precision cannot hold, or channels without partners.
    """

    fixed: Image
    moving: Image
    fixed_label: Image | None = None
    moving_label: Image | None = None
    fixed_mask: Image | None = None
    moving_mask: Image | None = None
    fixed_points: Points | None = None
    moving_points: Points | None = None
    name: str = ""
    fixed_channels: tuple[Image, ...] = ()
    moving_channels: tuple[Image, ...] = ()

    def __post_init__(self) -> None:
        for image in (self.fixed, self.moving, *self.fixed_channels, *self.moving_channels):
            _check_range(image)
        counts = [len(self.fixed_channels), len(self.moving_channels)]
        if counts[0] != counts[1]:
            raise InputError(
                f"fixed_channels: {counts[0]} images, but {counts[1]} moving_channels; give as many of both, in order"
            )

    @classmethod
    def read(cls, files: Mapping[str, Any], space: str | None = None) -> Pair:
        """Read a pair.

        Args:
            files: by the names in `FILES`, and perhaps ``name``; the images are required. Paths, or objects that
                `image_from` takes, which messages then call by these names; points as `points_from` takes them.
            space: see `points_from`.

        Raises:
            InputError: for a file that cannot be used, see `read_image`, `read_label`, `read_mask`, `points_from`;
                for landmarks that do not correspond, or lie outside of their image.
        """
        found: dict[str, Any] = {}
        points: dict[str, str] = {}
        for role in ROLES:
            image = found[role] = read_image(_called(files[role], role))
            for kind, read in (("label", read_label), ("mask", read_mask)):
                name = f"{role}_{kind}"
                source = files.get(name)
                # Not its truth, which a tensor of many voxels does not have.
                if source is not None and not (isinstance(source, str) and source == ""):
                    found[name] = read(_called(source, name), image)
            source = files.get(f"{role}_points")
            if source is not None and not (isinstance(source, str) and source == ""):
                points[role] = str(source) if isinstance(source, str | os.PathLike) else f"{role}_points"
                try:
                    found[f"{role}_points"] = points_from(source, space)
                except InputError as error:
                    if isinstance(source, str | os.PathLike):  # which the message names
                        raise
                    raise InputError(f"{points[role]}: {error}") from error
        for name in CHANNELS:
            given = files.get(name)
            if given is None or (isinstance(given, str) and given == ""):
                given = ()
            given = given if isinstance(given, list | tuple) else [given]
            found[name] = tuple(read_image(_called(one, name)) for one in given)
        pair = cls(**found, name=files.get("name") or "")
        _check_points(pair, points)
        return pair

    @property
    def images(self) -> dict[str, Image]:
        """The images that there are, by the names in `FILES`."""
        found = {name: getattr(self, name) for name in FILES}
        return {name: image for name, image in found.items() if isinstance(image, Image)}

    @property
    def notes(self) -> list[str]:
        """What the headers and the images say that is likely to be wrong, one line each; nothing is changed."""
        notes = _named_notes(self.images)
        for name in CHANNELS:
            notes += [note for image in getattr(self, name) for note in _named_notes({name: image})]
        fixed, moving = self.fixed.frame, self.moving.frame
        names = f"{Path(self.fixed.path).name} and {Path(self.moving.path).name}"
        if fixed.shape == moving.shape:
            for axis, (a, b) in enumerate(zip(fixed.spacing, moving.spacing, strict=True)):
                if max(a, b) > _SUSPECT_RATIO * min(a, b):
                    notes.append(
                        f"{names} have the same matrix {fixed.shape}, but {a:.6g} and {b:.6g} mm along axis {axis}: "
                        "if one header is wrong, the images are matched all the same, but sizes and volumes are wrong "
                        "by as much"
                    )
        for role in ROLES:
            image = getattr(self, role)
            named = role if str(image.path) == role else f"{role}: {Path(image.path).name}"
            notes += [f"{named}: {note}" for note in _doubts(image.array)]
        if side := _mirrored(self.fixed, self.moving):
            notes.append(
                f"{names} look like mirror images of each other ({side}): they may be registered closely all the same, "
                "and wrongly; see whether a header has lost a flip"
            )
        return notes


class ReadPaird:
    """MONAI transform of an entry of a list of pairs: adds ``pair``, the `Pair` of its files.

    Args:
        space: see `Pair.read`.
    """

    def __init__(self, space: str | None = None) -> None:
        self.space = space

    def __call__(self, data: Mapping) -> dict:
        """Read; raises InputError as `Pair.read`."""
        return {**data, "pair": Pair.read(data, self.space)}


def _called(source: Any, name: str) -> Any:
    """A path as it is; the image of an object in memory, by a name for messages."""
    return source if isinstance(source, str | os.PathLike) else image_from(source, name)


def _check_range(image: Image) -> None:
    """Refuse an image that single precision, in which networks compute, cannot hold, or whose contrast rounds away."""
    low, high = image.array.min(), image.array.max()
    if float(low) == float(high):
        raise InputError(
            f"{image.path}: values from {low} to {high} are one number in double precision; subtract {low}"
        )
    for value in (low, high):
        if abs(float(value)) > _LARGEST:
            raise InputError(
                f"{image.path}: voxels of value {value:.6g} are beyond {_LARGEST:g}; replace such values by the "
                "background's, or rescale the image"
            )


def _check_points(pair: Pair, names: Mapping[str, str]) -> None:
    """Refuse landmarks without partners, and those outside of their image: most likely they are of another world.

    Args:
        pair: whose landmarks are looked at.
        names: for messages, of the landmarks of each role.
    """
    given = {role: points for role in ROLES if (points := getattr(pair, f"{role}_points")) is not None}
    if not given:
        return
    if len(given) == 1:
        (role,) = given
        (missing,) = set(ROLES) - given.keys()
        raise InputError(f"{role}_points: need {missing}_points as well, the same landmarks in the same order")
    try:
        check_correspondence(pair.fixed_points, pair.moving_points)
    except InputError as error:
        raise InputError(f"{names['fixed']}, {names['moving']}: {error}") from error
    for role, points in given.items():
        image = getattr(pair, role)
        inside = image.frame.contains_voxel(image.frame.world_to_voxel(points.coordinates))
        if not inside.all():
            first = int(np.flatnonzero(~inside)[0])
            where = ", ".join(f"{value:.4g}" for value in points.coordinates[first])
            raise InputError(
                f"{names[role]}: {int((~inside).sum())} of {len(inside)} lie outside of {image.path}, the first is "
                f"number {first + 1} at {where} (RAS mm); is the other space meant (RAS, LPS), or another image? Else "
                "remove them"
            )


def _named_notes(images: Mapping[str, Image]) -> list[str]:
    """Notes of images after the names of the images; once where one file is several of them."""
    names: dict[tuple[str, str], list[str]] = {}
    for name, image in images.items():
        for note in image.notes:
            names.setdefault((str(image.path), note), []).append(name)
    return [f"{', '.join(called)}: {note}" for (_, note), called in names.items()]


def _doubts(array: np.ndarray) -> list[str]:
    """Why an array is no image that can be registered by what it shows."""
    low, high = array.min(), array.max()
    some = array.reshape(-1)[:: max(1, array.size // 1000)]
    if all(((part == low) | (part == high)).all() for part in (some, array)):
        return [f"holds only the values {low:g} and {high:g}, as a mask; give the image itself"]
    block = array[tuple(slice((n - m) // 2, (n + m) // 2) for n, m in ((n, min(n, _BLOCK)) for n in array.shape))]
    alike = [_correlation(np.take(block, range(1, n), k), np.take(block, range(n - 1), k)) for k, n in _axes(block)]
    if max(alike) < _NOISE:
        return ["looks like noise: neighbouring voxels have little to do with each other"]
    return []


def _axes(array: np.ndarray) -> list[tuple[int, int]]:
    return [(axis, length) for axis, length in enumerate(array.shape) if length > 1]


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's correlation of two arrays; 1 where one is constant, of which nothing can be said."""
    pair = np.stack([one.ravel(), other.ravel()]).astype(np.float64)
    pair -= pair.mean(axis=1, keepdims=True)
    sizes = np.linalg.norm(pair, axis=1)
    return float(pair[0] @ pair[1] / sizes.prod()) if sizes.all() else 1.0


def _mirrored(fixed: Image, moving: Image) -> str:
    """The sides that are swapped, if the images resemble each other far better when one is mirrored; else empty."""
    seen = []
    for image in (fixed, moving):
        array = nib.orientations.apply_orientation(image.array, nib.io_orientation(image.frame.affine))
        seen.append(array[np.ix_(*(np.linspace(0, n - 1, _SEEN).round().astype(int) for n in array.shape))])
    plain = _correlation(*seen)
    for axis, side in enumerate(("left and right", "front and back", "top and bottom")):
        found = _correlation(seen[0], np.flip(seen[1], axis))
        if found > _MIRRORED and 1 - found < _MIRRORED_GAIN * (1 - plain):
            return side
    return ""


def requested_pairs(
    dataset_dir: str | os.PathLike | None = None,
    section: str = "registration_val",
    count: int | None = None,
    **files: str | os.PathLike | None,
) -> list[dict]:
    """The files of the pairs that are asked for: those of a list, or the one pair whose files are named.

    Args:
        dataset_dir: a list of pairs (``.csv``, ``.json``) or a folder with ``dataset.json``; None for one pair.
        section: section of a ``dataset.json``.
        count: the first so many pairs of a list; None for all.
        files: paths of one pair, by the names in `FILES`; such a pair has no name.

    Raises:
        InputError: when both or neither are given, or what is given does not exist.
    """
    given = {
        name: [str(one) for one in path] if isinstance(path, list | tuple) else str(path)
        for name, path in files.items()
        if path is not None and str(path) != ""
    }
    if dataset_dir is not None and str(dataset_dir) != "":
        if given:
            raise InputError(
                f"{next(iter(given))}: a list of pairs is given as well ({dataset_dir}); give one of the two"
            )
        return list_pairs(dataset_dir, section, count=count)
    for role in ROLES:
        if role not in given:
            raise InputError(f"{role}: no image is named; give both the fixed and the moving image, or a list of pairs")
    return [given]
