"""The ablation of Table 2: every row a config override, trained for the same minutes, measured like any method.

Row n has the first n - 1 parts of the paper's list: regularisation, multi-step, symmetry and mk-LNCC of the affine
stage, then the vSVF, its mk-LNCC, its second step and its symmetry. Rows with a vSVF go on from the affine network of
row V, which stays fixed, as in the paper. The last weights of a training are measured, not those of a best validation.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.bundle import ConfigParser, ConfigWorkflow

from scripts.errors import InputError
from scripts.storage import atomic_path
from scripts.training.checkpoints import LAST

from .ours import BUNDLE, Ours
from .tables import ABLATION, ABLATION_ROWS

__all__ = ["BASES", "Ablation", "Base", "Trained", "latest_trainings", "trained_row"]

_HERE = Path(__file__).resolve().parent
ROWS = _HERE / "ablation"
DONE = "done.json"
_CALIBRATION_PAIRS = 48  # long enough that a moment's other work does not set a row's pairs
_NEVER = 1_000_000  # epochs between validations: none, as the last weights count and minutes are for training

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Base:
    """What an ablation is done on.

    Attributes:
        config: of the data set and its grid, beside the rows' folder.
        folder: of the data below their root; None for generated data.
        sets: data sets to measure on.
    """

    config: str
    folder: str | None
    sets: tuple[str, ...]


BASES = {
    "phantom": Base("phantom.json", None, ("phantom_longitudinal", "phantom_cross")),
    "hippocampus": Base("hippocampus.json", "Task04_Hippocampus", ("hippocampus",)),
}


class Trained(Ours):
    """A row's network, which tells of its training.

    Args:
        name: how tables call it.
        overrides: see `Ours`.
        files: see `Ours`.
        training: one line for the table.
    """

    def __init__(self, name: str, overrides: Mapping[str, Any], files: Sequence[Path], training: str) -> None:
        super().__init__(name, "fast", overrides, files)
        self.training = training

    def parameters(self) -> dict[str, Any]:
        """With the line about the training."""
        return {**super().parameters(), "training": self.training}


class Ablation:
    """Trains the rows, each once.

    Args:
        base: name in `BASES`.
        root: folder of the data sets; None where there is none.
        output: folder for the trainings.
        minutes: of processor time for each row, on this machine; other work beside it takes none of them.
        threads: CPU threads.
        seed: of the trainings.
        overrides: further config id → value for training and measuring, such as a smaller ``grid``.

    Raises:
        InputError: for an unknown base, data that are not there, or no minutes.
    """

    def __init__(
        self,
        base: str,
        root: Path | None,
        output: Path,
        minutes: float,
        threads: int = 1,
        seed: int = 0,
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        if base not in BASES:
            raise InputError(f"base={base}: not known; give one of {', '.join(BASES)}")
        if not minutes > 0:
            raise InputError(f"minutes={minutes}: give a positive number")
        self.name, self.base, self.minutes = base, BASES[base], minutes
        self.threads, self.seed = threads, seed
        self.overrides = dict(overrides or {})
        self.folder = _trainings(output, base) / f"{minutes:g}min"
        self.data = None
        if self.base.folder is not None:
            self.data = None if root is None else root / self.base.folder
            if self.data is None or not self.data.is_dir():
                raise InputError(f"{self.base.folder}: not found; name the folder of the data by --data or AVSM_DATA")

    def train(self, row: str) -> dict[str, Any]:
        """Train a row, and before it the one that it starts from; goes on with what a killed run has left.

        Returns:
            ``weights``, ``pairs``, ``minutes``, ``cpu_seconds`` (what it took; None where it went on from a killed
            run), ``seconds_per_pair`` (of processor time, of each phase, as planned).
        """
        folder = self.folder / row
        found = _read(folder / DONE)
        if found is not None:
            return found
        start = _starts_from(row)
        weights = None if start is None else self.train(start)["weights"]
        plan = _read(folder / "plan.json")
        if plan is None:
            plan = self._plan(row, weights)
            _write(folder / "plan.json", plan)
        logger.info(
            f"row {row}: {plan['epochs']} epochs of {plan['epoch_pairs']} pairs, about {self.minutes:g} minutes"
        )
        begin, whole = time.process_time(), not (folder / LAST).is_file()
        self._run(row, folder, weights, {"epoch_pairs": plan["epoch_pairs"]})
        found = {
            "weights": str(folder / LAST),
            "pairs": plan["epochs"] * plan["epoch_pairs"],
            "minutes": self.minutes,
            "cpu_seconds": time.process_time() - begin if whole else None,
            "seconds_per_pair": plan["seconds_per_pair"],
        }
        _write(folder / DONE, found)
        return found

    def method(self, row: str) -> Trained:
        """The trained row as a method; trains it if need be."""
        self.train(row)
        return trained_row(self.name, self.folder, row, self.overrides)

    def methods(self, rows: Sequence[str] = ABLATION_ROWS) -> dict[str, Trained]:
        """All rows that are asked for.

        Raises:
            InputError: for a row that is not of the table.
        """
        for row in rows:
            if row not in ABLATION_ROWS:
                raise InputError(f"rows={row}: not known; give some of {', '.join(ABLATION_ROWS)}")
        return {f"{ABLATION}{row}": self.method(row) for row in ABLATION_ROWS if row in rows}

    def _plan(self, row: str, weights: str | None) -> dict[str, Any]:
        """How many pairs an epoch may have so that all epochs take the minutes, from a few of each phase."""
        phases = ConfigParser.load_config_file(str(ROWS / f"{row}.json"))["phases"]
        short = [{**phase, "epochs": 1, "warmup_epochs": 0} for phase in phases]
        ends: dict[int, list[float]] = {}

        def note(engine: Engine) -> None:
            ends.setdefault(engine.state.epoch, []).append(time.process_time())

        with tempfile.TemporaryDirectory() as folder:
            overrides = {"phases": short, "epoch_pairs": _CALIBRATION_PAIRS}
            self._run(row, Path(folder), weights, overrides, note)
        # A batch may hold several pairs: the calibration's are spread over as many iterations as there are times.
        iterations = [(times[-1] - times[0]) / (len(times) - 1) for times in ends.values()]
        seconds = [one * len(times) / _CALIBRATION_PAIRS for one, times in zip(iterations, ends.values(), strict=True)]
        whole = sum(phase["epochs"] * one for phase, one in zip(phases, seconds, strict=True))
        return {
            "epochs": sum(phase["epochs"] for phase in phases),
            "epoch_pairs": max(1, int(60 * self.minutes / whole)),
            "seconds_per_pair": seconds,
        }

    def _run(
        self, row: str, folder: Path, weights: str | None, overrides: Mapping[str, Any], note: Any | None = None
    ) -> None:
        """One training in this process, resumed where ``folder`` holds one."""
        logging.getLogger(ConfigWorkflow.__module__).setLevel(logging.ERROR)
        workflow = ConfigWorkflow(
            config_file=[str(BUNDLE / "configs" / "train.json"), *map(str, _files(self.name, row))],
            meta_file=str(BUNDLE / "configs" / "metadata.json"),
            logging_file=False,
            workflow_type="train",
            bundle_root=str(BUNDLE),
            output_dir=str(folder),
            dataset_dir=None if self.data is None else str(self.data),
            initial_weights=weights,
            seed=self.seed,
            threads=self.threads,
            val_interval=_NEVER,
            **{**self.overrides, **overrides},
        )
        workflow.initialize()
        if note is not None:
            workflow.parser.get_parsed_content("train#trainer").add_event_handler(Events.ITERATION_COMPLETED, note)
        workflow.run()
        workflow.finalize()


def trained_row(base: str, folder: Path, row: str, overrides: Mapping[str, Any] | None = None) -> Trained:
    """A row that has been trained, as a method.

    Args:
        base: name in `BASES`.
        folder: of the rows' trainings.
        row: of `ABLATION_ROWS`.
        overrides: config ids; a row says of itself how many steps it tests with.
    """
    facts, start = _read(folder / row / DONE), _starts_from(row)
    spent = "" if facts["cpu_seconds"] is None else f" ({facts['cpu_seconds'] / 60:.1f})"
    text = f"{facts['minutes']:g}{spent} processor min, {facts['pairs']} pairs"
    if start is not None:
        text += f", from row {start}"
    overrides = {**(overrides or {}), "ckpt_path": str(folder / row / LAST)}
    return Trained(f"ablation {row}", overrides, _files(base, row), text)


def latest_trainings(output: Path, base: str, rows: Sequence[str]) -> Path | None:
    """The folder of the longest trainings of a base in which all these rows are done; None without one."""
    folders = [one for one in _trainings(output, base).glob("*min") if all((one / r / DONE).is_file() for r in rows)]
    return max(folders, key=lambda one: float(one.name.removesuffix("min")), default=None)


def _trainings(output: Path, base: str) -> Path:
    return Path(output).absolute() / "ablation" / base


def _files(base: str, row: str) -> list[Path]:
    """Config files that follow ``train.json`` or ``inference.json``: grid, data, network, row."""
    return [BUNDLE / "models" / "general.json", _HERE / "bases" / BASES[base].config, ROWS / f"{row}.json"]


def _starts_from(row: str) -> str | None:
    return ConfigParser.load_config_file(str(ROWS / f"{row}.json")).get("starts_from")


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
