"""One training iteration: both directions of every pair in one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from ignite.engine import Engine
from monai.engines.utils import IterationEvents
from torch import Tensor

from ..geometry import invert_affine
from ..processes import over_processes
from .curriculum import Curriculum


def to_tensor(batch: Mapping, key: str, device: torch.device) -> Tensor | None:
    """A batch entry as a plain tensor on the device; None where the batch has none."""
    value = batch.get(key)
    if value is None:
        return None
    return (value.as_tensor() if hasattr(value, "as_tensor") else torch.as_tensor(value)).to(device, non_blocking=True)


def both_directions(batch: Mapping, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """A batch of pairs in both directions: rows 0 to B-1 as given, rows B to 2B-1 exchanged.

    Args:
        batch: with ``fixed`` and ``moving`` ``(B, 1, D, H, W)``, perhaps ``fixed_label`` and ``moving_label``.
        device: where to.

    Returns:
        moving, fixed, moving_label, fixed_label, each ``(2B, 1, D, H, W)`` (labels None where absent).
    """
    moving, fixed = _exchanged(batch, "", device)
    return moving, fixed, *_exchanged(batch, "_label", device)


def _exchanged(batch: Mapping, suffix: str, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
    """One kind of volume, moving and fixed, in both directions; None where either is absent."""
    fixed, moving = to_tensor(batch, f"fixed{suffix}", device), to_tensor(batch, f"moving{suffix}", device)
    if fixed is None or moving is None:
        return None, None
    return torch.cat([moving, fixed]), torch.cat([fixed, moving])


def known_of_pairs(batch: Mapping, device: torch.device) -> dict[str, Tensor]:
    """What a batch knows beside images and labels, in both directions, as the objectives take it.

    Args:
        batch: perhaps with ``fixed_mask`` and ``moving_mask`` ``(B, 1, D, H, W)``, and ``affine`` ``(B, 3, 4)``, the
            true Γ from fixed to moving, NaN where it is not known.
        device: where to.

    Returns:
        ``moving_mask`` and ``fixed_mask`` ``(2B, 1, D, H, W)``, ``target`` ``(2B, 3, 4)``; only what there is.
    """
    known: dict[str, Tensor] = {}
    moving_mask, fixed_mask = _exchanged(batch, "_mask", device)
    if moving_mask is not None and fixed_mask is not None:
        known |= {"moving_mask": moving_mask, "fixed_mask": fixed_mask}
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
        feature_objective: that of features, for a curriculum that trains them.
        max_gradient_norm: clip the gradient's norm to this; None for no clipping.
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
        """One iteration.

        Args:
            engine: a ``SupervisedTrainer`` with an `AVSM` and a `RegistrationInferer`.
            batch: as `both_directions` takes it.

        Returns:
            Floats ``loss`` and its parts, means over the pairs of all processes.

        Raises:
            FloatingPointError: when the loss is not finite; the last checkpoint is from before it.
        """
        phase, within = self.curriculum.at(engine.state.epoch)
        moving, fixed, moving_label, fixed_label = both_directions(batch, engine.state.device)
        engine.network.train()
        engine.optimizer.zero_grad(set_to_none=True)
        registration = engine.inferer(
            torch.cat([moving, fixed], dim=1),
            engine.network,
            affine_steps=phase.affine_steps,
            vsvf_steps=phase.vsvf_steps,
        )
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
