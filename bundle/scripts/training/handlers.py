"""Handlers of a run: progress, log and pictures of validations, the table of an evaluation, the epoch of a data set."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from ignite.engine import Engine, Events
from monai.handlers import StatsHandler
from tqdm import tqdm

from ..geometry import warp
from ..metrics.summary import PAIRS, SUMMARY, summarise
from ..processes import in_turn, is_first
from ..report import pair_figure, save_figure
from ..settings import STAGES
from ..storage import atomic_path, claimed, clear_unfinished, guarded, make_output_dir, write_json
from .updates import to_tensor

PICTURES = "pictures"


def on_exception(engine: Engine, callback: Callable[[Engine, BaseException], None]) -> None:
    """Call back with the engine and the exception when a run dies, and let the exception go on its way afterwards.

    Ignite swallows an exception that is handled, and a handler that raises it again keeps the others from being called:
    so there must be one handler only, and it raises last. ``callback`` must not raise.
    """
    callbacks = engine.__dict__.setdefault("exception_callbacks", [])
    if not callbacks:
        # Whoever catches it at the end says so in one line.
        engine.logger.addFilter(lambda record: "terminating due to exception" not in record.getMessage())

        def handle(engine: Engine, error: BaseException) -> None:
            # Raised again, it comes by a second time: from the epoch, then from the run.
            if getattr(engine, "handled_exception", None) is not error:
                engine.handled_exception = error
                for each in callbacks:
                    each(engine, error)
            raise error

        engine.add_event_handler(Events.EXCEPTION_RAISED, handle)
    callbacks.append(callback)


class ValidationLog(StatsHandler):
    """MONAI's log of measures, without the traceback that it writes for whatever ends a run; that is told once."""

    def attach(self, engine: Engine) -> None:
        """Register on a validator."""
        super().attach(engine)
        on_exception(engine, lambda *_: None)

    def exception_raised(self, engine: Engine, e: Exception) -> None:
        """Say nothing."""


class Progress:
    """One bar over all iterations of a run: rate, time left, and a few figures. Of several processes, one shows it.

    Before it stands ``label``; ``show`` are keys of the engine's output (training) or its measures (evaluation).
    """

    def __init__(self, label: str, show: Sequence[str] = ()) -> None:
        self.label, self.show = label, tuple(show)
        # A log file wants a line now and then, a terminal a moving bar.
        self.interval = 0.5 if sys.stderr.isatty() else 30.0
        self.bar: tqdm | None = None

    def attach(self, engine: Engine) -> None:
        """Register on an engine, after whatever restores its state."""
        if not is_first():
            return
        engine.add_event_handler(Events.EPOCH_STARTED, self.open)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.advance)
        engine.add_event_handler(Events.COMPLETED, self.close)
        on_exception(engine, self.close)

    def open(self, engine: Engine) -> None:
        """Open the bar at the first epoch of this process, which need not be the run's first."""
        if self.bar is None:
            # A validator runs one epoch at a time under the trainer's epoch number.
            trains = hasattr(engine, "optimizer")
            self.bar = tqdm(
                total=(engine.state.max_epochs if trains else 1) * engine.state.epoch_length,
                initial=engine.state.iteration if trains else 0,
                desc=self.label,
                mininterval=self.interval,
                dynamic_ncols=True,
            )

    def advance(self, engine: Engine) -> None:
        """One iteration on."""
        output = engine.state.output
        values = output.get("measures", output)
        words = {key: f"{float(values[key]):.4g}" for key in self.show if key in values}
        if hasattr(engine, "optimizer"):
            words = {"epoch": f"{engine.state.epoch}/{engine.state.max_epochs}", **words}
        self.bar.set_postfix(words, refresh=False)
        self.bar.update()

    def close(self, engine: Engine, error: BaseException | None = None) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def picture_path(output_dir: str | os.PathLike, epoch: int) -> Path:
    """Where the picture of an epoch's validation lies."""
    return Path(output_dir) / PICTURES / f"validation_{epoch:04d}.png"


class ValidationPicture:
    """Saves the picture of the first validation pair, with its deformation grid, at every validation."""

    def __init__(self, output_dir: str | os.PathLike) -> None:
        self.output_dir = make_output_dir(output_dir)
        make_output_dir(self.output_dir / PICTURES)

    def attach(self, engine: Engine) -> None:
        """Register on a validator."""
        if is_first():
            engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Draw the first pair."""
        if (engine.state.iteration - 1) % engine.state.epoch_length == 0:
            save_figure(batch_figure(engine), picture_path(self.output_dir, engine.state.epoch))


def batch_figure(engine: Engine):
    """Figure of the first pair of the batch that an evaluator has just registered, a matplotlib figure."""
    output, batch = engine.state.output, engine.state.batch
    measures, coordinates = output["measures"], output["registration"].map[:1].cpu()
    found = {name: to_tensor(batch, name, "cpu") for name in ("fixed", "moving", "fixed_label", "moving_label")}
    volumes = {name: volume[:1].float() for name, volume in found.items() if volume is not None}
    volumes["moved"] = output["registration"].moved[:1].cpu()
    if "moving_label" in volumes:
        volumes["moved_label"] = warp(volumes.pop("moving_label"), coordinates, mode="nearest")
    words = [output["names"][0]]
    if "dice_final" in measures:
        words.append("Dice " + " → ".join(f"{measures[f'dice_{stage}'][0]:.3f}" for stage in STAGES))
    words.append(f"folds {int(measures['folds'][0])}")
    affine = torch.as_tensor(batch["fixed"].affine)
    affine = (affine[0] if affine.ndim == 3 else affine).double().cpu().numpy()
    spacing, orientation = np.linalg.norm(affine[:3, :3], axis=0), "".join(nib.aff2axcodes(affine))
    return pair_figure(coordinates, spacing, orientation, "    ".join(words), **volumes)


class PairTable:
    """Writes ``pairs.csv`` (a row for each pair) and ``summary.json`` (means and standard deviations) at a run's end.

    Of several processes the first one writes, for all. From now until the run ends, no other run can write there.
    ``facts`` are further entries of ``summary.json`` (weights, steps, data). InputError when the folder can't be
    written to, or another run is writing to it.
    """

    def __init__(self, output_dir: str | os.PathLike, facts: dict | None = None) -> None:
        self.output_dir = make_output_dir(output_dir)
        self.claim = contextlib.ExitStack()
        if is_first() and self.claim.enter_context(claimed(self.output_dir)):
            clear_unfinished(self.output_dir, PAIRS, SUMMARY)
        self.facts = {} if facts is None else dict(facts)
        self.rows: list[dict] = []
        self.logger = logging.getLogger(__name__)

    def attach(self, engine: Engine) -> None:
        """Register on an evaluator."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.COMPLETED, self.write)
        engine.add_event_handler(Events.COMPLETED, self.claim.close)
        on_exception(engine, lambda *_: self.claim.close())

    def start(self, engine: Engine) -> None:
        """Forget rows of an earlier run."""
        self.rows = []

    def collect(self, engine: Engine) -> None:
        """Take the rows of a batch."""
        output = engine.state.output
        for index, name in enumerate(output["names"]):
            self.rows.append({"name": name, **{k: v[index].item() for k, v in output["measures"].items()}})

    def write(self, engine: Engine) -> None:
        """Write both files."""
        self.rows = in_turn(self.rows)
        if not is_first():
            return
        guarded(self.output_dir / PAIRS, self.output_dir, self._write_rows)
        summary = {**summarise(self.rows), **self.facts}
        guarded(self.output_dir / SUMMARY, self.output_dir, lambda path: write_json(summary, path))
        shown = ("dice_before", "dice_affine", "dice_final", "folds", "std_log_jacobian", "seconds")
        text = ", ".join(f"{key} {summary[key]:.4g}" for key in shown if summary.get(key) is not None)
        self.logger.info(f"{len(self.rows)} pairs: {text}")

    def _write_rows(self, path: Path) -> None:
        with atomic_path(path) as temporary:
            pd.DataFrame(self.rows).to_csv(temporary, index=False, float_format="%.6g", na_rep="nan")


class EpochSetter:
    """Tells a data set the epoch before it starts, so that what is drawn in it is a function of seed and epoch."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def attach(self, engine: Engine) -> None:
        """Register on a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, lambda: self.dataset.set_epoch(engine.state.epoch))
