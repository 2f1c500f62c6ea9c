"""The force of local correlation on the map: the direction in which each voxel would gain similarity."""

from __future__ import annotations

from typing import List

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["correlation_force"]


def _window_means(size: int, window: int, like: Tensor) -> Tensor:
    """Matrix ``(size, size)`` of means over windows centred on each voxel, cut off at the faces."""
    place = torch.arange(size, device=like.device)
    inside = (place[:, None] - place[None, :]).abs() <= window // 2
    band = inside.to(like.dtype)
    return band / band.sum(dim=1, keepdim=True)


def _box(volume: Tensor, means: List[Tensor]) -> Tensor:
    """Means of ``(B, C, D, H, W)`` in windows around each voxel."""
    volume = torch.matmul(volume, means[2].t())
    volume = torch.matmul(means[1], volume)
    flat = torch.matmul(means[0], volume.flatten(3))
    return flat.view(volume.shape)


def _gradient(image: Tensor) -> Tensor:
    """Central differences ``(B, 3, D, H, W)`` of ``(B, 1, D, H, W)``, each voxel to voxel, faces continued."""
    wide = F.pad(image, [1, 1, 1, 1, 1, 1], mode="replicate")
    d, h, w = image.shape[2], image.shape[3], image.shape[4]
    parts = [
        wide[:, :, 2:, 1 : h + 1, 1 : w + 1] - wide[:, :, :d, 1 : h + 1, 1 : w + 1],
        wide[:, :, 1 : d + 1, 2:, 1 : w + 1] - wide[:, :, 1 : d + 1, :h, 1 : w + 1],
        wide[:, :, 1 : d + 1, 1 : h + 1, 2:] - wide[:, :, 1 : d + 1, 1 : h + 1, :w],
    ]
    return torch.cat(parts, dim=1) / 2


def correlation_force(moved: Tensor, fixed: Tensor, windows: List[int], eps: float = 1e-4) -> Tensor:
    """Derivative of the local correlation (Equation 2, every window, mean over sizes) by the moved image, times ∇moved.

    Along it a displacement of the map gains similarity fastest, voxel by voxel. At the minimum of Equation 11 momentum
    and force balance (λvr m₀ is the force, carried along the flow), which is why it is shown to a network that predicts
    momenta. It carries no gradient.

    Args:
        moved: ``(B, 1, D, H, W)``, intensities of about [0, 1].
        fixed: ``(B, 1, D, H, W)``.
        windows: sizes in voxels, odd; windows are cut off at the faces.
        eps: regulariser of variances and covariance, squared intensity.

    Returns:
        ``(B, 3, D, H, W)``, a displacement's direction in normalised coordinates but for a factor of half the grid's
        mean size, so that its size does not depend on the grid's; of the order of 0.1 at edges that do not match.
    """
    moved, fixed = moved.detach().float(), fixed.detach().float()
    shape = [fixed.shape[2], fixed.shape[3], fixed.shape[4]]
    pull = torch.zeros_like(moved)
    for window in windows:
        means = [_window_means(size, window, moved) for size in shape]
        moved_mean, fixed_mean = _box(moved, means), _box(fixed, means)
        moved_variance = (_box(moved * moved, means) - moved_mean * moved_mean).clamp(min=0.0) + eps
        fixed_variance = (_box(fixed * fixed, means) - fixed_mean * fixed_mean).clamp(min=0.0) + eps
        covariance = _box(moved * fixed, means) - moved_mean * fixed_mean + eps
        towards = (moved_variance * fixed_variance).rsqrt()
        away = covariance * towards / moved_variance
        # Summed over the windows that a voxel lies in, each with its own means.
        pull = pull + _box(towards, means) * fixed - _box(towards * fixed_mean, means)
        pull = pull - _box(away, means) * moved + _box(away * moved_mean, means)
    mean_size = (shape[0] + shape[1] + shape[2]) / 3 - 1
    scale = torch.tensor([mean_size / max(size - 1, 1) for size in shape], device=moved.device)
    return pull / len(windows) * _gradient(moved) * scale.view(1, 3, 1, 1, 1)
