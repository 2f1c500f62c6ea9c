"""FreeSurfer's MGH files as volumes in the world."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
from nibabel.freesurfer.mghformat import MGHHeader

from ..errors import InputError
from ..spatial.frame import Frame
from .reading import Voxels, check_spacing, check_volume, in_rows, opened, read_array, unreadable

_START = 284  # byte of the first voxel
_PLACED = slice(28, 30)  # goodRASFlag


def read_mgh(file: Path) -> Voxels:
    """Read one volume from a ``.mgz`` or ``.mgh`` file; InputError if it holds no sound one."""
    with opened(file) as (stream, packed):
        data = stream.read(_START)
        if len(data) < _START or data[:4] != b"\0\0\0\1":
            raise unreadable(file, "it has no MGH header")
        try:
            header = MGHHeader(data, check=False)
            shape = check_volume(file, [int(n) for n in header["dims"]])
            kind = header.get_data_dtype().newbyteorder(">")
            check_spacing(file, header["delta"], "the spacing")
            frame = Frame(shape, header.get_affine(), str(file))
        except (KeyError, ValueError, nib.spatialimages.HeaderDataError) as error:
            if isinstance(error, InputError):
                raise
            raise unreadable(file, error) from error
        left = None if packed else file.stat().st_size - _START
        array, _ = read_array(file, stream, shape, kind, left)  # scan parameters follow the voxels
    placed = any(data[_PLACED])  # nibabel sets the flag where it is not
    note = "its place in the world is not set: FreeSurfer's coronal axes about the middle are assumed"
    return Voxels(in_rows(array, kind.newbyteorder("=")), frame, () if placed else (note,))
