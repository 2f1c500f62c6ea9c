"""What arrives in an MLflow store, and what happens when there is none."""

import itertools
import logging
import socket
import time
from types import SimpleNamespace

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

from mlflow_cases import artifacts, database, history, runs_of
from scripts.errors import InputError
from scripts.tracking import Journal, Sender, checked_uri, upload
from scripts.tracking import sender as sender_module

CLOSED = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    return database(tmp_path_factory.mktemp("store"))


@pytest.fixture
def journal(tmp_path):
    journal = Journal.create(tmp_path, tmp_path.name, "avsm", {"mlflow.source.name": "training"})
    journal.log_status("RUNNING")
    return journal


def the_run(uri, journal):
    client, runs = runs_of(uri, journal.header["run_name"])
    (run,) = runs
    return client, run


def warnings_of(caplog):
    return [record.message for record in caplog.records if record.levelno == logging.WARNING]


def test_everything_arrives(uri, journal, tmp_path):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "config_1.json").write_text("{}")
    journal.log_params({"name": "x" * 7000, **{f"p{index}": index for index in range(150)}})
    for step in range(1, 600):
        journal.log_metrics({"a": step, "b": -step}, step)
    journal.log_image(tmp_path / "a.png", "validation", 3)
    journal.log_artifact(tmp_path / "config_1.json", name="config.json")
    journal.log_artifact(tmp_path / "a.png", "folder")
    journal.log_status("FINISHED")
    assert Sender(journal, uri).flush()
    client, run = the_run(uri, journal)
    assert run.info.status == "FINISHED"
    assert run.info.start_time == journal.header["time"] <= run.info.end_time
    assert run.data.tags["mlflow.source.name"] == "training"
    assert run.data.params["p149"] == "149" and run.data.params["name"] == "x" * 6000 and len(run.data.params) == 151
    assert history(client, run, "b") == {step: -step for step in range(1, 600)}
    assert artifacts(client, run) == ["config.json", "folder", "images"] and artifacts(client, run, "folder") == [
        "a.png"
    ]
    assert any(name.startswith("validation+step+3") for name in artifacts(client, run, "images"))


def test_goes_on_where_it_stopped(uri, journal, monkeypatch):
    journal.log_metrics({"loss": 1}, 1)
    first = Sender(journal, uri)
    assert first.flush() and first.flush()
    again = Sender(Journal.find(journal.output_dir, journal.header["run_name"]), uri)
    assert (again.run_id, again.sent) == (first.run_id, first.sent) and again.sent == journal.path.stat().st_size
    sent = []
    monkeypatch.setattr(Sender, "_deliver", lambda self, records: sent.extend(records))
    assert again.flush() and sent == []
    again.journal.log_metrics({"loss": 2}, 2)
    assert again.flush() and [record["step"] for record in sent] == [2]


def test_what_was_sent_twice_is_there_once(uri, journal):
    journal.log_params({"seed": 1})
    journal.log_metrics({"loss": 1}, 1)
    Sender(journal, uri).flush()
    # Killed after sending, before that was noted; then, before the new run's id was.
    sender = Sender(journal, uri)
    sender.sent = 0
    assert sender.flush()
    sender.file.unlink()
    assert Sender(journal, uri).flush()
    client, run = the_run(uri, journal)
    assert history(client, run, "loss") == {1: 1.0} and run.data.params == {"seed": "1"}


def test_run_that_was_deleted_is_sent_anew(uri, journal):
    journal.log_metrics({"loss": 1}, 1)
    sender = Sender(journal, uri)
    sender.flush()
    MlflowClient(tracking_uri=uri).delete_run(sender.run_id)
    again = Sender(journal, uri)
    assert again.flush() and again.run_id != sender.run_id
    client, run = the_run(uri, journal)
    assert run.info.run_id == again.run_id and history(client, run, "loss") == {1: 1.0}


def test_record_that_is_refused_is_left_out(uri, journal, caplog):
    journal.log_metrics({"no*such:name": 1}, 1)
    journal.log_metrics({"loss": 1}, 1)
    # Metrics go many at a time; so that the good one is not in the bad one's company:
    journal.log_params({"a": 1})
    journal.log_params({"no*such:name": 1})
    journal.log_metrics({"other": 1}, 1)
    assert Sender(journal, uri).flush()
    client, run = the_run(uri, journal)
    assert run.data.params == {"a": "1"} and history(client, run, "other") == {1: 1.0}
    assert len(warnings_of(caplog)) == 2 and "refuses a record of kind params" in warnings_of(caplog)[1]


def test_file_that_is_gone(uri, journal, tmp_path, caplog):
    journal.log_artifact(tmp_path / "gone.png")
    journal.log_metrics({"loss": 1}, 1)
    assert Sender(journal, uri).flush()
    assert any(f"{tmp_path / 'gone.png'}: no longer there" in text for text in warnings_of(caplog))
    assert history(*the_run(uri, journal), "loss") == {1: 1.0}


def test_server_that_is_down_is_told_of_once_and_tried_again_later(uri, journal, tmp_path, caplog, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(sender_module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    sender, tries = Sender(journal, CLOSED), []
    send = sender._send
    monkeypatch.setattr(sender, "_send", lambda: (tries.append(clock[0]), send()))
    for step in range(300):
        journal.log_metrics({"loss": step}, step)
        assert not sender.flush()
        clock[0] += 10
    assert [later - earlier for earlier, later in itertools.pairwise(tries)] == [
        60,
        120,
        240,
        480,
        600,
        600,
        600,
    ]
    (text,) = warnings_of(caplog)
    assert "Connection refused" in text and str(journal.path) in text
    sender.finish()
    assert len(warnings_of(caplog)) == 2
    command = f"python -m scripts.tracking upload {tmp_path} --tracking-uri {CLOSED}"
    assert warnings_of(caplog)[1].endswith(command)
    # Nothing is lost.
    assert list(upload(tmp_path, uri)) == [journal.path.name]
    assert len(history(*the_run(uri, journal), "loss")) == 300


def test_server_that_comes_back(uri, journal, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    sender = Sender(journal, uri)
    deliver, down = Sender._deliver, [True]

    def lossy(self, records):
        if down[0]:
            raise ConnectionError("the line is dead")
        deliver(self, records)

    monkeypatch.setattr(Sender, "_deliver", lossy)
    assert not sender.flush()
    journal.log_metrics({"loss": 1}, 1)
    down[0] = False
    assert not sender.flush(), "not before the pause is over"
    assert sender.flush(force=True)
    journal.log_metrics({"loss": 2}, 2)
    assert sender.flush()
    sender.finish()
    assert history(*the_run(uri, journal), "loss") == {1: 1.0, 2: 2.0}
    texts = [record.message for record in caplog.records if "MLflow at" in record.message]
    assert len(texts) == 2 and "the line is dead" in texts[0] and "has all of the log by now" in texts[1]


def test_server_that_never_answers_holds_nobody_up(journal):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        sender = Sender(journal, f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        assert not sender.flush()
        assert time.monotonic() - start < 20
        start = time.monotonic()
        assert not any(sender.flush() for _ in range(100))
        assert time.monotonic() - start < 1


def test_limits_can_be_set_from_outside(journal, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES, MLFLOW_HTTP_REQUEST_TIMEOUT

    Sender(journal, CLOSED).flush()
    assert MLFLOW_HTTP_REQUEST_MAX_RETRIES.get() == 1 and MLFLOW_HTTP_REQUEST_TIMEOUT.get() == 1


def test_experiment_that_was_deleted(tmp_path, uri):
    client = MlflowClient(tracking_uri=uri)
    client.delete_experiment(client.create_experiment("gone"))
    Journal.create(tmp_path, "a", "gone")
    with pytest.raises(InputError, match="experiment_name=gone: deleted there; restore it"):
        upload(tmp_path, uri)


def test_upload_to_nobody(journal, tmp_path):
    with pytest.raises(InputError, match=r"does not take it \(Connection refused\); start the server") as caught:
        upload(tmp_path, CLOSED)
    assert str(caught.value).startswith(str(journal.path)) and "\n" not in str(caught.value)


def test_upload_of_nothing(tmp_path):
    with pytest.raises(InputError, match="holds no log of a tracked run"):
        upload(tmp_path, CLOSED)


@pytest.mark.parametrize("uri", ["runs", "/data/mlruns", "file:///data/mlruns"])
def test_folders_are_no_stores(uri):
    with pytest.raises(InputError, match=f"tracking_uri={uri}: give http://HOST:PORT"):
        checked_uri(uri)


def test_password_is_not_written_down(tmp_path, monkeypatch, caplog):
    secret = "http://me:secret@127.0.0.1:9"
    with pytest.raises(InputError, match="MLFLOW_TRACKING_PASSWORD") as caught:
        checked_uri(secret)
    assert "secret" not in str(caught.value)
    # By the environment it may come, and still stands nowhere.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", secret)
    assert checked_uri("http://other:5000") == secret
    journal = Journal.create(tmp_path, "a", "avsm")
    Sender(journal, "http://other:5000").finish()
    assert warnings_of(caplog) and not any("secret" in text for text in warnings_of(caplog))
    assert not any("secret" in path.read_text() for path in (tmp_path / "tracking").iterdir())
