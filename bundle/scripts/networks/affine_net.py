"""The affine network of Figure 2: one shared network, applied several times, that refines affine parameters."""

from __future__ import annotations

import math
from typing import List, Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..geometry import affine_map, compose_affines, identity_affine, resize_volume, warp
from ..layers import AdaptiveMean
from ..monai_parts import Convolution
from .image_force import edges, foreground_box_mask, newton_step

COMPOSITIONS = ("equation1", "residual")
_POOLED = 3  # size that the last features are averaged to, for each axis


class AffineNet(nn.Module):
    """Predicts affine parameters from the warped moving and the fixed image, on a grid of its own.

    The images are averaged (against aliasing) and sampled once on a grid of ``scale`` times the image's; every step
    warps that original, never an already warped image. Features are pooled to a fixed size, so that any image size
    works with one set of weights. The head starts at the identity.

    Args:
        channels: features of the strided convolutions, one halving of the grid each.
        hidden: width of the fully connected layer.
        scale: size of the affine grid as a part of the image grid, in (0, 1].
        composition: how a step's (Ã, b̃) joins the estimate so far. ``"equation1"``: Φ̃ ∘ Φ, as the paper has it.
            ``"residual"``: Φ ∘ Φ̃, the order under which (Ã, b̃) is exactly what remains between the two images of
            that step. They agree for translations and to first order near the identity.
        newton_window: window, in odd voxels of the affine grid, of the local correlation whose Gauss-Newton step
            (`newton_step`) is added to each of the network's steps, with a gain that the network predicts and that
            starts at 1 (not in the paper); 0 for none. It needs the residual composition, whose steps it is one of.
        any_contrast: see the images' `edges` in their place, and step by squared correlations (not in the paper).

    Raises:
        ValueError: when ``scale`` is not in (0, 1], ``composition`` is unknown, or ``newton_window`` is not odd and at
            least 3, or given with another composition.
    """

    def __init__(
        self,
        channels: Sequence[int] = (16, 32, 64, 64),
        hidden: int = 64,
        scale: float = 0.5,
        composition: str = "equation1",
        newton_window: int = 0,
        any_contrast: bool = False,
    ) -> None:
        super().__init__()
        if not 0 < scale <= 1:
            raise ValueError(f"AffineNet: scale must lie in (0, 1], got {scale}.")
        if composition not in COMPOSITIONS:
            raise ValueError(f"AffineNet: composition must be one of {', '.join(COMPOSITIONS)}, got '{composition}'.")
        if newton_window != 0 and (newton_window < 3 or newton_window % 2 == 0):
            raise ValueError(f"AffineNet: newton_window must be odd and at least 3, got {newton_window}.")
        if newton_window != 0 and composition != "residual":
            raise ValueError(f"AffineNet: newton_window needs the residual composition, got '{composition}'.")
        self.newton_window = int(newton_window)
        self.any_contrast = any_contrast
        self.scale = scale
        self.composition = composition
        layers: list[nn.Module] = []
        previous = 2
        for width in channels:
            layers.append(Convolution(3, previous, width, strides=2, kernel_size=3, act="LEAKYRELU", norm=None))
            previous = width
        self.features = nn.Sequential(*layers)
        self.pool = AdaptiveMean(_POOLED)
        self.hidden = nn.Linear(previous * _POOLED**3, hidden)
        self.act = nn.LeakyReLU(0.01)
        self.head = nn.Linear(hidden, 13 if self.newton_window > 0 else 12)
        # PyTorch's default shrinks the signal at every layer without normalisation, and the head would learn slowly.
        for module in self.modules():
            if isinstance(module, (nn.Conv3d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, a=0.01)
                nn.init.zeros_(module.bias)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def affine_grid_image(self, image: Tensor) -> Tensor:
        """An image ``(B, 1, D, H, W)`` averaged and sampled on the affine grid."""
        if self.scale == 1.0:
            return image
        kernel = 2 * math.ceil(0.5 / self.scale) + 1
        # The pool refuses kernels longer than the image, which a few thick slices would be shorter than.
        kernels = [min(kernel, (size - 1) // 2 * 2 + 1) for size in image.shape[2:]]
        padding = [size // 2 for size in kernels]
        smooth = F.avg_pool3d(image, kernels, stride=1, padding=padding, count_include_pad=False)
        return resize_volume(smooth, [max(2, math.ceil(size * self.scale)) for size in image.shape[2:]])

    def step(self, moved: Tensor, fixed: Tensor, view: Optional[Tensor] = None) -> Tensor:
        """One refinement (Ã | b̃), ``(B, 3, 4)``, from images ``(B, 1, d, h, w)`` on the affine grid.

        ``view`` is that of `newton_step`, ``(B, 1, d, h, w)``; None leaves that step out.
        """
        seen = (edges(moved), edges(fixed)) if self.any_contrast else (moved, fixed)
        features = self.pool(self.features(torch.cat(seen, dim=1)))
        found = self.head(self.act(self.hidden(features.flatten(1)))).float()
        update = found[:, :12].reshape(-1, 3, 4)
        if view is not None:
            newton = newton_step(moved, fixed, view, self.newton_window, any_contrast=self.any_contrast)
            update = update + (1 + found[:, 12:]).unsqueeze(2) * newton
        return identity_affine(update.shape[0], update.device, torch.float32) + update

    def forward(self, moving: Tensor, fixed: Tensor, steps: int, start: Optional[Tensor] = None) -> List[Tensor]:
        """Estimate the affine from moving to fixed image by Equation 1.

        Args:
            moving: ``(B, 1, D, H, W)``.
            fixed: ``(B, 1, D, H, W)``, the same grid.
            steps: number of steps, at least 1; may differ from the number trained with.
            start: Γ⁽⁰⁾ ``(B, 3, 4)``; the identity by default.

        Returns:
            The composed affines Γ⁽¹⁾ ... Γ⁽ᵗ⁾, each ``(B, 3, 4)``, mapping fixed to moving coordinates.
        """
        if torch.jit.is_scripting():
            return self._refine(moving, fixed, steps, start)
        else:
            # Twelve numbers move every voxel: half precision would cost half a voxel at 160, and saves nothing here.
            with torch.autocast(device_type=moving.device.type, enabled=False):
                return self._refine(moving.float(), fixed.float(), steps, start)

    def newton(self, moving: Tensor, fixed: Tensor, steps: int, start: Tensor) -> List[Tensor]:
        """Newton steps alone, without the network's own: for images unlike those that it was trained on.

        As `forward`; no affines where the network has no ``newton_window``.
        """
        if self.newton_window == 0:
            return []
        with torch.autocast(device_type=moving.device.type, enabled=False):
            return self._refine(moving.float(), fixed.float(), steps, start, own=False)

    def _refine(
        self, moving: Tensor, fixed: Tensor, steps: int, start: Optional[Tensor], own: bool = True
    ) -> List[Tensor]:
        """The steps of `forward`; without the network's ``own``, those of `newton`."""
        moving_small = self.affine_grid_image(moving)
        fixed_small = self.affine_grid_image(fixed)
        shape = fixed_small.shape[2:]
        affine = identity_affine(moving.shape[0], moving.device) if start is None else start
        affines: List[Tensor] = []
        boxes = moving_small.detach(), fixed_small.detach()
        if self.newton_window > 0:
            boxes = foreground_box_mask(boxes[0]), foreground_box_mask(boxes[1])
        for index in range(steps):
            coordinates = affine_map(affine, shape)
            moved = moving_small
            if index > 0 or start is not None:
                moved = warp(moving_small, coordinates)
            if self.newton_window == 0:
                update = self.step(moved, fixed_small)
            else:
                # Where both fields of view overlap under the map so far.
                view = (warp(boxes[0], coordinates.detach()) > 0.99).to(moved.dtype) * boxes[1]
                if own:
                    update = self.step(moved, fixed_small, view)
                else:
                    newton = newton_step(moved, fixed_small, view, self.newton_window, any_contrast=self.any_contrast)
                    update = identity_affine(newton.shape[0], newton.device) + newton
            if self.composition == "equation1":
                affine = compose_affines(update, affine)
            else:
                affine = compose_affines(affine, update)
            affines.append(affine)
        return affines
