"""One volume or one map, as a plain array, from whatever the caller holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

    ArrayLike = np.ndarray | torch.Tensor


def to_numpy(data: ArrayLike) -> np.ndarray:
    """Return ``data`` as an array on the CPU, without copying where it can be helped."""
    if not hasattr(data, "detach"):
        return np.asarray(data)
    data = data.detach().cpu()
    # NumPy has no bfloat16.
    return np.asarray(data.float() if str(data.dtype) == "torch.bfloat16" else data)


def _drop_leading(array: np.ndarray, ndim: int) -> np.ndarray:
    """Drop leading axes of length one until ``ndim`` axes are left, or no more can be dropped."""
    while array.ndim > ndim and array.shape[0] == 1:
        array = array[0]
    return array


def as_volume(data: ArrayLike, name: str = "volume") -> np.ndarray:
    """Return one volume as an array ``(D, H, W)``.

    Args:
        data: tensor or array ``(D, H, W)``, with any number of leading axes of length one.
        name: what the error message calls it.

    Raises:
        ValueError: if it does not hold exactly one volume.
    """
    array = _drop_leading(to_numpy(data), 3)
    if array.ndim != 3 or 0 in array.shape:
        raise ValueError(f"{name}: need one volume, (D, H, W) or (1, D, H, W), got shape {tuple(data.shape)}.")
    return array


def as_map(data: ArrayLike, name: str = "map") -> np.ndarray:
    """Return one map as an array ``(3, D, H, W)`` of normalised coordinates.

    Args:
        data: tensor or array ``(3, D, H, W)`` or ``(1, 3, D, H, W)``.
        name: what the error message calls it.

    Raises:
        ValueError: if it does not hold exactly one map, or holds NaN or infinity.
    """
    array = _drop_leading(to_numpy(data), 4)
    if array.ndim != 4 or array.shape[0] != 3 or 0 in array.shape:
        raise ValueError(f"{name}: need one map, (3, D, H, W) or (1, 3, D, H, W), got shape {tuple(data.shape)}.")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: holds NaN or infinite coordinates; the registration that made it diverged.")
    return array


def map_to_voxels(array: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Turn normalised coordinates into voxel coordinates of a grid of ``shape`` (corners aligned).

    Args:
        array: ``(3, D, H, W)``, channel order = axis order of the grid looked into.
        shape: size of the grid looked into; -1 is its voxel 0 and +1 its voxel n - 1.

    Returns:
        ``(3, D, H, W)`` float64 voxel coordinates.
    """
    scale = (np.asarray(shape, dtype=np.float64).reshape(3, 1, 1, 1) - 1) / 2
    return (array + 1.0) * scale
