"""Regularity of transformations: Equations 4 and 13 for the affine stage, Equation 9 for the vSVF."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..geometry import UNIT_CUBE, identity_map, smallest_jacobian_determinant

__all__ = ["affine_factor", "affine_regularisation", "folding", "vsvf_regularisation"]


def affine_regularisation(affine: Tensor, reduction: str = "mean") -> Tensor:
    """Equation 4 without its factor: ``||A - I||_F^2 + ||b||^2``.

    Args:
        affine: (B, 3, 4) = (A | b) on normalised coordinates.
        reduction: ``"mean"`` over the batch, ``"none"`` for (B,).

    Returns:
        A scalar or (B,), in squared normalised units; 0 for the identity.
    """
    if affine.ndim != 3 or affine.shape[1:] != (3, 4):
        raise ValueError(f"affine must have the shape (B, 3, 4), got {tuple(affine.shape)}.")
    with torch.autocast(affine.device.type, enabled=False):
        affine = at_least_float32(affine)
        identity = torch.eye(3, 4, device=affine.device, dtype=affine.dtype)
        return reduce_batch((affine - identity).square().flatten(1).sum(1), reduction)


def affine_factor(epoch: float, C: float = 10.0, K: float = 4.0) -> float:
    """Equation 13: the decaying weight ``C K / (K + exp(epoch / K))`` of the affine regulariser.

    Args:
        epoch: Epoch count n, from 0; any size (the exponential does not overflow).
        C: The constant C_ar; the factor begins at ``C K / (K + 1)``.
        K: The decay rate K_ar, in epochs.

    Returns:
        The factor lambda_ar.
    """
    if epoch < 0 or C < 0 or K <= 0:
        raise ValueError(f"epoch and C must not be negative and K must be positive, got {epoch}, {C} and {K}.")
    decay = math.exp(-epoch / K)
    return C * K * decay / (K * decay + 1)


def vsvf_regularisation(momentum: Tensor, velocity: Tensor, reduction: str = "mean") -> Tensor:
    """Equation 9 without its factor: ``<m, v>``, the integral over the unit cube of the momentum times the velocity.

    The mean over voxels of the sum over components, in the paper's units (image in [0, 1]^3), so it does not depend on
    the resolution.

    Args:
        momentum: (B, 3, D, H, W) in normalised units.
        velocity: The smoothed momentum, same shape and units.
        reduction: ``"mean"`` over the batch, ``"none"`` for (B,).

    Returns:
        A scalar or (B,).
    """
    if momentum.ndim != 5 or momentum.shape[1] != 3 or momentum.shape != velocity.shape:
        raise ValueError(
            "momentum and velocity must have one shape (B, 3, D, H, W), got "
            f"{tuple(momentum.shape)} and {tuple(velocity.shape)}."
        )
    with torch.autocast(momentum.device.type, enabled=False):
        product = at_least_float32(momentum) * at_least_float32(velocity)
        return reduce_batch(UNIT_CUBE**2 * product.sum(1).flatten(1).mean(1), reduction)


def folding(displacement: Tensor, margin: float = 0.1, reduction: str = "mean") -> Tensor:
    """How far a deformation is from having no folds: the mean over voxels of max(0, margin - J).

    J is the smallest of the eight corner determinants of id + u at the voxel. Not in the paper, which counts folds but
    does not train against them.

    Args:
        displacement: u, (B, 3, D, H, W) in normalised units, on the grid on which it is integrated: up-sampling a map
            linearly makes no folds that its own grid does not have.
        margin: Determinant below which a voxel counts.
        reduction: ``"mean"`` over the batch, ``"none"`` for (B,).

    Returns:
        A scalar or (B,); 0 where every determinant is at least the margin.
    """
    with torch.autocast(displacement.device.type, enabled=False):
        displacement = at_least_float32(displacement)
        identity = identity_map(list(displacement.shape[2:]), displacement.device, displacement.dtype)
        lack = (margin - smallest_jacobian_determinant(identity + displacement)).clamp(min=0)
        return reduce_batch(lack.flatten(1).mean(1), reduction)


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor in float32, or as it is where it is float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def reduce_batch(loss: Tensor, reduction: str) -> Tensor:
    """The mean of losses (B,) for ``"mean"``, the losses for ``"none"``."""
    if reduction == "mean":
        return loss.mean()
    if reduction == "none":
        return loss
    raise ValueError(f"reduction must be 'mean' or 'none', got {reduction!r}.")
