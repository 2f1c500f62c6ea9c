"""Affine transforms ``(B, 3, 4)`` = ``(A | b)`` on normalised coordinates."""

from __future__ import annotations

from typing import List, Optional

import torch
from torch import Tensor

from .grid import axis_coordinates


def identity_affine(batch: int, device: Optional[torch.device] = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """The identity ``A = I, b = 0``, shape ``(batch, 3, 4)``: the start of Equation 1."""
    return torch.eye(3, 4, device=device, dtype=dtype).unsqueeze(0).repeat(batch, 1, 1)


def compose_affines(outer: Tensor, inner: Tensor) -> Tensor:
    """``outer(inner(x))``: ``A = A_outer A_inner``, ``b = A_outer b_inner + b_outer`` (the right side of Equation 1).

    Args:
        outer: ``(B, 3, 4)``, applied last.
        inner: ``(B, 3, 4)``, applied first.
    """
    # A sum of products and not a matrix product, which autocast would run in half precision; so below.
    product = (outer[:, :, :3].unsqueeze(3) * inner.unsqueeze(1)).sum(dim=2)
    return torch.cat([product[:, :, :3], product[:, :, 3:] + outer[:, :, 3:]], dim=2)


def invert_affine(affine: Tensor) -> Tensor:
    """The inverse ``(A⁻¹ | -A⁻¹ b)`` of ``(B, 3, 4)`` affines.

    Raises:
        RuntimeError: when a matrix is singular (from ``torch.linalg``).
    """
    inverse = torch.linalg.inv(affine[:, :, :3])
    shift = -(inverse * affine[:, :, 3].unsqueeze(1)).sum(dim=2, keepdim=True)
    return torch.cat([inverse, shift], dim=2)


def apply_affine(affine: Tensor, coordinates: Tensor) -> Tensor:
    """Carry a map's coordinates through an affine: ``A φ(x) + b``, i.e. the map ``affine ∘ φ``.

    Args:
        affine: ``(B, 3, 4)``.
        coordinates: ``(B, 3, D, H, W)`` normalised coordinates (B may be 1 here).

    Returns:
        ``(B, 3, D, H, W)``.
    """
    a = affine.view(-1, 3, 4, 1, 1, 1)
    x, y, z = coordinates[:, 0:1], coordinates[:, 1:2], coordinates[:, 2:3]
    return torch.addcmul(torch.addcmul(torch.addcmul(a[:, :, 3], a[:, :, 0], x), a[:, :, 1], y), a[:, :, 2], z)


def affine_map(affine: Tensor, shape: List[int]) -> Tensor:
    """The affine map Φ⁻¹ₐ(x, Γ) = A x + b on a grid, ``(B, 3, D, H, W)``.

    Args:
        affine: ``(B, 3, 4)``.
        shape: the grid's size ``(D, H, W)``.
    """
    # An outer sum of three axes costs one pass over the grid instead of a matrix product over all of its points.
    d = axis_coordinates(shape[0], affine.device, affine.dtype).view(1, 1, -1, 1, 1)
    h = axis_coordinates(shape[1], affine.device, affine.dtype).view(1, 1, 1, -1, 1)
    w = axis_coordinates(shape[2], affine.device, affine.dtype).view(1, 1, 1, 1, -1)
    a = affine.view(-1, 3, 4, 1, 1, 1)
    return (a[:, :, 0] * d + a[:, :, 3]) + a[:, :, 1] * h + a[:, :, 2] * w
