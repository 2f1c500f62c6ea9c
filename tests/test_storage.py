"""Files appear whole or not at all, and a folder is one run's at a time."""

import errno
import multiprocessing
import os
import random
import signal
import threading
import time

import filelock
import numpy as np
import pytest

from scripts.errors import InputError
from scripts.formats.transform_files import write_transform
from scripts.formats.volumes import save_volume
from scripts.spatial import Frame, WorldTransform
from scripts.storage import atomic_path, check_output_dir, claimed, make_output_dir, output_folder, staged
from world_cases import save_field

RNG = np.random.default_rng(0)
NOISE = RNG.normal(size=(24, 24, 24))
FIELD = RNG.uniform(-1, 1, size=(24, 24, 24, 3))
WRITERS = {
    "volume.nii": lambda path: save_volume(NOISE, np.eye(4), path),
    "volume.nii.gz": lambda path: save_volume(NOISE, np.eye(4), path),
    "transform.h5": lambda path: write_transform(WorldTransform(np.eye(4), FIELD, Frame(NOISE.shape, np.eye(4))), path),
    "field.nii.gz": lambda path: save_field(FIELD, np.eye(4), path),
}


@pytest.mark.parametrize("error", [RuntimeError, OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("earlier", [None, b"earlier"])
def test_failure_leaves_nothing_new(tmp_path, error, earlier):
    target = tmp_path / "a.nii.gz"
    if earlier is not None:
        target.write_bytes(earlier)
    with pytest.raises(error if isinstance(error, type) else type(error)), atomic_path(target) as temporary:
        temporary.write_bytes(b"half")
        raise error
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([] if earlier is None else [earlier])


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("earlier", [False, True])
def test_disk_that_takes_no_more_bytes(tmp_path, name, earlier):
    resource = pytest.importorskip("resource")  # not on Windows
    target = tmp_path / name
    if earlier:
        target.write_bytes(b"earlier")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The system refuses every byte past this size in the middle of a real write, as a full disk does.
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        with pytest.raises(OSError):
            WRITERS[name](target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([b"earlier"] if earlier else [])
    WRITERS[name](target)
    assert target.stat().st_size > 8192


def test_refusals(tmp_path):
    with pytest.raises(FileNotFoundError, match="create it first"), atomic_path(tmp_path / "missing" / "a.nii"):
        pass
    with pytest.raises(FileNotFoundError, match="nothing was written"), atomic_path(tmp_path / "a.nii"):
        pass
    with pytest.raises(IsADirectoryError, match="name a file"), atomic_path(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


FORK = multiprocessing.get_context("fork")
NAMES = ("affine.tfm", "moved.nii.gz", "report.html", "transform.h5", "metrics.json")


def stand_in(folder, mark, wait, told, together):
    """Takes a folder and writes to it as a registration does, without registering."""
    chance = random.Random(mark)
    together.wait(30)
    time.sleep(wait)
    try:
        with output_folder(folder):
            time.sleep(chance.uniform(0, 0.02))
            with staged(folder, "metrics.json", NAMES) as stage:
                for name in NAMES:
                    (stage / name).write_text(mark)
                    time.sleep(chance.uniform(0, 0.004))
    except InputError as error:
        told.put((mark, str(error)))
    else:
        told.put((mark, None))


def test_concurrent_runs_are_whole_or_refused(tmp_path):
    """Three runs into one folder, twenty times."""
    chance, refused = random.Random(27), 0
    for trial in range(20):
        folder, told, together = tmp_path / f"{trial}" / "out", FORK.SimpleQueue(), FORK.Barrier(3)
        runs = [
            FORK.Process(target=stand_in, args=(folder, f"{trial}{name}", chance.uniform(0, 0.05), told, together))
            for name in "abc"
        ]
        for run in runs:
            run.start()
        outcomes = dict(told.get() for _ in runs)
        for run in runs:
            run.join(30)
        whole = {mark for mark, line in outcomes.items() if line is None}
        lines = [line for line in outcomes.values() if line is not None]
        assert all(line.startswith(f"{folder}: another run is writing to it; wait") for line in lines)
        found = {path.name: path.read_text() for path in folder.iterdir()}
        assert found.keys() == set(NAMES) and len(set(found.values())) == 1 and set(found.values()) <= whole
        refused += len(lines)
    assert 0 < refused < 40  # both of them happened


def test_a_claim_is_one_threads_until_it_ends(tmp_path):
    lines = []

    def ask():
        try:
            with claimed(tmp_path) as alone:
                lines.append(alone)
        except InputError as error:
            lines.append(str(error))

    with claimed(tmp_path), claimed(tmp_path):
        with claimed(tmp_path, part=1):  # of another process of the same run
            pass
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
    ask()
    assert lines[1] is True and "another run is writing to it" in lines[0] and list(tmp_path.iterdir()) == []


def hold(folder, ready):
    with output_folder(folder), staged(folder) as stage:
        (stage / "half").touch()
        ready.set()
        time.sleep(60)


def test_a_killed_run_blocks_nobody(tmp_path):
    ready = FORK.Event()
    process = FORK.Process(target=hold, args=(tmp_path, ready))
    process.start()
    assert ready.wait(20)
    with pytest.raises(InputError, match="another run is writing"), claimed(tmp_path):
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert len(list(tmp_path.iterdir())) == 2  # the lock's file, and what was not finished
    with staged(tmp_path) as stage:
        (stage / "new").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_file_system_without_locks(tmp_path, monkeypatch):
    """A warning, and what may be another run's stays."""

    def unknown(*words):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(filelock.FileLock, "acquire", unknown)
    (tmp_path / ".unfinished-0").mkdir()
    with pytest.warns(UserWarning, match="knows no locks"), staged(tmp_path) as stage:
        (stage / "new").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".unfinished-0", "new"]


@pytest.mark.parametrize("earlier", [True, False])
def test_a_result_replaces_an_earlier_one_as_a_whole(tmp_path, earlier):
    """What the new one has not must not lie beside it; a file that is no result's stays."""
    for name in ("moved.nii.gz", "moved_label.nii.gz", "notes.txt", *(("metrics.json",) if earlier else ())):
        (tmp_path / name).write_text("old")
    with staged(tmp_path, "metrics.json", (*NAMES, "moved_label.nii.gz")) as stage:
        (stage / "moved.nii.gz").write_text("new")
        (stage / "metrics.json").write_text("new")
        assert (tmp_path / "moved.nii.gz").read_text() == "old"
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    left = {"notes.txt": "old"} if earlier else {"notes.txt": "old", "moved_label.nii.gz": "old"}
    assert found == {"moved.nii.gz": "new", "metrics.json": "new", **left}


def test_folders_made_for_nothing_go(tmp_path):
    with pytest.raises(ZeroDivisionError), output_folder(tmp_path / "a" / "b"):
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x" * 300, "y/" * 3000])
def test_a_folder_with_too_long_a_name(tmp_path, name):
    for check in (check_output_dir, make_output_dir):
        with pytest.raises(InputError, match=r"output_dir can't be created \(File name too long\)"):
            check(tmp_path / name)
