"""Symmetry of a registration: the affine and vSVF symmetry losses (Equations 5 and 10) and Figure 7's measure.

``st`` registers moving to fixed, ``ts`` the same pair with the images exchanged. Both maps of a perfectly symmetric
method are inverses, so their composition is the identity.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..geometry import UNIT_CUBE, compose, compose_affines, identity_map
from .regularisation import affine_regularisation, at_least_float32, reduce_batch

__all__ = ["affine_symmetry", "inverse_consistency", "inverse_consistency_error", "map_symmetry"]


def affine_symmetry(affine: Tensor, affine_ts: Tensor, reduction: str = "mean") -> Tensor:
    """Equation 5 without its factor: ``||A_ts A - I||_F^2 + ||A_ts b + b_ts||^2``.

    It is Equation 4 of the composition, which is the identity where the two are inverses.

    Args:
        affine: (B, 3, 4) of the registration, on normalised coordinates.
        affine_ts: (B, 3, 4) of the registration with the images exchanged.
        reduction: ``"mean"`` over the batch, ``"none"`` for (B,).

    Returns:
        A scalar or (B,), in squared normalised units.
    """
    if affine.ndim != 3 or affine.shape[1:] != (3, 4) or affine.shape != affine_ts.shape:
        raise ValueError(
            f"affine and affine_ts must have one shape (B, 3, 4), got {tuple(affine.shape)} and "
            f"{tuple(affine_ts.shape)}."
        )
    with torch.autocast(affine.device.type, enabled=False):
        both = compose_affines(at_least_float32(affine_ts), at_least_float32(affine))
        return affine_regularisation(both, reduction)


def map_symmetry(map: Tensor, map_ts: Tensor, margin: int = 0, reduction: str = "mean") -> Tensor:
    """Equation 10 without its factor: ``||map o map_ts - id||^2``.

    The mean over voxels of the squared length, in the paper's units (image in [0, 1]^3). The paper's factor
    lambda_vs = 1e-4 multiplies a sum over voxels: for this mean multiply it by the number of voxels, at 192 x 192 x 80
    to about 295.

    Args:
        map: (B, 3, D, H, W), the map of the registration, normalised coordinates.
        map_ts: Same shape, the map of the registration with the images exchanged.
        margin: Voxels to leave out at each face.
        reduction: ``"mean"`` over the batch, ``"none"`` for (B,).

    Returns:
        A scalar or (B,).

    Raises:
        ValueError: For other or unequal shapes, or a margin that leaves no voxel.
    """
    with torch.autocast(map.device.type, enabled=False):
        residual = UNIT_CUBE * _residual(map, map_ts, margin)
        return reduce_batch(residual.square().sum(1).flatten(1).mean(1), reduction)


def inverse_consistency(map: Tensor, map_ts: Tensor, margin: int = 10) -> Tensor:
    """Figure 7: ``ln(1/|V| sum ||map o map_ts - id||^2)`` in the paper's units, over the interior.

    Args:
        map: (B, 3, D, H, W), normalised coordinates.
        map_ts: Same shape, with the images exchanged.
        margin: Voxels to leave out at each face; the paper leaves out 10.

    Returns:
        (B,); lower is better, minus infinity for exact inverses.
    """
    return map_symmetry(map, map_ts, margin, reduction="none").log()


def inverse_consistency_error(map: Tensor, map_ts: Tensor, margin: int = 0) -> Tensor:
    """The mean length of ``map o map_ts - id`` in voxels, (B,); arguments as :func:`inverse_consistency`."""
    with torch.autocast(map.device.type, enabled=False):
        residual = _residual(map, map_ts, margin)
        residual = residual * residual.new_tensor([(size - 1) / 2 for size in map.shape[2:]]).view(3, 1, 1, 1)
        return torch.linalg.vector_norm(residual, dim=1).flatten(1).mean(1)


def _residual(map: Tensor, map_ts: Tensor, margin: int) -> Tensor:
    """``map o map_ts - id`` (B, 3, d, h, w) in normalised units, without the margin."""
    if map.ndim != 5 or map.shape[1] != 3 or map.shape != map_ts.shape:
        raise ValueError(
            f"map and map_ts must have one shape (B, 3, D, H, W), got {tuple(map.shape)} and {tuple(map_ts.shape)}."
        )
    if margin < 0 or 2 * margin >= min(map.shape[2:]):
        raise ValueError(
            f"margin must be 0 or more and leave a voxel along every axis of {tuple(map.shape[2:])}, got {margin}."
        )
    map, map_ts = at_least_float32(map), at_least_float32(map_ts)
    inside = (..., *(slice(margin, size - margin) for size in map.shape[2:]))
    # Only the interior is composed: the inner map is cropped, the outer map keeps its whole domain.
    identity = identity_map(map.shape[2:], device=map.device, dtype=map.dtype)
    return compose(map, map_ts[inside]) - identity[inside]
