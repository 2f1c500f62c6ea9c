"""MLflow: parameters, loss parts, measures, config, checkpoints and pictures of a training run."""

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
from .tables import batch_figure, make_output_dir

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
        self.output_dir = Path(output_dir)
        make_output_dir(self.output_dir / PICTURES)

    def attach(self, engine: Engine) -> None:
        """Register on a validator."""
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
    """The settings of a config as flat MLflow parameters: whatever is no component, reference or expression.

    Args:
        config: a bundle config.
        prefix: of the names.
    """
    flat: dict[str, str] = {}
    for key, value in config.items():
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


class TrainingTracker(MLFlowHandler):
    """MLflow handler of the trainer.

    Logs the executed config's settings as parameters, loss parts and learning rate every few iterations and their means
    every epoch, and at the end the config and the checkpoints as artifacts; then closes the run.

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
        super().__init__(
            tracking_uri=tracking_uri,
            experiment_name=experiment_name,
            run_name=run_name,
            iteration_log=True,
            output_transform=lambda output: output,
            close_on_complete=True,
        )
        self.output_dir = Path(output_dir)
        self.interval = max(1, int(interval))
        self.sums: dict[str, float] = {}
        self.count = 0

    def attach(self, engine: Engine) -> None:
        """Register on a trainer; a run that dies is closed as FAILED."""
        super().attach(engine)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self.fail)

    def start(self, engine: Engine) -> None:
        """Open (or, when resuming, reopen) the run and log the parameters."""
        super().start(engine)
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
        for path in checkpoint_files(self.output_dir):
            self.client.log_artifact(self.cur_run.info.run_id, str(path), "checkpoints")

    def fail(self, engine: Engine, error: BaseException) -> None:
        """Close the run as FAILED (KILLED when interrupted); the error goes on its way."""
        if self.cur_run is not None:
            status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
            self.client.set_terminated(self.cur_run.info.run_id, status)
            self.cur_run = None
        raise error


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
