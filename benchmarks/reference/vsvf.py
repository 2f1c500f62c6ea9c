"""The vSVF unit of the paper: FFT smoothing, RK4 advection of the map, one up-sampling, one interpolation."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

STDS = (0.05, 0.1, 0.15, 0.2, 0.25)
WEIGHTS = (0.067, 0.133, 0.2, 0.267, 0.333)


def identity_grid(shape: tuple[int, ...]) -> Tensor:
    """Normalised coordinates ``(1, 3, D, H, W)`` of every voxel."""
    axes = [torch.linspace(-1, 1, size) for size in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).unsqueeze(0)


def warp_image(image: Tensor, coordinates: Tensor) -> Tensor:
    """The image at a map's coordinates, zeros outside."""
    return F.grid_sample(image, coordinates.flip(1).permute(0, 2, 3, 4, 1), padding_mode="zeros", align_corners=True)


def fft_smooth(field: Tensor) -> Tensor:
    """Sum of normalised Gaussians, widths in parts of the extent, by an FFT (periodic, as the original's)."""
    shape = field.shape[2:]
    device = field.device
    transfer = torch.zeros(*shape[:2], shape[2] // 2 + 1, device=device)
    frequencies = [torch.fft.fftfreq(n, device=device) for n in shape[:2]]
    frequencies.append(torch.fft.rfftfreq(shape[2], device=device))
    for std, weight in zip(STDS, WEIGHTS, strict=True):
        factors = [torch.exp(-2 * (math.pi * std * (n - 1) * f) ** 2) for n, f in zip(shape, frequencies, strict=True)]
        transfer = transfer + weight * factors[0][:, None, None] * factors[1][:, None] * factors[2]
    return torch.fft.irfftn(torch.fft.rfftn(field, dim=(2, 3, 4)) * transfer, s=shape, dim=(2, 3, 4))


def _rate(coordinates: Tensor, velocity: Tensor) -> Tensor:
    """-Dφ v by central differences of a map extrapolated linearly by one voxel at each face."""
    rate = torch.zeros_like(coordinates)
    for axis in range(3):
        dim, size = axis + 2, coordinates.shape[axis + 2]
        first, last = coordinates.narrow(dim, 0, 1), coordinates.narrow(dim, size - 1, 1)
        below = 2 * first - coordinates.narrow(dim, 1, 1)
        above = 2 * last - coordinates.narrow(dim, size - 2, 1)
        padded = torch.cat([below, coordinates, above], dim=dim)
        slope = (padded.narrow(dim, 2, size) - padded.narrow(dim, 0, size)) * ((size - 1) / 4)
        rate = rate - slope * velocity[:, axis : axis + 1]
    return rate


def integrate_rk4(coordinates: Tensor, velocity: Tensor, steps: int = 10) -> Tensor:
    """Advect a map over unit time by a stationary velocity; autograd keeps every stage."""
    h = 1 / steps
    for _ in range(steps):
        k1 = _rate(coordinates, velocity)
        k2 = _rate(coordinates + h / 2 * k1, velocity)
        k3 = _rate(coordinates + h / 2 * k2, velocity)
        k4 = _rate(coordinates + h * k3, velocity)
        coordinates = coordinates + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return coordinates


def upsample_map(coordinates: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Trilinear, corners aligned."""
    return F.interpolate(coordinates, size=tuple(shape), mode="trilinear", align_corners=True)
