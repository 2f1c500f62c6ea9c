"""Runs that are killed, disks that are full, stores that are damaged: what is left, and how it goes on."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from sqlite3 import connect as sqlite

import pytest
import torch
from ignite.engine import Engine

import tiny_bundle as tiny
from mlflow_cases import database, history, runs_of
from scripts.errors import InputError
from scripts.tracking import connect, executed_config, experiment_id, own_store, sqlite_uri
from scripts.training import PairTable, TrainingTracker, run_name
from scripts.training.checkpoints import BEST, LAST, Checkpoints
from scripts.training.curriculum import Curriculum

TRACKING = str(tiny.CONFIGS / "tracking_mlflow.json")
PHASES = [dict(tiny.PHASES[0], epochs=2)]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def checkpoints(folder, **options):
    network = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    phase = {"name": "a", "stage": "affine", "epochs": 3, "affine_steps": 1, "learning_rate": 1e-3}
    return Checkpoints(network, optimizer, Curriculum([phase]), folder, **options)


def training(found, epochs=3):
    engine = Engine(lambda *_: None)
    found.attach(engine)
    engine.run([0], max_epochs=epochs)


# ---- concurrent runs


def elsewhere(work, folder, told):
    try:
        work(folder)
    except InputError as error:
        told.put(str(error))
    else:
        told.put(None)


@pytest.mark.parametrize("work", [checkpoints, PairTable, run_name, own_store], ids=lambda work: work.__name__)
def test_another_process_is_refused_as_long_as_a_run_lasts(tmp_path, work):
    fork = multiprocessing.get_context("fork")

    def ask():
        told = fork.SimpleQueue()
        process = fork.Process(target=elsewhere, args=(work, tmp_path, told))
        process.start()
        process.join(60)
        return told.get()

    database(tmp_path)
    found = checkpoints(tmp_path)
    assert ask().startswith(f"{tmp_path}: another run is writing to it; wait until that has ended")
    training(found)
    assert ask() is None


def test_a_run_that_dies_frees_its_folder(tmp_path):
    found = checkpoints(tmp_path)
    engine = Engine(lambda *_: 1 / 0)
    found.attach(engine)
    with pytest.raises(ZeroDivisionError):
        engine.run([0], max_epochs=1)
    assert list(tmp_path.iterdir()) == []


# ---- checkpoints


def test_full_disk_ends_a_training_in_one_line_and_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    training(checkpoints(tmp_path), epochs=1)
    before, force = {path.name: path.read_bytes() for path in tmp_path.iterdir()}, os.fsync

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError) as caught:
        training(checkpoints(tmp_path), epochs=2)
    assert str(caught.value) == (
        f"{tmp_path / BEST}: cannot be written (No space left on device); see that the disk is not full and the "
        "folder writable"
    )
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    monkeypatch.setattr(os, "fsync", force)
    training(checkpoints(tmp_path))
    assert tiny.last(tmp_path)["epoch"] == 3


def test_disk_that_takes_no_more_bytes(tmp_path):
    """A limit of the system in the midst of a file, not a mock: what torch itself makes of it is a traceback."""
    resource = pytest.importorskip("resource")
    found = checkpoints(tmp_path)
    found.network.weight = torch.nn.Parameter(torch.zeros(300, 300))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"model\.pt: cannot be written \(File too large\)"):
            training(found)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_what_killed_runs_have_left_goes(tmp_path):
    left = [f".{'0a1b2c3d4e5f'}-{name}" for name in (LAST, BEST)]
    other = [".0a1b2c3d4e5f-notes.txt", f".x-{LAST}", "mine.pt"]
    for name in (*left, *other):
        (tmp_path / name).touch()
    training(checkpoints(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {LAST, BEST, *other}


def test_damaged_checkpoint_is_told(tmp_path):
    training(checkpoints(tmp_path), epochs=1)
    content = bytearray((tmp_path / LAST).read_bytes())
    content[len(content) // 2] ^= 4
    (tmp_path / LAST).write_bytes(content)
    with pytest.raises(InputError, match=f"{LAST}: not a checkpoint of this project; remove it"):
        checkpoints(tmp_path)


# ---- MLflow's store


def half_made(folder):
    """As a process leaves it that is killed between two steps of making its tables."""
    with closing(sqlite(folder / "mlruns.db")) as store, store:
        store.execute("DROP TABLE alembic_version")
        store.execute("DROP TABLE trace_info")


def cut(folder):
    path = folder / "mlruns.db"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def foreign(folder):
    (folder / "mlruns.db").write_bytes(b"no database at all\n" * 400)


def damaged_page(folder):
    path = folder / "mlruns.db"
    content = bytearray(path.read_bytes())
    content[40 * 4096 : 44 * 4096] = b"\xff" * (4 * 4096)
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [half_made, cut, foreign, damaged_page], ids=lambda damage: damage.__name__)
def test_damaged_store_is_put_aside(tmp_path, caplog, damage):
    database(tmp_path)
    damage(tmp_path)
    before = (tmp_path / "mlruns.db").read_bytes()
    uri = own_store(tmp_path)
    assert "mlruns.db: damaged" in caplog.text and "kept as mlruns.damaged_1.db" in caplog.text
    assert (tmp_path / "mlruns.damaged_1.db").read_bytes() == before
    assert experiment_id(connect(uri), uri, "avsm")


@pytest.mark.parametrize("beside", [None, "mlruns.db-journal"])
def test_empty_store_and_journal_are_as_none(tmp_path, caplog, beside):
    (tmp_path / "mlruns.db").touch()
    if beside:
        (tmp_path / beside).write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(500))
    uri = own_store(tmp_path)
    assert experiment_id(connect(uri), uri, "avsm") and "damaged" not in caplog.text


def make_store(folder):
    own_store(folder)


def test_store_whose_making_is_interrupted_is_none(tmp_path):
    """Killed at four moments, and made at the next start."""
    fork = multiprocessing.get_context("fork")
    start = time.perf_counter()
    make_store(tmp_path / "whole")
    lasts = time.perf_counter() - start
    for part in (0.2, 0.4, 0.6, 0.8):
        folder = tmp_path / f"{part}"
        process = fork.Process(target=make_store, args=(folder,))
        process.start()
        time.sleep(part * lasts)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        client = connect(own_store(folder))
        assert experiment_id(client, sqlite_uri(folder), "avsm")
        assert not list(folder.glob("mlruns.damaged*"))


def test_resumes_beside_a_damaged_store(tmp_path):
    database(tmp_path / "out")
    fail = {"+train#handlers": [{"_target_": "tiny_bundle.FailAt", "epoch": 2}]}
    with pytest.raises(RuntimeError):
        tiny.run("train", tmp_path, tmp_path / "out", tracking=TRACKING, phases=PHASES, **fail)
    cut(tmp_path / "out")
    options = ["--output_dir", tmp_path / "out", "--tracking", TRACKING]
    done = tiny.call(tiny.command("train", tmp_path, ["training"], options, phases=PHASES))
    assert done.returncode == 0 and "mlruns.db: damaged" in done.stderr
    # By another name, as MLflow has the old file still open in this process.
    _, (run,) = runs_of(f"sqlite:///{tmp_path}/out/../out/mlruns.db")
    assert run.info.status == "FINISHED" and tiny.last(tmp_path / "out")["epoch"] == 2


def test_full_disk_for_the_log_is_one_line(tmp_path, monkeypatch):
    database(tmp_path)
    tracker = TrainingTracker(tmp_path, sqlite_uri(tmp_path), "avsm", "name")
    engine = Engine(lambda *_: {"loss": 1.0})
    engine.state.device = "cpu"
    engine.optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    tracker.attach(engine)

    def full(*_, **__):
        from sqlite3 import OperationalError as Full

        from sqlalchemy.exc import OperationalError

        raise OperationalError("INSERT", {}, Full("database or disk is full"))

    monkeypatch.setattr(tracker.client, "log_batch", full)
    with pytest.raises(InputError, match=r"log .* cannot be written \(.*database or disk is full\); see that the disk"):
        engine.run([0] * 10, max_epochs=1)


def test_newest_config_goes_by_its_name(tmp_path):
    """Copied folders have other times of change, and a killed run's file is half there."""
    for name, content, changed in (
        ("config_20250101_000000.json", '{"a": 1}', 3e9),
        ("config_20260101_000000.json", '{"a": 2}', 1e9),
        ("config_20270101_000000.json", '{"a": ', 2e9),
        ("config_20280101_000000.json", "", 2e9),
    ):
        (tmp_path / name).write_text(content)
        os.utime(tmp_path / name, (changed, changed))
    assert json.loads(executed_config(tmp_path).read_text()) == {"a": 2}
    assert executed_config(tmp_path / "absent") is None


# ---- MLflow's runs


def test_killed_before_the_first_checkpoint_goes_on_in_the_same_run(tmp_path):
    database(tmp_path / "out")
    killer = {"_target_": "tiny_bundle.KillOnce", "epochs": [1], "folder": str(tmp_path), "iteration": 1}
    options = ["--output_dir", tmp_path / "out", "--tracking", TRACKING]
    line = tiny.command("train", tmp_path, ["training"], options, phases=PHASES, **{"+train#handlers": [killer]})
    killed = tiny.call(line)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    _, (run,) = runs_of(sqlite_uri(tmp_path / "out"))
    assert run.info.status == "RUNNING" and not (tmp_path / "out" / LAST).exists()
    assert tiny.call(line).returncode == 0
    client, (again,) = runs_of(sqlite_uri(tmp_path / "out"))
    assert again.info.run_id == run.info.run_id and again.info.status == "FINISHED"
    assert sorted(history(client, again, "train_epoch/loss")) == [1, 2]


def left_open(folder, parameters):
    """A run that was killed before its first checkpoint."""
    uri = database(folder)
    client, name = connect(uri), run_name(folder)
    run = client.create_run(experiment_id(client, uri, "avsm"), run_name=name)
    for key, value in parameters.items():
        client.log_param(run.info.run_id, key, value)
    return run.info.run_id


@pytest.mark.parametrize("seed", ["0", "5"])
def test_an_open_run_of_other_settings_is_closed(tmp_path, seed):
    """Its parameters could not be changed, and would be wrong of the new one."""
    opened = left_open(tmp_path / "out", {"seed": seed})
    tiny.run("train", tmp_path, tmp_path / "out", tracking=TRACKING, phases=PHASES[:1])
    _, runs = runs_of(sqlite_uri(tmp_path / "out"))
    found = {run.info.run_id: run.info.status for run in runs}
    if seed == "0":
        assert found == {opened: "FINISHED"}
    else:
        assert found.pop(opened) == "KILLED" and list(found.values()) == ["FINISHED"]


def test_run_that_fails_before_its_first_checkpoint_is_followed_by_another(tmp_path):
    database(tmp_path / "out")
    fail = {"+train#handlers": [{"_target_": "tiny_bundle.FailAt", "epoch": 1}]}
    for _ in range(2):
        with pytest.raises(RuntimeError):
            tiny.run("train", tmp_path, tmp_path / "out", tracking=TRACKING, phases=PHASES, **fail)
    _, runs = runs_of(sqlite_uri(tmp_path / "out"))
    assert [run.info.status for run in runs] == ["FAILED", "FAILED"]
    assert len({run.info.run_name for run in runs}) == 2


# ---- SIGTERM

STAGING = """
import sys, time
from pathlib import Path
from scripts.errors import end_on_sigterm
from scripts.storage import output_folder, staged
end_on_sigterm()
with output_folder(sys.argv[1]) as folder, staged(folder) as stage:
    (stage / "half").touch()
    print("ready", flush=True)
    time.sleep(60)
"""


def test_sigterm_removes_the_stage_and_says_so(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", STAGING, str(tmp_path / "out")],
        cwd=tiny.BUNDLE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    assert any(path.name.startswith(".unfinished") for path in (tmp_path / "out").iterdir())
    process.terminate()
    _, told = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert told == "error: ended by SIGTERM; what was not finished is removed\n"
    assert list(tmp_path.iterdir()) == []


def test_sigterm_closes_a_training(tmp_path):
    database(tmp_path / "out")
    killer = {"_target_": "tiny_bundle.KillOnce", "epochs": [2], "folder": str(tmp_path), "number": 15}
    options = ["--output_dir", tmp_path / "out", "--tracking", TRACKING]
    line = tiny.command("train", tmp_path, ["training"], options, phases=PHASES, **{"+train#handlers": [killer]})
    done = tiny.call(line)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "error: ended by SIGTERM; what was not finished is removed" in done.stderr
    assert "Traceback" not in done.stderr
    _, (run,) = runs_of(sqlite_uri(tmp_path / "out"))
    assert run.info.status == "KILLED" and tiny.last(tmp_path / "out")["epoch"] == 1
    assert not list((tmp_path / "out").glob(".*"))
