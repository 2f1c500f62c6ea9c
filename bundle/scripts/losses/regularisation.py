"""Regularity (Equations 4, 9 and 13) and symmetry (Equations 5 and 10, Figure 7) of transformations, ``(B,)`` each.

``st`` registers moving to fixed, ``ts`` the same pair with the images exchanged. Both maps of a perfectly symmetric
method are inverses, so their composition is the identity.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..geometry import UNIT_CUBE, compose, compose_affines, identity_map, smallest_jacobian_determinant


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor in float32, or as it is where it is float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def affine_regularisation(affine: Tensor) -> Tensor:
    """Equation 4 without its factor: ``||A - I||_F^2 + ||b||^2`` of ``(A | b)``, ``(B, 3, 4)``, normalised units."""
    with torch.autocast(affine.device.type, enabled=False):
        affine = at_least_float32(affine)
        identity = torch.eye(3, 4, device=affine.device, dtype=affine.dtype)
        return (affine - identity).square().flatten(1).sum(1)


def affine_factor(epoch: float, factor: float = 10.0, decay: float = 4.0) -> float:
    """Equation 13: the weight ``C K / (K + exp(epoch / K))`` of the affine regulariser, of factor C and decay K.

    It begins at ``C K / (K + 1)`` in epoch 0 and decays with ``K`` epochs; no epoch overflows.
    """
    left = math.exp(-epoch / decay)
    return factor * decay * left / (decay * left + 1)


def vsvf_regularisation(momentum: Tensor, velocity: Tensor) -> Tensor:
    """Equation 9 without its factor: ``<m, v>``, the integral over the unit cube of the momentum times the velocity.

    The mean over voxels of the sum over components, both ``(B, 3, D, H, W)`` in normalised units, in the paper's units
    (image in [0, 1]^3), so it does not depend on the resolution.
    """
    with torch.autocast(momentum.device.type, enabled=False):
        product = at_least_float32(momentum) * at_least_float32(velocity)
        return UNIT_CUBE**2 * product.sum(1).flatten(1).mean(1)


def folding(displacement: Tensor, margin: float = 0.1) -> Tensor:
    """How far a deformation is from having no folds: the mean over voxels of max(0, margin - J).

    J is the smallest of the eight corner determinants of id + u at the voxel. Not in the paper, which counts folds but
    does not train against them. u is ``(B, 3, D, H, W)`` in normalised units, on the grid on which it is integrated:
    up-sampling a map linearly makes no folds that its own grid does not have.
    """
    with torch.autocast(displacement.device.type, enabled=False):
        displacement = at_least_float32(displacement)
        identity = identity_map(list(displacement.shape[2:]), displacement.device, displacement.dtype)
        lack = (margin - smallest_jacobian_determinant(identity + displacement)).clamp(min=0)
        return lack.flatten(1).mean(1)


def affine_symmetry(affine: Tensor, affine_ts: Tensor) -> Tensor:
    """Equation 5 without its factor: ``||A_ts A - I||_F^2 + ||A_ts b + b_ts||^2`` of ``(A | b)``, ``(B, 3, 4)`` each.

    It is `affine_regularisation` of the composition, which is the identity where the two are inverses.
    """
    with torch.autocast(affine.device.type, enabled=False):
        both = compose_affines(at_least_float32(affine_ts), at_least_float32(affine))
        return affine_regularisation(both)


def map_symmetry(map: Tensor, map_ts: Tensor, margin: int = 0) -> Tensor:
    """Equation 10 without its factor: ``||map o map_ts - id||^2``.

    The mean over voxels of the squared length, in the paper's units (image in [0, 1]^3). The paper's factor
    lambda_vs = 1e-4 multiplies a sum over voxels: for this mean multiply it by the number of voxels, at 192 x 192 x 80
    to about 295.

    Args:
        map: ``(B, 3, D, H, W)``, the map of the registration, normalised coordinates.
        map_ts: that of the registration with the images exchanged.
        margin: voxels to leave out at each face.
    """
    with torch.autocast(map.device.type, enabled=False):
        residual = UNIT_CUBE * _residual(map, map_ts, margin)
        return residual.square().sum(1).flatten(1).mean(1)


def inverse_consistency(map: Tensor, map_ts: Tensor, margin: int = 10) -> Tensor:
    """Figure 7: ``ln(1/|V| sum ||map o map_ts - id||^2)``, ``(B,)``, in the paper's units, over the interior.

    Arguments as `map_symmetry`; lower is better, minus infinity for exact inverses.
    """
    return map_symmetry(map, map_ts, margin).log()


def inverse_consistency_error(map: Tensor, map_ts: Tensor, margin: int = 0) -> Tensor:
    """The mean length of ``map o map_ts - id`` in voxels, ``(B,)``; arguments as `map_symmetry`."""
    with torch.autocast(map.device.type, enabled=False):
        residual = _residual(map, map_ts, margin)
        residual = residual * residual.new_tensor([(size - 1) / 2 for size in map.shape[2:]]).view(3, 1, 1, 1)
        return torch.linalg.vector_norm(residual, dim=1).flatten(1).mean(1)


def _residual(map: Tensor, map_ts: Tensor, margin: int) -> Tensor:
    """``map o map_ts - id`` (B, 3, d, h, w) in normalised units, without the margin."""
    map, map_ts = at_least_float32(map), at_least_float32(map_ts)
    inside = (..., *(slice(margin, size - margin) for size in map.shape[2:]))
    # Only the interior is composed: the inner map is cropped, the outer map keeps its whole domain.
    identity = identity_map(map.shape[2:], device=map.device, dtype=map.dtype)
    return compose(map, map_ts[inside]) - identity[inside]
