"""One rule for values and types: what a type holds is kept by every command and in every format, the rest refused."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

import bad_files
from bad_files import PAIR, write_images
from cli_cases import MOVING, refused
from scripts.cli import main
from world_cases import LABELS, from_sitk, noise, to_sitk

T, R = ["--transform", "transform.h5"], ["--reference", "fixed.nii.gz"]


def write(array, frame, path):
    """By nibabel or SimpleITK, never by this project."""
    if ".nii" in path:
        nib.save(nib.Nifti1Image(array, frame.affine, dtype=array.dtype), path)
    else:
        sitk.WriteImage(to_sitk(array, frame), path)


def load(path):
    return np.asarray(nib.load(path).dataobj) if ".nii" in path else from_sitk(sitk.ReadImage(path))


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_overshoot_of_a_spline_is_clipped(pair, suffix, dtype):
    ends = np.iinfo(dtype)
    sharp = np.where(noise(MOVING.shape) > 0.5, ends.max, ends.min).astype(dtype)
    write(sharp, MOVING, f"sharp{suffix}")
    words = ["apply", *T, *R, "--input", f"sharp{suffix}", "--interpolation", "bspline"]
    assert main([*words, "--default-value", "0", "--output", f"free{suffix}", "--dtype", "float64"]) == 0
    assert main([*words, "--default-value", "0", "--output", f"moved{suffix}", "--dtype", dtype]) == 0
    free = load(f"free{suffix}")
    assert free.max() > ends.max + 1 and free.min() < ends.min - 1
    moved = load(f"moved{suffix}")
    assert moved.dtype == dtype
    np.testing.assert_array_equal(moved, np.clip(np.rint(free), ends.min, ends.max))


REFUSED = {  # array of the moving grid, words, message
    "image": (1000 * noise(MOVING.shape), ["--dtype", "uint8"], "--dtype uint8 cannot hold its values"),
    "image below 0": (-noise(MOVING.shape), ["--dtype", "uint16"], "--dtype uint16 cannot hold its values -1"),
    "large image": (1e39 * noise(MOVING.shape).astype(np.float64), ["--dtype", "float32"],
        "--dtype float32 cannot hold its values"),
    "label": (np.int64(300) * np.ones(MOVING.shape, np.int64), ["--label", "--dtype", "uint8"],
        "cannot hold its value 300"),
    "label that rounds": (np.full(MOVING.shape, 2**24 + 1), ["--label", "--dtype", "float32"],
        "--dtype float32 does not know the number 16777217; choose an integer type"),
    "value outside": (noise(MOVING.shape), ["--dtype", "int16", "--default-value", "40000"],
        "--default-value: --dtype int16 cannot hold its value 40000.0"),
}  # fmt: skip


@pytest.mark.parametrize(("array", "words", "message"), REFUSED.values(), ids=REFUSED)
def test_what_a_type_cannot_hold_is_refused_before_the_work(pair, capsys, monkeypatch, array, words, message):
    write(np.asarray(array, np.float64 if array.dtype.kind == "f" else array.dtype), MOVING, "t.nii.gz")
    monkeypatch.setattr("scripts.transform.Transform.warp", None)
    line = refused(["apply", *T, *R, "--input", "t.nii.gz", "--output", "o.nii.gz", *words], capsys)
    assert line.startswith("error: t.nii.gz: ") and message in line and not Path("o.nii.gz").exists()


def test_apply_keeps_large_labels(pair):
    values = np.array([-3, 1, 2**31, 2**40 + 1, 2**62 + 1])
    write(values[np.searchsorted(LABELS, load("seg.nii.gz"))], MOVING, "large.nii.gz")
    words = ["--label", "--input", "large.nii.gz", "--output", "o.nii.gz", "--default-value", "-3"]
    assert main(["apply", *T, *R, *words]) == 0
    np.testing.assert_array_equal(load("o.nii.gz"), values[np.searchsorted(LABELS, load("moved_seg.nii.gz"))])


def test_register_keeps_large_labels_and_clips_overshoot(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path)
    values = np.array([0, 5, 2**31 + 1, 2**40 + 1])
    write(values[load("m_label.nii.gz")], bad_files.MOVING, "large.nii.gz")
    sharp = np.where(load("m.nii.gz") > 500, 32767, -32768).astype(np.int16)
    write(sharp, bad_files.MOVING, "m.nii.gz")
    words = ["register", *PAIR, "--preset", "affine-opt", "--no-report", "--interpolation", "bspline", "--moving-label"]
    for label, out in (("m_label.nii.gz", "a"), ("large.nii.gz", "b")):
        assert main([*words, label, "--output", out, "--dtype", "int16" if out == "b" else "float32"]) == 0
    moved = load("b/moved_label.nii.gz")
    assert moved.dtype == np.int64
    np.testing.assert_array_equal(moved, values[load("a/moved_label.nii.gz")])
    free, kept = load("a/moved.nii.gz"), load("b/moved.nii.gz")
    assert kept.dtype == np.int16 and free.max() > 32768 and free.min() < -32769
    np.testing.assert_array_equal(kept, np.clip(np.rint(free), -32768, 32767))
