"""One evaluation iteration: register pairs, and measure what a reader of a registration paper asks for."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Engine
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced, sync_all_reduce
from monai.engines.utils import IterationEvents
from monai.metrics import compute_dice
from torch import Tensor

from ..geometry import count_folds, identity_map, jacobian_determinant, std_log_jacobian, warp
from ..losses import inverse_consistency, round_trip_error
from ..losses.overlap import one_hot_foreground
from ..networks import Registration
from .curriculum import Curriculum
from .training import both_directions, known_of_pairs


def label_dice(moved_label: Tensor, fixed_label: Tensor, labels: Sequence[int]) -> Tensor:
    """Dice of each label, ``(B, len(labels))``; NaN where the fixed image lacks the label.

    Args:
        moved_label: ``(B, 1, D, H, W)`` label values.
        fixed_label: as ``moved_label``.
        labels: foreground values.
    """
    return compute_dice(one_hot_foreground(moved_label, labels), one_hot_foreground(fixed_label, labels))


def dice_measures(
    registration: Registration, moving_label: Tensor, fixed_label: Tensor, labels: Sequence[int]
) -> dict[str, Tensor]:
    """Dice before, after the affine and after the vSVF stage; labels are warped by nearest neighbour.

    Args:
        registration: of a batch of B pairs.
        moving_label: ``(B, 1, D, H, W)``.
        fixed_label: ``(B, 1, D, H, W)``.
        labels: foreground values.

    Returns:
        ``dice_<stage>`` (mean over the labels present) and ``dice_<stage>_<label>``, each ``(B,)``, for the stages
        ``before``, ``affine`` and ``vsvf``.
    """
    shape = list(fixed_label.shape[2:])
    maps = {
        "before": identity_map(shape, fixed_label.device).expand(len(fixed_label), -1, -1, -1, -1),
        "affine": registration.affine_map,
        "vsvf": registration.map,
    }
    measures = {}
    for stage, coordinates in maps.items():
        moved = warp(moving_label.float(), coordinates, mode="nearest")
        scores = label_dice(moved, fixed_label, labels)
        measures[f"dice_{stage}"] = scores.nanmean(dim=1)
        for column, label in enumerate(labels):
            measures[f"dice_{stage}_{label}"] = scores[:, column]
    return measures


def feature_measures(registration: Registration, fixed_label: Tensor, labels: Sequence[int]) -> dict[str, Tensor]:
    """Dice of what the features say of the fixed image, ``dice_features`` ``(B,)``; nothing without features.

    Args:
        registration: of a batch of B pairs.
        fixed_label: ``(B, 1, D, H, W)``.
        labels: foreground values, in the order of the features.
    """
    seen = registration.fixed_seen
    if seen is None or seen.shape[1] != 1 + len(labels):
        return {}
    memberships = torch.cat([1 - seen[:, 1:].sum(dim=1, keepdim=True), seen[:, 1:]], dim=1)
    values = torch.tensor([0, *labels], device=seen.device)[memberships.argmax(dim=1, keepdim=True)]
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
        ``inverse_consistency`` (Figure 7: ln of the mean squared round trip, image = [0, 1]³), and
        ``round_trip_voxels`` (mean length of the round trip).
    """
    margin = min([margin, *(size // 4 for size in coordinates.shape[2:])])
    folds, folds_sum = count_folds(coordinates)
    central = (jacobian_determinant(coordinates) < 0).flatten(1).sum(dim=1)
    return {
        "folds": folds.float(),
        "folds_sum": folds_sum,
        "folds_central": central.float(),
        "std_log_jacobian": std_log_jacobian(coordinates),
        "inverse_consistency": inverse_consistency(coordinates, opposite_map, margin),
        "round_trip_voxels": round_trip_error(coordinates, opposite_map, margin=margin),
    }


def join(first: Registration, second: Registration) -> Registration:
    """Two registrations of B pairs as one of 2B pairs, what the objectives take for both directions."""

    def cat(name: str) -> Any:
        a, b = getattr(first, name), getattr(second, name)
        if isinstance(a, list):
            return [torch.cat(items) for items in zip(a, b, strict=True)]
        return None if a is None or b is None else torch.cat([a, b])

    return Registration(**{name: cat(name) for name in Registration.__dataclass_fields__})


class EvaluationUpdate:
    """``iteration_update`` of MONAI's ``SupervisedEvaluator``.

    Args:
        labels: foreground label values for Dice; pairs without labels get none.
        curriculum: says the steps and the objective of the training's epoch; None leaves the steps to the inferer.
        affine_objective: Equation 6; with ``vsvf_objective`` and a curriculum, loss parts are measured too.
        vsvf_objective: Equation 12.
        feature_objective: that of features, for a curriculum that trains them.
        margin: see `map_measures`.
    """

    def __init__(
        self,
        labels: Sequence[int],
        curriculum: Curriculum | None = None,
        affine_objective: Callable | None = None,
        vsvf_objective: Callable | None = None,
        margin: int = 10,
        feature_objective: Callable | None = None,
    ) -> None:
        self.labels = list(labels)
        self.curriculum = curriculum
        self.objectives = {"affine": affine_objective, "vsvf": vsvf_objective, "features": feature_objective}
        self.margin = margin

    def __call__(self, engine: Engine, batch: Mapping) -> dict[str, Any]:
        """Register the batch both ways and measure.

        Args:
            engine: a ``SupervisedEvaluator`` with an `AVSM` and a `RegistrationInferer`.
            batch: ``fixed``, ``moving`` ``(B, 1, D, H, W)``, ``name``, perhaps ``fixed_label`` and ``moving_label``.

        Returns:
            ``measures`` (name → ``(B,)``), ``names``, ``registration`` (of the pairs as given). ``seconds`` among the
            measures is the time of the forward registration alone, per pair.
        """
        device = engine.state.device
        moving, fixed, moving_label, fixed_label = both_directions(batch, device)
        count = len(fixed) // 2
        pairs = torch.cat([moving, fixed], dim=1)
        steps, phase, within = {}, None, 0
        if self.curriculum is not None:
            phase, within = self.curriculum.at(engine.state.epoch)
            steps = {
                "affine_steps": phase.affine_steps
                if phase.validation_affine_steps is None
                else phase.validation_affine_steps,
                "vsvf_steps": phase.vsvf_steps if phase.validation_vsvf_steps is None else phase.validation_vsvf_steps,
            }
        engine.network.eval()
        with torch.no_grad():
            start = time.perf_counter()
            forward = engine.inferer(pairs[:count], engine.network, **steps)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds = (time.perf_counter() - start) / count
            backward = engine.inferer(pairs[count:], engine.network, **steps)
            measures = {}
            if fixed_label is not None:
                measures.update(dice_measures(forward, moving_label[:count], fixed_label[:count], self.labels))
                measures.update(feature_measures(forward, fixed_label[:count], self.labels))
            measures.update(map_measures(forward.map, backward.map, self.margin))
            measures["seconds"] = torch.full((count,), seconds)
            objective = self.objectives[phase.stage] if phase is not None else None
            if objective is not None:
                known = known_of_pairs(batch, device)
                parts = objective(join(forward, backward), fixed, within, moving_label, fixed_label, **known)
                measures.update({f"loss_{k}" if k != "loss" else k: v.expand(count) for k, v in parts.items()})
        engine.state.output = {
            "measures": {name: value.detach().double().cpu() for name, value in measures.items()},
            "names": list(batch["name"]),
            "registration": forward,
        }
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output


class PairMean(Metric):
    """Mean of one measure over all pairs, leaving out pairs for which it is not defined (NaN).

    Args:
        key: name of the measure, see `EvaluationUpdate`.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        super().__init__(output_transform=lambda output: output["measures"].get(key))

    @reinit__is_reduced
    def reset(self) -> None:
        """Forget all pairs."""
        self._sum = torch.zeros((), dtype=torch.float64)
        self._count = torch.zeros((), dtype=torch.float64)

    @reinit__is_reduced
    def update(self, output: Tensor | None) -> None:
        """Add the values ``(B,)`` of a batch; None where the batch has no such measure (a pair without labels)."""
        if output is not None:
            self._sum += output.nansum()
            self._count += (~output.isnan()).sum()

    @sync_all_reduce("_sum", "_count")
    def compute(self) -> float:
        """The mean; NaN when no pair had the measure."""
        return (self._sum / self._count).item() if self._count > 0 else float("nan")


def measure_means(labels: Sequence[int]) -> dict[str, PairMean]:
    """Metrics of a validation beside the key metric: every measure and loss part, averaged over pairs.

    Args:
        labels: foreground label values.
    """
    stages = ("before", "affine", "vsvf")
    keys = [f"dice_{stage}" for stage in stages]
    keys += [f"dice_{stage}_{label}" for stage in stages for label in labels]
    keys += [
        "dice_features",
        "folds",
        "folds_sum",
        "folds_central",
        "std_log_jacobian",
        "inverse_consistency",
        "round_trip_voxels",
    ]
    keys += ["seconds", "loss", "loss_similarity", "loss_regularisation", "loss_symmetry"]
    return {key: PairMean(key) for key in keys}
