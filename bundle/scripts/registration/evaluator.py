"""Registration by MONAI's evaluator, as ``configs/inference.json`` declares it: its update, and the pair behind it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ignite.engine import Engine
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents

from .methods import Found
from .progress import REGISTER, WRITE, Tell, nothing
from .result import Result
from .sampling import SampledPair, SamplePaird

__all__ = ["ByEvaluator", "PairUpdate", "only_item"]

_silent = logging.getLogger(f"{__name__}.engine")
_silent.setLevel(logging.CRITICAL)


def only_item(items: Sequence[Any]) -> Any:
    """Collate a batch of one pair: volumes of several pairs differ in size and cannot be stacked."""
    (item,) = items
    return item


class PairUpdate:
    """``iteration_update`` of MONAI's ``SupervisedEvaluator``: adds ``found``, what a method finds for ``sampled``.

    Args:
        method: a `Method`, or whatever turns a `SampledPair` into a `Found`.
    """

    def __init__(self, method: Callable[[SampledPair], Found]) -> None:
        self.method = method

    def __call__(self, engine: Engine, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Register the one pair of a batch."""
        found = self.method(batch["sampled"].to(engine.state.device), getattr(engine.state, "tell", nothing))
        engine.state.output = {"found": found}
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output


class ByEvaluator:
    """Registers a pair as `Registrar` does, by an evaluator and its handlers.

    Args:
        evaluator: whose output holds ``result``.
        sampling: what lays the network's grids on a pair that has been read.
    """

    def __init__(self, evaluator: SupervisedEvaluator, sampling: SamplePaird) -> None:
        self.evaluator, self.sampling = evaluator, sampling
        # Ignite logs that an exception ended a run; whoever catches it says so in one line.
        evaluator.logger = _silent
        self.tell: Tell = nothing
        evaluator.add_event_handler(IterationEvents.FORWARD_COMPLETED, lambda: self.tell(0.0, WRITE))

    @property
    def device(self) -> Any:
        """That of the evaluator."""
        return self.evaluator.state.device

    def register(self, item: Mapping[str, Any], tell: Tell = nothing) -> Result:
        """Register a pair that has been read; ``tell``: see `Registers`."""
        state, self.tell = self.evaluator.state, tell
        state.tell = tell
        try:
            tell(0.0, REGISTER)
            self.evaluator.data_loader = [self.sampling(item)]
            state.epoch_length = 1
            self.evaluator.run()
            return state.output["result"]
        finally:
            # Volumes of a pair are large; the next pair must not find them in memory.
            self.evaluator.data_loader, self.tell = [], nothing
            state.tell = nothing
            state.batch = state.output = None
