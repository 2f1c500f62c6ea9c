"""``avsm apply`` from end to end: files in, files out, and every mistake in one line."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import map_coordinates

from cli_cases import FIXED, MOVING, fill_disk, read, refused, refused_leaving_all
from scripts.cli import main
from scripts.formats.points import Points, read_points, write_points
from scripts.formats.transform_files import write_transform
from scripts.formats.volumes import save_volume
from scripts.spatial.frame import ras_to_lps
from scripts.spatial.inversion import invert_transforms
from scripts.spatial.resampling import resample_image, resample_labels
from scripts.spatial.transform import WorldTransform
from world_cases import from_sitk, label_map, noise, save_field, sitk_points, some_points, to_sitk


def apply(*words):
    return main(["apply", *map(str, words)])


ROUNDING = 1e-5  # of images in [0, 1]: NIfTI keeps a grid's place in single precision
IMAGE = ["--transform", "transform.h5", "--reference", "fixed.nii.gz"]


@pytest.mark.parametrize("mode, options", [("linear", []), ("bspline", ["--interpolation", "bspline"])])
def test_image(pair, tmp_path, capsys, mode, options):
    assert apply(*IMAGE, "--input", "moving.nii.gz", "--output", "moved.nii.gz", "--default-value", "-3", *options) == 0
    array, affine = read("moved.nii.gz")
    expected = resample_image(noise(MOVING.shape), MOVING, FIXED, [pair], mode, fill=-3)
    np.testing.assert_allclose(array, expected, atol=ROUNDING)
    np.testing.assert_allclose(affine, FIXED.affine, atol=1e-4)
    assert array.dtype == np.float32 and (array == -3).any()
    captured = capsys.readouterr()
    assert captured.out == "moved.nii.gz\n" and not captured.err


@pytest.mark.parametrize("options, mode", [
    (["--label"], "nearest"),
    (["--interpolation", "nearest"], "nearest"),
    (["--label", "--interpolation", "label-linear"], "linear"),
])  # fmt: skip
def test_labels(pair, options, mode):
    assert apply(*IMAGE, "--input", "seg.nii.gz", "--output", "moved.nii.gz", *options) == 0
    array, _ = read("moved.nii.gz")
    expected = resample_labels(label_map(MOVING.shape), MOVING, FIXED, [pair], mode)
    np.testing.assert_array_equal(array, expected)
    assert array.dtype == np.uint8 and set(np.unique(array)) <= {0, 1, 2, 7, 250}


@pytest.mark.parametrize("inverse", [False, True])
def test_several_transforms_as_simpleitks_composite(pair, inverse, capsys):
    """Warp on the fixed grid, affine behind it, and one more: a composite adds them from last to first."""
    parts = {
        "shift.tfm": WorldTransform(np.array([[1, 0, 0, 4.0], [0, 1, 0.1, -3], [0, 0, 1, 2], [0, 0, 0, 1]])),
        "affine.tfm": pair.affine_part,
    }
    for name, part in parts.items():
        write_transform(part, name)
    save_field(ras_to_lps(pair.displacement), pair.frame.affine, "warp.nii.gz")
    files = ["warp.nii.gz", "affine.tfm", "shift.tfm"]
    stack = sitk.CompositeTransform(3)
    for name in reversed(files):
        if name.endswith(".tfm"):
            stack.AddTransform(sitk.ReadTransform(name))
        else:
            field = sitk.Cast(sitk.ReadImage(name), sitk.sitkVectorFloat64)
            stack.AddTransform(sitk.DisplacementFieldTransform(field))
    points = some_points(FIXED, 30, margin=-0.15)
    there = sitk_points(stack, points)
    write_points(Points(there if inverse else points), "in.csv", "LPS")
    words = ["--transform", *files[:2], "--transform", files[2], *(["--inverse"] if inverse else [])]
    assert apply(*words, "--input", "in.csv", "--output", "out.csv", "--space", "LPS") == 0
    assert not capsys.readouterr().err
    expected, tolerance = (points, 5e-3) if inverse else (there, 1e-6)
    np.testing.assert_allclose(read_points("out.csv", "LPS").coordinates, expected, atol=tolerance)
    if not inverse:
        image = noise(MOVING.shape)
        assert apply(*words, "--reference", "fixed.nii.gz", "--input", "moving.nii.gz", "--output", "moved.nii") == 0
        reference = to_sitk(np.zeros(FIXED.shape), FIXED)
        moving = to_sitk(image.astype(np.float64), MOVING)
        theirs = from_sitk(sitk.Resample(moving, reference, stack, sitk.sitkLinear, 0.0))
        np.testing.assert_allclose(read("moved.nii")[0], theirs, atol=1e-5)


def test_inverse_of_an_image(pair, capsys):
    """The fixed image under the inverse is where the moving image is; voxels beyond the field are told."""
    words = ["--transform", "transform.h5", "--inverse", "--reference", "moving.nii.gz"]
    assert apply(*words, "--input", "fixed.nii.gz", "--output", "back.nii.gz") == 0
    error = capsys.readouterr().err
    assert "warning: fixed.nii.gz: transform.h5: " in error and error.count("\n") <= 2
    array, affine = read("back.nii.gz")
    np.testing.assert_allclose(affine, MOVING.affine, atol=1e-4)
    index = np.random.default_rng(0).integers(0, MOVING.shape, size=(300, 3))
    voxels = FIXED.world_to_voxel(invert_transforms([pair])[0].apply(MOVING.voxel_to_world(index)))
    inside = ((voxels >= 0) & (voxels <= np.array(FIXED.shape) - 1)).all(axis=1)
    expected = map_coordinates(noise(FIXED.shape, 1), voxels[inside].T, order=1)
    assert inside.sum() > 20
    np.testing.assert_allclose(array[tuple(index[inside].T)], expected, atol=1e-3)


@pytest.mark.parametrize("suffix", ["csv", "mrk.json", "vtk"])
@pytest.mark.parametrize("space", ["RAS", "LPS"])
def test_points_keep_space_names_and_kind(pair, suffix, space):
    points = some_points(FIXED, 5)
    names = ("a", "b", "c", "d", "e")
    write_points(Points(points, names), f"in.{suffix}", space)
    said = ["--space", space] if suffix == "csv" else []
    for output in (f"out.{suffix}", "out.csv"):
        assert apply("--transform", "transform.h5", "--input", f"in.{suffix}", "--output", output, *said) == 0
        result = read_points(output, space)
        np.testing.assert_allclose(result.coordinates, pair.apply(points), atol=1e-9)
        assert result.names == (None if suffix == "vtk" else names)


def test_a_list_of_all_kinds(pair, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "list.csv").write_text(
        "input,output,kind\n"
        "moving.nii.gz,out/moved.nii.gz,\nseg.nii.gz,out/seg.nii.gz,label\nfixed.csv,out/points.csv,points\n"
    )
    assert apply(*IMAGE, "--list", "list.csv", "--space", "LPS", "--interpolation", "bspline") == 0
    image = resample_image(noise(MOVING.shape), MOVING, FIXED, [pair], "bspline")
    np.testing.assert_allclose(read("out/moved.nii.gz")[0], image, atol=ROUNDING)
    np.testing.assert_array_equal(
        read("out/seg.nii.gz")[0], resample_labels(label_map(MOVING.shape), MOVING, FIXED, [pair])
    )
    np.testing.assert_allclose(
        read_points("out/points.csv", "LPS").coordinates, read_points("moving.csv", "LPS").coordinates, atol=1e-9
    )
    assert capsys.readouterr().out.split() == ["out/moved.nii.gz", "out/seg.nii.gz", "out/points.csv"]


def test_one_folder_for_many(pair, tmp_path):
    sitk.WriteImage(to_sitk(noise(MOVING.shape), MOVING), "m.mhd")
    (tmp_path / "out").mkdir()
    inputs = ["moving.nii.gz", "m.mhd", "fixed.csv"]
    assert apply(*IMAGE, "--input", *inputs, "--output", "out", "--space", "LPS") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["fixed.csv", "m.nii.gz", "moving.nii.gz"]


def test_one_bad_file_of_many(pair, tmp_path, capsys):
    (tmp_path / "broken.nii.gz").write_bytes(b"no image")
    outputs = ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    inputs = ["moving.nii.gz", "broken.nii.gz", "fixed.nii.gz"]
    assert apply(*IMAGE, "--input", *inputs, "--output", *outputs) == 1
    captured = capsys.readouterr()
    first, last = captured.err.splitlines()
    assert "broken.nii.gz" in first and last == "error: 1 of 3 files failed"
    assert captured.out.split() == ["a.nii.gz", "c.nii.gz"] and not (tmp_path / "b.nii.gz").exists()


@pytest.mark.parametrize("inverse", [False, True])
def test_points_outside_the_field_are_told(pair, inverse, capsys):
    points = np.stack([FIXED.centre, FIXED.centre + 900])
    if inverse:
        points = pair.affine_part.apply(pair.apply(points))
    write_points(Points(points), "far.csv", "RAS")
    words = ["--transform", "transform.h5", "affine.tfm", *(["--inverse"] if inverse else [])]
    assert apply(*words, "--input", "far.csv", "--output", "o.csv", "--space", "RAS") == 0
    error = capsys.readouterr().err
    assert error.startswith("warning: far.csv: transform.h5: 1 of 2 points lie outside its displacement field")
    assert error.count("\n") == 1


def put(name, text="x"):
    def write(folder):
        (folder / name).write_text(text)

    return write


def halves(folder):
    save_volume(label_map(MOVING.shape) / 2, MOVING.affine, folder / "half.nii.gz")


MOVED = ["--input", "moving.nii.gz", "--output", "moved.nii.gz"]
BAD = {  # name -> what to do to the folder, words, status, message
    "no transform": (None, ["--transform", "no.h5", *IMAGE[2:], *MOVED], 1, "no.h5: file does not exist"),
    "image as transform": (None, ["--transform", "moving.nii.gz", *IMAGE[2:], *MOVED], 1, "gz: is an image: its"),
    "no reference": (None, [*IMAGE[:2], *MOVED], 2, "required: --reference"),
    "both": (put("l.csv"), [*IMAGE, *MOVED, "--list", "l.csv"], 2, "either --list or --input"),
    "absent input": (None, [*IMAGE, "--input", "no.nii", "--output", "o.nii"], 1, "no.nii: input does not exist"),
    "counts": (None,
        [*IMAGE, "--input", "moving.nii.gz", "seg.nii.gz", "fixed.nii.gz", "--output", "a.nii.gz", "b.nii.gz"], 2,
        "--output: 2 for 3 inputs"),
    "many into a file": (None, [*IMAGE, "--input", "moving.nii.gz", "seg.nii.gz", "--output", "no/"], 1,
        "no: --output for 2 inputs"),
    "folder missing": (None, [*IMAGE, *MOVED[:3], "no/moved.nii.gz"], 1, "its folder does not exist; create it"),
    "twice the same": (None, [*IMAGE, "--input", "moving.nii.gz", "seg.nii.gz", "--output", "a.nii", "a.nii"], 1,
        "two inputs"),
    "over an input": (None, [*IMAGE, *MOVED[:3], "moving.nii.gz"], 1, "moving.nii.gz: is read as well"),
    "image as points": (None, [*IMAGE, *MOVED[:3], "a.csv"], 1, "must end with .nii, .nii.gz, .nrrd, .mha"),
    "points as image": (None, [*IMAGE, "--input", "fixed.csv", "--output", "a.nii"], 1, "must end with .csv"),
    "no space": (None, [*IMAGE, "--input", "fixed.csv", "--output", "a.csv"], 1, "give its space, RAS or LPS"),
    "fractions": (halves, [*IMAGE, "--label", "--input", "half.nii.gz", "--output", "o.nii"], 1, "0.5 is not an int"),
    "label and linear": (None, [*IMAGE, *MOVED, "--label", "--interpolation", "linear"], 2, "choose label-linear"),
    "fill": (None, [*IMAGE, "--label", "--input", "seg.nii.gz", "--output", "o.nii", "--default-value", "300"], 1,
        "seg.nii.gz: fill: 300"),
    "list absent": (None, [*IMAGE, "--list", "no.csv"], 1, "no.csv: cannot be read"),
    "list header": (put("l.csv", "a,b\n1,2\n"), [*IMAGE, "--list", "l.csv"], 1, "input, output and perhaps kind"),
    "list empty": (put("l.csv", "input,output\n"), [*IMAGE, "--list", "l.csv"], 1, "lists no files"),
    "list cells": (put("l.csv", "input,output\na\n"), [*IMAGE, "--list", "l.csv"], 1, "l.csv: row 2: it has more or"),
    "list kind": (put("l.csv", "input,output,kind\nmoving.nii.gz,o.nii,mesh\n"), [*IMAGE, "--list", "l.csv"], 1,
        "got 'mesh'"),
    "list reads it": (put("l.csv", "input,output\nmoving.nii.gz,a.nii\nseg.nii.gz,moving.nii.gz\n"),
        [*IMAGE, "--list", "l.csv"], 1, "moving.nii.gz: is read as well"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(pair, tmp_path, capsys, name):
    refused_leaving_all("apply", BAD[name], tmp_path, capsys)


def test_full_disk(pair, tmp_path, monkeypatch, capsys):
    (tmp_path / "moved.nii.gz").write_bytes(b"an earlier result")
    before = sorted(tmp_path.iterdir())
    fill_disk(monkeypatch)
    line = refused(["apply", *IMAGE, *MOVED], capsys)
    assert line.startswith(
        "error: moved.nii.gz: cannot be written (No space left on device); see that the disk is not full"
    )
    assert sorted(tmp_path.iterdir()) == before and (tmp_path / "moved.nii.gz").read_bytes() == b"an earlier result"


def test_a_warning_names_its_file_once(pair, tmp_path, capsys):
    image = nib.load(tmp_path / "moving.nii.gz")
    affine = image.affine.copy()
    affine[0, 3] += 5
    image.set_qform(affine, 1)
    nib.save(image, tmp_path / "moving.nii.gz")
    assert main([str(word) for word in ("apply", *IMAGE, *MOVED)]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(lines) == 1 and lines[0].count("moving.nii.gz") == 1, lines
