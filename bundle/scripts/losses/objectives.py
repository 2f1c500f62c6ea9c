"""The stage objectives: Equation 6 for the affine stage, Equations 11 and 12 for the vSVF stage.

Both directions of every pair go through the network in one batch: its first half registers I0 to I1 (``st``), its
second half I1 to I0 (``ts``), so row i of one half is the opposite of row i of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..geometry import affine_map, resize_map
from ..layers import call, is_frugal
from .overlap import LabelDice
from .regularisation import affine_factor, affine_regularisation, folding, vsvf_regularisation
from .similarity import MultiKernelLNCC
from .symmetry import affine_symmetry, map_symmetry

__all__ = ["AffineObjective", "VSVFObjective", "opposite"]


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
    ) -> None:
        super().__init__(similarity, label_weight, label_classes)
        if symmetry < 0 or regularisation < 0 or decay <= 0:
            raise ValueError(
                "AffineObjective: symmetry and regularisation must not be negative, decay must be positive."
            )
        self.symmetry, self.regularisation, self.decay = symmetry, regularisation, decay

    def forward(
        self,
        registration: Any,
        fixed: Tensor,
        epoch: int,
        moving_label: Tensor | None = None,
        fixed_label: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The objective of a both-direction batch.

        Args:
            registration: `Registration` of the batch ``(2B, ...)``, with affine steps and (as `Phase` sees to) without
                vSVF steps, so that its moved image is that of the affine.
            fixed: ``(2B, 1, D, H, W)`` targets of the batch.
            epoch: n of Equation 13, counted from 0 at the beginning of the phase.
            moving_label: ``(2B, 1, D, H, W)``, when labels take part.
            fixed_label: as ``moving_label``.

        Returns:
            Scalars ``loss`` and its weighted parts ``similarity``, ``regularisation``, ``symmetry`` and, with labels,
            ``label_dice``.

        Raises:
            ValueError: when there is no affine step, or labels are asked for and absent.
        """
        if not registration.affines:
            raise ValueError("AffineObjective: the registration has no affine step.")
        affine = registration.affines[-1]
        # Means over 2B rows times 2 are sums over the two directions of means over B pairs.
        parts = {
            "similarity": 2 * self.similarity(registration.moved, fixed),
            "regularisation": 2 * affine_factor(epoch, self.regularisation, self.decay) * affine_regularisation(affine),
            "symmetry": self.symmetry * affine_symmetry(affine, opposite(affine)),
        }
        if self.label_dice is not None:
            shape = list(fixed.shape[2:])
            parts["label_dice"] = (
                2 * self.label_weight * self.labels(affine_map(affine, shape), moving_label, fixed_label)
            )
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

        Returns:
            The weighted parts.
        """
        parts = {
            "similarity": 2 * call(is_frugal(moved), self.similarity, moved, fixed),
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
    ) -> dict[str, Tensor]:
        """The objective of a both-direction batch.

        Args:
            registration: `Registration` of the batch ``(2B, ...)``, with at least one vSVF step.
            fixed: ``(2B, 1, D, H, W)``.
            epoch: not used; the same call serves both objectives.
            moving_label: ``(2B, 1, D, H, W)``, when labels take part.
            fixed_label: as ``moving_label``.

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
            parts = self.step(moved, fixed, coordinates, momentum, velocity, moving_label, fixed_label)
            total = {name: total[name] + part if total else part for name, part in parts.items()}
        if self.fold_weight > 0:
            total["folding"] = 2 * self.fold_weight * folding(registration.displacement)
        return {"loss": torch.stack(list(total.values())).sum(), **total}
