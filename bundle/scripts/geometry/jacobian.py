"""Jacobian determinants of maps, folds, and the spread of log |J|.

All determinants are those of φ⁻¹ in voxel units of its own grid, which equal those in normalised coordinates
(and, for an image pair on one network grid, those in millimetres): 1 for the identity, below 0 where space folds.
"""

from __future__ import annotations

from typing import List, Tuple

import torch
from torch import Tensor

from .grid import voxels_per_unit


def _determinant(rows: List[Tensor]) -> Tensor:
    """Determinant of the matrices whose columns are the derivatives ``rows[j]`` = ∂φ/∂x_j, each ``(B, 3, ...)``."""
    a, b, c = rows[0], rows[1], rows[2]
    return (
        a[:, 0] * (b[:, 1] * c[:, 2] - b[:, 2] * c[:, 1])
        - b[:, 0] * (a[:, 1] * c[:, 2] - a[:, 2] * c[:, 1])
        + c[:, 0] * (a[:, 1] * b[:, 2] - a[:, 2] * b[:, 1])
    )


def _check(coordinates: Tensor) -> None:
    if coordinates.dim() != 5 or coordinates.shape[1] != 3:
        raise ValueError("a map must have the shape (B, 3, D, H, W).")
    if min(coordinates.shape[2:]) < 2:
        raise ValueError("a map needs at least 2 voxels along every axis to have a Jacobian.")


def jacobian_determinant(coordinates: Tensor) -> Tensor:
    """Jacobian determinant by central differences, one-sided at the faces.

    Args:
        coordinates: map ``(B, 3, D, H, W)``, normalised.

    Returns:
        ``(B, 1, D, H, W)``.

    Raises:
        ValueError: when the shape is not that of a map or an axis has fewer than 2 voxels.
    """
    _check(coordinates)
    shape = coordinates.shape[2:]
    scale = voxels_per_unit(shape, coordinates.device, coordinates.dtype)
    rows: List[Tensor] = []
    for axis in range(3):
        rows.append(torch.gradient(coordinates, dim=[axis + 2])[0] * scale[axis])
    return _determinant(rows).unsqueeze(1)


def _one_sided(coordinates: Tensor) -> Tuple[List[Tensor], List[Tensor]]:
    """Forward and backward differences of each axis; at a face the only difference there stands for both."""
    shape = coordinates.shape[2:]
    scale = voxels_per_unit(shape, coordinates.device, coordinates.dtype)
    forward: List[Tensor] = []
    backward: List[Tensor] = []
    for axis in range(3):
        dim = axis + 2
        step = torch.diff(coordinates, dim=dim) * scale[axis]
        n = step.shape[dim]
        forward.append(torch.cat([step, step.narrow(dim, n - 1, 1)], dim=dim))
        backward.append(torch.cat([step.narrow(dim, 0, 1), step], dim=dim))
    return forward, backward


def corner_jacobian_determinants(coordinates: Tensor) -> Tensor:
    """The eight determinants of all combinations of forward and backward differences at every voxel.

    Central differences skip the voxel itself and miss folds between neighbours; a map is free of folds on its grid
    only where all of these are positive.

    Args:
        coordinates: map ``(B, 3, D, H, W)``, normalised.

    Returns:
        ``(B, 8, D, H, W)``; index bits 4, 2, 1 say whether the backward difference was taken along D, H, W. At a face
        the missing difference is replaced by the one that exists.

    Raises:
        ValueError: as `jacobian_determinant`.
    """
    _check(coordinates)
    forward, backward = _one_sided(coordinates)
    corners: List[Tensor] = []
    for corner in range(8):
        corners.append(
            _determinant(
                [
                    backward[0] if (corner & 4) != 0 else forward[0],
                    backward[1] if (corner & 2) != 0 else forward[1],
                    backward[2] if (corner & 1) != 0 else forward[2],
                ]
            )
        )
    return torch.stack(corners, dim=1)


def smallest_jacobian_determinant(coordinates: Tensor) -> Tensor:
    """The smallest of the eight corner determinants at every voxel, without keeping all eight.

    Args:
        coordinates: map ``(B, 3, D, H, W)``, normalised.

    Returns:
        ``(B, D, H, W)``.

    Raises:
        ValueError: as `jacobian_determinant`.
    """
    _check(coordinates)
    forward, backward = _one_sided(coordinates)
    lowest = _determinant(forward)
    for corner in range(1, 8):
        lowest = torch.minimum(
            lowest,
            _determinant(
                [
                    backward[0] if (corner & 4) != 0 else forward[0],
                    backward[1] if (corner & 2) != 0 else forward[1],
                    backward[2] if (corner & 1) != 0 else forward[2],
                ]
            ),
        )
    return lowest


def fold_mask(coordinates: Tensor) -> Tensor:
    """Voxels at which any corner determinant is negative or undefined, boolean ``(B, D, H, W)``."""
    # Not `< 0`: a map that holds NaN would then count as free of folds.
    return ~(smallest_jacobian_determinant(coordinates) >= 0)


def count_folds(coordinates: Tensor) -> Tuple[Tensor, Tensor]:
    """Number of folds of a map and how deep they are.

    Args:
        coordinates: map ``(B, 3, D, H, W)``, normalised.

    Returns:
        The number of voxels at which any corner determinant is negative or undefined, ``(B,)`` int64, and over those
        voxels the sum of |J| with J the most negative corner determinant, ``(B,)``.

    Raises:
        ValueError: as `jacobian_determinant`.
    """
    lowest = smallest_jacobian_determinant(coordinates)
    folded = ~(lowest >= 0)
    return folded.flatten(1).sum(dim=1), (-lowest.clamp(max=0)).flatten(1).sum(dim=1)


def std_log_jacobian(coordinates: Tensor, floor: float = 1e-9) -> Tensor:
    """Standard deviation of ln |J| over the grid (central differences), ``(B,)``: 0 for any affine map.

    Args:
        coordinates: map ``(B, 3, D, H, W)``, normalised.
        floor: determinants are clipped here before the logarithm (folds are counted elsewhere).
    """
    return jacobian_determinant(coordinates).clamp(min=floor).log().flatten(1).std(dim=1)
