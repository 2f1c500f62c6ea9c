"""Features of one image: memberships in labels, which guide the engine (not in the paper)."""

from __future__ import annotations

from typing import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..monai_parts import UNet


class FeatureNet(nn.Module):
    """The soft segmentation of an image, by MONAI's residual U-Net.

    The two images of a pair go through it separately and with the same weights, so it is trained on every labelled
    image by itself. What it sees in both images the engine lays on each other (`registration.Method`).

    Args:
        classes: foreground labels.
        channels: features of the levels, each half the size of the one before.
        norm: MONAI normalisation name. ``"INSTANCE"`` is over the whole image, the zeros around it among it, so that
            features are good on images padded as those of the training alone; ``"BATCH"`` knows means of the training.

    Raises:
        ValueError: for fewer than one class or two levels.
    """

    def __init__(self, classes: int = 2, channels: Sequence[int] = (16, 32, 64, 128), norm: str = "INSTANCE") -> None:
        super().__init__()
        if classes < 1 or len(channels) < 2:
            raise ValueError(
                f"FeatureNet: needs at least 1 class and 2 levels, got {classes} classes and channels {list(channels)}."
            )
        self.multiple = 2 ** (len(channels) - 1)
        self.unet = UNet(
            spatial_dims=3,
            in_channels=1,
            out_channels=classes + 1,
            channels=channels,
            strides=[2] * (len(channels) - 1),
            num_res_units=2,
            norm=norm,
            act="LEAKYRELU",
        )

    def logits(self, image: Tensor) -> Tensor:
        """Scores of background and labels, ``(B, 1 + classes, D, H, W)`` float32, of [0, 1] ``(B, 1, D, H, W)``."""
        size = image.shape[2:]
        # Every level halves the grid, and its skip must fit when it comes back; the deepest needs more than one voxel
        # for its normalisation.
        more = [(self.multiple - n % self.multiple) % self.multiple for n in size]
        if max(size[0], size[1], size[2]) <= self.multiple:
            more[2] += self.multiple
        padded = F.pad(image, [0, more[2], 0, more[1], 0, more[0]], mode="replicate")
        return self.unet(padded)[:, :, : size[0], : size[1], : size[2]].float()

    def forward(self, image: Tensor) -> Tensor:
        """The probability of each foreground label, ``(B, classes, D, H, W)`` float32; of images as `logits`."""
        return torch.softmax(self.logits(image), dim=1)[:, 1:]
