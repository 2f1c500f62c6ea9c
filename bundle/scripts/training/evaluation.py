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
from torch import Tensor

from ..metrics.maps import STAGES, dice_measures, feature_measures, map_measures
from ..networks import Registration
from .curriculum import Curriculum
from .training import both_directions, known_of_pairs


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
        affine_objective: Equation 6; with ``vsvf_objective`` and a curriculum, loss parts are measured too.
        vsvf_objective: Equation 12.
        margin: see `map_measures`.
        feature_objective: that of features, for a curriculum that trains them.
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
                measures |= feature_measures(forward.fixed_input, fixed_label[:count], self.labels)
            measures |= map_measures(forward.map, backward.map, self.margin)
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
    keys = [f"dice_{stage}{suffix}" for stage in STAGES for suffix in ("", *(f"_{label}" for label in labels))]
    keys += ["dice_features", "folds", "folds_sum", "folds_central", "std_log_jacobian"]
    keys += ["inverse_consistency", "inverse_consistency_voxels"]
    keys += ["seconds", "loss", "loss_similarity", "loss_regularisation", "loss_symmetry"]
    return {key: PairMean(key) for key in keys}
