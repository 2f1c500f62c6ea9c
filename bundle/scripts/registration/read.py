"""Reading one pair: both images, their labels and masks, checked against each other before any work."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..formats.images import Image, read_image, read_label, read_mask
from ..spatial.frame import Frame

__all__ = ["ROLES", "ReadPaird", "only_item", "pair_notes", "single_pair"]

ROLES = ("fixed", "moving")
_SAME = 1e-3
_SUSPECT_RATIO = 1.02
_LARGEST = 1e37  # sums and differences of a few such values are finite in single precision


def single_pair(
    fixed: str | os.PathLike | None,
    moving: str | os.PathLike | None,
    fixed_label: str | os.PathLike | None = None,
    moving_label: str | os.PathLike | None = None,
    fixed_mask: str | os.PathLike | None = None,
    moving_mask: str | os.PathLike | None = None,
) -> list[dict]:
    """The list of one pair that the options of a single registration name; it has no name, so it needs no folder.

    Args:
        fixed: fixed image, a file or a folder with one DICOM series.
        moving: moving image, likewise.
        fixed_label: label map on the fixed image's grid, or None.
        moving_label: label map on the moving image's grid, or None.
        fixed_mask: mask on the fixed image's grid, or None.
        moving_mask: mask on the moving image's grid, or None.

    Raises:
        InputError: when an image is not named.
    """
    for role, path in zip(ROLES, (fixed, moving), strict=True):
        if path is None or str(path) == "":
            raise InputError(f"{role}: no image is named; give both the fixed and the moving image, or a list of pairs")
    pair = {
        "fixed": fixed,
        "moving": moving,
        "fixed_label": fixed_label,
        "moving_label": moving_label,
        "fixed_mask": fixed_mask,
        "moving_mask": moving_mask,
    }
    return [{key: str(path) for key, path in pair.items() if path is not None and str(path) != ""}]


def only_item(items: Sequence[dict]) -> dict:
    """Collate a batch of one pair: volumes of several pairs differ in size and cannot be stacked."""
    (item,) = items
    return item


class ReadPaird:
    """Reads the files of a pair into `Image` objects.

    In: ``fixed`` and ``moving`` paths, perhaps ``fixed_label``, ``moving_label``, ``fixed_mask``, ``moving_mask``.
    Out: ``images``, the `Image` of each of these keys, and ``notes``, lines about headers that look odd.
    """

    def __call__(self, data: Mapping) -> dict:
        """Read.

        Raises:
            InputError: for a file that cannot be used (see `read_image`), or values near the end of single precision.
        """
        item = dict(data)
        images: dict[str, Image] = {}
        for role in ROLES:
            images[role] = _in_range(read_image(item[role]))
            if item.get(f"{role}_label"):
                images[f"{role}_label"] = read_label(item[f"{role}_label"], images[role])
            if item.get(f"{role}_mask"):
                images[f"{role}_mask"] = read_mask(item[f"{role}_mask"], images[role])
        item["images"] = images
        item["notes"] = [f"{role}: {note}" for role in images for note in images[role].notes]
        item["notes"] += pair_notes(images["fixed"], images["moving"])
        return item


def _in_range(image: Image) -> Image:
    """Refuse an image that single precision, in which networks count, cannot hold, or whose contrast rounds away."""
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
    return image


def pair_notes(fixed: Image, moving: Image) -> list[str]:
    """What two headers say that is likely to be wrong, one line each; nothing is changed.

    Args:
        fixed: the fixed image.
        moving: the moving image.
    """
    notes = []
    names = f"{Path(fixed.path).name} and {Path(moving.path).name}"
    if fixed.frame.shape == moving.frame.shape:
        for axis, (a, b) in enumerate(zip(fixed.frame.spacing, moving.frame.spacing, strict=True)):
            if max(a, b) > _SUSPECT_RATIO * min(a, b):
                notes.append(
                    f"{names} have the same matrix {fixed.frame.shape}, but {a:.6g} and {b:.6g} mm along axis {axis}: "
                    "one header may be wrong (the affine will make up for it)"
                )
    if _handedness(fixed.frame) != _handedness(moving.frame):
        notes.append(f"{names}: one grid is right-handed and one left-handed; if sides look swapped, see the headers")
    if not _overlap(fixed.frame, moving.frame):
        notes.append(f"{names}: their fields of view do not meet in the world; initialisation 'header' would fail")
    return notes


def _handedness(frame: Frame) -> bool:
    return bool(np.linalg.det(frame.direction) > 0)


def _overlap(fixed: Frame, moving: Frame) -> bool:
    """Whether the boxes around two grids along the fixed grid's axes meet."""
    voxels = fixed.world_to_voxel(moving.corners)
    return bool(((voxels.max(axis=0) >= 0) & (voxels.min(axis=0) <= np.asarray(fixed.shape) - 1)).all())
