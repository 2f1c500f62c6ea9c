"""The momentum generation network of Figure 3: a residual U-Net without its last decoder level."""

from typing import List, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..geometry import resize_volume, voxels_per_unit
from ..monai_parts import Convolution, ResidualUnit
from .image_force import correlation_forces, edges, foreground_box_mask

# Gains of Gauss-Newton steps before training: the smoother spreads a step and the flow goes against it.
_START_GAIN = -4.0
# Bound on a direction of the local correlation's force, of the order of 0.1 at edges that do not match.
_LONGEST = 0.2
STEMS = ("space_to_depth", "conv", "quarter")


def half_shape(shape: List[int]) -> List[int]:
    """The momentum's grid for an image grid: half, rounded up."""
    return [(shape[0] + 1) // 2, (shape[1] + 1) // 2, (shape[2] + 1) // 2]


def reduced(image: Tensor, factor: int) -> Tensor:
    """An image ``(B, C, D, H, W)`` on a grid over the same extent with a ``factor``-th of the voxels along each axis.

    What is dropped is averaged away first.
    """
    if factor == 1:
        return image
    axes = image.shape[2:]
    # The pool refuses kernels longer than the image.
    near = [min(factor // 2, (size - 1) // 2) for size in axes]
    kernel = [2 * n + 1 for n in near]
    smooth = F.avg_pool3d(image, kernel, stride=1, padding=near, count_include_pad=False)
    return resize_volume(smooth, [max(2, (size + factor - 1) // factor) for size in axes])


def space_to_depth(image: Tensor) -> Tensor:
    """Fold each 2×2×2 block into channels: ``(B, C, D, H, W)`` → ``(B, 8C, ⌈D/2⌉, ⌈H/2⌉, ⌈W/2⌉)``.

    Odd axes are continued by one voxel.
    """
    d, h, w = image.shape[2:]
    if d % 2 + h % 2 + w % 2 > 0:
        image = F.pad(image, [0, w % 2, 0, h % 2, 0, d % 2], mode="replicate")
    batch, channels = image.shape[0], image.shape[1]
    d, h, w = (d + 1) // 2, (h + 1) // 2, (w + 1) // 2
    blocks = image.view(batch, channels, d, 2, h, 2, w, 2).permute(0, 1, 3, 5, 7, 2, 4, 6)
    return blocks.reshape(batch, channels * 8, d, h, w)


def depth_to_space(blocks: Tensor) -> Tensor:
    """Unfold channels into 2×2×2 blocks, undoing `space_to_depth`: ``(B, 8C, d, h, w)`` → ``(B, C, 2d, 2h, 2w)``."""
    batch, channels = blocks.shape[0], blocks.shape[1] // 8
    d, h, w = blocks.shape[2:]
    image = blocks.view(batch, channels, 2, 2, 2, d, h, w).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return image.reshape(batch, channels, 2 * d, 2 * h, 2 * w)


class MomentumNet(nn.Module):
    """Residual U-Net from (warped moving, fixed) to a momentum at half resolution.

    Levels lie at 1, 1/2, 1/4, 1/8, 1/16 of the image grid; the decoder stops at 1/2, as the paper removes its last
    level. The full-resolution level feeds nothing but the first halving, so by default 2×2×2 blocks are folded into
    channels there instead of being convolved at full resolution. With the ``"quarter"`` stem the half-resolution level
    goes the same way: no feature is finer than 1/4, where the head predicts blocks of 2×2×2 momenta that are unfolded
    to 1/2. The last convolution starts near zero: the smoother passes constants unchanged, so that an ordinary start
    (or its first optimiser step) would throw the image away.

    Args:
        channels: features at 1, 1/2, 1/4, 1/8, 1/16 (the first is used by the ``"conv"`` stem only, the second not by
            the ``"quarter"`` stem).
        stem: ``"space_to_depth"``; ``"conv"`` for the paper's full-resolution convolution; ``"quarter"`` for a network
            of a fraction of the cost and memory (figures in ``benchmarks/results/speed.md``).
        norm: MONAI normalisation name, or None (the authors'). On the hippocampus, 200 iterations took held-out Dice
            from 0.666 to 0.704 with ``"INSTANCE"`` and nowhere without.
        head_std: standard deviation of the last convolution's initial weights.
        force_windows: windows of the local correlation, odd voxels, whose force and Gauss-Newton step at each voxel
            (`correlation_forces`) the network is shown beside the images (not in the paper). It predicts a gain for
            each at every voxel of the half-resolution grid, and the momentum is their sum and nothing else: a network
            that may add momenta of its own learns some of the anatomy that it is trained on, which is noise on any
            other. They act inside the boxes around both images' non-zero voxels (`foreground_box_mask`), the force's
            direction no longer than 0.2; the gain of the step starts at -4. Empty for the paper's network.
        any_contrast: see the images' `edges` in their place, and forces of squared correlations (not in the paper).

    Raises:
        ValueError: when ``stem`` is unknown, ``channels`` has not five entries, or a window is not odd and at least 3.
    """

    # TorchScript cannot tell the type of an empty list.
    force_windows: List[int]

    def __init__(
        self,
        channels: Sequence[int] = (16, 32, 64, 128, 256),
        stem: str = "space_to_depth",
        norm: str | None = "INSTANCE",
        head_std: float = 1e-5,
        force_windows: Sequence[int] = (),
        any_contrast: bool = False,
    ) -> None:
        super().__init__()
        if stem not in STEMS:
            raise ValueError(f"MomentumNet: stem must be one of {', '.join(STEMS)}, got '{stem}'.")
        if len(channels) != 5:
            raise ValueError(f"MomentumNet: channels needs 5 entries (levels 1 to 1/16), got {list(channels)}.")
        if any(isinstance(n, bool) or int(n) != n or n < 3 or n % 2 == 0 for n in force_windows):
            raise ValueError(f"MomentumNet: force_windows must be odd and at least 3, got {list(force_windows)}.")
        self.stem = stem
        self.force_windows = [int(n) for n in force_windows]
        self._longest = _LONGEST
        self.any_contrast = any_contrast
        # Two images and two forces are shown; two gains are given, or a momentum.
        shown, given = (8, 2) if self.force_windows else (2, 3)
        full, half, quarter, eighth, sixteenth = channels
        # In place: the activation's output stands for its input in the backward pass, a third less to keep.
        act = ("LEAKYRELU", {"inplace": True})
        unit = {"kernel_size": 3, "act": act, "norm": norm, "subunits": 2}
        self.down_full: nn.Module = nn.Identity()
        self.down_half: nn.Module = nn.Identity()
        folded = 8 * shown
        if stem == "conv":
            self.down_full = Convolution(3, shown, full, kernel_size=3, act=act, norm=norm)
            self.down_half = ResidualUnit(3, full, half, strides=2, **unit)
            folded = half
        elif stem == "space_to_depth":
            self.down_half = ResidualUnit(3, folded, half, strides=1, **unit)
            folded = half
        self.down_quarter = ResidualUnit(3, folded, quarter, strides=2, **unit)
        self.down_eighth = ResidualUnit(3, quarter, eighth, strides=2, **unit)
        self.down_sixteenth = ResidualUnit(3, eighth, sixteenth, strides=2, **unit)
        self.narrow_sixteenth = Convolution(3, sixteenth, eighth, kernel_size=1, conv_only=True)
        self.narrow_eighth = Convolution(3, eighth, quarter, kernel_size=1, conv_only=True)
        self.up_eighth = ResidualUnit(3, 2 * eighth, eighth, strides=1, **unit)
        self.up_quarter = ResidualUnit(3, 2 * quarter, quarter, strides=1, **unit)
        self.narrow_quarter: nn.Module = nn.Identity()
        self.up_half: nn.Module = nn.Identity()
        if stem == "quarter":
            # One vector for each voxel of a block, from the features of that block alone: with a wider kernel the first
            # optimiser step would move the map by twice as much.
            widths, last = (quarter, quarter, 8 * given), 1
        else:
            self.narrow_quarter = Convolution(3, quarter, half, kernel_size=1, conv_only=True)
            self.up_half = ResidualUnit(3, 2 * half, half, strides=1, **unit)
            widths, last = (half, max(half // 2, 3), given), 3
        self.head = nn.Sequential(
            Convolution(3, widths[0], widths[1], kernel_size=3, conv_only=True),
            Convolution(3, widths[1], widths[2], kernel_size=last, conv_only=True),
        )
        nn.init.normal_(self.head[1].conv.weight, std=head_std)
        nn.init.zeros_(self.head[1].conv.bias)
        if self.force_windows:
            nn.init.constant_(self.head[1].conv.bias[-(8 if stem == "quarter" else 1) :], _START_GAIN)

    def up(self, coarse: Tensor, skip: Tensor) -> Tensor:
        """Bring (already narrowed) coarse features to the skip's grid and join them."""
        size = skip.shape[2:]
        return torch.cat([F.interpolate(coarse, size=size, mode="trilinear", align_corners=False), skip], dim=1)

    def force(self, moved: Tensor, fixed: Tensor) -> Tensor:
        """Force and step on the map, ``(B, 6, D, H, W)`` float32, of images ``(B, 1, D, H, W)``."""
        if torch.jit.is_scripting():
            return self._forces(moved, fixed)
        else:
            # Differences of moments: half precision has too few digits for them.
            with torch.autocast(device_type=moved.device.type, enabled=False):
                return self._forces(moved, fixed)

    def _forces(self, moved: Tensor, fixed: Tensor) -> Tensor:
        """See `force`."""
        view = foreground_box_mask(moved) * foreground_box_mask(fixed)
        both = correlation_forces(
            moved, fixed, self.force_windows, view=view, longest=self._longest, any_contrast=self.any_contrast
        )
        return torch.cat(both, dim=1)

    def forward(self, moved: Tensor, fixed: Tensor, factor: int = 1) -> Tensor:
        """Momentum m₀ of one vSVF step.

        Args:
            moved: moving image under the map so far, ``(B, 1, D, H, W)``.
            fixed: ``(B, 1, D, H, W)``.
            factor: how much coarser a grid the images are looked at on (not in the paper). There features, windows and
                steps reach so much farther.

        Returns:
            ``(B, 3, ⌈D/2⌉, ⌈H/2⌉, ⌈W/2⌉)`` in normalised units, float32.
        """
        whole = half_shape(fixed.shape[2:])
        return resize_volume(self.momentum(reduced(moved, factor), reduced(fixed, factor)), whole)

    def momentum(self, moved: Tensor, fixed: Tensor) -> Tensor:
        """`forward` on the images' own grid."""
        seen = (edges(moved), edges(fixed)) if self.any_contrast else (moved, fixed)
        pair = torch.cat(seen, dim=1)
        force = torch.zeros(0, device=pair.device)
        if len(self.force_windows) > 0:
            force = self.force(moved, fixed)
            pair = torch.cat([pair, force.to(pair.dtype)], dim=1)
        pair_shape = pair.shape[2:]
        size = half_shape(pair_shape)
        if max(pair.shape[2:]) <= 16:
            # The deepest level would be a single voxel, of which instance normalisation leaves nothing.
            pair = F.pad(pair, [0, 17 - pair.shape[4], 0, 0, 0, 0], mode="replicate")
        if self.stem != "conv":
            pair = space_to_depth(pair)
        half = self.down_half(self.down_full(pair))
        quarter = self.down_quarter(half)
        eighth = self.down_eighth(quarter)
        features = self.up_eighth(self.up(self.narrow_sixteenth(self.down_sixteenth(eighth)), eighth))
        features = self.up_quarter(self.up(self.narrow_eighth(features), quarter))
        if self.stem == "quarter":
            momentum = depth_to_space(self.head(features))
        else:
            momentum = self.head(self.up_half(self.up(self.narrow_quarter(features), half)))
        momentum = momentum[:, :, : size[0], : size[1], : size[2]].float()
        if len(self.force_windows) > 0:
            # As the momentum's grid: means of blocks of 2×2×2, the last of an odd axis of what there is.
            force = F.avg_pool3d(force, 2, ceil_mode=True, count_include_pad=False)
            per_unit = voxels_per_unit(pair_shape, force.device).clamp(min=0.5).view(1, 3, 1, 1, 1)
            momentum = momentum[:, :1] * force[:, :3] + momentum[:, 1:] * (force[:, 3:] / per_unit)
        return momentum
