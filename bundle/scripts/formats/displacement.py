"""Displacement fields as NIfTI vector files: 5-D ``(D, H, W, 1, 3)``, intent 1007, LPS vectors in mm.

A field takes points of the fixed image to the moving image, as ITK, ANTs and Slicer want of a transform that resamples
the moving image onto the fixed one.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np

from ..storage import atomic_path
from .volumes import check_affine, check_nifti_path, nifti_image

if TYPE_CHECKING:
    from ..spatial.arrays import ArrayLike

_INTENT_VECTOR = 1007  # NIFTI_INTENT_VECTOR: ITK hands these components on as they are, unlike those of 1006


def save_world_displacement(displacement: np.ndarray, fixed_affine: ArrayLike, path: str | os.PathLike) -> None:
    """Write a field in mm and LPS as the NIfTI vector file that ITK, ANTs and Slicer read as a transform.

    Args:
        displacement: ``(D, H, W, 3)`` in mm, LPS.
        fixed_affine: ``(4, 4)`` voxel of the field's grid to world, RAS.
        path: ends with ``.nii`` or ``.nii.gz``; an earlier file there is replaced.

    Raises:
        ValueError: for a bad field, affine or suffix, or an affine with shear, which ITK images cannot hold.
        FileNotFoundError: if the folder of ``path`` does not exist.
    """
    check_nifti_path(path)
    if displacement.ndim != 4 or displacement.shape[-1] != 3:
        raise ValueError(f"displacement: need (D, H, W, 3), got shape {displacement.shape}.")
    affine = check_affine(fixed_affine, "fixed_affine")
    direction = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if not np.allclose(direction.T @ direction, np.eye(3), atol=1e-4):
        raise ValueError("fixed_affine: has shear, which ITK cannot hold; resample to a grid with right angles first.")
    image = nifti_image(np.asarray(displacement[:, :, :, None, :], dtype=np.float32), affine)
    image.header.set_intent(_INTENT_VECTOR)
    with atomic_path(path) as temporary:
        nib.save(image, temporary)


def load_displacement(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Read a displacement field that `save_world_displacement`, ITK or ANTs wrote.

    Args:
        path: a NIfTI vector file.

    Returns:
        The field ``(D, H, W, 3)`` float64 in mm, LPS, and the ``(4, 4)`` voxel-to-world affine of its grid, RAS.

    Raises:
        ValueError: if the file does not hold a 3-D vector field, or not as a vector of intent 1007.
    """
    image = nib.load(path)
    if len(image.shape) != 5 or image.shape[3:] != (1, 3):
        raise ValueError(f"path: {path} must hold a field of shape (X, Y, Z, 1, 3), got {image.shape}.")
    intent = int(image.header["intent_code"])
    if intent != _INTENT_VECTOR:
        raise ValueError(
            f"path: {path} has intent {intent}, not {_INTENT_VECTOR}: its axes may not be LPS. Rewrite it with ITK."
        )
    return image.get_fdata(dtype=np.float64)[:, :, :, 0, :], image.affine
