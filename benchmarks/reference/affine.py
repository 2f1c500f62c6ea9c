"""The affine network at full resolution: eight convolutions and a head whose size is that of the image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .vsvf import warp_image


def _halved(size: int, times: int) -> int:
    for _ in range(times):
        size = (size + 1) // 2
    return size


class ReferenceAffineNet(nn.Module):
    """Full-resolution affine network, ReLU, no normalisation; 147,920 parameters at 192×192×80.

    Args:
        shape: image size ``(D, H, W)``; the fully connected layer is made for it.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.shared = nn.Conv3d(1, 16, 3, padding=1)
        plan = ((32, 32, 1), (32, 32, 2), (32, 32, 1), (32, 32, 1), (32, 16, 2), (16, 16, 1), (16, 4, 2))
        self.convolutions = nn.ModuleList(nn.Conv3d(i, o, 3, stride=s, padding=1) for i, o, s in plan)
        # Two poolings and three strided convolutions.
        cells = 1
        for size in shape:
            cells *= _halved(size, 5)
        self.hidden = nn.Linear(4 * cells, 32)
        self.head = nn.Linear(32, 12)
        # Near the identity and not at A = 0, so that warped images, and with them the work, are those of use.
        nn.init.normal_(self.head.weight, std=1e-3)
        with torch.no_grad():
            self.head.bias.copy_(torch.eye(3, 4).flatten())

    def forward(self, moved: Tensor, fixed: Tensor) -> Tensor:
        """(Ã | b̃) ``(B, 3, 4)`` of images ``(B, 1, D, H, W)``."""
        x = torch.cat([F.relu(self.shared(moved)), F.relu(self.shared(fixed))], dim=1)
        x = F.max_pool3d(x, 2, ceil_mode=True)
        for index, convolution in enumerate(self.convolutions):
            x = F.relu(convolution(x))
            if index == 2:
                x = F.max_pool3d(x, 2, ceil_mode=True)
        return self.head(F.relu(self.hidden(x.flatten(1)))).view(-1, 3, 4)


def affine_coordinates(affine: Tensor, grid: Tensor) -> Tensor:
    """A x + b over a full grid ``(1, 3, D, H, W)`` by one matrix product."""
    shape = grid.shape[2:]
    points = grid.flatten(2).expand(affine.shape[0], -1, -1)
    return (torch.bmm(affine[:, :, :3], points) + affine[:, :, 3:]).view(affine.shape[0], 3, *shape)


def affine_pair(
    net: ReferenceAffineNet, moving: Tensor, fixed: Tensor, grid: Tensor, steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Multi-step affine registration of Equation 1, the original image warped at full resolution in every step.

    Returns:
        The affine ``(B, 3, 4)``, its map, and the moving image under it.
    """
    linear = torch.eye(3, device=moving.device).unsqueeze(0).expand(moving.shape[0], -1, -1)
    shift = torch.zeros(moving.shape[0], 3, 1, device=moving.device)
    moved, coordinates = moving, grid
    for _ in range(steps):
        update = net(moved, fixed)
        linear, shift = (torch.bmm(update[:, :, :3], linear), torch.bmm(update[:, :, :3], shift) + update[:, :, 3:])
        coordinates = affine_coordinates(torch.cat([linear, shift], dim=2), grid)
        moved = warp_image(moving, coordinates)
    return torch.cat([linear, shift], dim=2), coordinates, moved
