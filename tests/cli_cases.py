"""Files that the tests of the command line share: an oblique pair with its transform, as a registration leaves it."""

import errno
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel as nib
import numpy as np
import pytest

from scripts.cli import main
from scripts.formats.points import Points, write_points
from scripts.formats.transform_files import write_transform
from scripts.formats.volumes import save_volume
from scripts.spatial.transform import WorldTransform
from world_cases import AFFINE, OBLIQUE, displacement, frame, label_map, noise, some_points

FIXED = OBLIQUE
MOVING = frame((17, 25, 22), (-30, 8, 15), (1.1, 0.9, 2.0), (25.0, -90.2, -12.0), (-1, -1, 1), (2, 0, 1))


def _write_pair(folder):
    """Write images, labels, points and transforms of one pair; returns the transform."""
    affine = AFFINE.clone()
    affine[0, :, 3] += 0.2  # parts of the fixed grid look beyond the moving image
    # Rolled, each axis is bent along itself, so that volumes change.
    transform = WorldTransform.from_network(FIXED, MOVING, affine, displacement().roll(1, dims=1))
    save_volume(noise(FIXED.shape, 1), FIXED.affine, folder / "fixed.nii.gz")
    save_volume(noise(MOVING.shape), MOVING.affine, folder / "moving.nii.gz")
    save_volume(label_map(FIXED.shape, 1), FIXED.affine, folder / "fixed_seg.nii.gz")
    save_volume(label_map(MOVING.shape), MOVING.affine, folder / "seg.nii.gz")
    write_transform(transform, folder / "transform.h5")
    write_transform(transform.affine_part, folder / "affine.tfm")
    points = some_points(FIXED, 12)
    write_points(Points(points), folder / "fixed.csv", "LPS")
    write_points(Points(transform.apply(points)), folder / "moving.csv", "LPS")
    return transform


def _write_moved(folder):
    """Write moved image and label map of the pair in a folder by the command itself."""
    words = ["apply", "--transform", folder / "transform.h5", "--reference", folder / "fixed.nii.gz"]
    images = ["--input", folder / "moving.nii.gz", "--output", folder / "moved.nii.gz"]
    labels = ["--label", "--input", folder / "seg.nii.gz", "--output", folder / "moved_seg.nii.gz"]
    for rest in (images, labels):
        assert main([str(word) for word in (*words, *rest)]) == 0


@cache
def _files(moved):
    """The transform, and the files of the pair by name; made once for all tests."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        transform = _write_pair(folder)
        if moved:
            _write_moved(folder)
        return transform, {path.name: path.read_bytes() for path in folder.iterdir()}


def make_pair(folder, moved=False):
    """Put the pair's files into a folder, perhaps with moved image and label map; returns the transform."""
    transform, files = _files(moved)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return transform


def read(path):
    """Array and affine of a NIfTI file."""
    image = nib.load(path)
    return np.asarray(image.dataobj), image.affine


def refused(words, capsys, status=1):
    """Run a command that must fail, in one line and with nothing written; returns the line."""
    if status == 2:
        with pytest.raises(SystemExit) as caught:
            main([str(word) for word in words])
        assert caught.value.code == 2
    else:
        assert main([str(word) for word in words]) == status
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1, captured.err
    assert not captured.out
    return captured.err


def refused_leaving_all(command, case, folder, capsys):
    """A row of bad input: what to do to the folder first, words, status, message; nothing in the folder may change."""
    change, words, status, message = case
    if change is not None:
        change(folder)
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert message in refused([command, *words], capsys, status)
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def fill_disk(monkeypatch):
    """Let every NIfTI file break off half way for want of space."""

    def write(image, stream):
        stream.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(nib.Nifti1Image, "to_stream", write)
