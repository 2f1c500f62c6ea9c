"""What an evaluation leaves on disk: a row for each pair, and a summary."""

from __future__ import annotations

import logging
import os

import pandas as pd
from ignite.engine import Engine, Events

from ..metrics.summary import PAIRS, SUMMARY, summarise
from ..processes import in_turn, is_first
from ..storage import atomic_path, make_output_dir, write_json


class PairTable:
    """Writes ``pairs.csv`` (a row for each pair) and ``summary.json`` (means and standard deviations) at a run's end.

    Of several processes the first one writes, for all.

    Args:
        output_dir: folder, created if need be.
        facts: further entries of ``summary.json`` (weights, steps, data).

    Raises:
        InputError: when the folder can't be written to.
    """

    def __init__(self, output_dir: str | os.PathLike, facts: dict | None = None) -> None:
        self.output_dir = make_output_dir(output_dir)
        self.facts = {} if facts is None else dict(facts)
        self.rows: list[dict] = []
        self.logger = logging.getLogger(__name__)

    def attach(self, engine: Engine) -> None:
        """Register on an evaluator."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.COMPLETED, self.write)

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
        with atomic_path(self.output_dir / PAIRS) as path:
            pd.DataFrame(self.rows).to_csv(path, index=False, float_format="%.6g", na_rep="nan")
        summary = {**summarise(self.rows), **self.facts}
        write_json(summary, self.output_dir / SUMMARY)
        shown = ("dice_before", "dice_affine", "dice_final", "folds", "std_log_jacobian", "seconds")
        text = ", ".join(f"{key} {summary[key]:.4g}" for key in shown if summary.get(key) is not None)
        self.logger.info(f"{len(self.rows)} pairs: {text}")
