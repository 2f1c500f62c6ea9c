"""NRRD and MetaImage files as volumes in the world, through SimpleITK."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..spatial.frame import Frame
from .reading import Voxels, check_spacing, check_volume, in_rows, itk_reading, unreadable
from .text_headers import check_data, read_header


def read_text_headed(file: Path, components: int = 1) -> Voxels:
    """Read one volume, or a field of so many components, from a ``.nrrd``, ``.nhdr``, ``.mha`` or ``.mhd`` file.

    The grid is taken from what SimpleITK says of the header, not from the image it makes: that has a negative spacing
    turned positive.

    Raises:
        InputError: if the file holds no sound volume.
    """
    import SimpleITK as sitk

    header = read_header(file)
    # Its own error for complex voxels names no file and no mend.
    if "complex" in header.fields.get("kinds", ""):
        raise InputError(f"{file}: complex values; save the magnitude image")
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NrrdImageIO" if file.suffix.lower() in (".nrrd", ".nhdr") else "MetaImageIO")
    reader.SetFileName(os.fspath(file))
    with itk_reading(file):
        reader.ReadImageInformation()
    shape, axes = check_volume(file, reader.GetSize()), reader.GetDimension()
    bits = re.fullmatch(r"(?:vector of )?(\d+)-bit .*", sitk.GetPixelIDValueAsString(reader.GetPixelID()))
    if bits is None:
        raise unreadable(file, f"voxels of type {sitk.GetPixelIDValueAsString(reader.GetPixelID())} are not supported")
    if (count := reader.GetNumberOfComponents()) != components:
        if components == 1:
            raise InputError(
                f"{file}: RGB or vector voxels, {count} values in each; save an image of one value per voxel"
            )
        raise InputError(f"{file}: voxels of {count} values, not vectors of {components}; give a displacement field")
    spacing = reader.GetSpacing()[:3]
    check_spacing(file, spacing, "the spacing")
    direction = np.reshape(reader.GetDirection(), (axes, axes))[:3, :3]
    frame = Frame.from_parts(shape, spacing, reader.GetOrigin()[:3], direction, "LPS", str(file))
    check_data(file, header, int(np.prod(shape, dtype=object)) * components * int(bits[1]) // 8)
    with itk_reading(file):
        voxels = sitk.GetArrayViewFromImage(image := reader.Execute())
        array = in_rows(voxels.reshape(*shape[::-1], components).transpose(2, 1, 0, 3))
        del voxels, image
    return Voxels(array if components > 1 else array[..., 0], frame, tuple(header.notes))
