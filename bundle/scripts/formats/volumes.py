"""Volumes as files: what a type can hold, and NIfTI, NRRD and MetaImage written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import nullcontext
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
from isal.igzip import IGzipFile
from numpy.typing import DTypeLike

from ..errors import InputError
from ..spatial.arrays import as_volume
from ..spatial.frame import Frame
from ..storage import atomic_path

if TYPE_CHECKING:
    from ..spatial.arrays import ArrayLike

NIFTI_SUFFIXES = (".nii", ".nii.gz")
ITK_SUFFIXES = (".nrrd", ".mha")
_SCANNER = 1  # NIFTI_XFORM_SCANNER_ANAT
_LEVEL = 2  # of isal: files as small as by gzip's level 1, in a quarter of its time


def check_nifti_path(path: str | os.PathLike) -> None:
    """Refuse a path that ends with neither ``.nii`` nor ``.nii.gz``."""
    if not os.fspath(path).lower().endswith(NIFTI_SUFFIXES):
        raise ValueError(f"path: {os.fspath(path)} must end with .nii or .nii.gz.")


def nifti_image(array: np.ndarray, affine_ras: np.ndarray) -> nib.Nifti1Image:
    """Return a NIfTI image whose place in the world is said once, by the sform.

    The qform stays unset: its single-precision quaternion misplaces corners by some hundredths of a millimetre when
    the rotation comes close to half a turn, and a reader that prefers it would disagree with one that does not.
    """
    image = nib.Nifti1Image(array, affine_ras, dtype=array.dtype)
    image.set_sform(affine_ras, code=_SCANNER)
    image.set_qform(None, code=0)
    image.header.set_xyzt_units("mm")
    return image


def write_nifti(image: nib.Nifti1Image, path: str | os.PathLike, blocks: Iterable[np.ndarray] | None = None) -> None:
    """Write a NIfTI image, whole or not at all; packed by isal where the name ends with ``.gz``.

    Args:
        image: its header, and its values.
        path: ends with ``.nii`` or ``.nii.gz``.
        blocks: the values piece by piece in the file's order (first axis fastest), in place of the image's own, which
            then only tell shape and type: what is large need never be there as a whole.
    """
    check_nifti_path(path)
    with atomic_path(path) as temporary, temporary.open("wb") as raw:
        # Neither name nor time, so that equal images make equal files.
        packed = IGzipFile("", "wb", _LEVEL, raw, 0) if os.fspath(path).lower().endswith(".gz") else nullcontext(raw)
        with packed as stream:
            if blocks is None:
                image.to_stream(stream)
                return
            image.header.set_slope_inter(1, 0)
            image.header.write_to(stream)
            for block in blocks:
                stream.write(block.astype(image.get_data_dtype(), copy=False).tobytes(order="F"))


def check_holds(array: np.ndarray | float, dtype: DTypeLike, name: str, exact: bool = False) -> None:
    """Refuse values that a type on disk cannot hold, before they are resampled: the one rule of all outputs.

    ``name`` is what the message begins with: the file, and what asks for the type. With ``exact``, of labels, a real
    type must know every one of them.
    """
    array, dtype = np.asarray(array), np.dtype(dtype)
    low, high = array.min(), array.max()
    ends = np.iinfo(dtype) if dtype.kind in "iu" else np.finfo(dtype)
    # Python's numbers are compared exactly, NumPy's 64-bit integers as reals.
    if not (ends.min <= low.item() and high.item() <= ends.max):
        values = f"values {low} to {high}" if low != high else f"value {low}"
        raise InputError(f"{name} cannot hold its {values}; choose a wider type")
    if exact and dtype.kind == "f" and array.dtype.kind in "iu":
        lost = array[array.astype(dtype).astype(array.dtype) != array]
        if lost.size:
            raise InputError(f"{name} does not know the number {lost.flat[0]}; choose an integer type")


def storable(array: np.ndarray, dtype: DTypeLike | None = None, clip: bool = False, name: str = "array") -> np.ndarray:
    """An array in the type asked for, or else in one that NIfTI, NRRD and MetaImage share; no copy where it has it.

    Args:
        array: of real values.
        dtype: type on disk; reals are rounded to integers. None keeps the array's type, but for bool (uint8), float16
            (float32), and 64-bit integers, which few programs read: they become int32 or uint32 where these hold them.
        clip: what overshoots an integer type, as a spline does, becomes its nearest end. For resampled images whose own
            values the type holds, see `check_holds`; never for labels.
        name: what the error message begins with.

    Raises:
        InputError: if the type cannot hold the values.
    """
    if dtype is None:
        dtype = {"bool": np.uint8, "float16": np.float32}.get(array.dtype.name, array.dtype)
        if array.dtype.name in ("int64", "uint64"):
            low, high = array.min().item(), array.max().item()
            ends = {kind: np.iinfo(kind) for kind in (np.int32, np.uint32)}
            dtype = next((kind for kind, end in ends.items() if end.min <= low and high <= end.max), array.dtype)
    dtype = np.dtype(dtype)
    if array.dtype == dtype:
        return array
    if dtype.kind in "iu" and array.dtype.kind == "f":
        array = np.rint(array)
        if clip:
            array = np.clip(array, np.iinfo(dtype).min, np.iinfo(dtype).max)
    if array.dtype != bool:
        check_holds(array, dtype, f"{name}: {dtype}", exact=True)
    return array.astype(dtype)


def save_volume(
    array: ArrayLike, affine_ras: ArrayLike, path: str | os.PathLike, dtype: DTypeLike | None = None, clip: bool = False
) -> None:
    """Write one volume as ``.nii``, ``.nii.gz``, ``.nrrd`` or ``.mha``, whole or not at all.

    Args:
        array: ``(D, H, W)``, with any number of leading axes of length one. Array axis order is NIfTI's (i, j, k).
        affine_ras: ``(4, 4)``, voxel (d, h, w) to world in mm, RAS.
        path: of the file.
        dtype: type on disk, see `storable`, as ``clip``.
        clip: see there.

    Raises:
        InputError: for values that ``dtype`` cannot hold, or an affine that makes no grid.
        ValueError: for a bad shape or suffix.
        OSError: if it cannot be written.
    """
    nifti = not os.fspath(path).lower().endswith(ITK_SUFFIXES)
    if nifti:
        check_nifti_path(path)
    volume = storable(as_volume(array, "array"), dtype, clip, os.fspath(path))
    frame = Frame(volume.shape, affine_ras, "affine_ras")
    if nifti:
        write_nifti(nifti_image(volume, frame.affine), path)
        return
    import SimpleITK

    from .objects import itk_image

    image = itk_image(SimpleITK, volume, frame)
    with atomic_path(path) as temporary:
        try:
            SimpleITK.WriteImage(image, os.fspath(temporary), useCompression=True, compressionLevel=1)
        except RuntimeError as error:
            raise OSError(str(error).strip().splitlines()[-1].strip()) from error
