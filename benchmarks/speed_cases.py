"""What `speed.py` measures: the inputs that both sides share, and how a case is run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Work = Callable[[], object]


@dataclass
class Setting:
    """One measurement's surroundings.

    Attributes:
        shape: image size ``(D, H, W)``.
        device: where.
        dtype: float32, or bfloat16 for autocast over the convolutions of ours.
        network: name in ``speed_ours.NETWORKS``.
        batch: pairs at once, of ours.
        compiled: run ours through ``torch.compile``.
    """

    shape: tuple[int, int, int]
    device: torch.device
    dtype: torch.dtype = torch.float32
    network: str = "fast"
    batch: int = 1
    compiled: bool = False

    @property
    def low(self) -> tuple[int, ...]:
        """The half-resolution grid."""
        return tuple((size + 1) // 2 for size in self.shape)

    def images(self, shape: tuple[int, ...] | None = None) -> tuple[Tensor, Tensor]:
        """A smooth random pair ``(B, 1, D, H, W)`` in [0, 1]."""
        shape = self.shape if shape is None else shape
        seeds = torch.rand(2 * self.batch, 1, *(max(2, size // 16) for size in shape), device=self.device)
        pair = F.interpolate(seeds, size=shape, mode="trilinear")
        return pair[: self.batch].clone(), pair[self.batch :].clone()

    def field(self, channels: int = 3, size: float = 0.02) -> Tensor:
        """A smooth random low-resolution field ``(B, 3, d, h, w)``."""
        seeds = torch.randn(self.batch, channels, *(max(2, n // 8) for n in self.low), device=self.device)
        return size * F.interpolate(seeds, size=self.low, mode="trilinear", align_corners=True)


def forward_only(setting: Setting, work: Work) -> Work:
    """The work in inference mode, under autocast where asked for."""

    def run() -> object:
        with torch.inference_mode(), autocast(setting):
            return work()

    return run


def autocast(setting: Setting) -> torch.autocast:
    """Autocast to the setting's type; off for float32."""
    return torch.autocast(setting.device.type, torch.bfloat16, enabled=setting.dtype == torch.bfloat16)


def backward_too(setting: Setting, work: Callable[..., Tensor], *leaves: Tensor) -> Work:
    """The work and the gradient of its sum to the leaves."""

    def run() -> None:
        with autocast(setting):
            result = work(*leaves)
        torch.autograd.grad(result.float().sum(), leaves)

    return run


def piece(case: str, setting: Setting, table: dict[str, tuple[Callable[..., Tensor], Tensor]]) -> Work:
    """The case out of a table of (function, its argument) by name, forward alone or with the gradient."""
    name = case.removesuffix(" forward+backward")
    work, leaf = table[name]
    if name == case:
        return forward_only(setting, lambda: work(leaf))
    return backward_too(setting, work, leaf.clone().requires_grad_())
