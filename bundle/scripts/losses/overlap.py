"""Overlap of labels: the Dice loss of a warped label map, in training and for one pair, and that of memberships."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..geometry import warp
from .regularisation import at_least_float32
from .similarity import volume_sums


def one_hot_foreground(label: Tensor, classes: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Indicators ``(B, len(classes), D, H, W)`` of label values in ``(B, 1, D, H, W)``; all others are background."""
    values = torch.as_tensor(classes, device=label.device).view(1, -1, 1, 1, 1)
    return (label.round() == values if label.is_floating_point() else label == values).to(dtype)


def foreground(classes: int | Sequence[int]) -> tuple[int, ...]:
    """Label values from a count n, for 1 to n, or from the values themselves.

    Raises:
        ValueError: For no classes, repeated classes, or the background among them.
    """
    values = tuple(range(1, classes + 1)) if isinstance(classes, int) else tuple(classes)
    if not values or 0 in values or len(set(values)) != len(values):
        raise ValueError(f"classes must be a positive count or distinct label values without 0, got {classes!r}.")
    return values


class LabelDice(nn.Module):
    """1 minus the soft Dice of the moving labels, warped linearly class by class, and the fixed labels (`foreground`).

    Labels never mix: the one-hot volumes are interpolated, not the label values. The background has no part in it, and
    a class that neither image holds costs nothing.
    """

    def __init__(self, classes: int | Sequence[int]) -> None:
        from monai.losses import DiceLoss  # training alone needs it, and MONAI takes seconds to load

        super().__init__()
        self.classes = foreground(classes)
        # The channels hold no background to leave out: warping it would cost a channel and change nothing.
        self.dice = DiceLoss(include_background=True, reduction="none")

    def forward(self, map: Tensor, moving_label: Tensor, fixed_label: Tensor) -> Tensor:
        """The loss ``(B,)`` of a map, in [0, 1]; the gradient flows through the map.

        Args:
            map: ``(B, 3, D, H, W)``, normalised coordinates, fixed to moving.
            moving_label: ``(B, 1, d, h, w)`` of label values on the moving grid.
            fixed_label: ``(B, 1, D, H, W)`` of label values on the grid of the map.
        """
        with torch.autocast(map.device.type, enabled=False):
            map = at_least_float32(map)
            moved = warp(one_hot_foreground(moving_label, self.classes, map.dtype), map)
            return self.dice(moved, one_hot_foreground(fixed_label, self.classes, map.dtype)).flatten(1).mean(1)


class MembershipLoss(nn.Module):
    """1 minus the soft Dice of foreground memberships and labels, and their cross-entropy; classes as `foreground`."""

    def __init__(self, classes: int | Sequence[int]) -> None:
        from monai.losses import DiceLoss

        super().__init__()
        self.classes = foreground(classes)
        self.dice = DiceLoss(include_background=True, reduction="mean")

    def forward(self, memberships: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Dice loss and cross-entropy per voxel, two scalars; ValueError for another number of classes.

        Args:
            memberships: ``(B, classes, D, H, W)``, probabilities of the foreground labels; the rest to 1 is background.
            label: ``(B, 1, D, H, W)`` of label values.
        """
        if memberships.shape[1] != len(self.classes):
            raise ValueError(f"memberships of {memberships.shape[1]} classes for labels {list(self.classes)}.")
        with torch.autocast(memberships.device.type, enabled=False):
            memberships = at_least_float32(memberships)
            truth = one_hot_foreground(label, self.classes, memberships.dtype)
            chosen = (memberships * truth).sum(1) + (1 - memberships.sum(1)) * (1 - truth.sum(1))
            return self.dice(memberships, truth), -chosen.clamp(min=1e-6).log().mean()


class MembershipDice:
    """1 minus the soft Dice of a moved label's membership and the fixed one's, with its derivative.

    With the squares of memberships in the denominator, 2 Σab / (Σa² + Σb²), it is the squared difference in units of
    the label's size, Σ(a - b)² / (Σa² + Σb²). Interface of `BoxCorrelation`; each of the B is a label of its own.

    Args:
        fixed: ``(B, 1, D, H, W)``, memberships in [0, 1].
    """

    def __init__(self, fixed: Tensor) -> None:
        self.fixed, self.size = fixed, _sums(fixed.square())

    def within(self, mask: Tensor) -> MembershipDice:
        """The same: where labels are given they count, whatever is masked for the images."""
        return self

    def moments(self, moved: Tensor) -> tuple[Tensor, Tensor]:
        """2 Σab and Σa² + Σb² of moved memberships ``(B, 1, D, H, W)``, ``(B, 1, 1, 1, 1)`` each."""
        return 2 * _sums(moved * self.fixed), (_sums(moved.square()) + self.size).clamp(min=1e-6)

    def loss(self, moments: tuple[Tensor, Tensor]) -> Tensor:
        """The loss of each label, ``(B,)``."""
        shared, both = moments
        return 1 - (shared / both).flatten()

    def derivative(self, moved: Tensor, moments: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """By each voxel of the moved memberships, and the curvature, the sizes held; both as ``moved``."""
        shared, both = moments
        return 2 / both * (shared / both * moved - self.fixed), (2 / both).expand_as(moved)


def _sums(volume: Tensor) -> Tensor:
    return volume_sums(volume).view(-1, 1, 1, 1, 1)
