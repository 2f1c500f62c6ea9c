"""The whole: inference, and training steps whose two directions are separate passes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .affine import ReferenceAffineNet, affine_pair
from .momentum import ReferenceMomentumNet
from .similarity import dense_mk_lncc
from .vsvf import fft_smooth, identity_grid, integrate_rk4, upsample_map, warp_image

UNIT = 0.5
SYMMETRY_AFFINE = 10.0
SYMMETRY_VSVF = 295.0
REGULARISATION = 10.0


class ReferenceAVSM(nn.Module):
    """Both networks and the two grids of one image size ``(D, H, W)``."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.affine_net = ReferenceAffineNet(shape)
        self.momentum_net = ReferenceMomentumNet()
        self.register_buffer("grid", identity_grid(shape))
        self.low = tuple((size + 1) // 2 for size in shape)

    def vsvf_steps(
        self, moving: Tensor, fixed: Tensor, coordinates: Tensor, moved: Tensor, steps: int
    ) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """(map, moved image, momentum, velocity) of every step, from an affine map and its moved image.

        The affine factor commutes with advection, so the low-resolution map begins as the down-sampled affine map.
        """
        results = []
        low = upsample_map(coordinates, self.low)
        for _ in range(steps):
            momentum = self.momentum_net(moved, fixed)
            velocity = fft_smooth(momentum)
            low = integrate_rk4(low, velocity)
            coordinates = upsample_map(low, moving.shape[2:])
            moved = warp_image(moving, coordinates)
            results.append((coordinates, moved, momentum, velocity))
        return results

    def forward(self, moving: Tensor, fixed: Tensor, affine_steps: int = 7, vsvf_steps: int = 2) -> Tensor:
        """Inference: the moved image ``(B, 1, D, H, W)``."""
        with torch.no_grad():
            _, coordinates, moved = affine_pair(self.affine_net, moving, fixed, self.grid, affine_steps)
            results = self.vsvf_steps(moving, fixed, coordinates, moved, vsvf_steps)
        return results[-1][1] if results else moved


def affine_training_step(net: ReferenceAVSM, first: Tensor, second: Tensor, steps: int = 3) -> Tensor:
    """Equation 6 and its gradient: both directions, one after the other, gradient through all steps."""
    net.zero_grad(set_to_none=True)
    eye = torch.eye(3, 4, device=first.device)
    forth, _, moved_forth = affine_pair(net.affine_net, first, second, net.grid, steps)
    back, _, moved_back = affine_pair(net.affine_net, second, first, net.grid, steps)
    loss = dense_mk_lncc(moved_forth, second) + dense_mk_lncc(moved_back, first)
    loss = loss + REGULARISATION * ((forth - eye).square().sum() + (back - eye).square().sum())
    linear = torch.bmm(back[:, :, :3], forth[:, :, :3]) - eye[:, :3]
    shift = torch.bmm(back[:, :, :3], forth[:, :, 3:]) + back[:, :, 3:]
    loss = loss + SYMMETRY_AFFINE * (linear.square().sum() + shift.square().sum())
    loss.backward()
    return loss.detach()


def _asymmetry(outer: Tensor, inner: Tensor, grid: Tensor) -> Tensor:
    displacement = F.grid_sample(
        outer - grid, inner.flip(1).permute(0, 2, 3, 4, 1), padding_mode="border", align_corners=True
    )
    return (UNIT * (displacement + inner - grid)).square().sum(1).mean()


def vsvf_training_step(
    net: ReferenceAVSM, first: Tensor, second: Tensor, affine_steps: int = 7, vsvf_steps: int = 2
) -> Tensor:
    """Equation 12 and its gradient with the affine fixed: both directions, the sum over steps of Equation 11."""
    net.zero_grad(set_to_none=True)
    directions: list[list] = []
    pairs: tuple[tuple[Tensor, Tensor], ...] = ((first, second), (second, first))
    for moving, fixed in pairs:
        with torch.no_grad():
            _, coordinates, moved = affine_pair(net.affine_net, moving, fixed, net.grid, affine_steps)
        directions.append(net.vsvf_steps(moving, fixed, coordinates, moved, vsvf_steps))
    loss = torch.zeros((), device=first.device)
    for (map_forth, moved_forth, m_forth, v_forth), (map_back, moved_back, m_back, v_back) in zip(
        *directions, strict=True
    ):
        loss = loss + dense_mk_lncc(moved_forth, second) + dense_mk_lncc(moved_back, first)
        for momentum, velocity in ((m_forth, v_forth), (m_back, v_back)):
            loss = loss + REGULARISATION * UNIT**2 * (momentum * velocity).sum(1).mean()
        symmetry = _asymmetry(map_forth, map_back, net.grid) + _asymmetry(map_back, map_forth, net.grid)
        loss = loss + SYMMETRY_VSVF * symmetry / 2
    loss.backward()
    return loss.detach()
