"""Copies of a folder's runs in another MLflow store, and what happens when there is none."""

import socket
import time
from pathlib import Path

import numpy as np
import pytest
from ignite.engine import Engine
from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from mlflow_cases import artifacts, database, history, runs_of
from scripts.errors import InputError
from scripts.tracking import Copy, checked_uri, connect, experiment_id, upload
from scripts.training import EvaluationTracker
from scripts.training.tracking import RunTracker

CLOSED = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    return database(tmp_path_factory.mktemp("store"))


class Run:
    """A run in a folder's own store."""

    def __init__(self, folder):
        self.folder, self.name = folder, folder.name
        own = database(folder)
        self.client = connect(own)
        experiment = experiment_id(self.client, own, "avsm")
        self.id = self.client.create_run(experiment, tags={"key": "value"}, run_name=self.name).info.run_id

    def log(self, name, value, step):
        self.client.log_metric(self.id, name, value, step=step)

    def copy(self, uri):
        """Client of a store and the one copy that is in it."""
        client, (run,) = runs_of(uri, self.name)
        return client, run


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def test_everything_arrives(uri, run, tmp_path):
    (tmp_path / "a.txt").write_text("a")
    run.client.log_batch(run.id, [Metric("loss", -step, 0, step) for step in range(1, 300)])
    for first in (0, 75):  # MLflow takes a hundred at once
        run.client.log_batch(run.id, params=[Param(f"p{index}", str(index)) for index in range(first, first + 75)])
    run.log("nan", float("nan"), 1)
    run.client.log_image(run.id, np.zeros((8, 8, 3), np.uint8), key="validation", step=3, synchronous=True)
    run.client.log_artifact(run.id, tmp_path / "a.txt", "folder")
    run.client.set_terminated(run.id, "FINISHED")
    assert list(upload(tmp_path, uri)) == [run.id]
    client, copy = run.copy(uri)
    own = run.client.get_run(run.id)
    assert copy.info.status == "FINISHED" and copy.data.tags["key"] == "value"
    assert (copy.info.start_time, copy.info.end_time) == (own.info.start_time, own.info.end_time)
    assert copy.data.params == own.data.params and len(copy.data.params) == 150
    assert history(client, copy, "loss") == {step: -step for step in range(1, 300)}
    assert artifacts(client, copy) == ["folder", "images"] and artifacts(client, copy, "folder") == ["a.txt"]
    assert any(name.startswith("validation+step+3") for name in artifacts(client, copy, "images"))


def test_what_is_new_is_sent_and_nothing_is_there_twice(uri, run, tmp_path):
    copy = Copy(tmp_path, run.id, uri)
    for step in (1, 2, 3):
        run.log("loss", step, step)
        (tmp_path / "a.txt").write_text(str(step))
        run.client.log_artifact(run.id, tmp_path / "a.txt")
        first = copy.send()
        client, there = run.copy(uri)
        assert history(client, there, "loss") == {n: n for n in range(1, step + 1)} and there.info.status == "RUNNING"
        assert Path(client.download_artifacts(first, "a.txt")).read_text(encoding="utf-8") == str(step)
    # Another process, which knows nothing of what was sent.
    run.client.set_terminated(run.id, "FAILED")
    assert upload(tmp_path, uri) == {run.id: first}
    client, there = run.copy(uri)
    assert history(client, there, "loss") == {1: 1, 2: 2, 3: 3} and there.info.status == "FAILED"


def test_run_that_was_deleted_there_is_sent_anew(uri, run, tmp_path):
    run.log("loss", 1, 1)
    copy = Copy(tmp_path, run.id, uri)
    first = copy.send()
    MlflowClient(tracking_uri=uri).delete_run(first)
    assert copy.send() != first and history(*run.copy(uri), "loss") == {1: 1.0}


def run_engine(folder, tracking_uri):
    """A run of an engine with a tracker; returns the seconds that it took."""
    database(folder)
    engine = Engine(lambda *_: None)
    engine.state.device = "cpu"
    tracker = RunTracker(folder, tracking_uri, "avsm", "a run", epoch_log=lambda *_: True, epoch_logger=lambda _: None)
    tracker.iteration_log = None
    tracker.attach(engine)
    start = time.monotonic()
    engine.run([0], max_epochs=3)
    return time.monotonic() - start


def test_server_that_never_answers_does_not_stop_a_run(tmp_path, uri, caplog):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        seconds = run_engine(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}")
    told = [record.message for record in caplog.records if "MLflow at" in record.message]
    assert seconds < 30 and len(told) == 2 and "the run goes on" in told[0] and "scripts.tracking upload" in told[1]
    upload(tmp_path, uri)
    _, (run,) = runs_of(uri, "a run")
    assert run.info.status == "FINISHED" and run.data.params["max_epochs"] == "3"


def test_upload_to_nobody(run, tmp_path):
    with pytest.raises(InputError, match=r"does not take it \(Connection refused\); start the server") as caught:
        upload(tmp_path, CLOSED)
    assert str(caught.value).startswith(str(tmp_path)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("uri", ["runs", "/data/mlruns", "file:///data/mlruns"])
def test_folders_are_no_stores(uri, tmp_path):
    with pytest.raises(InputError, match=f"tracking_uri={uri}: give http://HOST:PORT"):
        EvaluationTracker(tmp_path / "out", uri, "avsm", "a run")
    assert not (tmp_path / "out").exists()


def test_password_is_not_written_down(tmp_path, monkeypatch, caplog):
    secret = "http://me:swordfish@127.0.0.1:9"
    with pytest.raises(InputError, match="MLFLOW_TRACKING_PASSWORD") as caught:
        checked_uri(secret)
    assert "swordfish" not in str(caught.value)
    # By the environment it may come, and still stands nowhere.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", secret)
    assert checked_uri("http://other:5000") == secret
    run_engine(tmp_path, "http://other:5000")
    told = [record.message for record in caplog.records if "MLflow at" in record.message]
    assert len(told) == 2 and not any("swordfish" in text for text in told)
    assert not any(b"swordfish" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
