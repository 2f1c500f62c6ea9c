"""Runs that are killed, disks that are full, stores that are damaged: what is left, and how it goes on."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
from contextlib import closing
from sqlite3 import connect as sqlite

import pytest
import torch
from ignite.engine import Engine

import tiny_bundle as tiny
from mlflow_cases import database, history, runs_of
from scripts.errors import InputError
from scripts.tracking import connect, experiment_id, own_store, sqlite_uri
from scripts.training import PairTable, run_name
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
    assert (tmp_path / "mlruns.damaged_1.db").read_bytes() == before and experiment_id(connect(uri), uri, "avsm")


# ---- MLflow's runs


def test_killed_before_the_first_checkpoint_goes_on_in_the_same_run(tmp_path):
    database(tmp_path / "out")
    killer = {"_target_": "tiny_bundle.KillOnce", "epochs": [1], "folder": str(tmp_path), "iteration": 1}
    options = ["--output_dir", tmp_path / "out", "--tracking", TRACKING]
    line = tiny.command("train", tmp_path, ["training"], options, phases=PHASES, **{"+train#handlers": [killer]})
    killed = tiny.call(line)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    _, (run,) = runs_of(sqlite_uri(tmp_path / "out"))
    assert run.info.status == "RUNNING" and not (tmp_path / "out" / LAST).exists() and tiny.call(line).returncode == 0
    client, (again,) = runs_of(sqlite_uri(tmp_path / "out"))
    assert again.info.run_id == run.info.run_id and again.info.status == "FINISHED"
    assert sorted(history(client, again, "train_epoch/loss")) == [1, 2]


# ---- SIGTERM


@pytest.mark.parametrize("engine", ["train", "validate"])
def test_sigterm_closes_a_training(tmp_path, engine):
    database(tmp_path / "out")
    killer = {"_target_": "tiny_bundle.KillOnce", "epochs": [2], "folder": str(tmp_path), "number": 15}
    options = ["--output_dir", tmp_path / "out", "--tracking", TRACKING]
    line = tiny.command("train", tmp_path, ["training"], options, phases=PHASES, **{f"+{engine}#handlers": [killer]})
    done = tiny.call(line)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "error: ended by SIGTERM; what was not finished is removed" in done.stderr
    assert not any(words in done.stderr + done.stdout for words in ("Traceback", "terminating due to"))
    _, (run,) = runs_of(sqlite_uri(tmp_path / "out"))
    assert run.info.status == "KILLED" and tiny.last(tmp_path / "out")["epoch"] == 1
    assert not list((tmp_path / "out").glob(".*"))


IN_A_CALLBACK = """
import os, signal, time, weakref
from scripts.errors import end_on_sigterm

class Freed:
    pass

def freed(_):
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(100):  # Python looks for signals in a loop
        pass

end_on_sigterm()
thing = Freed()
watch = weakref.ref(thing, freed)
try:
    del thing
    time.sleep(20)
    print("went on")
finally:
    print("cleaned up")
"""


def test_sigterm_while_an_object_is_freed_is_not_lost():
    """There Python drops whatever is raised; PyTorch frees objects all the time."""
    done = subprocess.run([sys.executable, "-c", IN_A_CALLBACK], cwd=tiny.BUNDLE, capture_output=True, text=True)
    assert done.returncode == 128 + signal.SIGTERM and done.stdout == "cleaned up\n"
    assert done.stderr == "error: ended by SIGTERM; what was not finished is removed\n"
