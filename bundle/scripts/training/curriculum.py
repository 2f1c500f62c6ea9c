"""The paper's curriculum: single-step affine, multi-step affine, then the momentum network with the affine fixed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from types import NoneType

from ignite.engine import Engine, Events
from torch import nn
from torch.optim import Optimizer

from ..errors import InputError

STAGES = {"features": "features", "affine": "affine_net", "vsvf": "momentum_net"}
"""Stage → the part of the network that it trains."""
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "str": ((str,), "a text"),
    "int": ((int,), "a whole number"),
    "int | None": ((int, NoneType), "a whole number or null"),
    "float": ((int, float), "a number"),
}


@dataclass(frozen=True)
class Phase:
    """One phase of training.

    Attributes:
        name: shown in logs.
        stage: the part of the network that is trained, all else is fixed: ``"features"`` a `FeatureNet` on labels,
            ``"affine"`` the affine network by Equation 6, ``"vsvf"`` the momentum network by Equation 12.
        epochs: length of the phase; 0 leaves it out.
        affine_steps: affine steps during the phase.
        vsvf_steps: vSVF steps during the phase.
        learning_rate: Adam's rate.
        warmup_epochs, warmup_factor: so many epochs at so many times the rate.
        decay_every, decay_factor: the rate is multiplied by the factor after every so many epochs; 0 for never.
        validation_affine_steps, validation_vsvf_steps: steps when validating, None for the same; the paper tests with
            more than it trains.
    """

    name: str
    stage: str
    epochs: int
    affine_steps: int
    vsvf_steps: int = 0
    learning_rate: float = 5e-4
    warmup_epochs: int = 0
    warmup_factor: float = 0.1
    decay_every: int = 60
    decay_factor: float = 0.5
    validation_affine_steps: int | None = None
    validation_vsvf_steps: int | None = None

    def __post_init__(self) -> None:
        """Reject values that would only fail hours later."""
        for field in fields(self):
            value, (kinds, wanted) = getattr(self, field.name), _KINDS[field.type]
            if isinstance(value, bool) or not isinstance(value, kinds):
                raise InputError(f"phase '{self.name}': {field.name}={value!r}; give {wanted}")
            if field.type == "float" and value <= 0:
                raise InputError(f"phase '{self.name}': {field.name}={value} must be positive")
            if isinstance(value, int) and value < 0:
                raise InputError(f"phase '{self.name}': {field.name}={value} must not be negative")
        if self.stage not in STAGES:
            raise InputError(f"phase '{self.name}': stage must be one of {', '.join(STAGES)}, got '{self.stage}'")
        if self.stage == "features" and (self.affine_steps != 0 or self.vsvf_steps != 0):
            raise InputError(f"phase '{self.name}': a features phase needs affine_steps 0 and vsvf_steps 0")
        if self.stage == "affine" and (self.affine_steps < 1 or self.vsvf_steps != 0):
            raise InputError(f"phase '{self.name}': an affine phase needs affine_steps of at least 1 and vsvf_steps 0")
        if self.stage == "vsvf" and self.vsvf_steps < 1:
            raise InputError(f"phase '{self.name}': a vsvf phase needs vsvf_steps of at least 1")

    @property
    def validation_steps(self) -> dict[str, int]:
        """``affine_steps`` and ``vsvf_steps`` when validating."""
        names = ("affine_steps", "vsvf_steps")
        own = {name: getattr(self, f"validation_{name}") for name in names}
        return {name: getattr(self, name) if steps is None else steps for name, steps in own.items()}

    def rate(self, epoch: int) -> float:
        """Learning rate in an epoch, counted from 0 at the beginning of the phase."""
        rate = self.learning_rate
        if epoch < self.warmup_epochs:
            rate *= self.warmup_factor
        if self.decay_every > 0:
            rate *= self.decay_factor ** (epoch // self.decay_every)
        return rate


class Curriculum:
    """A sequence of phases (`Phase`s or dicts of their fields) over one run of epochs.

    Raises:
        InputError: when there is no epoch at all, or a phase has unknown or impossible values.
    """

    def __init__(self, phases: Sequence[Phase | dict]) -> None:
        if not isinstance(phases, list | tuple):
            raise InputError(f"phases: {phases!r} is no list; give a list of phases")
        self.phases = [phase if isinstance(phase, Phase) else self._read(phase) for phase in phases]
        if self.total_epochs < 1:
            raise InputError("phases: the curriculum has no epoch; give at least one phase with epochs of at least 1")

    @staticmethod
    def _read(fields: dict) -> Phase:
        if not isinstance(fields, dict):
            raise InputError(f"phases: {fields!r} is no phase; give an object with name, stage, epochs, affine_steps")
        try:
            return Phase(**fields)
        except TypeError as error:
            reason = str(error).split("() ")[-1]
            raise InputError(f"phases: {fields.get('name', fields)}: {reason}; see the fields of Phase") from error

    @property
    def total_epochs(self) -> int:
        """Epochs of all phases."""
        return sum(phase.epochs for phase in self.phases)

    def at(self, epoch: int) -> tuple[Phase, int]:
        """The phase of an epoch (from 1 on, as ignite counts), and the epoch from 0 inside it; ValueError beyond."""
        within = epoch - 1
        for phase in self.phases:
            if 0 <= within < phase.epochs:
                return phase, within
            within -= phase.epochs
        raise ValueError(f"epoch {epoch} lies outside the curriculum of {self.total_epochs} epochs.")

    def settings(self) -> list[dict]:
        """The phases as plain dicts, for checkpoints and logs."""
        return [asdict(phase) for phase in self.phases]


class CurriculumHandler:
    """Sets up every epoch from the curriculum: trainable network, learning rate, a fresh optimiser state per phase.

    Everything is a function of the epoch number, so that a resumed run continues exactly. The optimiser is over all of
    the network's parameters.
    """

    def __init__(self, curriculum: Curriculum, network: nn.Module, optimizer: Optimizer) -> None:
        self.curriculum, self.network, self.optimizer = curriculum, network, optimizer
        self.logger = logging.getLogger(__name__)

    def attach(self, engine: Engine) -> None:
        """Register on a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Set up the epoch that starts."""
        phase, within = self.curriculum.at(engine.state.epoch)
        for stage, part in STAGES.items():
            if (module := getattr(self.network, part, None)) is not None:
                module.requires_grad_(phase.stage == stage)
        if within == 0:
            # Moments gathered on another loss, and gradients of what is now fixed, must not act on.
            self.optimizer.state.clear()
            self.optimizer.zero_grad(set_to_none=True)
            self.logger.info(
                f"Phase {phase.name}: {phase.epochs} epochs, {phase.affine_steps} affine and {phase.vsvf_steps} vSVF "
                f"steps, learning rate {phase.learning_rate:g}"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = phase.rate(within)
