"""The momentum network as described: encoder 16 to 256, decoder to half resolution, no normalisation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Level(nn.Module):
    """A strided convolution, then convolutions whose result is added to it."""

    def __init__(self, before: int, width: int, further: int) -> None:
        super().__init__()
        self.down = nn.Conv3d(before, width, 3, stride=2, padding=1)
        self.further = nn.ModuleList(nn.Conv3d(width, width, 3, padding=1) for _ in range(further))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.down(x))
        y = x
        for convolution in self.further:
            y = F.relu(convolution(y))
        return x + y


class ReferenceMomentumNet(nn.Module):
    """Five-level residual U-Net without its last decoder level; 5.94 million parameters (the original: 5,938,515)."""

    def __init__(self) -> None:
        super().__init__()
        self.level_1 = nn.Conv3d(2, 16, 3, padding=1)
        self.level_2 = _Level(16, 32, 1)
        self.level_4 = _Level(32, 64, 1)
        self.level_8 = _Level(64, 128, 1)
        self.level_16 = _Level(128, 256, 1)
        self.to_eighth = nn.ConvTranspose3d(256, 128, 2, stride=2)
        self.at_eighth = nn.ModuleList([nn.Conv3d(256, 128, 3, padding=1), nn.Conv3d(128, 128, 3, padding=1)])
        self.to_quarter = nn.ConvTranspose3d(128, 64, 2, stride=2)
        self.at_quarter = nn.ModuleList([nn.Conv3d(128, 128, 3, padding=1), nn.Conv3d(128, 64, 3, padding=1)])
        self.to_half = nn.ConvTranspose3d(64, 16, 2, stride=2)
        self.at_half = nn.ModuleList([nn.Conv3d(48, 32, 3, padding=1), nn.Conv3d(32, 32, 3, padding=1)])
        self.linear = nn.Sequential(nn.Conv3d(32, 16, 3, padding=1), nn.Conv3d(16, 3, 3, padding=1))
        # Near zero, so that maps stay what maps are in use.
        nn.init.normal_(self.linear[1].weight, std=1e-5)
        nn.init.zeros_(self.linear[1].bias)

    @staticmethod
    def _up(raise_: nn.Module, convolutions: nn.ModuleList, coarse: Tensor, skip: Tensor) -> Tensor:
        fine = F.leaky_relu(raise_(coarse))
        fine = fine[:, :, : skip.shape[2], : skip.shape[3], : skip.shape[4]]
        x = torch.cat([fine, skip], dim=1)
        for convolution in convolutions:
            x = F.leaky_relu(convolution(x))
        return x

    def forward(self, moved: Tensor, fixed: Tensor) -> Tensor:
        """Momentum ``(B, 3, ⌈D/2⌉, ⌈H/2⌉, ⌈W/2⌉)`` of images ``(B, 1, D, H, W)``."""
        half = self.level_2(F.relu(self.level_1(torch.cat([moved, fixed], dim=1))))
        quarter = self.level_4(half)
        eighth = self.level_8(quarter)
        x = self._up(self.to_eighth, self.at_eighth, self.level_16(eighth), eighth)
        x = self._up(self.to_quarter, self.at_quarter, x, quarter)
        return self.linear(self._up(self.to_half, self.at_half, x, half))
