"""Checks of input files, made before any work: a bad file is named in one line instead of failing deep in a run."""

import gzip
import warnings
import zlib
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
from monai.data import MetaTensor
from monai.transforms import LoadImage

from .errors import InputError

__all__ = ["ImageInfo", "check_dataset_dir", "check_image", "check_label"]

AFFINE_TOLERANCE_MM = 1e-3
_FORMATS = "NIfTI (.nii, .nii.gz), NRRD or MetaImage"


@dataclass(frozen=True, eq=False)
class ImageInfo:
    """What a check found in a file.

    Attributes:
        path: absolute path of the file.
        shape: the three array sizes (D, H, W), in voxels.
        affine: (4, 4) voxel index to world (RAS, mm), float64.
        labels: the values present, in rising order, for a label map; None for an image.
    """

    path: Path
    shape: tuple[int, int, int]
    affine: np.ndarray
    labels: tuple[int, ...] | None = None

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size along the three array axes, mm."""
        return tuple(float(s) for s in np.linalg.norm(self.affine[:3, :3], axis=0))


def _existing_file(path: str | PathLike) -> Path:
    """Absolute path of a file that exists and is not empty, or InputError."""
    file = Path(path).expanduser().absolute()
    if not file.exists():
        raise InputError(f"{file}: file does not exist; correct the path")
    if not file.is_file():
        raise InputError(f"{file}: not a file; give the path of one {_FORMATS} file")
    if file.stat().st_size == 0:
        raise InputError(f"{file}: file is empty (0 bytes); copy or export it again")
    return file


def _read(path: str | PathLike) -> tuple[Path, np.ndarray, np.ndarray]:
    """Read a 3-D file: (path, array (D, H, W), affine (4, 4)); InputError if it is not a sound 3-D volume."""
    file = _existing_file(path)
    # Readers stop at the last voxel, before the checksum at the stream's end, and take damaged data for good.
    if file.suffix.lower() == ".gz" and (fault := _gzip_fault(file)):
        raise InputError(f"{file}: gzip data truncated or damaged ({fault}); copy the file again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            volume = LoadImage(image_only=True, dtype=None)(str(file))
            affine = volume.affine if isinstance(volume, MetaTensor) else np.eye(4)
            array, affine = np.asarray(volume), np.asarray(affine, dtype=np.float64)
    except Exception as error:  # the readers raise many unrelated types; all mean that the file cannot be used
        raise InputError(
            f"{file}: cannot be read as an image ({_one_line(error)}); give a sound {_FORMATS} file"
        ) from error
    if array.ndim != 3:
        raise InputError(f"{file}: not 3-D, its shape is {tuple(array.shape)}; give a volume with exactly three axes")
    if min(array.shape) < 2:
        raise InputError(f"{file}: empty or flat, its shape is {array.shape}; every axis needs at least 2 voxels")
    if np.iscomplexobj(array):
        raise InputError(f"{file}: complex values ({array.dtype}); save the magnitude image")
    bad = int(array.size - np.count_nonzero(np.isfinite(array)))
    if bad:
        raise InputError(f"{file}: {bad} of {array.size} voxels are NaN or Inf; replace them by finite values")
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise InputError(f"{file}: affine {affine.tolist()} is not invertible; repair the header")
    return file, array, affine


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__


def _gzip_fault(file: Path) -> str:
    """What is wrong with a gzip stream, or an empty string if it unpacks."""
    try:
        with gzip.open(file) as stream:
            while stream.read(1 << 20):
                pass
    except (EOFError, zlib.error, OSError) as error:
        return _one_line(error)
    return ""


def check_image(path: str | PathLike) -> ImageInfo:
    """Check that a file is a 3-D image that can be registered.

    Args:
        path: an image file of any format MONAI reads (nibabel for NIfTI, ITK for the rest).

    Returns:
        Its shape (D, H, W) and affine.

    Raises:
        InputError: the file is missing, not a file, empty, unreadable, truncated, not 3-D (a trailing axis of one
            counts), thinner than two voxels, constant, or holds NaN or Inf, or its affine cannot be inverted.
    """
    file, array, affine = _read(path)
    low, high = array.min(), array.max()
    if low == high:
        raise InputError(f"{file}: constant image, every voxel is {low}; give an image with contrast")
    return ImageInfo(file, array.shape, affine)


def check_label(path: str | PathLike, image: str | PathLike | ImageInfo) -> ImageInfo:
    """Check that a file is a label map on the grid of its image.

    Args:
        path: the label file.
        image: its image's path, or what `check_image` returned for it (which saves reading the image again).

    Returns:
        Its shape (D, H, W), affine and the labels present.

    Raises:
        InputError: as `check_image` (a constant label map is allowed), or the shape differs from the image's, an
            entry of the affine differs by more than 1e-3 mm, or a value is not an integer.
    """
    info = image if isinstance(image, ImageInfo) else check_image(image)
    file, array, affine = _read(path)
    if array.shape != info.shape:
        raise InputError(
            f"{file}: label shape {array.shape} differs from {info.shape} of its image {info.path}; "
            "resample the label to the image's grid (nearest neighbour)"
        )
    gap = float(np.abs(affine - info.affine).max())
    if gap > AFFINE_TOLERANCE_MM:
        raise InputError(
            f"{file}: label affine differs by up to {gap:.4g} mm from that of its image {info.path} "
            f"(allowed {AFFINE_TOLERANCE_MM:g}); resample the label to the image's grid or repair its header"
        )
    values = np.unique(array)
    fractional = values[values != np.round(values)]
    if fractional.size:
        raise InputError(
            f"{file}: label value {fractional[0]:.6g} is not an integer ({fractional.size} such values); "
            "save the label map as integers"
        )
    return ImageInfo(file, array.shape, affine, tuple(int(v) for v in values))


def check_dataset_dir(path: str | PathLike) -> Path:
    """Find the data list of a data set folder, or accept the path of a list itself.

    Args:
        path: a folder that holds `dataset.json`, or a `.json` or `.csv` file.

    Returns:
        Absolute path of the list file.

    Raises:
        InputError: the path does not exist, the folder has no `dataset.json`, or the file is empty or of another kind.
    """
    place = Path(path).expanduser().absolute()
    if not place.exists():
        raise InputError(f"{place}: data set folder does not exist; set dataset_dir to a folder with a dataset.json")
    if place.is_dir():
        if not (place / "dataset.json").is_file():
            raise InputError(f"{place}: no dataset.json in this folder; add one or name a .json or .csv list instead")
        place = place / "dataset.json"
    if place.suffix.lower() not in (".json", ".csv"):
        raise InputError(f"{place}: unknown kind of data list '{place.suffix}'; give a .json or .csv file")
    return _existing_file(place)
