"""One reader for every image: its voxels as stored, and its grid in the world."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..spatial.frame import Frame
from .dicom import read_series
from .itk_images import read_text_headed
from .nifti import GRID_TOLERANCE_MM, corner_gap, read_nifti
from .reading import unreadable

_READERS = {
    (".nii", ".nii.gz"): read_nifti,
    (".nrrd", ".nhdr", ".mha", ".mhd"): read_text_headed,
}


@dataclass(frozen=True, eq=False)
class Image:
    """One volume in the world.

    Attributes:
        array: ``(D, H, W)``, a native real type, ITK's index order (x, y, z), as nibabel loads it; bool for a mask.
        frame: its grid.
        path: absolute; the folder for a DICOM series.
        notes: oddities of the header worth telling a user that do not forbid its use, one line each.
    """

    array: np.ndarray
    frame: Frame
    path: Path
    notes: tuple[str, ...] = ()


def read_image(path: str | os.PathLike) -> Image:
    """Read one volume that can be registered.

    Args:
        path: a .nii, .nii.gz, .nrrd, .nhdr, .mha or .mhd file, or a folder with the files of one DICOM series.

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
    """Read a label map.

    Args:
        path: as of `read_image`.
        image: the image whose grid the labels must lie on.

    Returns:
        The labels, of an integer type. A constant map is allowed.

    Raises:
        InputError: as `read_image`; or a value is not a whole number, or the map is not on the image's grid.
    """
    label = read_volume(path)
    if image is not None:
        check_grid(label, image.frame, image.path)
    return replace(label, array=_whole(label.array, label.path))


def read_mask(path: str | os.PathLike, image: Image | None = None) -> Image:
    """Read a label map as a mask: True wherever its value is not 0.

    Args:
        path: as of `read_image`.
        image: the image whose grid the mask must lie on.

    Raises:
        InputError: as `read_label`; or every voxel is 0.
    """
    label = read_label(path, image)
    mask = label.array != 0
    if not mask.any():
        raise InputError(f"{label.path}: empty mask, every voxel is 0; give a mask with voxels other than 0")
    return replace(label, array=mask)


def check_grid(label: Image, frame: Frame, image: str | os.PathLike) -> None:
    """Refuse a label map that does not lie on its image's grid.

    Args:
        label: the label map.
        frame: grid of its image.
        image: path of its image, for the message.

    Raises:
        InputError: the shapes differ, or corner voxels lie more than 1e-3 mm apart.
    """
    if label.frame.shape != frame.shape:
        raise InputError(
            f"{label.path}: label shape {label.frame.shape} differs from {frame.shape} of its image {image}; "
            "resample the label to the image's grid (nearest neighbour)"
        )
    gap = corner_gap(frame.shape, label.frame.affine, frame.affine)
    if gap > GRID_TOLERANCE_MM:
        raise InputError(
            f"{label.path}: label affine differs by up to {gap:.4g} mm from that of its image {image} "
            f"(allowed {GRID_TOLERANCE_MM:g}); resample the label to the image's grid or repair its header"
        )


def read_volume(path: str | os.PathLike) -> Image:
    """Read one volume of finite values, which may be constant; an object in memory is taken as `image_from` does."""
    if not isinstance(path, str | os.PathLike):
        from .objects import image_from

        return _finite(image_from(path))
    file = Path(path)
    try:
        file = file.expanduser().absolute()
        if not file.exists():
            raise InputError(f"{file}: file does not exist; correct the path")
        array, frame, notes = (read_series if file.is_dir() else _reader(file))(file)
    except (OSError, RuntimeError) as error:  # no permission, a name too long, the home of an unknown user
        raise unreadable(file, getattr(error, "strerror", None) or error) from error
    return _finite(Image(array, frame, file, notes))


def _finite(image: Image) -> Image:
    """The image, if it has no NaN or Inf."""
    array = image.array
    bad = int(array.size - np.count_nonzero(np.isfinite(array))) if array.dtype.kind == "f" else 0
    if bad:
        raise InputError(f"{image.path}: {bad} of {array.size} voxels are NaN or Inf; replace them by finite values")
    return image


def _reader(file: Path) -> Callable[[Path], tuple[np.ndarray, Frame, tuple[str, ...]]]:
    """The reader for a file by its name."""
    if not file.is_file():
        raise InputError(f"{file}: not a file; give the path of an image file")
    if file.stat().st_size == 0:
        raise InputError(f"{file}: file is empty (0 bytes); copy or export it again")
    for suffixes, reader in _READERS.items():
        if file.name.lower().endswith(suffixes):
            return reader
    if file.suffix.lower() in (".dcm", ".ima"):
        raise InputError(f"{file}: one DICOM file; give the folder that holds the files of its series")
    raise unreadable(file, f"unknown kind '{file.suffix}'")


def _whole(array: np.ndarray, path: Path) -> np.ndarray:
    """Labels as an integer type."""
    if array.dtype.kind != "f":
        return array
    whole = np.rint(array)
    fractional = np.unique(array[array != whole])
    if fractional.size:
        raise InputError(
            f"{path}: label value {fractional[0]:.6g} is not an integer ({fractional.size} such values); "
            "save the label map as integers"
        )
    largest = np.abs(whole).max()
    if largest >= 2**63:
        raise InputError(f"{path}: label value {largest:.6g} is beyond 64 bits; save the label map as integers")
    return whole.astype(np.int32 if largest < 2**31 else np.int64)
