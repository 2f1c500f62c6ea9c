"""Random smooth fields and separable filters as small matrices, one per axis, so that no volume is ever zoomed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor


def channels_last(fields: Tensor) -> Tensor:
    """The same (C, D, H, W) with the channels of a voxel side by side in memory, which is faster to interpolate."""
    return fields[None].contiguous(memory_format=torch.channels_last_3d)[0]


def separable(volume: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Apply one linear map along each axis: (C, D, H, W) by (D', D), (H', H) and (W', W) gives (C, D', H', W')."""
    along_d, along_h, along_w = matrices
    volume = along_h @ (volume @ along_w.T)
    return (along_d @ volume.flatten(2)).unflatten(2, volume.shape[2:])


@lru_cache(maxsize=256)
def _spline_matrix(controls: int, size: int) -> Tensor:
    """Uniform cubic B-spline basis (size, controls) of one axis; white coefficients give unit variance."""
    knots = torch.linspace(1, controls - 2, size)
    distance = (knots[:, None] - torch.arange(controls)).abs()
    near = 2 / 3 - distance**2 + distance**3 / 2
    basis = torch.where(distance < 1, near, (2 - distance).clamp(min=0) ** 3 / 6)
    return basis / basis.square().sum(1, keepdim=True).mean().sqrt()


def smooth_noise(
    generator: torch.Generator, channels: int, controls: int | Sequence[int], shape: Sequence[int]
) -> Tensor:
    """Random smooth fields (C, D, H, W), mean 0 and variance about 1: cubic splines of white noise.

    ``controls``: coefficients along each axis, 4 at least; features are about 2 / (controls - 3) of the axis long.
    """
    controls = (controls,) * 3 if isinstance(controls, int) else tuple(controls)
    coefficients = torch.randn((channels, *controls), generator=generator)
    return separable(coefficients, [_spline_matrix(c, int(n)) for c, n in zip(controls, shape, strict=True)])


def blur_matrix(size: int, sigma: float) -> Tensor:
    """Gaussian blur along one axis, (size, size); rows sum to one, so that faces are not darkened."""
    if sigma <= 0.05:
        return torch.eye(size)
    index = torch.arange(size, dtype=torch.float32)
    weights = torch.exp(-0.5 * ((index[:, None] - index) / sigma) ** 2)
    return weights / weights.sum(1, keepdim=True)


def slice_matrices(size: int, factor: float) -> tuple[Tensor, Tensor]:
    """Acquisition in slices `factor` voxels thick along an axis of n voxels, (m, n), and interpolation back, (n, m).

    The slices' profile is a Gaussian whose width at half maximum is the thickness; back is linear.
    """
    count = max(2, round((size - 1) / factor) + 1)
    if count >= size:
        return torch.eye(size), torch.eye(size)
    index = torch.arange(size, dtype=torch.float32)
    centres = torch.linspace(0, size - 1, count)
    sigma = (size - 1) / (count - 1) / 2.355
    down = torch.exp(-0.5 * ((centres[:, None] - index) / sigma) ** 2)
    slices = torch.arange(count, dtype=torch.float32)
    up = (1 - (index[:, None] * (count - 1) / (size - 1) - slices).abs()).clamp(min=0)
    return down / down.sum(1, keepdim=True), up
