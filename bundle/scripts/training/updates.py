"""One iteration of training and of evaluation: both directions of every pair, the objective, what a paper asks for."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Engine
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced, sync_all_reduce
from monai.engines.utils import IterationEvents
from torch import Tensor

from ..geometry import invert_affine
from ..metrics.maps import dice_measures, feature_measures, map_measures
from ..networks import Registration
from ..processes import over_processes
from ..settings import STAGES
from .curriculum import Curriculum


def to_tensor(batch: Mapping, key: str, device: torch.device | str) -> Tensor | None:
    """A batch entry as a plain tensor on the device; None where the batch has none."""
    value = batch.get(key)
    if value is None:
        return None
    return (value.as_tensor() if hasattr(value, "as_tensor") else torch.as_tensor(value)).to(device, non_blocking=True)


def both_directions(batch: Mapping, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """A batch of pairs in both directions: rows 0 to B-1 as given, rows B to 2B-1 exchanged.

    Returns:
        moving, fixed, moving_label, fixed_label, each ``(2B, 1, D, H, W)`` (labels None where absent).
    """
    moving, fixed = _exchanged(batch, "", device)
    return moving, fixed, *_exchanged(batch, "_label", device)


def _exchanged(batch: Mapping, suffix: str, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
    """One kind of volume, moving and fixed, in both directions; None where either is absent."""
    fixed, moving = (to_tensor(batch, f"{role}{suffix}", device) for role in ("fixed", "moving"))
    if fixed is None or moving is None:
        return None, None
    return torch.cat([moving, fixed]), torch.cat([fixed, moving])


def known_of_pairs(batch: Mapping, device: torch.device) -> dict[str, Tensor]:
    """What a batch knows beside images and labels, in both directions, as the objectives take it; only what there is.

    Returns:
        ``moving_mask`` and ``fixed_mask`` ``(2B, 1, D, H, W)``; ``target`` ``(2B, 3, 4)``, the true Γ of the batch's
        ``affine``, NaN where it is not known.
    """
    masks = zip(("moving_mask", "fixed_mask"), _exchanged(batch, "_mask", device), strict=True)
    known = {name: mask for name, mask in masks if mask is not None}
    affine = to_tensor(batch, "affine", device)
    if affine is not None:
        affine = affine.float()
        back = torch.full_like(affine, torch.nan)
        rows = ~affine.isnan().flatten(1).any(dim=1)
        back[rows] = invert_affine(affine[rows])
        known["target"] = torch.cat([affine, back])
    return known


class TrainingUpdate:
    """``iteration_update`` of MONAI's ``SupervisedTrainer``: register, objective of the phase, optimiser step.

    Args:
        curriculum: says the stage and the steps of the epoch.
        affine_objective: Equation 6.
        vsvf_objective: Equation 12.
        max_gradient_norm: clip the gradient's norm to this; None for no clipping.
        feature_objective: that of features, for a curriculum that trains them.
    """

    def __init__(
        self,
        curriculum: Curriculum,
        affine_objective: Callable,
        vsvf_objective: Callable,
        max_gradient_norm: float | None = None,
        feature_objective: Callable | None = None,
    ) -> None:
        self.curriculum = curriculum
        self.objectives = {"affine": affine_objective, "vsvf": vsvf_objective, "features": feature_objective}
        self.max_gradient_norm = max_gradient_norm

    def __call__(self, engine: Engine, batch: Mapping) -> dict[str, Any]:
        """One iteration by an engine with an `AVSM` and a `RegistrationInferer`; batch as of `both_directions`.

        Returns:
            Floats ``loss`` and its parts, means over the pairs of all processes.

        Raises:
            FloatingPointError: when the loss is not finite; the last checkpoint is from before it.
        """
        phase, within = self.curriculum.at(engine.state.epoch)
        moving, fixed, moving_label, fixed_label = both_directions(batch, engine.state.device)
        engine.network.train()
        engine.optimizer.zero_grad(set_to_none=True)
        pairs, steps = torch.cat([moving, fixed], dim=1), {n: getattr(phase, n) for n in ("affine_steps", "vsvf_steps")}
        registration = engine.inferer(pairs, engine.network, **steps)
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        known = known_of_pairs(batch, engine.state.device)
        parts = self.objectives[phase.stage](registration, fixed, within, moving_label, fixed_label, **known)
        if not torch.isfinite(parts["loss"]):
            raise FloatingPointError(
                f"loss is {parts['loss'].item()} in epoch {engine.state.epoch}, iteration {engine.state.iteration} "
                f"(phase {phase.name}); lower its learning_rate or set max_gradient_norm."
            )
        engine.fire_event(IterationEvents.LOSS_COMPLETED)
        parts["loss"].backward()
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        if self.max_gradient_norm is not None:
            torch.nn.utils.clip_grad_norm_(engine.network.parameters(), self.max_gradient_norm)
        engine.optimizer.step()
        engine.state.output = over_processes(parts)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output


def join(first: Registration, second: Registration) -> Registration:
    """Two registrations of B pairs as one of 2B pairs, what the objectives take for both directions."""

    def cat(name: str) -> Any:
        a, b = getattr(first, name), getattr(second, name)
        if isinstance(a, list):
            return [torch.cat(items) for items in zip(a, b, strict=True)]
        if isinstance(a, bool):
            return a
        return None if a is None or b is None else torch.cat([a, b])

    return Registration(**{name: cat(name) for name in Registration.__dataclass_fields__})


class EvaluationUpdate:
    """``iteration_update`` of MONAI's ``SupervisedEvaluator``.

    Args:
        labels: foreground label values for Dice; pairs without labels get none.
        curriculum: says the steps and the objective of the training's epoch; None leaves the steps to the inferer.
        affine_objective, vsvf_objective, feature_objective: as of `TrainingUpdate`; with a curriculum, loss parts are
            measured too.
    """

    def __init__(
        self,
        labels: Sequence[int],
        curriculum: Curriculum | None = None,
        affine_objective: Callable | None = None,
        vsvf_objective: Callable | None = None,
        feature_objective: Callable | None = None,
    ) -> None:
        self.labels = list(labels)
        self.curriculum = curriculum
        self.objectives = {"affine": affine_objective, "vsvf": vsvf_objective, "features": feature_objective}

    def __call__(self, engine: Engine, batch: Mapping) -> dict[str, Any]:
        """Register the batch both ways and measure, by an engine with an `AVSM` and a `RegistrationInferer`.

        Returns:
            ``measures`` (name → ``(B,)``), ``names``, ``registration`` (of the pairs as given). ``seconds`` among the
            measures is the time of the forward registration alone, per pair.
        """
        device = engine.state.device
        moving, fixed, moving_label, fixed_label = both_directions(batch, device)
        count = len(fixed) // 2
        pairs = torch.cat([moving, fixed], dim=1)
        phase, within = self.curriculum.at(engine.state.epoch) if self.curriculum is not None else (None, 0)
        steps = {} if phase is None else phase.validation_steps
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
                measures |= dice_measures(forward, moving_label[:count], fixed_label[:count], self.labels)
                measures |= feature_measures(forward.classes, fixed_label[:count], self.labels)
            measures |= map_measures(forward.map, backward.map)
            measures["seconds"] = torch.full((count,), seconds)
            objective = None if phase is None else self.objectives[phase.stage]
            if objective is not None:
                known = known_of_pairs(batch, device)
                parts = objective(join(forward, backward), fixed, within, moving_label, fixed_label, **known)
                measures |= {f"loss_{k}" if k != "loss" else k: v.expand(count) for k, v in parts.items()}
        engine.state.output = {
            "measures": {name: value.detach().double().cpu() for name, value in measures.items()},
            "names": list(batch["name"]),
            "registration": forward,
        }
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output


class PairMean(Metric):
    """Mean of one measure (see `EvaluationUpdate`) over all pairs for which it is defined (not NaN)."""

    def __init__(self, key: str) -> None:
        self.key = key
        super().__init__(output_transform=lambda output: output["measures"].get(key))

    @reinit__is_reduced
    def reset(self) -> None:
        """Forget all pairs."""
        self._sum, self._count = torch.zeros(2, dtype=torch.float64).unbind()

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
    """Metrics of a validation beside the key metric: every measure and loss part, averaged over pairs."""
    keys = [f"dice_{stage}{suffix}" for stage in STAGES for suffix in ("", *(f"_{label}" for label in labels))]
    keys += ["dice_features", "folds", "folds_sum", "folds_central", "std_log_jacobian"]
    keys += ["inverse_consistency", "inverse_consistency_voxels"]
    keys += ["seconds", "loss", "loss_similarity", "loss_regularisation", "loss_symmetry"]
    return {key: PairMean(key) for key in keys}
