"""The store in a run's folder, which is never away, and copies of its runs on servers and in databases."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ..errors import InputError
from .model import inference_settings, log_model
from .server import checked_uri, connect, experiment_id, one_line, sqlite_uri

BEST = "model.pt"
MODEL_TAG = "avsm.registered_model"
"""Tag of a run whose weights are to be registered at its end: the model's name."""
_RUN_TAG = "avsm.run"


def executed_config(output_dir: str | os.PathLike) -> Path | None:
    """The newest whole config that a tracked run has saved into its folder, by its name, which holds the time."""
    for path in sorted(Path(output_dir).glob("config_*.json"), reverse=True):
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            continue  # a killed run's
        return path
    return None


class Copy:
    """The copy of one run of a folder's store in another store. It can be sent at any time; nothing arrives twice.

    Args:
        output_dir: the folder of the run.
        run_id: in the folder's own store.
        tracking_uri: of the other store, see `checked_uri`; the folder's own needs no copy.
    """

    def __init__(self, output_dir: str | os.PathLike, run_id: str, tracking_uri: str) -> None:
        self.output_dir = Path(output_dir)
        self.run_id = run_id
        self.uri = tracking_uri
        self.source = connect(sqlite_uri(output_dir))
        self._sent: dict[Path, int] = {}
        self._newest = 0

    def send(self) -> str:
        """Send what has not been sent, and register a finished run's weights if it asks for it; returns the id there.

        Whatever MLflow and its libraries raise when a server does not answer, goes on to the caller.
        """
        run, there = self.source.get_run(self.run_id), self.run_id
        target = self.source
        if self.uri != sqlite_uri(self.output_dir):
            target = connect(self.uri)
            there = self._open(target, run)
            self._send_values(target, run, there)
            self._send_files(target, there)
            if run.info.status == "RUNNING":
                target.update_run(there, status="RUNNING")
            else:
                target.set_terminated(there, run.info.status, run.info.end_time)
        name = run.data.tags.get(MODEL_TAG)
        if name is not None and run.info.status == "FINISHED":
            log_model(target, self.uri, self.output_dir / BEST, _settings(self.output_dir), name, there)
        return there

    def _open(self, target, run) -> str:
        experiment = experiment_id(target, self.uri, self.source.get_experiment(run.info.experiment_id).name)
        found = target.search_runs([experiment], f"tags.`{_RUN_TAG}` = '{self.run_id}'", max_results=1)
        if found:
            return found[0].info.run_id
        self._sent, self._newest = {}, 0
        tags = {**run.data.tags, _RUN_TAG: self.run_id}
        return target.create_run(experiment, run.info.start_time, tags, run.info.run_name).info.run_id

    def _send_values(self, target, run, there: str) -> None:
        from mlflow.entities import Metric, Param, RunTag

        known = target.get_run(there).data.params
        points = [
            Metric(point.key, point.value, point.timestamp, point.step)
            for name in run.data.metrics
            for point in self.source.get_metric_history(self.run_id, name)
            if point.timestamp >= self._newest
        ]
        parameters = [Param(name, value) for name, value in run.data.params.items() if name not in known]
        target.log_batch(there, points, parameters, [RunTag(name, value) for name, value in run.data.tags.items()])
        # A value that is sent a second time, at the same moment, MLflow keeps once.
        self._newest = max((point.timestamp for point in points), default=self._newest)

    def _send_files(self, target, there: str) -> None:
        # Not MLflow's own listing: the folder may have been moved since.
        root = self.output_dir / "mlruns" / self.run_id / "artifacts"
        for path in sorted(path for path in root.rglob("*") if path.is_file()):
            changed = path.stat().st_mtime_ns
            if self._sent.get(path) != changed:
                folder = path.relative_to(root).parent.as_posix()
                target.log_artifact(there, str(path), None if folder == "." else folder)
                self._sent[path] = changed


def _settings(output_dir: Path) -> dict:
    return inference_settings(json.loads(executed_config(output_dir).read_text(encoding="utf-8")))


def upload(output_dir: str | os.PathLike, tracking_uri: str) -> dict[str, str]:
    """Copy all runs of a folder's store; returns run id in it → run id there, oldest first.

    InputError when there is no run, or the server does not take one.
    """
    folder = Path(output_dir)
    if not (folder / "mlruns.db").is_file():
        raise InputError(f"{folder}: holds no tracked run (mlruns.db); give the output_dir of one")
    uri = checked_uri(tracking_uri)
    with one_line(str(folder), sqlite_uri(folder)):
        client = connect(sqlite_uri(folder))
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        runs = client.search_runs(experiments, order_by=["attributes.start_time ASC"])
    with one_line(str(folder), uri):
        return {run.info.run_id: Copy(folder, run.info.run_id, uri).send() for run in runs}


def register_run(output_dir: str | os.PathLike, tracking_uri: str, name: str) -> str:
    """Copy the runs of a training's folder, and register its best weights as those of the newest; returns the version.

    InputError when there is no tracked training, or the server does not take it.
    """
    folder = Path(output_dir)
    ids = upload(folder, tracking_uri)
    if executed_config(folder) is None or not (folder / BEST).is_file() or not ids:
        raise InputError(f"{folder}: holds no tracked training (model.pt, config_*.json); give --weights in its place")
    uri = checked_uri(tracking_uri)
    with one_line(name, uri):
        return log_model(connect(uri), uri, folder / BEST, _settings(folder), name, list(ids.values())[-1])
