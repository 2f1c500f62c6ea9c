"""MLflow: parameters, loss parts, measures, config, checkpoints and pictures of a run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.handlers import MLFlowHandler
from monai.utils import path_to_sqlite_uri

from ..report import save_figure
from .checkpoints import checkpoint_files
from .processes import is_first
from .progress import on_exception
from .tables import PAIRS, SUMMARY, batch_figure, make_output_dir

PICTURES = "pictures"
# MLflow refuses longer parameter values.
LONGEST_PARAMETER = 6000


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


def flat_parameters(config: dict, prefix: str = "") -> dict[str, str]:
    """The settings of a config as flat MLflow parameters: whatever is no component, reference, expression or metadata.

    Args:
        config: a bundle config.
        prefix: of the names.
    """
    flat: dict[str, str] = {}
    for key, value in config.items():
        if key == "_meta_":
            continue
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            flat.update(flat_parameters(value, f"{name}."))
        elif isinstance(value, list):
            text = json.dumps(value)
            if "_target_" not in text and '"$' not in text and '"@' not in text:
                flat[name] = text[:LONGEST_PARAMETER]
        elif not (isinstance(value, str) and (value.startswith(("$", "@", "%")) or key == "_target_")):
            flat[name] = str(value)[:LONGEST_PARAMETER]
    return flat


class RunTracker(MLFlowHandler):
    """What the handlers of trainer and evaluator share: parameters, the config as artifact, and how a run ends.

    Args:
        output_dir: the folder of the run.
        tracking_uri: as of MONAI's handler.
        experiment_name: as of MONAI's handler.
        run_name: as of MONAI's handler; of its own for each run.
        options: further arguments of MONAI's handler.
    """

    def __init__(
        self, output_dir: str | os.PathLike, tracking_uri: str, experiment_name: str, run_name: str, **options: Any
    ) -> None:
        super().__init__(
            tracking_uri=tracking_uri,
            experiment_name=experiment_name,
            run_name=run_name,
            close_on_complete=True,
            **options,
        )
        self.output_dir = Path(output_dir)

    def attach(self, engine: Engine) -> None:
        """Register on an engine; a run that dies is closed as FAILED."""
        super().attach(engine)
        on_exception(engine, self.fail)

    def start(self, engine: Engine) -> None:
        """Open (or, when resuming, reopen) the run and log the parameters."""
        if engine.should_terminate and not self.is_open():
            # A complete run that is asked for again: nothing is done, so nothing is logged.
            return
        super().start(engine)
        self.client.update_run(self.cur_run.info.run_id, status="RUNNING")
        config = executed_config(self.output_dir)
        parameters: dict[str, Any] = {"torch": torch.__version__, "device": str(engine.state.device)}
        if config is not None:
            parameters.update(flat_parameters(json.loads(config.read_text())))
            self.client.log_artifact(self.cur_run.info.run_id, str(config), "config")
        self._delete_exist_param_in_dict(parameters)
        names = list(parameters)
        # MLflow takes at most 100 parameters a call.
        for first in range(0, len(names), 100):
            self._log_params({name: parameters[name] for name in names[first : first + 100]})

    def is_open(self) -> bool:
        """Whether the store holds a run of this name that was not closed as finished."""
        self._set_experiment()
        runs = self.client.search_runs(self.experiment.experiment_id)
        return any(run.info.run_name == self.run_name and run.info.status != self.run_finish_status for run in runs)

    def fail(self, engine: Engine, error: BaseException) -> None:
        """Close the run as FAILED (KILLED when interrupted)."""
        if self.cur_run is not None:
            status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
            self.client.set_terminated(self.cur_run.info.run_id, status)
            self.cur_run = None


class TrainingTracker(RunTracker):
    """MLflow handler of the trainer.

    Logs the executed config's settings as parameters, loss parts every few iterations, their means and the learning
    rate every epoch, and at the end the checkpoints as artifacts; then closes the run.

    Args:
        output_dir: the folder of the run.
        tracking_uri: as of MONAI's handler.
        experiment_name: as of MONAI's handler.
        run_name: as of MONAI's handler; of its own for each run.
        interval: iterations between two logged losses.
    """

    def __init__(
        self, output_dir: str | os.PathLike, tracking_uri: str, experiment_name: str, run_name: str, interval: int = 10
    ) -> None:
        super().__init__(output_dir, tracking_uri, experiment_name, run_name)
        self.interval = max(1, int(interval))
        self.sums: dict[str, float] = {}
        self.count = 0

    def iteration_completed(self, engine: Engine) -> None:
        """Add up the loss parts; log them now and then."""
        for name, value in engine.state.output.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
        self.count += 1
        if engine.state.iteration % self.interval == 0:
            self._log_metrics(
                {f"train/{name}": float(value) for name, value in engine.state.output.items()},
                step=engine.state.iteration,
            )

    def epoch_completed(self, engine: Engine) -> None:
        """Log the epoch's means and its learning rate."""
        means = {f"train_epoch/{name}": value / self.count for name, value in self.sums.items()}
        means["train_epoch/learning_rate"] = engine.optimizer.param_groups[0]["lr"]
        self._log_metrics(means, step=engine.state.epoch)
        self.sums, self.count = {}, 0

    def complete(self) -> None:
        """Log the checkpoints."""
        if self.cur_run is None:
            return
        for path in checkpoint_files(self.output_dir):
            self.client.log_artifact(self.cur_run.info.run_id, str(path), "checkpoints")


class ValidationTracker(MLFlowHandler):
    """MLflow handler of the validator: the means of all measures, and the picture of one pair, at every validation.

    Args:
        output_dir: the folder of the run.
        tracking_uri: as of MONAI's handler.
        experiment_name: as of MONAI's handler.
        run_name: the trainer's.
    """

    def __init__(self, output_dir: str | os.PathLike, tracking_uri: str, experiment_name: str, run_name: str) -> None:
        super().__init__(
            tracking_uri=tracking_uri, experiment_name=experiment_name, run_name=run_name, iteration_log=False
        )
        self.output_dir = Path(output_dir)

    def epoch_completed(self, engine: Engine) -> None:
        """Log measures and picture."""
        self._log_metrics(
            {f"validation/{name}": value for name, value in engine.state.metrics.items() if value == value},
            step=engine.state.epoch,
        )
        picture = picture_path(self.output_dir, engine.state.epoch)
        if picture.is_file():
            self.client.log_artifact(self.cur_run.info.run_id, str(picture), PICTURES)


class EvaluationTracker(RunTracker):
    """MLflow handler of an evaluation or inference: a run of its own, with the table of pairs and its means.

    Place it after the `PairTable` that writes the files.

    Args:
        output_dir: the folder of the run.
        tracking_uri: as of MONAI's handler.
        experiment_name: as of MONAI's handler.
        run_name: as of MONAI's handler; of its own for each run.
    """

    def __init__(self, output_dir: str | os.PathLike, tracking_uri: str, experiment_name: str, run_name: str) -> None:
        super().__init__(output_dir, tracking_uri, experiment_name, run_name, iteration_log=False, epoch_log=False)

    def complete(self) -> None:
        """Log what the table says."""
        summary = json.loads((self.output_dir / SUMMARY).read_text())
        means = {name: summary[name] for name in summary if isinstance(summary.get(f"{name}_std"), float)}
        self._log_metrics({f"evaluation/{name}": value for name, value in means.items()})
        for name in (SUMMARY, PAIRS):
            self.client.log_artifact(self.cur_run.info.run_id, str(self.output_dir / name))
