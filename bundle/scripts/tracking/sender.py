"""From the local log to an MLflow server or database, without ever stopping the run that is logged."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..storage import atomic_path
from .connection import checked_uri, connect, experiment_id, is_refusal, one_line, reason, shown
from .journal import FOLDER, Journal
from .model import inference_settings, log_model

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["Sender", "upload"]

# MLflow's limits of one request, and of one parameter.
_METRICS, _PARAMETERS, _LONGEST = 1000, 100, 6000
_LOG_TAG = "avsm.log"
_FIRST_PAUSE, _LONGEST_PAUSE = 60.0, 600.0
logger = logging.getLogger(__name__)


class Sender:
    """Sends a log to MLflow, from where it stopped the last time.

    What has been sent is noted beside the log for each URI, so that a log can go to several servers, and a run that is
    resumed goes on in its MLflow run. A server that is down is told of once; the next tries come after a minute, then
    at longer intervals, and none takes longer than one time-out (see `connect`).

    Args:
        journal: the log.
        tracking_uri: see `checked_uri`.
    """

    def __init__(self, journal: Journal, tracking_uri: str) -> None:
        self.journal = journal
        self.uri = checked_uri(tracking_uri)
        self.file = journal.path.with_suffix(".sent.json")
        self.run_id: str | None = None
        self.sent = 0
        self.down = self.told = False
        self.error: Exception | None = None
        self._client: MlflowClient | None = None
        self._open = False
        self._pause = _FIRST_PAUSE
        self._next_try = 0.0
        state = self._states().get(shown(self.uri))
        if state is not None:
            self.run_id, self.sent = state["run_id"], state["bytes"]

    @property
    def client(self) -> MlflowClient:
        """MLflow's client, which comes to life at its first use: a database is then created or opened."""
        if self._client is None:
            self._client = connect(self.uri)
        return self._client

    def flush(self, force: bool = False) -> bool:
        """Send what has not been sent.

        Args:
            force: try now, even if the server was down a moment ago.

        Returns:
            Whether all has been sent.
        """
        if not force and self.down and time.monotonic() < self._next_try:
            return False
        try:
            self._send()
        except Exception as error:  # whatever the client raises: the run that is logged must go on
            self._tell(error)
            return False
        self.down, self.error, self._pause = False, None, _FIRST_PAUSE
        return True

    def finish(self, force: bool = True) -> None:
        """The last try of a run; what stays unsent is told of.

        Args:
            force: as of `flush`.
        """
        told, self.told = self.told, True
        if not self.flush(force):
            logger.warning(
                f"warning: MLflow at {shown(self.uri)} does not have all of the log ({reason(self.error)}); send it "
                f"later by python -m scripts.tracking upload {self.journal.output_dir} --tracking-uri {shown(self.uri)}"
            )
        elif told:
            logger.info(f"MLflow at {shown(self.uri)} has all of the log by now")

    def _tell(self, error: Exception) -> None:
        self.error, self._open = error, False
        if not self.told:
            logger.warning(
                f"warning: MLflow at {shown(self.uri)} does not take the log ({reason(error)}); the run goes on, its "
                f"log is kept in {self.journal.path} and sent when it can be"
            )
        self.down = self.told = True
        self._next_try = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _send(self) -> None:
        if not self._open:
            self._open_run()
            self._open = True
        for records, end in _batches(self.journal.read(self.sent)):
            try:
                self._deliver(records)
            except Exception as error:
                if not is_refusal(error):
                    raise
                # It would be refused for ever, and nothing behind it would be sent.
                logger.warning(
                    f"warning: MLflow refuses a record of kind {records[0]['kind']} ({reason(error)}); it is left out"
                )
            self.sent = end
            self._save()

    def _open_run(self) -> None:
        """Find the run of the log, or create it."""
        from mlflow.entities import LifecycleStage
        from mlflow.exceptions import MlflowException

        if self.run_id is not None:
            try:
                if self.client.get_run(self.run_id).info.lifecycle_stage == LifecycleStage.ACTIVE:
                    return
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
            # Deleted there, or another database behind the same address: sent anew, from the beginning.
        self.run_id, self.sent = None, 0
        header = self.journal.header
        experiment = experiment_id(self.client, self.uri, header["experiment_name"])
        # The answer to an earlier creation may have been lost.
        found = self.client.search_runs([experiment], f"tags.`{_LOG_TAG}` = '{header['id']}'", max_results=1)
        if found:
            self.run_id = found[0].info.run_id
        else:
            tags = {**header["tags"], _LOG_TAG: header["id"]}
            run = self.client.create_run(experiment, header["time"], tags, header["run_name"])
            self.run_id = run.info.run_id
        self._save()

    def _deliver(self, records: list[dict[str, Any]]) -> None:
        """Send one record, or several of metrics."""
        from mlflow.entities import Metric, Param

        record, kind = records[0], records[0]["kind"]
        if kind == "metrics":
            points = [(one, name, value) for one in records for name, value in one["values"].items()]
            metrics = [Metric(name, value, one["time"], one["step"]) for one, name, value in points]
            self.client.log_batch(self.run_id, metrics=metrics)
        elif kind == "params":
            there = self.client.get_run(self.run_id).data.params
            new = [Param(k, v[:_LONGEST]) for k, v in record["values"].items() if k not in there]
            for first in range(0, len(new), _PARAMETERS):
                self.client.log_batch(self.run_id, params=new[first : first + _PARAMETERS])
        elif kind == "status" and record["status"] == "RUNNING":
            self.client.update_run(self.run_id, status="RUNNING")
        elif kind == "status":
            self.client.set_terminated(self.run_id, record["status"], record["time"])
        elif kind in ("image", "artifact", "model"):
            self._deliver_file(record)

    def _deliver_file(self, record: Mapping[str, Any]) -> None:
        path = self.journal.output_dir / record["path"]
        if not path.is_file():
            logger.warning(f"warning: {path}: no longer there, so MLflow does not get it")
        elif record["kind"] == "image":
            import PIL.Image

            with PIL.Image.open(path) as image:
                self.client.log_image(self.run_id, image, key=record["key"], step=record["step"], synchronous=True)
        elif record["kind"] == "artifact":
            with tempfile.TemporaryDirectory() as folder:
                if record["name"] is not None:
                    path = Path(shutil.copyfile(path, Path(folder) / record["name"]))
                self.client.log_artifact(self.run_id, str(path), record["folder"])
        else:
            log_model(self.client, self.uri, path, record["settings"], record["name"], self.run_id)

    def _states(self) -> dict[str, dict[str, Any]]:
        return json.loads(self.file.read_text()) if self.file.is_file() else {}

    def _save(self) -> None:
        states = self._states()
        states[shown(self.uri)] = {"run_id": self.run_id, "bytes": self.sent}
        with atomic_path(self.file) as path:
            path.write_text(json.dumps(states, indent=2) + "\n")


def upload(output_dir: str | os.PathLike, tracking_uri: str) -> dict[str, str]:
    """Send the logs of all runs of a folder.

    Args:
        output_dir: the folder of a training, an evaluation or an inference.
        tracking_uri: see `checked_uri`.

    Returns:
        The MLflow run id of each log, by its file's name.

    Raises:
        InputError: when there is none, or the server does not take one.
    """
    logs = sorted((Path(output_dir) / FOLDER).glob("*.jsonl"))
    if not logs:
        raise InputError(f"{Path(output_dir) / FOLDER}: holds no log of a tracked run; give the output_dir of one")
    ids = {}
    for path in logs:
        sender = Sender(Journal(path), tracking_uri)
        sender.told = True  # the error is raised here
        with one_line(str(path), sender.uri):
            if not sender.flush(force=True):
                raise sender.error
        ids[path.name] = sender.run_id
    return ids


def register_run(output_dir: str | os.PathLike, tracking_uri: str, name: str) -> dict[str, str]:
    """Register the best weights of a tracked training, and send its log as far as that has not been done.

    Args:
        output_dir: the folder of the training.
        tracking_uri: see `checked_uri`.
        name: of the registered model.

    Returns:
        As `log_model`.

    Raises:
        InputError: when there is no tracked training, or the server does not take it.
    """
    folder = Path(output_dir)
    ids = upload(folder, tracking_uri)
    configs = sorted(folder.glob("config_*.json"), key=lambda path: path.stat().st_mtime)
    if not configs or not (folder / "model.pt").is_file():
        raise InputError(f"{folder}: holds no tracked training (model.pt, config_*.json); give --weights in its place")
    settings = inference_settings(json.loads(configs[-1].read_text()))
    newest = max(ids, key=lambda log: (folder / FOLDER / log).stat().st_mtime)
    uri = checked_uri(tracking_uri)
    with one_line(name, uri):
        return log_model(connect(uri), uri, folder / "model.pt", settings, name, ids[newest])


def _batches(records: Iterator[tuple[dict[str, Any], int]]) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """Records one by one, metrics many at a time, each with the byte behind the last."""
    waiting: list[dict[str, Any]] = []
    end = count = 0
    for record, after in records:
        size = len(record["values"]) if record["kind"] == "metrics" else 0
        if waiting and (not size or count + size > _METRICS):
            yield waiting, end
            waiting, count = [], 0
        if size:
            waiting.append(record)
            count, end = count + size, after
        else:
            yield [record], after
    if waiting:
        yield waiting, end
