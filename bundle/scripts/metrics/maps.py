"""What a network's registration measures on its own grid: Dice of each stage, regularity and symmetry of the map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..geometry import count_folds, identity_map, jacobian_determinant, std_log_jacobian, warp
from ..losses import inverse_consistency, inverse_consistency_error
from ..losses.overlap import one_hot_foreground
from ..settings import STAGES

if TYPE_CHECKING:
    from ..networks import Registration


def label_dice(moved_label: Tensor, fixed_label: Tensor, labels: Sequence[int]) -> Tensor:
    """Dice of each label in ``(B, 1, D, H, W)``, ``(B, len(labels))``; NaN where the fixed image lacks the label."""
    moved, fixed = (one_hot_foreground(label, labels, torch.bool).flatten(2) for label in (moved_label, fixed_label))
    size = fixed.sum(dim=2)
    dice = 2.0 * (moved & fixed).sum(dim=2) / (moved.sum(dim=2) + size)
    return torch.where(size > 0, dice, torch.nan)


def dice_measures(
    registration: Registration, moving_label: Tensor, fixed_label: Tensor, labels: Sequence[int]
) -> dict[str, Tensor]:
    """Dice before, after the affine and after the deformable stage; labels are warped by nearest neighbour.

    Returns:
        ``dice_<stage>`` (mean over the labels present) and ``dice_<stage>_<label>``, each ``(B,)``, for each of
        `STAGES`.
    """
    identity = identity_map(list(fixed_label.shape[2:]), fixed_label.device).expand(len(fixed_label), -1, -1, -1, -1)
    measures = {}
    for stage, coordinates in zip(STAGES, (identity, registration.affine_map, registration.map), strict=True):
        scores = label_dice(warp(moving_label.float(), coordinates, mode="nearest"), fixed_label, labels)
        measures[f"dice_{stage}"] = scores.nanmean(dim=1)
        measures |= {f"dice_{stage}_{label}": scores[:, column] for column, label in enumerate(labels)}
    return measures


def feature_measures(classes: Tensor | None, fixed_label: Tensor, labels: Sequence[int]) -> dict[str, Tensor]:
    """Dice of what the features say of the fixed image, ``dice_features`` ``(B,)``; nothing without features.

    ``classes``: the labels' memberships, in their order, ``(B, len(labels), D, H, W)``.
    """
    if classes is None or classes.shape[1] != len(labels):
        return {}
    memberships = torch.cat([1 - classes.sum(dim=1, keepdim=True), classes], dim=1)
    values = torch.tensor([0, *labels], device=classes.device)[memberships.argmax(dim=1, keepdim=True)]
    return {"dice_features": label_dice(values, fixed_label, labels).nanmean(dim=1)}


def map_measures(coordinates: Tensor, opposite_map: Tensor, margin: int = 10) -> dict[str, Tensor]:
    """Regularity and symmetry of a map.

    Args:
        coordinates: φ⁻¹, ``(B, 3, D, H, W)``.
        opposite_map: (φts)⁻¹, the map of the same pairs registered the other way round.
        margin: voxels at each face that the symmetry measures leave out (the paper: 10); at most a quarter of an axis.

    Returns:
        Each ``(B,)``: ``folds`` (voxels with a negative corner determinant), ``folds_sum`` (sum of |J| over them),
        ``folds_central`` (voxels with a negative central-difference determinant), ``std_log_jacobian``,
        ``inverse_consistency`` (Figure 7: ln of the mean squared distance after both maps, image = [0, 1]³), and
        ``inverse_consistency_voxels`` (mean length of that distance).
    """
    margin = min([margin, *(size // 4 for size in coordinates.shape[2:])])
    folds, folds_sum = count_folds(coordinates)
    return {
        "folds": folds.float(),
        "folds_sum": folds_sum,
        "folds_central": (jacobian_determinant(coordinates) < 0).flatten(1).sum(dim=1).float(),
        "std_log_jacobian": std_log_jacobian(coordinates),
        "inverse_consistency": inverse_consistency(coordinates, opposite_map, margin),
        "inverse_consistency_voxels": inverse_consistency_error(coordinates, opposite_map, margin=margin),
    }
