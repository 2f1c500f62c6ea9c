"""NRRD and MetaImage files as volumes in the world, through ITK."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from ..errors import InputError
from ..spatial.frame import Frame
from .reading import check_spacing, check_volume, itk_reading, unreadable
from .text_headers import check_data, read_header

# ITK's names of voxel types, the Python wrapping that can hold each, and NumPy's type. ITK wraps no signed 8-bit and
# 64-bit images: they are read as unsigned, which keeps every bit, and viewed as what they are.
VOXEL_TYPES = {
    "unsigned_char": ("UC", np.uint8),
    "char": ("UC", np.int8),
    "unsigned_short": ("US", np.uint16),
    "short": ("SS", np.int16),
    "unsigned_int": ("UI", np.uint32),
    "int": ("SI", np.int32),
    "unsigned_long_long": ("ULL", np.uint64),
    "long_long": ("ULL", np.int64),
    "unsigned_long": ("ULL", np.uint64),
    "long": ("ULL", np.int64),
    "float": ("F", np.float32),
    "double": ("D", np.float64),
}


def read_text_headed(file: Path) -> tuple[np.ndarray, Frame, tuple[str, ...]]:
    """Read one volume from a ``.nrrd``, ``.nhdr``, ``.mha`` or ``.mhd`` file.

    The grid is taken from ITK's ImageIO, not from the image it makes: that has a negative spacing turned positive.

    Returns:
        The array ``(D, H, W)``, its frame and notes on the header.

    Raises:
        InputError: if the file holds no sound volume.
    """
    import itk

    header = read_header(file)
    io = (itk.NrrdImageIO if file.suffix.lower() in (".nrrd", ".nhdr") else itk.MetaImageIO).New()
    with itk_reading(file):
        io.SetFileName(os.fspath(file))
        io.ReadImageInformation()
    axes = range(io.GetNumberOfDimensions())
    shape = check_volume(file, [io.GetDimensions(i) for i in axes])
    kind = check_voxels(file, io)
    spacing = [io.GetSpacing(i) for i in axes][:3]
    check_spacing(file, spacing, "the spacing")
    direction = np.array([io.GetDirection(i)[:3] for i in axes][:3]).T
    frame = Frame.from_parts(shape, spacing, [io.GetOrigin(i) for i in axes][:3], direction, "LPS", str(file))
    voxel, dtype = VOXEL_TYPES[kind]
    check_data(file, header, int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize)
    with itk_reading(file):
        reader = itk.ImageFileReader[itk.Image[getattr(itk, voxel), 3]].New(ImageIO=io, FileName=os.fspath(file))
        reader.Update()
        array = to_array(reader.GetOutput(), dtype)
    return array, frame, tuple(header.notes)


def check_voxels(file: Path, io: Any) -> str:
    """ITK's name of the voxel type of an ImageIO that has read its header.

    Raises:
        InputError: if a voxel is not one real number.
    """
    kind = io.GetComponentTypeAsString(io.GetComponentType())
    count = io.GetNumberOfComponents()
    if io.GetPixelTypeAsString(io.GetPixelType()) == "complex":
        raise InputError(f"{file}: complex values; save the magnitude image")
    if count != 1:
        raise InputError(f"{file}: RGB or vector voxels, {count} values in each; save an image of one value per voxel")
    if kind not in VOXEL_TYPES:
        raise unreadable(file, f"voxels of type {kind} are not supported")
    return kind


def to_array(image: Any, dtype: DTypeLike) -> np.ndarray:
    """An ITK image's voxels as a new array ``(D, H, W)``, their bits seen as ``dtype``."""
    import itk

    return np.array(itk.array_view_from_image(image).transpose(2, 1, 0), order="C").view(dtype)
