"""Checkpoints: best and last weights, and an exact resume after a kill."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import os
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn
from torch.optim import Optimizer

from ..errors import InputError
from ..networks.weights import read_file
from ..processes import from_first, is_first, process_count
from ..storage import atomic_path, claimed, clear_unfinished, guarded, make_output_dir
from .curriculum import Curriculum
from .handlers import on_exception

LAST = "checkpoint_last.pt"
BEST = "model.pt"


class Checkpoints:
    """Saves ``checkpoint_last.pt`` at the end of every epoch and ``model.pt`` at the best validation; resumes.

    Place it after the ``ValidationHandler``. Everything random in an epoch (order of pairs, phantom, augmentation) is a
    function of the seed and the epoch, so a run that is killed and resumed ends with the same weights as one that was
    not. The best is the best within the last phase that was validated: a later phase begins anew. Of several processes
    (`join_processes`) the first writes and reads, and tells the others; a run goes on with as many as it began with.
    From now until the run ends, no other run can write to the folder.

    Args:
        network, optimizer: saved and resumed.
        curriculum: its phases must be those of the checkpoint.
        output_dir: folder of the run, created if need be.
        evaluator: validation engine, whose key metric decides the best; None saves the last weights as the best.
        max_folds: a validation with more folds a pair than this is best only where none had as few; None asks nothing.
        resume: continue the run in ``output_dir`` if there is one; if False, a run found there is an error.
        settings: further settings that must not change within a run (seed, grid, data).

    Raises:
        InputError: when the folder can't be written to, is written to by another run, holds a run and ``resume`` is
            False, or holds one of other settings, a finished one included.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Optimizer,
        curriculum: Curriculum,
        output_dir: str | os.PathLike,
        evaluator: Engine | None = None,
        max_folds: float | None = None,
        resume: bool = True,
        settings: dict | None = None,
    ) -> None:
        self.network, self.optimizer, self.curriculum = network, optimizer, curriculum
        self.evaluator, self.max_folds = evaluator, max_folds
        self.output_dir = make_output_dir(output_dir)
        settings = {**(settings or {}), "phases": curriculum.settings()}
        if process_count() > 1:
            # The pairs of an iteration are those of all processes.
            settings["processes"] = process_count()
        self.settings = json.loads(json.dumps(settings, default=str))
        self.best: dict[str, Any] = {"phase": None, "metric": None, "epoch": None, "smooth": False}
        self.logger, self.claim = logging.getLogger(__name__), contextlib.ExitStack()
        found, fault = None, None
        if is_first():
            try:
                if self.claim.enter_context(claimed(self.output_dir)):
                    clear_unfinished(self.output_dir, LAST, BEST)
                found = self._find(resume)
            except InputError as error:
                fault = str(error)
        # A fault ends every process.
        self.found, fault = from_first((found, fault))
        if fault is not None:
            raise InputError(fault)

    def _find(self, resume: bool) -> dict | None:
        path = self.output_dir / LAST
        if not path.exists():
            return None
        if not resume:
            raise InputError(f"{path}: a run is already there; give another output_dir, or resume it (--resume True)")
        try:
            found = read_file(path)
            settings = json.loads(found["settings"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}: not a checkpoint of this project; remove it or give another output_dir"
            ) from error
        for key in sorted(set(settings) | set(self.settings)):
            if settings.get(key) != self.settings.get(key):
                raise InputError(
                    f"{path}: the run there has other settings ({_difference(key, settings, self.settings)}); "
                    "give another output_dir or the settings that it began with"
                )
        shapes = [{k: v.shape for k, v in state.items()} for state in (found["network"], self.network.state_dict())]
        if shapes[0] != shapes[1]:
            raise InputError(
                f"{path}: the run there has another network; give another output_dir or the network_def it began with"
            )
        return found

    def attach(self, engine: Engine) -> None:
        """Register on a trainer."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)
        engine.add_event_handler(Events.COMPLETED, self.claim.close)
        on_exception(engine, lambda *_: self.claim.close())

    def start(self, engine: Engine) -> None:
        """Restore the run found in the folder, if any."""
        if self.found is None:
            return
        self.network.load_state_dict(self.found["network"])
        self.optimizer.load_state_dict(self.found["optimizer"])
        self.best = dict(self.found["best"])
        # STARTED comes after ignite has set the counters, so they can be set on here.
        engine.state.epoch = self.found["epoch"]
        engine.state.iteration = self.found["epoch"] * engine.state.epoch_length
        if engine.state.epoch >= engine.state.max_epochs:
            self.logger.info(f"The run in {self.output_dir} is complete ({engine.state.epoch} epochs): nothing to do.")
            engine.terminate()
        else:
            self.logger.info(f"Resuming the run in {self.output_dir} after epoch {engine.state.epoch}.")
        self.found = None

    def save(self, engine: Engine) -> None:
        """Save the last state and, where it is one, the best; raises InputError when the disk takes no more."""
        epoch = engine.state.epoch
        phase, _ = self.curriculum.at(epoch)
        metric = smooth = None
        if self.evaluator is not None and self.evaluator.state.epoch == epoch:
            metrics = self.evaluator.state.metrics
            metric = float(metrics[self.evaluator.state.key_metric_name])
            smooth = self.max_folds is None or metrics["folds"] <= self.max_folds
        weights = self.network.state_dict()
        if self.evaluator is None or (metric is not None and self._is_better(phase.name, metric, smooth)):
            self.best = {"phase": phase.name, "metric": metric, "epoch": epoch, "smooth": bool(smooth)}
            if is_first():
                _save(weights, self.output_dir / BEST)
        if is_first():
            state = {"network": weights, "optimizer": self.optimizer.state_dict(), "epoch": epoch, "best": self.best}
            _save({**state, "settings": json.dumps(self.settings)}, self.output_dir / LAST)

    def _is_better(self, phase: str, metric: float, smooth: bool) -> bool:
        if self.best["metric"] is None or self.best["phase"] != phase or math.isnan(self.best["metric"]):
            return True
        return (smooth, metric) > (self.best["smooth"], self.best["metric"])


def _save(content: dict, target: Path) -> None:
    """Save whole or not at all, equal contents as equal bytes."""
    # Given a path, torch writes the (temporary) file's name into the file, and no two hashes would agree; given a file
    # that the disk has no room for, it raises errors of its own.
    buffer = io.BytesIO()
    torch.save(content, buffer)

    def write(path: Path) -> None:
        with atomic_path(path) as temporary:
            temporary.write_bytes(buffer.getbuffer())

    guarded(target, target.parent, write)


def _difference(key: str, theirs: dict, ours: dict) -> str:
    """One setting that differs, short enough for a line."""
    a, b = theirs.get(key), ours.get(key)
    if key == "phases" and isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for phase_a, phase_b in zip(a, b, strict=True):
            for field in phase_a:
                if phase_a[field] != phase_b.get(field):
                    return f"phase {phase_a['name']}: {field} {phase_a[field]} there, {phase_b.get(field)} here"
    texts = [text if len(text := json.dumps(value)) <= 60 else text[:57] + "..." for value in (a, b)]
    return f"{key}: {texts[0]} there, {texts[1]} here"


def checkpoint_files(output_dir: str | os.PathLike) -> list[Path]:
    """The checkpoint files that a run has left in its folder."""
    return [path for path in (Path(output_dir) / BEST, Path(output_dir) / LAST) if path.is_file()]
