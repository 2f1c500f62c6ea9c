"""Volumes as NIfTI files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
from numpy.typing import DTypeLike

from ..spatial.arrays import as_volume
from ..storage import atomic_path

if TYPE_CHECKING:
    from ..spatial.arrays import ArrayLike

_SUFFIXES = (".nii", ".nii.gz")
_SCANNER = 1  # NIFTI_XFORM_SCANNER_ANAT


def check_affine(affine: ArrayLike, name: str = "affine") -> np.ndarray:
    """Return a voxel-to-world affine as float64 ``(4, 4)``.

    Raises:
        ValueError: if it is not a finite, invertible homogeneous 4x4 matrix.
    """
    matrix = np.asarray(affine, dtype=np.float64)
    if matrix.shape != (4, 4):
        raise ValueError(f"{name}: need a 4x4 voxel-to-world matrix, got shape {matrix.shape}.")
    if not np.isfinite(matrix).all() or not np.allclose(matrix[3], (0, 0, 0, 1)):
        raise ValueError(f"{name}: need finite values and a last row of 0 0 0 1, got {matrix.tolist()}.")
    sizes = np.linalg.norm(matrix[:3, :3], axis=0)
    if (sizes == 0).any() or abs(np.linalg.det(matrix[:3, :3] / sizes)) < 1e-6:
        raise ValueError(f"{name}: the matrix {matrix.tolist()} is singular; its axes do not span a volume.")
    return matrix


def check_nifti_path(path: str | os.PathLike) -> None:
    """Refuse a path that is not named as a NIfTI file.

    Raises:
        ValueError: if ``path`` ends with neither ``.nii`` nor ``.nii.gz``.
    """
    if not os.fspath(path).endswith(_SUFFIXES):
        raise ValueError(f"path: {os.fspath(path)} must end with .nii or .nii.gz.")


def nifti_image(array: np.ndarray, affine_ras: np.ndarray) -> nib.Nifti1Image:
    """Return a NIfTI image whose place in the world is said once, by the sform.

    The qform stays unset: its single-precision quaternion misplaces corners by some hundredths of a millimetre when
    the rotation comes close to half a turn, and a reader that prefers it would disagree with one that does not.
    """
    image = nib.Nifti1Image(array, affine_ras)
    image.set_sform(affine_ras, code=_SCANNER)
    image.set_qform(None, code=0)
    image.header.set_xyzt_units("mm")
    return image


def storable(array: np.ndarray, dtype: DTypeLike | None) -> np.ndarray:
    """Return ``array`` in the requested type, or in the narrowest common NIfTI type that keeps its values."""
    if dtype is None:
        if array.dtype == bool:
            dtype = np.uint8
        elif array.dtype == np.float16:
            dtype = np.float32
        elif array.dtype in (np.int64, np.uint64):
            dtype = np.int32
        else:
            return array
    dtype = np.dtype(dtype)
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        low, high = array.min(), array.max()
        if not (limits.min <= low and high <= limits.max):
            raise ValueError(f"dtype: {dtype} cannot hold the values {low} to {high}; choose a wider type.")
        if np.issubdtype(array.dtype, np.floating):
            array = np.rint(array)
    return array.astype(dtype)


def save_volume(
    array: ArrayLike, affine_ras: ArrayLike, path: str | os.PathLike, dtype: DTypeLike | None = None
) -> None:
    """Write one volume as NIfTI, whole or not at all.

    Args:
        array: ``(D, H, W)``, with any number of leading axes of length one. Array axis order is NIfTI's (i, j, k).
        affine_ras: ``(4, 4)``, voxel (d, h, w) to world in mm, RAS.
        path: ends with ``.nii`` or ``.nii.gz``; an earlier file there is replaced.
        dtype: type on disk. None keeps the array's type, save for those that NIfTI readers do not share: bool becomes
            uint8, float16 becomes float32, 64-bit integers become int32. Reals are rounded to integer types.

    Raises:
        ValueError: for a bad shape, affine or suffix, or values that ``dtype`` cannot hold.
        FileNotFoundError: if the folder of ``path`` does not exist.
    """
    check_nifti_path(path)
    affine = check_affine(affine_ras, "affine_ras")
    image = nifti_image(storable(as_volume(array, "array"), dtype), affine)
    with atomic_path(path) as temporary:
        nib.save(image, temporary)
