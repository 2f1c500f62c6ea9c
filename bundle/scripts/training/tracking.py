"""Tracking: parameters, loss parts, measures, config, checkpoints, pictures and the model of a run go to MLflow.

MONAI's ``MLFlowHandler`` stops a run when its server does not answer, and waits for minutes first. So these handlers
write the run's own log (`Journal`), and a `Sender` takes it to the server as far as that answers.
"""

from __future__ import annotations

import getpass
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.utils import path_to_sqlite_uri

from ..errors import InputError
from ..metrics.summary import PAIRS, SUMMARY
from ..processes import is_first
from ..report import save_figure
from ..storage import make_output_dir
from ..tracking import Journal, Sender, checked_uri, inference_settings
from .checkpoints import BEST, checkpoint_files
from .progress import on_exception
from .tables import batch_figure

PICTURES = "pictures"
# MLflow's comparison of runs shows files that all of them have under one name, outside of folders.
CONFIG, PICTURE = "config.json", "validation.png"
# What says where a run is and what it is called, and decides nothing in it.
BOOKKEEPING = (
    "bundle_root",
    "output_dir",
    "tracking_uri",
    "experiment_name",
    "run_name",
    "registered_model",
    "save_execute_config",
    "finalize",
    "tracks_cohort",
)


def sqlite_uri(output_dir: str | os.PathLike) -> str:
    """Tracking URI of the SQLite store ``mlruns.db`` in a folder, which is created if need be."""
    return path_to_sqlite_uri(str(make_output_dir(output_dir) / "mlruns.db"))


def picture_path(output_dir: str | os.PathLike, epoch: int) -> Path:
    """Where the picture of an epoch's validation lies."""
    return Path(output_dir) / PICTURES / f"validation_{epoch:04d}.png"


class ValidationPicture:
    """Saves the picture of the first validation pair, with its deformation grid, at every validation.

    Args:
        output_dir: the folder of the run; pictures go to its ``pictures``.
    """

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


def executed_config(output_dir: str | os.PathLike) -> Path | None:
    """The newest config that a tracked run has saved into its folder (MONAI writes ``config_<time>.json``)."""
    files = sorted(Path(output_dir).glob("config_*.json"), key=lambda path: path.stat().st_mtime)
    return files[-1] if files else None


def flat_parameters(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """The settings of a config as flat MLflow parameters: whatever is no component, reference, expression or metadata.

    Args:
        config: a bundle config.
        prefix: of the names.

    Returns:
        Name → value. Parts are joined by dots; items of a list that have names, such as phases, go by these.
    """
    flat: dict[str, str] = {}
    for key, value in config.items():
        if key == "_meta_":
            continue
        name = f"{prefix}{key}"
        if _is_named_list(value):
            value = {item["name"]: {k: v for k, v in item.items() if k != "name"} for item in value}
        if isinstance(value, dict):
            flat.update(flat_parameters(value, f"{name}."))
        elif isinstance(value, list):
            text = json.dumps(value)
            if "_target_" not in text and '"$' not in text and '"@' not in text:
                flat[name] = text
        elif key != "_disabled_" and not (
            isinstance(value, str) and (value.startswith(("$", "@", "%")) or key == "_target_")
        ):
            flat[name] = str(value)
    return flat


def _is_named_list(value: object) -> bool:
    """Whether a value is a list of dicts that all have names, each its own."""
    if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
        return False
    names = [item.get("name") for item in value]
    return all(isinstance(name, str) for name in names) and len(set(names)) == len(names)


class RunTracker:
    """What the handlers of trainer and evaluator share: parameters, the config as artifact, and how a run ends.

    Args:
        output_dir: the folder of the run.
        tracking_uri: of an MLflow server or database; ``MLFLOW_TRACKING_URI`` goes before it.
        experiment_name: MLflow's experiment.
        run_name: of the run; of its own for each run.

    Raises:
        InputError: for a tracking URI that cannot be used.
    """

    kind = "run"

    def __init__(self, output_dir: str | os.PathLike, tracking_uri: str, experiment_name: str, run_name: str) -> None:
        self.output_dir = Path(output_dir)
        self.tracking_uri = checked_uri(tracking_uri)
        self.experiment_name = experiment_name
        self.run_name = run_name
        self.journal: Journal | None = None
        self.sender: Sender | None = None

    def attach(self, engine: Engine) -> None:
        """Register on an engine; a run that dies is closed as FAILED."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.COMPLETED, self.close)
        on_exception(engine, self.fail)

    def start(self, engine: Engine) -> None:
        """Open the run (or, when resuming, go on in it) and log the parameters."""
        journal = Journal.find(self.output_dir, self.run_name)
        if engine.should_terminate and (journal is None or journal.finished):
            # A complete run that is asked for again: nothing is done, so nothing is logged.
            if journal is not None:
                Sender(journal, self.tracking_uri).flush()
            return
        if journal is None or journal.finished:
            tags = {"mlflow.source.name": self.kind, "mlflow.source.type": "LOCAL", "mlflow.user": _user()}
            tags["output_dir"] = str(self.output_dir.resolve())
            journal = Journal.create(self.output_dir, self.run_name, self.experiment_name, tags)
        self.journal, self.sender = journal, Sender(journal, self.tracking_uri)
        journal.log_status("RUNNING")
        config = executed_config(self.output_dir)
        parameters: dict[str, Any] = {"torch": torch.__version__, "device": str(engine.state.device)}
        for name in ("max_epochs", "epoch_length"):
            parameters[name] = getattr(engine.state, name, None)
        if config is not None:
            settings = json.loads(config.read_text())
            parameters.update(flat_parameters({k: v for k, v in settings.items() if k not in BOOKKEEPING}))
            journal.log_artifact(config, name=CONFIG)
        journal.log_params(parameters)
        self.sender.flush(force=True)

    def complete(self) -> None:
        """Log what there is at the end of a run."""

    def close(self) -> None:
        """Log the end of the run."""
        if self.journal is not None:
            self.complete()
            self.journal.log_status("FINISHED")
            self._end()

    def fail(self, engine: Engine, error: BaseException) -> None:
        """Close the run as FAILED (KILLED when interrupted)."""
        if self.journal is not None:
            interrupted = isinstance(error, KeyboardInterrupt)
            self.journal.log_status("KILLED" if interrupted else "FAILED")
            self._end(force=not interrupted)

    def _end(self, force: bool = True) -> None:
        self.sender.finish(force)
        self.journal = self.sender = None


class TrainingTracker(RunTracker):
    """MLflow handler of the trainer.

    Logs the executed config's settings as parameters, loss parts every few iterations, their means and the learning
    rate every epoch, and at the end the checkpoints as artifacts; registers the best weights as a model; then closes
    the run.

    Args:
        output_dir: the folder of the run.
        tracking_uri: as of `RunTracker`.
        experiment_name: as of `RunTracker`.
        run_name: as of `RunTracker`.
        registered_model: name under which the best weights are registered at the end; None registers nothing.
        interval: iterations between two logged losses.
    """

    kind = "training"

    def __init__(
        self,
        output_dir: str | os.PathLike,
        tracking_uri: str,
        experiment_name: str,
        run_name: str,
        registered_model: str | None = None,
        interval: int = 10,
    ) -> None:
        super().__init__(output_dir, tracking_uri, experiment_name, run_name)
        self.registered_model = registered_model
        self.interval = max(1, int(interval))
        self.sums: dict[str, float] = {}
        self.count = 0

    def attach(self, engine: Engine) -> None:
        """Register on a trainer."""
        super().attach(engine)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.iteration_completed)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)

    def start(self, engine: Engine) -> None:
        """Open the run.

        Raises:
            InputError: when a model is to be registered, and the config that says how it is built is not saved.
        """
        if self.registered_model and executed_config(self.output_dir) is None:
            raise InputError(
                f"registered_model={self.registered_model}: needs the run's config in {self.output_dir}; "
                "set save_execute_config to true"
            )
        super().start(engine)

    def iteration_completed(self, engine: Engine) -> None:
        """Add up the loss parts; log them now and then."""
        values = {name: float(value) for name, value in engine.state.output.items()}
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1
        if engine.state.iteration % self.interval == 0:
            self.journal.log_metrics({f"train/{name}": value for name, value in values.items()}, engine.state.iteration)
            self.sender.flush()

    def epoch_completed(self, engine: Engine) -> None:
        """Log the epoch's means and its learning rate."""
        means = {f"train_epoch/{name}": value / self.count for name, value in self.sums.items()}
        means["train_epoch/learning_rate"] = engine.optimizer.param_groups[0]["lr"]
        self.journal.log_metrics(means, engine.state.epoch)
        self.sender.flush()
        self.sums, self.count = {}, 0

    def complete(self) -> None:
        """Log the checkpoints, and the model."""
        for path in checkpoint_files(self.output_dir):
            self.journal.log_artifact(path, "checkpoints")
        if self.registered_model:
            settings = inference_settings(json.loads(executed_config(self.output_dir).read_text()))
            self.journal.log_model(self.output_dir / BEST, self.registered_model, settings)


class ValidationTracker:
    """MLflow handler of the validator: the means of all measures, and the picture of one pair, at every validation.

    It writes into the trainer's log, which the trainer sends.

    Args:
        output_dir: the folder of the run.
        run_name: the trainer's.
    """

    def __init__(self, output_dir: str | os.PathLike, run_name: str) -> None:
        self.output_dir = Path(output_dir)
        self.run_name = run_name
        self.journal: Journal | None = None

    def attach(self, engine: Engine) -> None:
        """Register on a validator."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)

    def epoch_completed(self, engine: Engine) -> None:
        """Log measures and picture."""
        # The trainer has opened it by now.
        journal = self.journal = self.journal or Journal.find(self.output_dir, self.run_name)
        measures = {_measure_name(name): value for name, value in engine.state.metrics.items() if value == value}
        journal.log_metrics(measures, engine.state.epoch)
        picture = picture_path(self.output_dir, engine.state.epoch)
        if picture.is_file():
            # As a series for the charts, and the newest as a file for MLflow's comparison of runs.
            journal.log_image(picture, "validation", engine.state.epoch)
            journal.log_artifact(picture, name=PICTURE)


class EvaluationTracker(RunTracker):
    """MLflow handler of an evaluation or inference: a run of its own, with the table of pairs and its means.

    Place it after the `PairTable` that writes the files. Arguments as of `RunTracker`.
    """

    kind = "evaluation"

    def complete(self) -> None:
        """Log what the table says."""
        summary = json.loads((self.output_dir / SUMMARY).read_text())
        means = {name: summary[name] for name in summary if isinstance(summary.get(f"{name}_std"), float)}
        self.journal.log_metrics({f"evaluation/{name}": value for name, value in means.items()}, 0)
        for name in (SUMMARY, PAIRS):
            self.journal.log_artifact(self.output_dir / name)


def _measure_name(name: str) -> str:
    """The name of a measure of validation; those of single labels make a group of their own in the charts."""
    return f"validation_labels/{name}" if re.fullmatch(r"dice_\w+_\d+", name) else f"validation/{name}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        return "unknown"
