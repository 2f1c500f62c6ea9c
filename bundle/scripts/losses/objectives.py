"""The stage objectives: Equation 6 for the affine stage, Equations 11 and 12 for the vSVF stage; features beside them.

Both directions of every pair go through the network in one batch: its first half registers I0 to I1 (``st``), its
second half I1 to I0 (``ts``), so row i of one half is the opposite of row i of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..geometry import affine_map, resize_map, warp
from ..layers import call, is_frugal
from .overlap import LabelDice, MembershipLoss
from .regularisation import affine_factor, affine_regularisation, folding, vsvf_regularisation
from .similarity import MultiKernelLNCC
from .symmetry import affine_symmetry, map_symmetry

__all__ = ["AffineObjective", "FeatureObjective", "VSVFObjective", "affine_distance", "common_view", "opposite"]


def opposite(batch: Tensor) -> Tensor:
    """The opposite directions of a both-direction batch: its halves exchanged.

    Args:
        batch: ``(2B, ...)``.

    Raises:
        ValueError: when the batch has an odd length.
    """
    if batch.shape[0] % 2:
        raise ValueError(f"a both-direction batch has an even length, got {batch.shape[0]}.")
    return batch.roll(batch.shape[0] // 2, dims=0)


def affine_distance(affine: Tensor, target: Tensor) -> Tensor:
    """Mean over the image of the squared distance between the points that two affines give.

    Args:
        affine: Γ, ``(B, 3, 4)``, normalised coordinates.
        target: as ``affine``; rows with NaN are not known and count nothing.

    Returns:
        Scalar, mean over the known rows, squared normalised units (the image is [-1, 1]³); 0 where none is known.
    """
    known = ~target.isnan().flatten(1).any(dim=1)
    if not bool(known.any()):
        return affine.new_zeros(())
    difference = (affine[known] - target[known]).square()
    # E|Δx|² of x uniform in [-1, 1]³, whose variance is a third along each axis.
    return (difference[:, :, 3].sum(dim=1) + difference[:, :, :3].sum(dim=(1, 2)) / 3).mean()


def common_view(coordinates: Tensor, moving_mask: Tensor | None, fixed_mask: Tensor | None) -> Tensor | None:
    """What both images have seen, on the fixed grid; None without masks.

    Args:
        coordinates: map, ``(B, 3, d, h, w)`` on any grid over the fixed image.
        moving_mask: ``(B, 1, D, H, W)`` in [0, 1].
        fixed_mask: as ``moving_mask``.

    Returns:
        ``(B, 1, D, H, W)`` in [0, 1], without gradient. Of a pair that a map has moved out of each other's sight, what
        the fixed image has seen: as without masks, such a map is a bad one and no end of the training.
    """
    if moving_mask is None or fixed_mask is None:
        return None
    full = resize_map(coordinates.detach(), list(fixed_mask.shape[2:]))
    view = warp(moving_mask, full) * fixed_mask
    return torch.where(view.flatten(1).any(dim=1).view(-1, 1, 1, 1, 1), view, fixed_mask)


class FeatureObjective(nn.Module):
    """How well features tell the labels of each image: 1 - Dice and cross-entropy, equally (not in the paper).

    Args:
        classes: number of foreground labels, or their values in the order of the features.

    Raises:
        ValueError: as `MembershipLoss`.
    """

    def __init__(self, classes: int | Sequence[int] = 2) -> None:
        super().__init__()
        self.membership = MembershipLoss(classes)

    def forward(
        self,
        registration: Any,
        fixed: Tensor,
        epoch: int,
        moving_label: Tensor | None = None,
        fixed_label: Tensor | None = None,
        **_: Any,
    ) -> dict[str, Tensor]:
        """The objective of a both-direction batch, in which every image is a fixed image once.

        Args:
            registration: `Registration` with ``fixed_seen``, ``(2B, 1 + classes, D, H, W)``.
            fixed: not used; the same call serves all objectives.
            epoch: not used.
            moving_label: not used.
            fixed_label: ``(2B, 1, D, H, W)``.

        Returns:
            Scalars ``loss``, ``label_dice`` and ``label_cross_entropy``.

        Raises:
            ValueError: when there are no labels or no features.
        """
        if fixed_label is None:
            raise ValueError("FeatureObjective: the pair has no labels; train features on labelled images.")
        if registration.fixed_seen is None or registration.fixed_seen.shape[1] < 2:
            raise ValueError("FeatureObjective: the network has no features; give its network_def a FeatureNet.")
        dice, cross_entropy = self.membership(registration.fixed_seen[:, 1:], fixed_label)
        return {"loss": dice + cross_entropy, "label_dice": dice, "label_cross_entropy": cross_entropy}


class _Objective(nn.Module):
    def __init__(self, similarity: Callable | None, label_weight: float, label_classes: int | Sequence[int]) -> None:
        super().__init__()
        if label_weight < 0:
            raise ValueError(f"label_weight must not be negative, got {label_weight}.")
        self.similarity = MultiKernelLNCC() if similarity is None else similarity
        self.label_weight = label_weight
        self.label_dice = LabelDice(label_classes) if label_weight > 0 else None

    def labels(self, coordinates: Tensor, moving_label: Tensor | None, fixed_label: Tensor | None) -> Tensor | None:
        if self.label_dice is None:
            return None
        if moving_label is None or fixed_label is None:
            raise ValueError(
                "label_weight is above 0 but the pair has no labels; give labels or set label_weight to 0."
            )
        return self.label_dice(coordinates, moving_label, fixed_label)


def _compare(similarity: Callable, moved: Tensor, fixed: Tensor, view: Tensor | None) -> Tensor:
    return similarity(moved, fixed) if view is None else similarity(moved, fixed, view)


class AffineObjective(_Objective):
    """Equation 6: ℓa(I0, I1, Γ) + ℓa(I1, I0, Γts) + La-sym(Γ, Γts), with ℓa = La-sim + λar La-reg.

    The loss looks at the last step only; its gradient flows through all steps.

    Args:
        similarity: loss of (moved, fixed), 0 at identical images; mk-LNCC by default (Equation 3).
        symmetry: λas of Equation 5, the paper's 10.
        regularisation: C_ar of Equation 13, the paper's 10.
        decay: K_ar of Equation 13, the paper's 4 epochs.
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
        if symmetry < 0 or regularisation < 0 or target_weight < 0 or decay <= 0:
            raise ValueError(
                "AffineObjective: symmetry, regularisation and target_weight must not be negative, decay must be "
                "positive."
            )
        self.symmetry, self.regularisation, self.decay = symmetry, regularisation, decay
        self.target_weight = target_weight

    def forward(
        self,
        registration: Any,
        fixed: Tensor,
        epoch: int,
        moving_label: Tensor | None = None,
        fixed_label: Tensor | None = None,
        moving_mask: Tensor | None = None,
        fixed_mask: Tensor | None = None,
        target: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The objective of a both-direction batch.

        Args:
            registration: `Registration` of the batch ``(2B, ...)``, with affine steps and (as `Phase` sees to) without
                vSVF steps, so that its moved image is that of the affine.
            fixed: ``(2B, 1, D, H, W)`` targets of the batch.
            epoch: n of Equation 13, counted from 0 at the beginning of the phase.
            moving_label: ``(2B, 1, D, H, W)``, when labels take part.
            fixed_label: as ``moving_label``.
            moving_mask: ``(2B, 1, D, H, W)``, where the moving image has been seen; None for everywhere.
            fixed_mask: as ``moving_mask``.
            target: the true Γ, ``(2B, 3, 4)``, rows of NaN where it is not known; None where it never is.

        Returns:
            Scalars ``loss`` and its weighted parts ``similarity``, ``regularisation``, ``symmetry`` and, with labels,
            ``label_dice``, and with a target, ``target``.

        Raises:
            ValueError: when there is no affine step, or labels are asked for and absent.
        """
        if not registration.affines:
            raise ValueError("AffineObjective: the registration has no affine step.")
        affine = registration.affines[-1]
        view = common_view(affine_map(affine, list(fixed.shape[2:])), moving_mask, fixed_mask)
        # Means over 2B rows times 2 are sums over the two directions of means over B pairs.
        parts = {
            "similarity": 2 * _compare(self.similarity, registration.moved, fixed, view),
            "regularisation": 2 * affine_factor(epoch, self.regularisation, self.decay) * affine_regularisation(affine),
            "symmetry": self.symmetry * affine_symmetry(affine, opposite(affine)),
        }
        if self.label_dice is not None:
            shape = list(fixed.shape[2:])
            parts["label_dice"] = (
                2 * self.label_weight * self.labels(affine_map(affine, shape), moving_label, fixed_label)
            )
        if self.target_weight > 0 and target is not None:
            distances = [affine_distance(step, target) for step in registration.affines]
            parts["target"] = 2 * self.target_weight * torch.stack(distances).mean()
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}


class VSVFObjective(_Objective):
    """Equation 12: the sum over vSVF steps of Equation 11.

    The symmetry term looks at the maps on the low-resolution grid on which they are composed: at full resolution, where
    they are only interpolated, it says the same for eight times the work.

    Args:
        similarity: loss of (moved, fixed), 0 at identical images; mk-LNCC by default.
        regularisation: λvr of Equation 9, the paper's 10.
        symmetry: λvs of Equation 10 for the mean over voxels. The paper's 1e-4 multiplies the sum over voxels, which at
            its 192×192×80 is 295 times the mean: the default.
        fold_weight: weight of `folding` of the final deformation in both directions, 0 for none (not in the paper).
        label_weight: weight of the Dice loss on labels, 0 for none (not in the paper).
        label_classes: number of foreground labels, or their values.

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
        if regularisation < 0 or symmetry < 0 or fold_weight < 0:
            raise ValueError("VSVFObjective: regularisation, symmetry and fold_weight must not be negative.")
        self.regularisation, self.symmetry, self.fold_weight = regularisation, symmetry, fold_weight

    def step(
        self,
        moved: Tensor,
        fixed: Tensor,
        coordinates: Tensor,
        momentum: Tensor,
        velocity: Tensor,
        moving_label: Tensor | None = None,
        fixed_label: Tensor | None = None,
        moving_mask: Tensor | None = None,
        fixed_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Equation 11 for one step: ℓv(st) + ℓv(ts) + Lv-sym, with ℓv = Lv-sim + λvr ⟨m₀, v₀⟩.

        Args:
            moved: I0 ∘ Φ⁻¹ in both directions, ``(2B, 1, D, H, W)``.
            fixed: as ``moved``.
            coordinates: maps Φ⁻¹, ``(2B, 3, d, h, w)``, on any grid over the fixed image.
            momentum: m₀, ``(2B, 3, d, h, w)``.
            velocity: v₀, as ``momentum``.
            moving_label: ``(2B, 1, D, H, W)``, when labels take part.
            fixed_label: as ``moving_label``.
            moving_mask: ``(2B, 1, D, H, W)``, where the moving image has been seen; None for everywhere.
            fixed_mask: as ``moving_mask``.

        Returns:
            The weighted parts.
        """
        view = common_view(coordinates, moving_mask, fixed_mask)
        parts = {
            "similarity": 2 * call(is_frugal(moved), _compare, self.similarity, moved, fixed, view),
            "regularisation": 2 * self.regularisation * vsvf_regularisation(momentum, velocity),
            "symmetry": self.symmetry * map_symmetry(coordinates, opposite(coordinates)),
        }
        if self.label_dice is not None:
            full = resize_map(coordinates, list(moved.shape[2:]))
            parts["label_dice"] = 2 * self.label_weight * self.labels(full, moving_label, fixed_label)
        return parts

    def forward(
        self,
        registration: Any,
        fixed: Tensor,
        epoch: int,
        moving_label: Tensor | None = None,
        fixed_label: Tensor | None = None,
        moving_mask: Tensor | None = None,
        fixed_mask: Tensor | None = None,
        target: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The objective of a both-direction batch.

        Args:
            registration: `Registration` of the batch ``(2B, ...)``, with at least one vSVF step.
            fixed: ``(2B, 1, D, H, W)``.
            epoch: not used; the same call serves both objectives.
            moving_label: ``(2B, 1, D, H, W)``, when labels take part.
            fixed_label: as ``moving_label``.
            moving_mask: ``(2B, 1, D, H, W)``, where the moving image has been seen; None for everywhere.
            fixed_mask: as ``moving_mask``.
            target: not used.

        Returns:
            Scalars ``loss`` and its weighted parts, summed over steps, as `AffineObjective`.

        Raises:
            ValueError: when there is no vSVF step, or labels are asked for and absent.
        """
        if not registration.low_maps:
            raise ValueError("VSVFObjective: the registration has no vSVF step.")
        total: dict[str, Tensor] = {}
        for moved, coordinates, momentum, velocity in zip(
            registration.moved_steps, registration.low_maps, registration.momenta, registration.velocities, strict=True
        ):
            parts = self.step(
                moved, fixed, coordinates, momentum, velocity, moving_label, fixed_label, moving_mask, fixed_mask
            )
            total = {name: total[name] + part if total else part for name, part in parts.items()}
        if self.fold_weight > 0:
            total["folding"] = 2 * self.fold_weight * folding(registration.displacement)
        return {"loss": torch.stack(list(total.values())).sum(), **total}
