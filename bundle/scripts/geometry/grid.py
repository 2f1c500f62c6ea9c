"""Coordinate grids in normalised coordinates."""

from __future__ import annotations

from typing import List, Optional

import torch

UNIT_CUBE: float = 0.5
"""Length in the paper's units (image = [0, 1]³) of one normalised unit (image = [-1, 1]³)."""


def axis_coordinates(size: int, device: Optional[torch.device] = None, dtype: torch.dtype = torch.float32):
    """Normalised coordinates of the voxel centres of one axis, ``(size,)``; a single voxel lies at 0."""
    if size == 1:
        return torch.zeros(1, device=device, dtype=dtype)
    return torch.linspace(-1.0, 1.0, size, device=device, dtype=dtype)


def identity_map(shape: List[int], device: Optional[torch.device] = None, dtype: torch.dtype = torch.float32):
    """The identity map of a grid ``(D, H, W)``, ``(1, 3, D, H, W)`` normalised coordinates; ValueError for others."""
    if len(shape) != 3:
        raise ValueError("identity_map: shape must have 3 axes (D, H, W).")
    d = axis_coordinates(shape[0], device, dtype).view(-1, 1, 1).expand(shape[0], shape[1], shape[2])
    h = axis_coordinates(shape[1], device, dtype).view(1, -1, 1).expand(shape[0], shape[1], shape[2])
    w = axis_coordinates(shape[2], device, dtype).view(1, 1, -1).expand(shape[0], shape[1], shape[2])
    return torch.stack([d, h, w], dim=0).unsqueeze(0)


def voxels_per_unit(shape: List[int], device: Optional[torch.device] = None, dtype: torch.dtype = torch.float32):
    """Voxels per normalised unit along each axis, ``(3,)``: ``(n - 1) / 2``, not ``n / 2``, as corners are aligned."""
    return torch.tensor([(shape[0] - 1) / 2.0, (shape[1] - 1) / 2.0, (shape[2] - 1) / 2.0], device=device, dtype=dtype)
