"""Average pooling to a fixed size, in a form that every exporter takes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AdaptiveMean(nn.Module):
    """Averages a feature volume of any size to ``size`` cells an axis; the same numbers as ``nn.AdaptiveAvgPool3d``.

    ONNX has no operator for it, and PyTorch's exporter no translation. The cells of one axis are means of slices, which
    every exporter knows; so that is what an export gets, and the library's own kernel what everything else gets.

    Args:
        size: cells along each of the three axes.

    Raises:
        ValueError: when ``size`` is below 1.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"AdaptiveMean: size must be at least 1, got {size}.")
        self.size = size

    def forward(self, features: Tensor) -> Tensor:
        """Average ``(B, C, D, H, W)`` to ``(B, C, size, size, size)``."""
        if torch.jit.is_scripting():
            return F.adaptive_avg_pool3d(features, self.size)
        else:
            if torch.compiler.is_exporting():
                return self.by_slices(features)
            return F.adaptive_avg_pool3d(features, self.size)

    def by_slices(self, features: Tensor) -> Tensor:
        """The same as means of slices, axis by axis: cells are boxes, so the mean of a cell is a mean of means."""
        for axis in (2, 3, 4):
            length = features.shape[axis]
            cells = []
            for cell in range(self.size):
                # As PyTorch has it: a cell begins at the floor and ends at the ceiling of its part of the axis.
                first, last = cell * length // self.size, -((cell + 1) * length // -self.size)
                cells.append(features.narrow(axis, first, last - first).mean(dim=axis, keepdim=True))
            features = torch.cat(cells, dim=axis)
        return features
