"""Tracking: parameters, loss parts, measures, config, checkpoints, pictures and the model of a run go to MLflow.

MONAI's ``MLFlowHandler`` stops a run when its server does not answer, and waits for minutes first. So the handlers
write into a database in the run's own folder, and copy it to a server as far as that answers.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from ignite.engine import Engine
from monai.handlers import MLFlowHandler

from ..errors import InputError
from ..metrics.summary import PAIRS, SUMMARY
from ..processes import is_first
from ..settings import PACKAGE
from ..storage import atomic_path, claimed, make_output_dir
from ..tracking import (
    MODEL_TAG,
    Copy,
    checked_uri,
    complete,
    connect,
    executed_config,
    experiment_id,
    own_store,
    reason,
    shown,
)
from .checkpoints import LAST, checkpoint_files
from .handlers import on_exception, picture_path

if TYPE_CHECKING:
    from mlflow.entities import Run

# MLflow's comparison of runs shows files that all of them have under one name, outside of folders.
CONFIG, PICTURE = "config.json", "validation.png"
# What says where a run is and what it is called, and decides nothing in it.
BOOKKEEPING = {"bundle_root", "output_dir", "tracking_uri", "experiment_name", "run_name", "registered_model"}
BOOKKEEPING |= {"save_execute_config", "finalize", "tracks_batch", "_meta_", "_disabled_", "_target_"}
_LONGEST = 6000  # characters, MLflow's limit for one parameter
_INTERVAL = 10  # iterations between two logs of loss parts
RUN_NAME = "mlflow_run_name.txt"
logger = logging.getLogger(__name__)


def run_name(output_dir: str | os.PathLike) -> str:
    """Name of the MLflow run of an output folder: new for a new run, the same again when a run goes on.

    It begins with the folder's name. A training goes on as long as it has a checkpoint; what was killed before that, or
    has none, has left the name and an open run of MLflow behind, which goes on as well. Of several processes the first
    tracks the run; the others, whose trackers are switched off, get a name that nothing is kept under. InputError when
    another run is writing to the folder.
    """
    if not is_first():
        return "another process"
    folder = make_output_dir(output_dir)
    file = folder / RUN_NAME
    with claimed(folder):
        if file.is_file():
            return file.read_text(encoding="utf-8").strip()
        # A name of its own keeps a run from joining one that was left open.
        name = f"{folder.resolve().name}_{time.strftime('%Y%m%d_%H%M%S')}_{uuid.uuid4().hex[:8]}"
        with atomic_path(file) as path:
            path.write_text(name + "\n", encoding="utf-8")
    return name


def forget_run(output_dir: str | os.PathLike) -> None:
    """Let the next run of a folder be a new one of MLflow, unless it is a training that goes on from a checkpoint."""
    folder = Path(output_dir)
    if not (folder / LAST).is_file():
        (folder / RUN_NAME).unlink(missing_ok=True)


def flat_parameters(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """The settings of a config as flat MLflow parameters: whatever is no component, reference, expression or metadata.

    Parts of a name are joined by dots; items of a list that have names, such as phases, go by these.
    """
    flat: dict[str, str] = {}
    for key, value in config.items():
        if key in BOOKKEEPING:
            continue
        if isinstance(value, list) and value and all(isinstance(item, dict) and "name" in item for item in value):
            named = {str(item["name"]): {k: v for k, v in item.items() if k != "name"} for item in value}
            value = named if len(named) == len(value) else value
        if isinstance(value, dict):
            flat.update(flat_parameters(value, f"{prefix}{key}."))
            continue
        text = json.dumps(value) if isinstance(value, list) else str(value)
        if not re.search(r'(^|")[$@%]|_target_', text):
            flat[f"{prefix}{key}"] = text
    return flat


def _kept(method: Callable) -> Callable:
    """A method that writes into the folder's store; what that raises, on a full disk, becomes one line."""

    @functools.wraps(method)
    def call(self: _FolderHandler, *args: Any, **options: Any) -> Any:
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            return method(self, *args, **options)
        except (MlflowException, SQLAlchemyError, OSError) as error:
            raise InputError(
                f"{self.output_dir}: the run's log (mlruns.db, mlruns) cannot be written ({reason(error)}); see that "
                "the disk is not full and the folder writable, and run the same again"
            ) from error

    return call


class _FolderHandler(MLFlowHandler):
    """MONAI's handler on the store in a run's folder (`own_store`); a run that is resumed goes on where it was."""

    def __init__(self, output_dir: str | os.PathLike, experiment_name: str, run_name: str, **options: Any) -> None:
        self.output_dir = Path(output_dir)
        self.uri = own_store(output_dir)
        super().__init__(self.uri, experiment_name=experiment_name, run_name=run_name, **options)
        # MLFLOW_TRACKING_URI, which MONAI prefers, says where the copy goes.
        self.client = connect(self.uri)
        self.steps: dict[str, int] = {}

    @_kept
    def start(self, engine: Engine) -> None:
        """Open the run, or go on in it."""
        if self.cur_run is None:
            super().start(engine)
            run = self.client.get_run(self.cur_run.info.run_id)
            for name in run.data.metrics:
                history = self.client.get_metric_history(run.info.run_id, name)
                self.steps[name] = max(point.step for point in history)

    @_kept
    def log_file(self, path: Path, name: str) -> None:
        """Log a file under another name."""
        with tempfile.TemporaryDirectory() as folder:
            self.client.log_artifact(self.cur_run.info.run_id, shutil.copyfile(path, Path(folder) / name))

    def is_new(self, name: str, step: int) -> bool:
        """Whether a metric has no value yet at a step; what a resumed run does a second time has the same values."""
        return step > self.steps.get(name, -1)

    def _set_experiment(self) -> None:
        self.experiment = self.client.get_experiment(experiment_id(self.client, self.uri, self.experiment_name))

    @_kept
    def _log_params(self, params: Mapping[str, Any]) -> None:
        # One that is there keeps its first value, as MLflow wants it.
        there = self.client.get_run(self.cur_run.info.run_id).data.params
        names = _parameter_names(params)
        super()._log_params({name: value[:_LONGEST] for name, value in names.items() if name not in there})

    @_kept
    def _log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        new = {name: float(value) for name, value in metrics.items() if self.is_new(name, step)}
        super()._log_metrics(new, step)
        self.steps.update(dict.fromkeys(new, step))


class RunTracker(_FolderHandler):
    """What the handlers of trainer and evaluator share: parameters, the config as artifact, how a run ends, its copy.

    Args:
        output_dir: the folder of the run.
        tracking_uri: of an MLflow server or database that gets a copy; ``MLFLOW_TRACKING_URI`` goes before it. A server
            that does not answer is told of once, and asked again when the run ends.
        experiment_name: MLflow's experiment.
        run_name: of the run; of its own for each run.
    """

    kind = "run"

    def __init__(
        self, output_dir: str | os.PathLike, tracking_uri: str, experiment_name: str, run_name: str, **options: Any
    ) -> None:
        self.tracking_uri = checked_uri(tracking_uri)
        super().__init__(output_dir, experiment_name, run_name, close_on_complete=True, **options)
        self.copy: Copy | None = None
        self.away = False
        self.tags: dict[str, str] = {}

    def attach(self, engine: Engine) -> None:
        """Register on an engine, after what writes the files; a run that dies is closed as FAILED."""
        super().attach(engine)
        on_exception(engine, self.fail)

    @_kept
    def start(self, engine: Engine) -> None:
        """Open the run (or, when resuming, go on in it) and log the parameters."""
        self._set_experiment()
        runs = self.client.search_runs(self.experiment.experiment_id)
        runs = [run for run in runs if run.info.run_name == self.run_name]
        if engine.should_terminate and all(run.info.status == "FINISHED" for run in runs):
            # A complete run that is asked for again: nothing is done, so nothing is logged; but its copy may lack some.
            for run in runs[:1]:
                self.copy = Copy(self.output_dir, run.info.run_id, self.tracking_uri)
                self.send(last=True)
            return
        config = executed_config(self.output_dir)
        settings = {} if config is None else flat_parameters(complete(json.loads(config.read_text(encoding="utf-8"))))
        self.experiment_param = {"torch": torch.__version__, "device": str(engine.state.device), **settings}
        if engine.state.epoch == 0:
            self._leave_others(run for run in runs if run.info.status == "RUNNING")
        super().start(engine)
        run_id = self.cur_run.info.run_id
        self.client.update_run(run_id, status="RUNNING")
        tags = {"mlflow.source.name": self.kind, "mlflow.source.type": "LOCAL", "output_dir": self.output_dir.resolve()}
        for name, value in {**tags, "mlflow.user": os.environ.get("USER", "unknown"), **self.tags}.items():
            self.client.set_tag(run_id, name, value)
        if config is not None:
            self.log_file(config, CONFIG)
        self.copy = Copy(self.output_dir, run_id, self.tracking_uri)
        self.send()

    def _leave_others(self, runs: Iterable[Run]) -> None:
        """Close runs that were killed before there was anything to go on from, and had other settings."""
        for run in runs:
            wanted = {name: value[:_LONGEST] for name, value in _parameter_names(self.experiment_param).items()}
            if any(run.data.params.get(name, value) != value for name, value in wanted.items()):
                self.client.set_terminated(run.info.run_id, "KILLED")
                self.client.update_run(run.info.run_id, name=f"{self.run_name}_killed")

    @_kept
    def close(self) -> None:
        """Close the run, and complete its copy."""
        if self.cur_run is not None:
            super().close()
            forget_run(self.output_dir)
            self.send(last=self.run_finish_status != "KILLED")

    def fail(self, engine: Engine, error: BaseException) -> None:
        """Close the run as FAILED (KILLED when interrupted)."""
        self.run_finish_status = "KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED"
        try:
            self.close()
        except InputError as fault:  # what the run died of is to be told
            logger.warning(f"warning: {fault}")

    def send(self, last: bool = False) -> None:
        """Bring the copy up to date without ever stopping the run; a server that was away is asked again at the end."""
        if self.away and not last:
            return
        try:
            self.copy.send()
        except Exception as error:  # whatever the client and its libraries raise
            what = f"warning: MLflow at {shown(self.tracking_uri)}"
            if not self.away:
                logger.warning(
                    f"{what} does not answer ({reason(error)}); the run goes on, and keeps its log in {self.output_dir}"
                )
            self.away = True
            if last:
                logger.warning(
                    f"{what} does not have all of the run; send it later by "
                    f"python -m {PACKAGE}.tracking upload {self.output_dir} --tracking-uri {shown(self.tracking_uri)}"
                )


class TrainingTracker(RunTracker):
    """MLflow handler of the trainer; arguments as of `RunTracker`.

    Logs loss parts every `_INTERVAL` iterations, their means and the learning rate every epoch, and at the end the
    checkpoints as artifacts; registers the best weights as a model of the name ``registered_model``, if any.
    """

    kind = "training"

    def __init__(self, *run: Any, registered_model: str | None = None, **options: Any) -> None:
        super().__init__(*run, **options)
        self.tags = {MODEL_TAG: registered_model} if registered_model else {}
        self.sums: dict[str, float] = {}
        self.count = 0

    def start(self, engine: Engine) -> None:
        """Open the run; InputError when a model is to be registered without the config that says how it is built."""
        if self.tags and executed_config(self.output_dir) is None:
            raise InputError(
                f"registered_model={self.tags[MODEL_TAG]}: needs the run's config in {self.output_dir}; "
                "set save_execute_config to true"
            )
        super().start(engine)

    def iteration_completed(self, engine: Engine) -> None:
        """Add up the loss parts; log them now and then."""
        for name, value in engine.state.output.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1
        if engine.state.iteration % _INTERVAL == 0:
            values = {f"train/{name}": value for name, value in engine.state.output.items()}
            self._log_metrics(values, engine.state.iteration)

    def epoch_completed(self, engine: Engine) -> None:
        """Log the epoch's means and its learning rate."""
        means = {f"train_epoch/{name}": value / self.count for name, value in self.sums.items()}
        means["train_epoch/learning_rate"] = engine.optimizer.param_groups[0]["lr"]
        self._log_metrics(means, engine.state.epoch)
        self.sums, self.count = {}, 0
        self.send()

    @_kept
    def complete(self) -> None:
        """Log the checkpoints."""
        if self.cur_run is not None:
            for path in checkpoint_files(self.output_dir):
                self.client.log_artifact(self.cur_run.info.run_id, str(path), "checkpoints")


class ValidationTracker(_FolderHandler):
    """MLflow handler of the validator: the means of all measures, and the picture of one pair, at every validation.

    It logs into the trainer's run, which the trainer opens, copies and closes; arguments as of that.
    """

    def __init__(self, output_dir: str | os.PathLike, experiment_name: str, run_name: str) -> None:
        super().__init__(output_dir, experiment_name, run_name, iteration_log=False)

    @_kept
    def epoch_completed(self, engine: Engine) -> None:
        """Log measures and picture."""
        epoch = engine.state.epoch
        measures = {_measure_name(name): value for name, value in engine.state.metrics.items() if value == value}
        new = any(self.is_new(name, epoch) for name in measures)
        self._log_metrics(measures, epoch)
        picture = picture_path(self.output_dir, epoch)
        if new and picture.is_file():
            import PIL.Image

            # As a series for the charts, and the newest as a file for MLflow's comparison of runs.
            with PIL.Image.open(picture) as image:
                run_id = self.cur_run.info.run_id
                self.client.log_image(run_id, image, key="validation", step=epoch, synchronous=True)
            self.log_file(picture, PICTURE)


class EvaluationTracker(RunTracker):
    """MLflow handler of an evaluation or a batch of registrations: a run of its own, with the table of pairs.

    Place it after what writes the table. Arguments as of `RunTracker`.
    """

    kind = "evaluation"

    def __init__(self, *run: Any, **options: Any) -> None:
        super().__init__(*run, **options, iteration_log=False, epoch_log=False)

    @_kept
    def complete(self) -> None:
        """Log the table and its means."""
        summary = json.loads((self.output_dir / SUMMARY).read_text(encoding="utf-8"))
        means = {name: summary[name] for name in summary if isinstance(summary.get(f"{name}_std"), float)}
        self._log_metrics({f"evaluation/{name}": value for name, value in means.items()}, 0)
        for name in (SUMMARY, PAIRS):
            self.client.log_artifact(self.cur_run.info.run_id, str(self.output_dir / name))


def _parameter_names(params: Mapping[str, Any]) -> dict[str, str]:
    """Parameters by names that MLflow allows, as text."""
    return {re.sub(r"[^\w./ -]", "_", name): str(value) for name, value in params.items()}


def _measure_name(name: str) -> str:
    """The name of a measure of validation; those of single labels make a group of their own in the charts."""
    return f"validation_labels/{name}" if re.fullmatch(r"dice_\w+_\d+", name) else f"validation/{name}"
