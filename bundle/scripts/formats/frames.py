"""A series of volumes, of one 4-D NIfTI file or of several files, read one at a time and in order."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import nibabel as nib

from ..errors import InputError
from .images import Image, _finite, files_of, read_image
from .nifti import read_frames

_FEWEST = 2


class Frames:
    """The volumes of a series.

    Args:
        source: a 4-D ``.nii`` or ``.nii.gz`` file, or the files of its volumes in order.

    Attributes:
        count: how many there are.
        step: from one to the next in the header's unit of time, and that unit's code; 0 where nothing says it.
        files: that they are read from.

    Raises:
        InputError: for a file that is no such series, or fewer than two volumes.
    """

    def __init__(self, source: str | os.PathLike | Sequence[str | os.PathLike]) -> None:
        several = [source] if isinstance(source, str | os.PathLike) else list(source)
        self.paths = [Path(one).expanduser().absolute() for one in several]
        for path in self.paths:
            if not path.exists():
                raise InputError(f"{path}: file does not exist; correct the path")
        self.count, self.step, self._whole = len(self.paths), (0.0, 0), len(self.paths) == 1
        if self._whole:
            (path,) = self.paths
            if not path.is_file() or not path.name.lower().endswith((".nii", ".nii.gz")):
                raise InputError(f"{path}: is one volume, or no NIfTI file; give a 4-D .nii.gz or several volumes")
            header = self._header()
            self.count = int(header["dim"][4])
            self.step = float(header["pixdim"][4]), int(header["xyzt_units"]) & 0x38
        if self.count < _FEWEST:
            named = self.paths[0] if self.paths else "moving"
            raise InputError(f"{named}: a series of {self.count} volumes; give {_FEWEST} at least")
        self.files = [file for path in self.paths for file in files_of(path)]

    def _header(self) -> nib.Nifti1Header:
        frames = read_frames(self.paths[0])
        try:
            return next(frames)  # type: ignore[return-value]
        finally:
            frames.close()

    def __iter__(self) -> Iterator[Image]:
        """Each volume, called by its number where the file holds several.

        Raises:
            InputError: as `read_image`.
        """
        if not self._whole:
            yield from map(read_image, self.paths)
            return
        (path,) = self.paths
        frames = read_frames(path)
        next(frames)
        for number, found in enumerate(frames):
            image = _finite(Image(found.array, found.frame, Path(f"{path}, volume {number}"), found.notes))
            if image.array.min() == image.array.max():
                raise InputError(f"{image.path}: constant, every voxel is {image.array.min()}; leave it out")
            yield image
