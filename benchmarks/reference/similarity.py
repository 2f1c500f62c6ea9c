"""mk-LNCC of Equations 2 and 3 with window sums by dense convolution with ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-5


def dense_correlation(x: Tensor, y: Tensor, window: int, stride: int, dilation: int) -> Tensor:
    """Equation 2 ``(B,)``: mean over windows without padding, sums of uncentred products in float32."""
    ones = torch.ones(1, 1, window, window, window, device=x.device)
    count = window**3

    def total(volume: Tensor) -> Tensor:
        return F.conv3d(volume, ones, stride=stride, dilation=dilation)

    mean_x, mean_y = total(x) / count, total(y) / count
    variance_x = total(x * x) / count - mean_x * mean_x
    variance_y = total(y * y) / count - mean_y * mean_y
    covariance = total(x * y) / count - mean_x * mean_y
    scale = ((variance_x.clamp(min=0) + EPS) * (variance_y.clamp(min=0) + EPS)).sqrt()
    return ((covariance + EPS) / scale).flatten(1).mean(1)


def dense_mk_lncc(moved: Tensor, fixed: Tensor) -> Tensor:
    """Equation 3 as a loss: windows S/4 and S/2 with weights 0.3 and 0.7, dilation 2, stride a quarter of each."""
    smallest = min(moved.shape[2:])
    score = torch.zeros(moved.shape[0], device=moved.device)
    for weight, part in ((0.3, 4), (0.7, 2)):
        window = min(max(3, round(smallest / part)), (smallest - 1) // 2 + 1)
        score = score + weight * dense_correlation(moved, fixed, window, max(1, round(window / 4)), 2)
    return (1 - score).mean()
