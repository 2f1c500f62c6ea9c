"""The stage objectives: Equation 6 for the affine stage, Equations 11 and 12 for the vSVF stage; features beside them.

Both directions of every pair go through the network in one batch: its first half registers I0 to I1 (``st``), its
second half I1 to I0 (``ts``), so row i of one half is the opposite of row i of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..geometry import affine_map, resize_map, warp
from ..layers import checkpointed, uses_checkpointing
from .overlap import LabelDice, MembershipLoss
from .regularisation import (
    affine_factor,
    affine_regularisation,
    affine_symmetry,
    folding,
    map_symmetry,
    vsvf_regularisation,
)
from .similarity import MultiKernelLNCC


def opposite(batch: Tensor) -> Tensor:
    """The opposite directions of a both-direction batch ``(2B, ...)``: its halves exchanged."""
    return batch.roll(batch.shape[0] // 2, dims=0)


def affine_distance(affine: Tensor, target: Tensor) -> Tensor:
    """Mean over the image of the squared distance between the points that two affines ``(B, 3, 4)`` give.

    Rows of ``target`` with NaN are not known and count nothing. A scalar, mean over the known rows, squared normalised
    units (the image is [-1, 1]³); 0 where none is known.
    """
    known = ~target.isnan().flatten(1).any(dim=1)
    if not bool(known.any()):
        return affine.new_zeros(())
    difference = (affine[known] - target[known]).square()
    # E|Δx|² of x uniform in [-1, 1]³, whose variance is a third along each axis.
    return (difference[:, :, 3].sum(dim=1) + difference[:, :, :3].sum(dim=(1, 2)) / 3).mean()


def common_view(coordinates: Tensor, moving_mask: Tensor | None, fixed_mask: Tensor | None) -> Tensor | None:
    """Where the fields of view of both images meet, ``(B, 1, D, H, W)`` on the fixed grid; None without masks.

    Without gradient. Where a map has moved a pair's fields of view apart, the fixed image's: as without masks, such a
    map is a bad one and no end of the training.

    Args:
        coordinates: map, ``(B, 3, d, h, w)`` on any grid over the fixed image.
        moving_mask: ``(B, 1, D, H, W)`` in [0, 1].
        fixed_mask: as ``moving_mask``.
    """
    if moving_mask is None or fixed_mask is None:
        return None
    full = resize_map(coordinates.detach(), list(fixed_mask.shape[2:]))
    view = warp(moving_mask, full) * fixed_mask
    return torch.where(view.flatten(1).any(dim=1).view(-1, 1, 1, 1, 1), view, fixed_mask)


@dataclass
class PairBatch:
    """What is known of a both-direction batch, in which every image is a fixed image once.

    Images, labels and masks are ``(2B, 1, D, H, W)``. A mask is the image's field of view, None for everywhere;
    ``target`` is the true Γ, ``(2B, 3, 4)``, rows of NaN where it is not known.
    """

    fixed: Tensor
    moving_label: Tensor | None = None
    fixed_label: Tensor | None = None
    moving_mask: Tensor | None = None
    fixed_mask: Tensor | None = None
    target: Tensor | None = None


class _Objective(nn.Module):
    """A stage's objective: the sum of weighted parts, which subclasses define."""

    def forward(
        self,
        registration: Any,
        fixed: Tensor,
        epoch: int,
        moving_label: Tensor | None = None,
        fixed_label: Tensor | None = None,
        **known: Tensor,
    ) -> dict[str, Tensor]:
        """The objective of a both-direction batch.

        Args:
            registration: `Registration` of the batch ``(2B, ...)`` with the steps of the stage.
            fixed: see `PairBatch`, as what follows.
            epoch: n of Equation 13, counted from 0 at the beginning of the phase.
            moving_label: see `PairBatch`.
            fixed_label: see `PairBatch`.
            known: further fields of `PairBatch`.

        Returns:
            Scalars ``loss`` and its weighted parts.

        Raises:
            ValueError: when the pairs lack labels that are needed.
        """
        parts = self.parts(registration, PairBatch(fixed, moving_label, fixed_label, **known), epoch)
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}

    def parts(self, registration: Any, pairs: PairBatch, epoch: int) -> dict[str, Tensor]:
        """The weighted parts, by name."""
        raise NotImplementedError


class FeatureObjective(_Objective):
    """How well features tell the labels of each image: 1 - Dice and cross-entropy, equally (not in the paper).

    Args:
        classes: number of foreground labels, or their values in the order of the features.
    """

    def __init__(self, classes: int | Sequence[int] = 2) -> None:
        super().__init__()
        self.membership = MembershipLoss(classes)

    def parts(self, registration: Any, pairs: PairBatch, epoch: int) -> dict[str, Tensor]:
        """``label_dice`` and ``label_cross_entropy`` of ``registration.classes`` ``(2B, classes, D, H, W)``."""
        if pairs.fixed_label is None:
            raise ValueError("FeatureObjective: the pair has no labels; train features on labelled images.")
        if registration.classes is None:
            raise ValueError("FeatureObjective: the network has no features; give its network_def a FeatureNet.")
        dice, cross_entropy = self.membership(registration.classes, pairs.fixed_label)
        return {"label_dice": dice, "label_cross_entropy": cross_entropy}


class _PairObjective(_Objective):
    """What the objectives of both stages share: similarity within the common field of view, and Dice of labels."""

    def __init__(self, similarity: Callable | None, label_weight: float, label_classes: int | Sequence[int]) -> None:
        super().__init__()
        self.similarity = MultiKernelLNCC() if similarity is None else similarity
        self.label_weight = label_weight
        self.label_dice = LabelDice(label_classes) if label_weight > 0 else None

    def check_at_least_0(self, **factors: float) -> None:
        """Raise a ValueError that names a negative factor."""
        for name, factor in factors.items():
            if factor < 0:
                raise ValueError(f"{type(self).__name__}: {name} must not be negative, got {factor}.")

    def similar(self, moved: Tensor, coordinates: Tensor, pairs: PairBatch) -> Tensor:
        """The similarity of both directions."""
        view = common_view(coordinates, pairs.moving_mask, pairs.fixed_mask)
        # Means over 2B rows times 2 are sums over the two directions of means over B pairs.
        return 2 * self.similarity(moved, pairs.fixed, view).mean()

    def labels(self, coordinates: Tensor, pairs: PairBatch) -> dict[str, Tensor]:
        """``label_dice`` of both directions, where it has a weight."""
        if self.label_dice is None:
            return {}
        if pairs.moving_label is None or pairs.fixed_label is None:
            raise ValueError(
                "label_weight is above 0 but the pair has no labels; give labels or set label_weight to 0."
            )
        full = resize_map(coordinates, list(pairs.fixed.shape[2:]))
        dice = self.label_dice(full, pairs.moving_label, pairs.fixed_label).mean()
        return {"label_dice": 2 * self.label_weight * dice}


class AffineObjective(_PairObjective):
    """Equation 6: ℓa(I0, I1, Γ) + ℓa(I1, I0, Γts) + La-sym(Γ, Γts), with ℓa = La-sim + λar La-reg.

    The loss looks at the last step only; its gradient flows through all steps. The registration has affine steps and
    (as `Phase` sees to) no vSVF steps, so that its moved image is that of the affine.

    Args:
        similarity: loss of (moved, fixed, mask), 0 at identical images; mk-LNCC by default (Equation 3).
        symmetry: λas of Equation 5, the paper's 10.
        regularisation, decay: C_ar and K_ar of Equation 13, the paper's 10 and 4 epochs.
        label_weight: weight of the Dice loss on labels, 0 for none (not in the paper).
        label_classes: number of foreground labels, or their values.
        target_weight: weight of the distance to Γ where it is known (`affine_distance`), averaged over the steps; 0 for
            none (not in the paper).

    Raises:
        ValueError: when a factor is negative.
    """

    def __init__(
        self,
        similarity: Callable | None = None,
        symmetry: float = 10.0,
        regularisation: float = 10.0,
        decay: float = 4.0,
        label_weight: float = 0.0,
        label_classes: int | Sequence[int] = 2,
        target_weight: float = 0.0,
    ) -> None:
        super().__init__(similarity, label_weight, label_classes)
        self.check_at_least_0(
            symmetry=symmetry, regularisation=regularisation, label_weight=label_weight, target_weight=target_weight
        )
        if decay <= 0:
            raise ValueError(f"AffineObjective: decay must be positive, got {decay}.")
        self.symmetry, self.regularisation, self.decay = symmetry, regularisation, decay
        self.target_weight = target_weight

    def parts(self, registration: Any, pairs: PairBatch, epoch: int) -> dict[str, Tensor]:
        """``similarity``, ``regularisation``, ``symmetry``, with labels ``label_dice`` and with a target ``target``."""
        affine = registration.affines[-1]
        coordinates = affine_map(affine, list(pairs.fixed.shape[2:]))
        factor = affine_factor(epoch, self.regularisation, self.decay)
        parts = {
            "similarity": self.similar(registration.moved, coordinates, pairs),
            "regularisation": 2 * factor * affine_regularisation(affine).mean(),
            "symmetry": self.symmetry * affine_symmetry(affine, opposite(affine)).mean(),
            **self.labels(coordinates, pairs),
        }
        if self.target_weight > 0 and pairs.target is not None:
            distances = [affine_distance(step, pairs.target) for step in registration.affines]
            parts["target"] = 2 * self.target_weight * torch.stack(distances).mean()
        return parts


class VSVFObjective(_PairObjective):
    """Equation 12: the sum over vSVF steps of Equation 11.

    The symmetry term looks at the maps on the low-resolution grid on which they are composed: at full resolution, where
    they are only interpolated, it says the same for eight times the work.

    Args:
        similarity, label_weight, label_classes: as of `AffineObjective`.
        regularisation: λvr of Equation 9, the paper's 10.
        symmetry: λvs of Equation 10 for the mean over voxels. The paper's 1e-4 multiplies the sum over voxels, which at
            its 192×192×80 is 295 times the mean: the default.
        fold_weight: weight of `folding` of the final deformation in both directions, 0 for none (not in the paper).

    Raises:
        ValueError: when a factor is negative.
    """

    def __init__(
        self,
        similarity: Callable | None = None,
        regularisation: float = 10.0,
        symmetry: float = 295.0,
        fold_weight: float = 0.0,
        label_weight: float = 0.0,
        label_classes: int | Sequence[int] = 2,
    ) -> None:
        super().__init__(similarity, label_weight, label_classes)
        self.check_at_least_0(
            regularisation=regularisation, symmetry=symmetry, fold_weight=fold_weight, label_weight=label_weight
        )
        self.regularisation, self.symmetry, self.fold_weight = regularisation, symmetry, fold_weight

    def step(self, registration: Any, step: int, pairs: PairBatch) -> dict[str, Tensor]:
        """Equation 11 for one step: ℓv(st) + ℓv(ts) + Lv-sym, with ℓv = Lv-sim + λvr ⟨m₀, v₀⟩."""
        moved, coordinates = registration.moved_steps[step], registration.low_maps[step]
        momentum, velocity = registration.momenta[step], registration.velocities[step]
        return {
            "similarity": checkpointed(uses_checkpointing(moved), self.similar, moved, coordinates, pairs),
            "regularisation": 2 * self.regularisation * vsvf_regularisation(momentum, velocity).mean(),
            "symmetry": self.symmetry * map_symmetry(coordinates, opposite(coordinates)).mean(),
            **self.labels(coordinates, pairs),
        }

    def parts(self, registration: Any, pairs: PairBatch, epoch: int) -> dict[str, Tensor]:
        """As those of `AffineObjective`, each summed over steps, without ``target`` and perhaps with ``folding``."""
        steps = [self.step(registration, step, pairs) for step in range(len(registration.low_maps))]
        parts = {name: sum((step[name] for step in steps[1:]), start=steps[0][name]) for name in steps[0]}
        if self.fold_weight > 0:
            parts["folding"] = 2 * self.fold_weight * folding(registration.displacement).mean()
        return parts
