"""One reader for every image: its voxels as stored, and its grid in the world."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..spatial.frame import Frame
from ..storage import is_there
from .dicom import is_candidate, read_series, series_files
from .mgh import read_mgh
from .nifti import GRID_TOLERANCE, corner_gap, read_nifti
from .reading import Voxels, unreadable
from .text_headed import read_header, read_text_headed

_TEXT_HEADED = (".nrrd", ".nhdr", ".mha", ".mhd")
_READERS = {(".nii", ".nii.gz"): read_nifti, _TEXT_HEADED: read_text_headed, (".mgz", ".mgh"): read_mgh}

_ROUNDED = 4 * float(np.finfo(np.float32).eps)  # of a label's value: off by a few roundings in single precision
_WHOLE_TOLERANCE = 0.01
_FINEST_STEP = 0.1  # of stored values that a slope turns to labels; coarser ones are not rounded to whole numbers
_MOST_LABELS = 1000  # FreeSurfer's atlases have some hundreds


@dataclass(frozen=True, eq=False)
class Image:
    """One volume in the world.

    Attributes:
        array: ``(D, H, W)``, a native real type, ITK's index order (x, y, z), as nibabel loads it; bool for a mask.
        frame: its grid.
        path: absolute; the folder for a DICOM series.
        notes: oddities of the header worth telling a user that do not forbid its use, one line each.
        step: distance of neighbouring stored values where the header scales integers, else 0.
    """

    array: np.ndarray
    frame: Frame
    path: Path
    notes: tuple[str, ...] = ()
    step: float = 0.0


def read_image(path: str | os.PathLike) -> Image:
    """Read one volume that can be registered.

    Args:
        path: a .nii, .nii.gz, .nrrd, .nhdr, .mha, .mhd, .mgz or .mgh file, or a folder with the files of one DICOM
            series; ``folder/NAME`` is the series of several in a folder whose number, UID or description is NAME.

    Returns:
        The image; scaled integers are scaled, others keep their type.

    Raises:
        InputError: the file is missing, empty, of another kind, unreadable, truncated or damaged; is not 3-D (trailing
            axes of one are allowed), thinner than two voxels, of RGB, vector or complex voxels, constant, or holds NaN
            or Inf; its header's spacing or direction makes no grid; or the folder holds not just one whole series.
    """
    image = read_volume(path)
    low, high = image.array.min(), image.array.max()
    if low == high:
        raise InputError(f"{image.path}: constant image, every voxel is {low}; give an image with contrast")
    return image


def read_label(path: str | os.PathLike, image: Image | None = None) -> Image:
    """Read a label map, of an integer type, on the very grid of ``image`` if one is given; it may be constant.

    InputError as `read_image`; or a value is not a whole number, or the map is not on the image's grid.
    """
    label, array, fractions = _labels(path, image)
    if fractions.size:
        raise InputError(
            f"{label.path}: label value {fractions[0]:.9g} is not an integer ({fractions.size} such values"
            f"{', as of an image' if fractions.size > _MOST_LABELS else ''}); save the label map as integers"
        )
    return replace(label, array=array)


def read_mask(path: str | os.PathLike, image: Image | None = None) -> Image:
    """Read a label map as a mask, as `read_label`: True where its value is not 0; InputError for an empty one, too."""
    label, array, fractions = _labels(path, image)
    if fractions.size:
        raise InputError(
            f"{label.path}: is no mask: {fractions.size} of its values are not integers, such as {fractions[0]:.9g}, "
            "as of an image or of probabilities; give a map of integers, 0 outside the mask"
        )
    mask = array != 0
    if not mask.any():
        raise InputError(f"{label.path}: empty mask, every voxel is 0; give a mask with voxels other than 0")
    notes = label.notes
    if (values := np.unique(array).size) > _MOST_LABELS:
        notes += (f"has {values} different values, as an image; as a mask it counts wherever it is not 0",)
    return replace(label, array=mask, notes=notes)


def check_grid(label: Image, frame: Frame, image: str | os.PathLike) -> None:
    """InputError where shapes differ, or corner voxels lie more than `GRID_TOLERANCE` of the smallest voxel apart."""
    if label.frame.shape != frame.shape:
        raise InputError(
            f"{label.path}: label shape {label.frame.shape} differs from {frame.shape} of {image}; "
            "resample the label to that grid (nearest neighbour)"
        )
    gap, allowed = corner_gap(frame.shape, label.frame.affine, frame.affine), GRID_TOLERANCE * frame.spacing.min()
    if gap > allowed:
        raise InputError(
            f"{label.path}: label affine differs by up to {gap:.4g} mm from that of {image} "
            f"(allowed {allowed:.4g}); resample the label to that grid or repair its header"
        )


def read_volume(path: str | os.PathLike) -> Image:
    """Read one volume of finite values, which may be constant; an object in memory is taken as `image_from` does."""
    if not isinstance(path, str | os.PathLike):
        from .objects import image_from

        return _finite(image_from(path))
    file = Path(path)
    try:
        file = file.expanduser().absolute()
        if not is_there(file):
            raise InputError(f"{file}: file does not exist; correct the path")
        with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is not finite, and refused
            found = _read(file)
    except (OSError, RuntimeError) as error:  # no permission, a name too long, the home of an unknown user
        raise unreadable(file, getattr(error, "strerror", None) or error) from error
    return _finite(Image(found.array, found.frame, file, (*found.notes, *found.frame.notes), found.step))


def files_of(path: str | os.PathLike) -> list[Path]:
    """Every file that an image's header and voxels are read from, sorted; an image has changed where one of them has.

    More than the named file for ``.mhd`` and ``.nhdr``, whose voxels are elsewhere, and for a folder of DICOM files
    (itself not among them). A path of which nothing can be read, or of another kind, stands for itself.
    """
    file = Path(path)
    try:
        if file.is_dir():
            return sorted(item for item in file.iterdir() if is_candidate(item))
        if not file.exists():
            return series_files(file)
        if file.is_file() and file.name.lower().endswith(_TEXT_HEADED):
            return sorted({file, *read_header(file).data})
    except (InputError, OSError):
        pass
    return [file]


def _finite(image: Image) -> Image:
    array = image.array
    bad = int(array.size - np.count_nonzero(np.isfinite(array))) if array.dtype.kind == "f" else 0
    if bad:
        raise InputError(f"{image.path}: {bad} of {array.size} voxels are NaN or Inf; replace them by finite values")
    return image


def _read(file: Path) -> Voxels:
    """What a file or folder holds, by its name."""
    if file.is_dir() or not file.exists():
        return read_series(file)
    if not file.is_file():
        raise InputError(f"{file}: not a file; give the path of an image file")
    if file.stat().st_size == 0:
        raise InputError(f"{file}: file is empty (0 bytes); copy or export it again")
    for suffixes, reader in _READERS.items():
        if file.name.lower().endswith(suffixes):
            return reader(file)
    if file.suffix.lower() in (".dcm", ".ima"):
        return read_series(file)
    raise unreadable(file, f"unknown kind '{file.suffix}'")


def _labels(path: str | os.PathLike, image: Image | None) -> tuple[Image, np.ndarray, np.ndarray]:
    """A label map on its image's very grid, its values as an integer type, and those that are no whole numbers, sorted.

    A value may be off a whole number by what rounded it: half a step of stored values where the header scales them, a
    few roundings in single precision otherwise.
    """
    label = read_volume(path)
    if image is not None:
        check_grid(label, image.frame, image.path)
        label = replace(label, frame=image.frame)
    array = label.array
    if array.dtype.kind != "f":
        return label, array, np.empty(0)
    whole = np.rint(array)
    step = label.step if label.step <= _FINEST_STEP else 0.0
    allowed = np.maximum(0.5001 * step, np.minimum(_ROUNDED * np.maximum(np.abs(array), 1), _WHOLE_TOLERANCE))
    fractions = np.unique(array[np.abs(array - whole) > allowed])
    largest = np.abs(whole).max()
    if largest >= 2**63:
        raise InputError(f"{label.path}: label value {largest:.6g} is beyond 64 bits; save the label map as integers")
    return label, whole.astype(np.int32 if largest < 2**31 else np.int64), fractions
