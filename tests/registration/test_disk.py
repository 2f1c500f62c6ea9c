"""A disk that fills, a run that is killed, memory that runs out: nothing half-written, and earlier results stay."""

import errno
import json
import os
import sys
import threading

import numpy as np
import pytest
import torch

from bad_files import FIXED, MOVING, OUT, PAIR, refusal, tree
from cli_cases import refused
from scripts.cli import main
from scripts.formats.transform_files import write_transform
from scripts.formats.volumes import save_volume
from scripts.networks import AVSM
from scripts.spatial.transform import WorldTransform
from scripts.storage import output_folder

GOOD = "f.nii.gz,m.nii.gz"


def fill_disk(monkeypatch, name):
    """Let the disk be full as soon as a file of this name is to be kept."""
    force = os.fsync

    def full(descriptor):
        if os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")).endswith(f"-{name}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        force(descriptor)

    monkeypatch.setattr(os, "fsync", full)


WRITTEN = (
    "moved.nii.gz", "moved_label.nii.gz", "transform.h5", "inverse_transform.h5", "affine.tfm", "displacement.nii.gz",
    "displacement_voxel.nii.gz", "jacobian.nii.gz", "metrics.json",
)  # fmt: skip
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="finds a file's name in /proc")


@on_linux
@pytest.mark.parametrize("name", WRITTEN)
def test_full_disk(pair, weights, capfd, monkeypatch, name):
    """Whichever file it is, none of the others stays, nor does a folder that was made for them."""
    fill_disk(monkeypatch, name)
    before = tree(pair)
    words = [
        "register", *PAIR, "--output", "made/out", "--preset", "fast", "--weights", weights, "--no-report",
        "--learn2reg",
    ]  # fmt: skip
    line = refused([*words, "--moving-label", "m_label.nii.gz"], capfd)
    assert f"{name}: cannot be written (No space left on device); see that the disk is not full" in line
    assert tree(pair) == before


@on_linux
def test_full_disk_leaves_an_earlier_result(pair, weights, capfd, monkeypatch):
    words = ["register", *PAIR, *OUT, "--preset", "fast", "--weights", weights]
    assert main([*words, "--no-report"]) == 0
    capfd.readouterr()
    before = tree(pair)
    fill_disk(monkeypatch, "report.png")
    assert "report.html: cannot be written (No space left on device)" in refused(
        [*words, "--transform", "affine"], capfd
    )
    assert tree(pair) == before


@pytest.mark.parametrize("suffix", [".tfm", ".txt"])
def test_text_transform_cut_off_by_a_full_disk(tmp_path, suffix):
    """ITK does not notice that the file it writes is cut off."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    target = tmp_path / f"affine{suffix}"
    write_transform(WorldTransform(MOVING.affine), tmp_path / f"whole{suffix}")
    text = (tmp_path / f"whole{suffix}").read_text()
    for room in (0, 100, text.index("FixedParameters") - 3):
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        try:
            with pytest.raises(OSError, match=r"could not write it \(.*\); see that the disk is not full"):
                write_transform(WorldTransform(MOVING.affine), target)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert not target.exists()
    assert [path.name for path in tmp_path.iterdir()] == [f"whole{suffix}"]


def test_not_enough_memory(pair, weights, capfd, caplog, monkeypatch):
    """An allocation that fails within PyTorch."""
    monkeypatch.setattr(AVSM, "register", lambda *words, **options: torch.empty(1 << 60))
    line = refusal(["register", *PAIR, *OUT, "--preset", "fast", "--weights", weights], pair, capfd, caplog)
    assert "m.nii.gz: not enough memory to register them; give a smaller grid" in line


def test_what_a_killed_run_left_is_cleared(pair, weights):
    stage = pair / "out" / ".unfinished"
    stage.mkdir(parents=True)
    (stage / "moved_label.nii.gz").write_bytes(b"half of it")
    assert main(["register", *PAIR, *OUT, "--preset", "fast", "--weights", weights, "--no-report"]) == 0
    assert not stage.exists() and not (pair / "out" / "moved_label.nii.gz").exists()


def test_rows_are_of_pairs_that_succeeded(pair, weights, capfd):
    """A pair that fails now is not in the table by what an earlier run with other settings made of it."""
    (pair / "list.csv").write_text("fixed,moving,name\nf.nii.gz,m.nii.gz,a\nm.nii.gz,f.nii.gz,b\n")
    words = ["register", "--pairs", "list.csv", *OUT, "--preset", "fast", "--weights", weights, "--no-report"]
    assert main(words) == 0
    (pair / "out" / "a" / "metrics.json").write_text("[]")
    save_volume(np.full(FIXED.shape, 7), FIXED.affine, pair / "f.nii.gz", np.int16)
    assert main([*words, "--dtype", "int32"]) == 1 and "2 of 2 pairs failed" in capfd.readouterr().err
    assert list(json.loads((pair / "out" / "failed.json").read_text())) == ["a", "b"]
    assert (pair / "out" / "pairs.csv").read_text().strip() == ""
    assert json.loads((pair / "out" / "summary.json").read_text())["pairs"] == 0


@pytest.fixture
def held(pair):
    """Another run has the output folder."""
    ready, done = threading.Event(), threading.Event()

    def hold():
        with output_folder(pair / "out"):
            ready.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert ready.wait(20)
    yield
    done.set()
    thread.join()


@pytest.mark.parametrize("words", [PAIR, ("--pairs", "list.csv")], ids=["pair", "list"])
def test_second_run_is_refused_before_the_work(pair, weights, held, capfd, caplog, monkeypatch, words):
    (pair / "list.csv").write_text(f"fixed,moving\n{GOOD}\n")
    monkeypatch.setattr(AVSM, "register", lambda *_, **__: pytest.fail("it was registered"))
    line = refusal(["register", *words, *OUT, "--preset", "fast", "--weights", weights], pair, capfd, caplog)
    assert f"{pair / 'out'}: another run is writing to it; wait until that has ended, or give another" in line


def test_a_result_without_labels_replaces_one_with(pair, weights):
    words = ["register", *PAIR, *OUT, "--preset", "fast", "--weights", weights, "--learn2reg"]
    assert main([*words, "--moving-label", "m_label.nii.gz"]) == 0
    assert {"moved_label.nii.gz", "displacement_voxel.nii.gz", "report.html"} <= set(os.listdir("out"))
    (pair / "out" / "notes.txt").touch()
    assert main([*words[:-1], "--no-report"]) == 0
    left = {"moved_label.nii.gz", "displacement_voxel.nii.gz", "report.html", "report.png"} & set(os.listdir("out"))
    assert not left and (pair / "out" / "notes.txt").exists()
