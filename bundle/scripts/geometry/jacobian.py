"""Jacobian determinants of maps, folds, and the spread of log |J|.

All determinants are those of φ⁻¹ in voxel units of its own grid, which equal those in normalised coordinates
(and, for an image pair on one network grid, those in millimetres): 1 for the identity, below 0 where space folds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import product

import torch
from torch import Tensor

from .grid import voxels_per_unit


def _determinant(columns: Sequence[Tensor]) -> Tensor:
    """Determinants ``(B, ...)`` of matrices whose columns ∂φ/∂x_j are ``(B, 3, ...)`` each."""
    a, b, c = columns
    return (
        a[:, 0] * (b[:, 1] * c[:, 2] - b[:, 2] * c[:, 1])
        - b[:, 0] * (a[:, 1] * c[:, 2] - a[:, 2] * c[:, 1])
        + c[:, 0] * (a[:, 1] * b[:, 2] - a[:, 2] * b[:, 1])
    )


def _voxels_per_unit(coordinates: Tensor) -> Tensor:
    """`voxels_per_unit` of a map's grid, refused where the map can have no Jacobian."""
    if coordinates.dim() != 5 or coordinates.shape[1] != 3:
        raise ValueError("a map must have the shape (B, 3, D, H, W).")
    if min(coordinates.shape[2:]) < 2:
        raise ValueError("a map needs at least 2 voxels along every axis to have a Jacobian.")
    return voxels_per_unit(coordinates.shape[2:], coordinates.device, coordinates.dtype)


def jacobian_determinant(coordinates: Tensor) -> Tensor:
    """Jacobian determinant ``(B, 1, D, H, W)`` of a map by central differences, one-sided at the faces.

    ValueError when the shape is not that of a map, ``(B, 3, D, H, W)``, or an axis has fewer than 2 voxels; so below.
    """
    scale = _voxels_per_unit(coordinates)
    columns = [torch.gradient(coordinates, dim=axis + 2)[0] * scale[axis] for axis in range(3)]
    return _determinant(columns).unsqueeze(1)


def _corner_determinants(coordinates: Tensor) -> Iterator[Tensor]:
    """The determinants ``(B, D, H, W)`` of `corner_jacobian_determinants`, one after the other."""
    scale = _voxels_per_unit(coordinates)
    sides = []
    for axis in range(3):
        dim = axis + 2
        step = torch.diff(coordinates, dim=dim) * scale[axis]
        n = step.shape[dim]
        # Forward and backward; at a face the only difference there stands for both.
        sides.append(
            (torch.cat([step, step.narrow(dim, n - 1, 1)], dim), torch.cat([step.narrow(dim, 0, 1), step], dim))
        )
    return map(_determinant, product(*sides))


def corner_jacobian_determinants(coordinates: Tensor) -> Tensor:
    """The eight determinants of all combinations of forward and backward differences at every voxel.

    Central differences skip the voxel itself and miss folds between neighbours; a map is free of folds on its grid
    only where all of these are positive.

    Returns:
        ``(B, 8, D, H, W)``; index bits 4, 2, 1 say whether the backward difference was taken along D, H, W. At a face
        the missing difference is replaced by the one that exists.
    """
    return torch.stack(list(_corner_determinants(coordinates)), dim=1)


def smallest_jacobian_determinant(coordinates: Tensor) -> Tensor:
    """The smallest of a map's eight corner determinants at every voxel, ``(B, D, H, W)``, without keeping all eight."""
    return reduce(torch.minimum, _corner_determinants(coordinates))


def fold_mask(coordinates: Tensor) -> Tensor:
    """Voxels at which any corner determinant is negative or undefined, boolean ``(B, D, H, W)``."""
    # Not `< 0`: a map that holds NaN would then count as free of folds.
    return ~(smallest_jacobian_determinant(coordinates) >= 0)


def count_folds(coordinates: Tensor) -> tuple[Tensor, Tensor]:
    """Number of folds of a map and how deep they are.

    Returns:
        The number of voxels at which any corner determinant is negative or undefined, ``(B,)`` int64, and over those
        voxels the sum of |J| with J the most negative corner determinant, ``(B,)``.
    """
    lowest = smallest_jacobian_determinant(coordinates)
    folded = ~(lowest >= 0)
    return folded.flatten(1).sum(dim=1), (-lowest.clamp(max=0)).flatten(1).sum(dim=1)


def std_log_jacobian(coordinates: Tensor, floor: float = 1e-9) -> Tensor:
    """Standard deviation of ln |J| over the grid (central differences), ``(B,)``: 0 for any affine map.

    Determinants are clipped at ``floor`` before the logarithm (folds are counted elsewhere).
    """
    return jacobian_determinant(coordinates).clamp(min=floor).log().flatten(1).std(dim=1)
