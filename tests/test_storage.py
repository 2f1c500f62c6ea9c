"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import os
import stat

import nibabel as nib
import numpy as np
import pytest

from scripts.formats.displacement import save_world_displacement
from scripts.formats.volumes import save_volume
from scripts.storage import atomic_path

RNG = np.random.default_rng(0)
NOISE = RNG.normal(size=(24, 24, 24))
FIELD = RNG.uniform(-1, 1, size=(24, 24, 24, 3))
WRITERS = {
    "volume.nii": lambda path: save_volume(NOISE, np.eye(4), path),
    "volume.nii.gz": lambda path: save_volume(NOISE, np.eye(4), path),
    "field.nii.gz": lambda path: save_world_displacement(FIELD, np.eye(4), path),
}


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "case.v1.2.nii.gz", "figure.png", "no_suffix"])
def test_temporary_is_a_neighbour_with_the_same_ending(tmp_path, name):
    with atomic_path(tmp_path / name) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name != name and temporary.name.endswith(name)
        temporary.write_bytes(b"new")
        assert not (tmp_path / name).exists()
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == b"new"


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
    assert np.isfinite(nib.load(target).get_fdata()).all()


def test_disk_found_full_when_the_bytes_are_forced_out(tmp_path, monkeypatch):
    def full(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_volume(NOISE, np.eye(4), tmp_path / "a.nii.gz")
    assert list(tmp_path.iterdir()) == []


def test_mode_is_that_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    with atomic_path(tmp_path / "file") as temporary:
        temporary.touch()
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_refusals(tmp_path):
    with pytest.raises(FileNotFoundError, match="create it first"), atomic_path(tmp_path / "missing" / "a.nii"):
        pass
    with pytest.raises(FileNotFoundError, match="nothing was written"), atomic_path(tmp_path / "a.nii"):
        pass
    with pytest.raises(IsADirectoryError, match="name a file"), atomic_path(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
