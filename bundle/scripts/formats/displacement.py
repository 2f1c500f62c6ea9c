"""Displacement fields: from the map inside the network to millimetres outside of it, and back.

The map says, for a voxel of the fixed network grid, where in the moving network grid to look. The two grids have world
affines of their own: preprocessing lays the network grid around the centre of each image, so the initialisation
(translation between the two centres, say) is in these affines and the map alone does not know it. With fixed voxel
``i``, voxel coordinate ``j`` of ``map(i)`` in the moving grid, and affines ``F`` and ``M``, the displacement in the
world is ``M j - F i``. It takes points of the fixed image to the moving image, which is what ITK, ANTs and Slicer want
of a transform that resamples the moving image onto the fixed one.

The inverse map, which lives on the moving grid, is saved by the same functions with the two affines exchanged and
``moving_shape`` set to the shape of the fixed grid.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import nibabel as nib
import numpy as np
import torch

from ..spatial.arrays import ArrayLike, as_map, map_to_voxels
from ..spatial.frame import ras_to_lps
from ..storage import atomic_path
from .volumes import check_affine, check_nifti_path, nifti_image

_INTENT_VECTOR = 1007  # NIFTI_INTENT_VECTOR: ITK hands these components on as they are, unlike those of 1006


def _grid_shape(moving_shape: Sequence[int] | None, default: Sequence[int]) -> tuple[int, int, int]:
    """Return the shape of the moving grid."""
    shape = tuple(int(n) for n in (default if moving_shape is None else moving_shape))
    if len(shape) != 3 or min(shape) < 2:
        raise ValueError(f"moving_shape: need three sizes of at least 2 voxels, got {shape}.")
    return shape


def _voxel_positions(shape: Sequence[int], affine: np.ndarray, component: int) -> np.ndarray:
    """Return one world component of every voxel centre of a grid, ``(D, H, W)``."""
    row = affine[component]
    d, h, w = np.ogrid[: shape[0], : shape[1], : shape[2]]
    return row[0] * d + row[1] * h + row[2] * w + row[3]


def voxel_displacement(map: ArrayLike) -> np.ndarray:
    """Return the displacement in voxels of the fixed grid, as Learn2Reg keeps it.

    Both images must lie on grids of the same shape and spacing, as they do in Learn2Reg: the result is the voxel
    coordinate looked at, less the voxel coordinate looked from.

    Args:
        map: ``(3, D, H, W)`` or ``(1, 3, D, H, W)``, normalised.

    Returns:
        ``(3, D, H, W)`` float64, channel order = axis order.

    Raises:
        ValueError: if ``map`` is not one finite map.
    """
    array = as_map(map)
    voxels = map_to_voxels(array, array.shape[1:])
    for axis, index in enumerate(np.ogrid[tuple(slice(n) for n in array.shape[1:])]):
        voxels[axis] -= index
    return voxels


def world_displacement(
    map: ArrayLike, fixed_affine: ArrayLike, moving_affine: ArrayLike, moving_shape: Sequence[int] | None = None
) -> np.ndarray:
    """Return the displacement in the world, in mm and LPS.

    Args:
        map: ``(3, D, H, W)`` or ``(1, 3, D, H, W)``, normalised, on the fixed network grid.
        fixed_affine: ``(4, 4)`` voxel of the fixed network grid to world, RAS.
        moving_affine: ``(4, 4)`` voxel of the moving network grid to world, RAS.
        moving_shape: shape of the moving network grid; None: that of the fixed one.

    Returns:
        ``(D, H, W, 3)`` float64: LPS components of ``moving_affine @ voxel(map(i)) - fixed_affine @ i``.

    Raises:
        ValueError: for a bad map, affine or shape.
    """
    array = as_map(map)
    fixed, moving = check_affine(fixed_affine, "fixed_affine"), check_affine(moving_affine, "moving_affine")
    shape = array.shape[1:]
    voxels = map_to_voxels(array, _grid_shape(moving_shape, shape))
    result = np.empty((*shape, 3))
    for component in range(3):
        result[..., component] = np.tensordot(moving[component, :3], voxels, axes=1)
        result[..., component] += moving[component, 3] - _voxel_positions(shape, fixed, component)
    return ras_to_lps(result)


def map_from_world_displacement(
    displacement: np.ndarray,
    fixed_affine: ArrayLike,
    moving_affine: ArrayLike,
    moving_shape: Sequence[int] | None = None,
) -> torch.Tensor:
    """Return the map whose :func:`world_displacement` this is.

    Args:
        displacement: ``(D, H, W, 3)`` in mm, LPS, on the fixed grid.
        fixed_affine: ``(4, 4)`` voxel of the fixed grid to world, RAS.
        moving_affine: ``(4, 4)`` voxel of the moving grid to world, RAS.
        moving_shape: shape of the moving grid; None: that of the fixed one.

    Returns:
        ``(1, 3, D, H, W)`` float32, normalised.

    Raises:
        ValueError: for a bad field, affine or shape.
    """
    if displacement.ndim != 4 or displacement.shape[-1] != 3:
        raise ValueError(f"displacement: need (D, H, W, 3), got shape {displacement.shape}.")
    fixed, moving = check_affine(fixed_affine, "fixed_affine"), check_affine(moving_affine, "moving_affine")
    shape = displacement.shape[:3]
    world = ras_to_lps(np.asarray(displacement, dtype=np.float64))
    for component in range(3):
        world[..., component] += _voxel_positions(shape, fixed, component) - moving[component, 3]
    voxels = np.tensordot(np.linalg.inv(moving[:3, :3]), world, axes=(1, 3))
    scale = 2 / (np.asarray(_grid_shape(moving_shape, shape)).reshape(3, 1, 1, 1) - 1)
    return torch.from_numpy(voxels * scale - 1).float()[None]


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


def save_displacement(
    map: ArrayLike,
    fixed_affine: ArrayLike,
    moving_affine: ArrayLike,
    path: str | os.PathLike,
    moving_shape: Sequence[int] | None = None,
) -> None:
    """Write a map as a displacement field: 5-D NIfTI ``(D, H, W, 1, 3)``, intent 1007, LPS vectors in mm, float32.

    Arguments and errors are those of :func:`world_displacement` and :func:`save_world_displacement`.
    """
    check_nifti_path(path)
    save_world_displacement(world_displacement(map, fixed_affine, moving_affine, moving_shape), fixed_affine, path)


def load_displacement(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Read a displacement field that :func:`save_displacement`, ITK or ANTs wrote.

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
