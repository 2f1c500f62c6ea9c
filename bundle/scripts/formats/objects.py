"""Images that a program holds: nibabel, SimpleITK, ITK, MONAI's MetaTensor, and (array, affine), in and out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ..errors import InputError
from ..spatial import LPS_FLIP, Frame, ras_to_lps
from .images import Image

__all__ = ["image_from", "image_like"]

KINDS = "a path, a nibabel, SimpleITK or ITK image, a MetaTensor, or (array, affine)"


def image_from(source: Any, name: str = "image") -> Image:
    """The image of an object in memory.

    Args:
        source: a nibabel image, a SimpleITK or ITK image, a ``MetaTensor`` ``(D, H, W)`` or ``(1, D, H, W)``, or a pair
            of a ``(D, H, W)`` array and its 4×4 matrix from voxels to RAS mm.
        name: stands for the path in messages.

    Raises:
        InputError: for an object of another kind, or one that is no single 3D volume.
    """
    if isinstance(source, Image):
        return source
    if isinstance(source, nib.spatialimages.SpatialImage):
        array, affine = np.asanyarray(source.dataobj), source.affine
    elif hasattr(source, "affine") and hasattr(source, "numpy"):
        array, affine = (
            source.detach().cpu().numpy(),
            np.asarray(source.affine.cpu() if hasattr(source.affine, "cpu") else source.affine),
        )
    elif isinstance(source, tuple) and len(source) == 2:
        array, affine = np.asarray(source[0]), np.asarray(source[1], dtype=np.float64)
    elif hasattr(source, "GetDirection") and hasattr(source, "GetSpacing"):
        array, affine = _from_itk(source)
    else:
        raise InputError(f"{name}: {type(source).__name__} is no image; give {KINDS}")
    while array.ndim > 3 and 1 in (array.shape[0], array.shape[-1]):
        array = array[0] if array.shape[0] == 1 else array[..., 0]
    if array.ndim != 3 or array.dtype.kind not in "iufb":
        raise InputError(f"{name}: need one 3D volume of real values, got {array.dtype} of shape {array.shape}")
    if np.shape(affine) != (4, 4):
        raise InputError(f"{name}: its affine must be a 4×4 matrix, got shape {np.shape(affine)}")
    return Image(np.ascontiguousarray(array), Frame(array.shape, affine, name), Path(name))


def image_like(source: Any, array: np.ndarray, frame: Frame) -> Any:
    """An array on a grid, in the kind of an object; a nibabel image for a path or None.

    Args:
        source: the object whose kind is wanted.
        array: ``(D, H, W)``.
        frame: its grid.
    """
    array = array.astype(np.uint8) if array.dtype == bool else array
    if isinstance(source, tuple):
        return array, frame.affine.copy()
    if hasattr(source, "affine") and hasattr(source, "numpy"):
        import torch
        from monai.data import MetaTensor

        channels = array[None] if source.ndim == 4 else array
        return MetaTensor(
            torch.from_numpy(np.ascontiguousarray(channels)), affine=torch.from_numpy(frame.affine.copy())
        )
    if hasattr(source, "GetDirection") and hasattr(source, "GetSpacing"):
        return _to_itk(array, frame, simple=type(source).__module__.startswith("SimpleITK"))
    return nib.Nifti1Image(array.astype(np.int32) if array.dtype == np.int64 else array, frame.affine)


def _from_itk(image: Any) -> tuple[np.ndarray, np.ndarray]:
    """Array ``(D, H, W)`` in ITK's index order, and its matrix to RAS mm."""
    if type(image).__module__.startswith("SimpleITK"):
        import SimpleITK

        array, direction = SimpleITK.GetArrayFromImage(image), np.reshape(image.GetDirection(), (3, 3))
    else:
        import itk

        array, direction = itk.array_from_image(image), itk.array_from_matrix(image.GetDirection())
    affine = np.eye(4)
    affine[:3, :3] = direction * np.asarray(image.GetSpacing())
    affine[:3, 3] = np.asarray(image.GetOrigin())
    return array.transpose(2, 1, 0), LPS_FLIP @ affine


def _to_itk(array: np.ndarray, frame: Frame, simple: bool) -> Any:
    """An array on a grid as a SimpleITK or ITK image."""
    voxels, direction = np.ascontiguousarray(array.transpose(2, 1, 0)), LPS_FLIP[:3, :3] @ frame.direction
    if simple:
        import SimpleITK

        image = SimpleITK.GetImageFromArray(voxels)
        image.SetDirection(direction.ravel().tolist())
    else:
        import itk

        image = itk.image_from_array(voxels)
        image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(direction)))
    image.SetSpacing(frame.spacing.tolist())
    image.SetOrigin(ras_to_lps(frame.origin).tolist())
    return image
