"""``avsm jacobian`` from end to end."""

import json

import numpy as np
import pytest
import SimpleITK as sitk

from cli_cases import FIXED, read, refused_leaving_all
from scripts.cli import main
from scripts.formats.volumes import save_volume
from scripts.metrics import world_jacobian
from world_cases import frame, from_sitk, save_field


def jacobian(capsys, *words):
    """Run the command; returns what it printed on standard output, read as JSON, and its warnings."""
    assert main(["jacobian", *map(str, words)]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    return json.loads(captured.out), captured.err


WORDS = ["--transform", "transform.h5", "--reference", "fixed.nii.gz", "--output", "j.nii.gz"]


@pytest.mark.parametrize("log", [False, True])
def test_image_and_figures(pair, capsys, log):
    figures, errors = jacobian(capsys, *WORDS, *(["--log"] if log else []))
    array, affine = read("j.nii.gz")
    expected = world_jacobian([pair], FIXED)
    values = np.log(expected.determinant) if log else expected.determinant
    np.testing.assert_allclose(array, values, atol=1e-4)
    np.testing.assert_allclose(affine, FIXED.affine, atol=1e-4)
    assert array.dtype == np.float32 and not errors and figures.pop("output") == "j.nii.gz"
    assert figures == pytest.approx(expected.measures, abs=1e-4)
    assert figures["std_log_jacobian"] > 0.01 and figures["voxels"] == array.size


def test_as_simpleitk(tmp_path, capsys):
    """On a grid along ITK's world axes, as SimpleITK takes no account of a direction here."""
    where = frame((15, 14, 13), (0, 0, 0), (1, 2, 1.5), (5, 6, 7), flip=(-1, -1, 1))
    x = (where.voxel_to_world(np.stack(np.indices(where.shape), axis=-1)) - where.centre) / 8
    field = 1.5 * np.stack([np.sin(x[..., 0]), np.cos(x[..., 1]), np.sin(x[..., 2] + x[..., 0])], axis=-1)
    save_field(field, where.affine, tmp_path / "warp.nii.gz")
    save_volume(x[..., 0], where.affine, tmp_path / "r.nii.gz")
    words = ["--transform", tmp_path / "warp.nii.gz", "--reference", tmp_path / "r.nii.gz"]
    figures, _ = jacobian(capsys, *words, "--output", tmp_path / "j.mha")
    ours = from_sitk(sitk.ReadImage(str(tmp_path / "j.mha")))
    warp = sitk.ReadImage(str(tmp_path / "warp.nii.gz"))
    theirs = from_sitk(sitk.DisplacementFieldJacobianDeterminant(sitk.Cast(warp, sitk.sitkVectorFloat64)))
    inside = (slice(1, -1),) * 3  # SimpleITK takes the field as constant beyond its faces
    np.testing.assert_allclose(ours[inside], theirs[inside], atol=1e-4)
    assert figures["jacobian_max"] > 1.05 and figures["jacobian_min"] < 0.95


def test_folds_are_counted_and_their_logarithm_is_finite(pair, capsys):
    save_field(np.random.default_rng(0).normal(size=(*FIXED.shape, 3)) * 2, FIXED.affine, "noise.nii.gz")
    figures, _ = jacobian(capsys, "--transform", "noise.nii.gz", *WORDS[2:], "--log")
    assert figures["folds"] > figures["folds_central"] > 0 and figures["folds_sum"] > 0 > figures["jacobian_min"]
    array, _ = read("j.nii.gz")
    assert np.isfinite(array).all() and array.min() == pytest.approx(np.log(1e-9))


def test_a_reference_beyond_the_field_is_told(pair, capsys):
    larger = FIXED.padded((6, 0, 0))
    save_volume(np.zeros(larger.shape, np.uint8), larger.affine, "large.nii.gz")
    _, errors = jacobian(capsys, *WORDS[:2], "--reference", "large.nii.gz", *WORDS[4:])
    assert errors.startswith("warning: large.nii.gz: transform.h5: ") and errors.count("\n") == 1


def swap(option, value):
    words = list(WORDS)
    words[words.index(option) + 1] = value
    return words


def slice_file(folder):
    save_volume(np.zeros((5, 6, 1), np.uint8), np.eye(4), folder / "slice.nii.gz")


BAD = {  # name -> what to do to the folder, words, status, message
    "no transform": (None, swap("--transform", "no.h5"), 1, "no.h5: file does not exist"),
    "image as transform": (None, swap("--transform", "seg.nii.gz"), 1, "seg.nii.gz: is an image: its shape is"),
    "no reference": (None, swap("--reference", "no.nii"), 1, "no.nii: file does not exist"),
    "slice": (slice_file, swap("--reference", "slice.nii.gz"), 1, "at least 2 voxels"),
    "over the reference": (None, swap("--output", "fixed.nii.gz"), 1, "is read as well"),
    "no output": (None, WORDS[:4], 2, "required: --output"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(pair, tmp_path, capsys, name):
    refused_leaving_all("jacobian", BAD[name], tmp_path, capsys)
