"""Images that a program holds: nibabel, SimpleITK, ITK, MONAI's MetaTensor, and (array, affine), in and out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ..errors import InputError
from ..spatial import LPS_FLIP, Frame, ras_to_lps
from ..spatial.arrays import to_numpy
from .images import Image
from .nifti import in_mm
from .reading import in_rows
from .volumes import storable

KINDS = "a path, a nibabel, SimpleITK or ITK image, a MetaTensor, or (array, affine)"


def image_from(source: Any, name: str = "image") -> Image:
    """The image of an object in memory.

    Args:
        source: a nibabel image, a SimpleITK or ITK image, a ``MetaTensor`` ``(D, H, W)`` or ``(1, D, H, W)``, or a pair
            of a ``(D, H, W)`` array and its 4x4 matrix from voxels to RAS mm. Further axes of length one are dropped.
        name: stands for the path in messages.

    Raises:
        InputError: for an object of another kind, or one that is no single 3D volume of real values.
    """
    if isinstance(source, Image):
        return source
    frame, step, notes = None, 0.0, []
    if isinstance(source, nib.spatialimages.SpatialImage):
        array, affine = np.asanyarray(source.dataobj), source.affine
        slope = getattr(source.dataobj, "slope", 1.0)
        step = abs(float(slope)) if slope != 1 else 0.0
        if isinstance(source, nib.Nifti1Image):
            affine, notes = in_mm(source.header, affine)
    elif _is_meta_tensor(source):
        array, affine = to_numpy(source), to_numpy(source.affine).astype(np.float64)
        if _space(source, name) == "LPS":
            affine = LPS_FLIP @ affine
    elif isinstance(source, tuple) and len(source) == 2:
        array, affine = to_numpy(source[0]), to_numpy(source[1])
    elif _is_itk(source):
        frame = Frame.from_itk(source, name)
        array = _itk_package(source).GetArrayFromImage(source)
        if array.ndim == 3:
            array = array.transpose(2, 1, 0)
        affine = frame.affine
    else:
        raise InputError(f"{name}: {type(source).__name__} is no image; give {KINDS}")
    while frame is None and array.ndim > 3 and 1 in (array.shape[0], array.shape[-1]):
        array = array[0] if array.shape[0] == 1 else array[..., 0]
    if array.ndim != 3 or array.dtype.kind not in "iufb":
        raise InputError(f"{name}: need one 3D volume of real values, got {array.dtype} of shape {array.shape}")
    if np.shape(affine) != (4, 4):
        raise InputError(f"{name}: its affine must be a 4x4 matrix, got shape {np.shape(affine)}")
    frame = frame or Frame(array.shape, affine, name)
    array = array if array.flags.c_contiguous else in_rows(array)
    return Image(array, frame, Path(name), (*notes, *frame.notes), step)


def image_like(source: Any, array: np.ndarray, frame: Frame) -> Any:
    """An array ``(D, H, W)`` on a grid, in the kind of the object ``source``; a nibabel image for a path or None."""
    array = array.astype(np.uint8) if array.dtype == bool else array
    if isinstance(source, tuple):
        return array, frame.affine.copy()
    if _is_meta_tensor(source):
        import torch

        space = _space(source, "image")
        affine = frame.affine if space == "RAS" else LPS_FLIP @ frame.affine
        channels = torch.from_numpy(np.array(array[None] if source.ndim == 4 else array))
        return type(source)(channels, affine=torch.from_numpy(affine.copy()), meta={"space": space})
    if _is_itk(source):
        return itk_image(_itk_package(source), array, frame)
    array = storable(array)
    return nib.Nifti1Image(array, frame.affine, dtype=array.dtype)


def itk_image(package: Any, array: np.ndarray, frame: Frame) -> Any:
    """An array ``(D, H, W)`` on a grid as an image of the module ``SimpleITK`` or ``itk``, in LPS mm.

    Raises:
        InputError: for negative integers of 64 bits, if the package is itk, which knows none.
    """
    array, direction = storable(array), LPS_FLIP[:3, :3] @ frame.direction
    simple = package.__name__ == "SimpleITK"
    if not simple and array.dtype in (np.int8, np.int64):
        # itk's Python wrapping knows neither.
        array = storable(array, np.int16 if array.dtype == np.int8 else np.uint64, name="an image of itk")
    voxels = in_rows(np.moveaxis(array, (0, 2), (2, 0)))
    image = package.GetImageFromArray(voxels)
    image.SetSpacing(frame.spacing.tolist())
    image.SetOrigin(ras_to_lps(frame.origin).tolist())
    image.SetDirection(direction.ravel().tolist() if simple else package.matrix_from_array(direction.copy()))
    return image


def _is_meta_tensor(source: Any) -> bool:
    return hasattr(source, "detach") and hasattr(source, "affine") and hasattr(source, "meta")


def _is_itk(source: Any) -> bool:
    return hasattr(source, "GetDirection") and hasattr(source, "GetSpacing")


def _space(tensor: Any, name: str) -> str:
    """The world of a ``MetaTensor``; one without the key came from an array, for which MONAI means RAS."""
    space = tensor.meta.get("space") or "RAS"
    space = str(getattr(space, "value", space))  # SpaceKeys is a str enum
    if space not in ("RAS", "LPS"):
        raise InputError(f"{name}: its space is {space!r}; need one of RAS, LPS")
    return space


def _itk_package(image: Any) -> Any:
    """SimpleITK or itk, whichever made the image."""
    if type(image).__module__.startswith("SimpleITK"):
        import SimpleITK

        return SimpleITK
    import itk

    return itk
