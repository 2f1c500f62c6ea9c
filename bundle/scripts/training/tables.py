"""What an evaluation leaves on disk: a row for each pair, and a summary."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

import pandas as pd
from ignite.engine import Engine, Events

from ..metrics.summary import PAIRS, SUMMARY, summarise
from ..processes import in_turn, is_first
from ..storage import atomic_path, claimed, clear_unfinished, guarded, make_output_dir, write_json
from .progress import on_exception


class PairTable:
    """Writes ``pairs.csv`` (a row for each pair) and ``summary.json`` (means and standard deviations) at a run's end.

    Of several processes the first one writes, for all. From now until the run ends, no other run can write there.

    Args:
        output_dir: folder, created if need be.
        facts: further entries of ``summary.json`` (weights, steps, data).

    Raises:
        InputError: when the folder can't be written to, or another run is writing to it.
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
