"""Checks of input files, made before any work: a bad file is named in one line instead of failing deep in a run."""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..formats.images import check_grid, read_image, read_label

# The room as a whole: it takes InputError from this one, and whichever is imported first finds the other unfinished.
from ..spatial.frame import Frame

__all__ = ["ImageInfo", "check_dataset_dir", "check_image", "check_label"]


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


def check_image(path: str | PathLike) -> ImageInfo:
    """Check that a file is a 3-D image that can be registered.

    Args:
        path: an image of any format that `read_image` reads.

    Returns:
        Its shape (D, H, W) and affine.

    Raises:
        InputError: as `read_image`.
    """
    image = read_image(path)
    return ImageInfo(image.path, image.frame.shape, image.frame.affine)


def check_label(path: str | PathLike, image: str | PathLike | ImageInfo) -> ImageInfo:
    """Check that a file is a label map on the grid of its image.

    Args:
        path: the label file.
        image: its image's path, or what `check_image` returned for it (which saves reading the image again).

    Returns:
        Its shape (D, H, W), affine and the labels present.

    Raises:
        InputError: as `check_image` (a constant label map is allowed), or the shape differs from the image's, corner
            voxels lie more than 1e-3 mm apart, or a value is not an integer.
    """
    info = image if isinstance(image, ImageInfo) else check_image(image)
    label = read_label(path)
    check_grid(label, Frame(info.shape, info.affine, str(info.path)), info.path)
    return ImageInfo(label.path, label.frame.shape, label.frame.affine, tuple(np.unique(label.array).tolist()))


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
    if place.stat().st_size == 0:
        raise InputError(f"{place}: file is empty (0 bytes); copy or export it again")
    return place
