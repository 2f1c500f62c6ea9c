"""Bad files under ``avsm apply``, ``jacobian`` and ``evaluate``, beyond the cases of each command's own tests.

Points outside a displacement field are no error: an affine acts everywhere, and so does a field's affine part. They are
told in one line that begins with ``warning: ``, and the exit status is 0.
"""

from __future__ import annotations

import numpy as np
import pytest

from bad_files import FLAT, FOUR_D, NO_SPACING, RGB, directory, put, refusal
from cli_cases import make_pair
from image_files import nifti
from scripts.cli import main
from scripts.formats.points import Points, write_points
from scripts.formats.volumes import save_volume


def transform_text(kind, parameters, fixed):
    return (
        f"#Insight Transform File V1.0\n#Transform 0\nTransform: {kind}\n"
        f"Parameters: {parameters}\nFixedParameters: {fixed}\n"
    )


def cut_off(folder):
    (folder / "c.h5").write_bytes((folder / "transform.h5").read_bytes()[:-64])


def volume(name, shape, number=1):
    return lambda folder: save_volume(np.full(shape, number), np.eye(4), folder / name, np.uint8)


PLATE = transform_text("ThinPlateSplineKernelTransform_double_3_3", "0 0 0", "0 0 0")
TWO_D = transform_text("AffineTransform_double_2_2", "1 0 0 1 0 0", "0 0")
SINGULAR = transform_text("AffineTransform_double_3_3", "1 0 0 0 1 0 0 0 0 0 0 0", "0 0 0")
NAN_POINTS = put("p.csv", "x,y,z\n1,2,nan\n")
T, R = ("--transform", "transform.h5"), ("--reference", "fixed.nii.gz")
MOVE = ("--input", "moving.nii.gz", "--output", "o.nii.gz")
LABELS = ("--fixed-label", "fixed_seg.nii.gz", "--moved-label")
APPLY, JACOBIAN = ("apply", *R, *MOVE, "--transform"), ("jacobian", *R, "--output", "j.nii.gz", "--transform")
POINTS = ("evaluate", "--space", "LPS", "--fixed-points", "p.csv", "--moving-points")
OTHERS = {  # name -> what makes a file, words, status, words of the line
    "apply, 2-D transform": (put("t.tfm", TWO_D), [*APPLY, "t.tfm"], 1, "t.tfm: holds a AffineTransform from 2-D to 2"),
    "apply, plate": (put("s.tfm", PLATE), [*APPLY, "s.tfm"], 1, "s.tfm: holds a ThinPlateSplineKernelTransform, which"),
    "apply, cut off": (cut_off, [*APPLY, "c.h5"], 1, "c.h5: cannot be read as a transform: its HDF5 data are truncate"),
    "apply, folder": (directory("t.h5"), [*APPLY, "t.h5"], 1, "t.h5: is not a file; give the path of a tran"),
    "apply, empty file": (put("t.txt", ""), [*APPLY, "t.txt"], 1, "t.txt: is empty; copy it again or write"),
    "apply, singular": (put("t.tfm", SINGULAR), [*APPLY, "t.tfm"], 1, "is singular and crushes the volume"),
    "apply, image RGB": (
        put("t.nii", nifti(RGB)), ["apply", *T, *R, "--input", "t.nii", "--output", "o.nii"], 1, "t.nii: RGB voxels, 3"
    ),
    "apply, image 4-D": (
        put("t.nii", FOUR_D), ["apply", *T, *R, "--input", "t.nii", "--output", "o.nii"], 1, "t.nii: not 3-D, its shape"
    ),
    "apply, reference 2-D": (put("t.nii", FLAT), [*APPLY, T[1], "--reference", "t.nii"], 1, "t.nii: not 3-D, its shap"),
    "apply, spacing 0": (put("t.nii", NO_SPACING), [*APPLY, T[1], "--reference", "t.nii"], 1, "t.nii: pixdim [0.0, 2."),
    "apply, points NaN": (
        NAN_POINTS,
        ["apply", *T, "--input", "p.csv", "--output", "o.csv", "--space", "LPS"],
        1,
        "p.csv, line 2, z: need a finite number of mm, got 'nan'",
    ),
    "apply, dtype": (None, [*APPLY, T[1], "--dtype", "complex64"], 2, "--dtype: invalid choice: 'complex64'"),
    "apply, space": (None, [*APPLY, T[1], "--space", "RAI"], 2, "--space: invalid choice: 'RAI'"),
    "jacobian, cut off": (cut_off, [*JACOBIAN, "c.h5"], 1, "its HDF5 data are truncated, damaged or no transform's; c"),
    "jacobian, plate": (put("s.tfm", PLATE), [*JACOBIAN, "s.tfm"], 1, "or turn it into a field first (SimpleITK: Tra"),
    "jacobian, 2-D": (put("t.tfm", TWO_D), [*JACOBIAN, "t.tfm"], 1, "t.tfm: holds a AffineTransform from 2-D to 2-D;"),
    "jacobian, RGB": (put("t.nii", nifti(RGB)), [*JACOBIAN, T[1], "--reference", "t.nii"], 1, "t.nii: RGB voxels, 3 v"),
    "jacobian, folder": (None, [*JACOBIAN, T[1], "--reference", "."], 1, "as a folder without DICOM images; give one"),
    "evaluate, label RGB": (put("t.nii", nifti(RGB)), ["evaluate", *LABELS, "t.nii"], 1, "t.nii: RGB voxels, 3 values"),
    "evaluate, label 4-D": (put("t.nii", FOUR_D), ["evaluate", *LABELS, "t.nii"], 1, "t.nii: not 3-D, its shape is (1"),
    "evaluate, mask elsewhere": (
        volume("t.nii.gz", (5, 6, 7)),
        ["evaluate", "--fixed", "fixed.nii.gz", "--moved", "fixed.nii.gz", "--mask", "t.nii.gz"],
        1,
        "t.nii.gz: label shape (5, 6, 7) differs from",
    ),
    "evaluate, constant": (
        volume("t.nii.gz", (5, 6, 7)),
        ["evaluate", "--fixed", "t.nii.gz", "--moved", "fixed.nii.gz"],
        1,
        "t.nii.gz: constant image, every voxel is 1; give an image with contrast",
    ),
    "evaluate, points NaN": (NAN_POINTS, [*POINTS, "moving.csv"], 1, "p.csv, line 2, z: need a finite number of mm, g"),
    "evaluate, no points": (put("p.csv", "x,y,z\n"), [*POINTS, "p.csv"], 1, "p.csv"),
    "evaluate, cut off": (cut_off, ["evaluate", "--transform", "c.h5", *R], 1, "c.h5: cannot be read as a transform"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_other_commands(tmp_path, monkeypatch, capfd, caplog, name):
    monkeypatch.chdir(tmp_path)
    make_pair(tmp_path)
    make, words, status, message = OTHERS[name]
    if make is not None:
        make(tmp_path)
    assert message in refusal(words, tmp_path, capfd, caplog, status)


def test_points_outside_the_field_are_a_warning(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    make_pair(tmp_path)
    write_points(Points(np.array([[900.0, 900, 900], [0, 0, 0]])), tmp_path / "p.csv", "LPS")
    capfd.readouterr()
    assert main([*POINTS, "p.csv", *T, "--output", "m.json"]) == 0
    line = capfd.readouterr().err
    assert line.startswith("warning: p.csv: transform.h5: ") and line.count("\n") == 1
    assert "points lie outside its displacement field, where it acts by its affine part alone" in line
    assert (tmp_path / "m.json").exists()
