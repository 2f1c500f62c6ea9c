"""``avsm evaluate`` from end to end."""

import json

import nibabel as nib
import numpy as np
import pytest

from cli_cases import FIXED, refused_leaving_all
from scripts import api
from scripts.cli import main
from scripts.errors import InputError
from scripts.formats.points import Points, read_points, write_points
from scripts.formats.volumes import save_volume
from scripts.metrics import label_metrics, target_registration_error, world_jacobian
from world_cases import OBLIQUE, noise


def evaluate(capsys, *words):
    """Run the command with ``--output``; returns the JSON, the table and the warnings."""
    capsys.readouterr()
    assert main(["evaluate", *words, "--output", "m.json"]) == 0
    captured = capsys.readouterr()
    with open("m.json", encoding="utf-8") as stream:
        return json.load(stream, parse_constant=pytest.fail), captured.out, captured.err


LABELS = ["--fixed-label", "fixed_seg.nii.gz", "--moved-label", "moved_seg.nii.gz"]
POINTS = ["--fixed-points", "fixed.csv", "--moving-points", "moving.csv", "--space", "LPS"]
MAP = ["--transform", "transform.h5", "--reference", "fixed.nii.gz"]
IMAGES = ["--fixed", "fixed.nii.gz", "--moved", "moved.nii.gz"]


def volume(name):
    return np.asarray(nib.load(name).dataobj)


def test_all_at_once(pair, capsys):
    measures, table, errors = evaluate(capsys, *LABELS, *POINTS, *MAP, *IMAGES)
    assert list(measures) == ["labels", "mean", "tre_before", "tre", "jacobian", "ncc"] and not errors
    expected = label_metrics(volume("moved_seg.nii.gz"), volume("fixed_seg.nii.gz"), FIXED.spacing)
    assert measures["labels"].keys() == {"1", "2", "7", "250"}
    for label, values in expected.items():
        assert measures["labels"][str(label)] == pytest.approx(values, rel=1e-4)
    assert measures["mean"]["dice"] == pytest.approx(np.mean([v["dice"] for v in expected.values()]), rel=1e-4)
    assert measures["jacobian"] == pytest.approx(world_jacobian([pair], FIXED).measures, abs=1e-4)
    assert measures["ncc"] == pytest.approx(
        np.corrcoef(volume("moved.nii.gz").ravel(), noise(FIXED.shape, 1).ravel())[0, 1]
    )
    assert measures["tre"]["count"] == 12 and measures["tre"]["max"] < 1e-6 < 0.3 < measures["tre_before"]["max"]
    lines = table.splitlines()
    assert len(lines) == 10 and lines[0].split() == ["label", "Dice", "HD95", "mm", "ASSD", "mm"]
    assert lines[1].split()[:2] == ["1", f"{expected[1]['dice']:.4f}"] and "(12 points)" in table


def test_direction_of_points(pair, capsys):
    """Fixed points go to the moving image: with the two files exchanged, the error is not small."""
    words = ["--fixed-points", "moving.csv", "--moving-points", "fixed.csv", "--space", "LPS", *MAP[:2]]
    measures, _, errors = evaluate(capsys, *words)
    points = [Points(read_points(name, "LPS").coordinates) for name in ("moving.csv", "fixed.csv")]
    with pytest.warns(UserWarning):
        expected = target_registration_error(*points, [pair])
    assert measures["tre"] == pytest.approx(expected) and expected["mean"] > 1
    assert errors.startswith("warning: moving.csv: transform.h5: ")


def test_labels_asked_for_and_absent(pair, capsys):
    measures, table, _ = evaluate(capsys, *LABELS, "--labels", "7", "99")
    assert measures["labels"].keys() == {"7", "99"}
    assert measures["labels"]["99"] == {"dice": None, "hd95": None, "assd": None}
    assert measures["mean"] == measures["labels"]["7"] and table.splitlines()[2].split() == ["99", "nan", "nan", "nan"]


def test_mask(pair, capsys):
    mask = np.zeros(FIXED.shape, np.uint8)
    mask[4:12, 5:15, 3:9] = 3
    save_volume(mask, FIXED.affine, "mask.nii.gz")
    measures, _, _ = evaluate(capsys, *IMAGES, "--mask", "mask.nii.gz")
    moved, fixed = volume("moved.nii.gz")[mask > 0], noise(FIXED.shape, 1)[mask > 0]
    assert measures["ncc"] == pytest.approx(np.corrcoef(moved, fixed)[0, 1])


def elsewhere(name):
    def write(folder):
        save_volume(np.rint(9 * noise(OBLIQUE.shape)), OBLIQUE.padded((1, 0, 0)).affine, folder / name, dtype=np.uint8)

    return write


def fewer(folder):
    write_points(Points(np.eye(3)), folder / "few.csv", "LPS")


def named(folder):
    write_points(Points(np.eye(2, 3), ("a", "b")), folder / "ab.csv", "LPS")
    write_points(Points(np.eye(2, 3), ("b", "a")), folder / "ba.csv", "LPS")


def slab(folder):
    save_volume(np.ones((5, 6, 7)), np.eye(4), folder / "slab.nii.gz", dtype=np.uint8)


def empty(folder):
    save_volume(np.zeros(FIXED.shape, np.uint8), FIXED.affine, folder / "empty.nii.gz")


AB = ["--fixed-points", "ab.csv", "--moving-points", "ba.csv", "--space", "LPS"]
BAD = {  # name -> what to do to the folder, words, status, message
    "nothing": (None, [], 2, "nothing to measure"),
    "one label": (None, LABELS[:2], 2, "--fixed-label: needs --moved-label"),
    "reference alone": (None, MAP[2:], 2, "--reference: needs transform"),
    "transform alone": (None, [*MAP[:2], *IMAGES], 2, "--transform: needs reference, or points"),
    "mask alone": (None, [*LABELS, "--mask", "seg.nii.gz"], 2, "--mask: needs fixed"),
    "labels alone": (None, [*IMAGES, "--labels", "1"], 2, "--labels: needs --fixed-label"),
    "grids of labels": (None, [*LABELS[:3], "seg.nii.gz"], 1, "seg.nii.gz: label shape"),
    "place of labels": (elsewhere("e.nii"), [*LABELS[:3], "e.nii"], 1, "e.nii: label affine differs"),
    "grids of images": (None, [*IMAGES[:3], "moving.nii.gz"], 1, "moving.nii.gz: is not on the grid of"),
    "mask elsewhere": (slab, [*IMAGES, "--mask", "slab.nii.gz"], 1, "slab.nii.gz: label shape (5, 6, 7) differs from"),
    "constant": (slab, ["--fixed", "slab.nii.gz", *IMAGES[2:]], 1, "slab.nii.gz: constant image, every voxel is 1"),
    "empty mask": (empty, [*IMAGES, "--mask", "empty.nii.gz"], 1, "empty.nii.gz: empty mask"),
    "fewer points": (fewer, [*POINTS[:3], "few.csv", *POINTS[4:]], 1, "few.csv: points: need as many fixed"),
    "order of points": (named, AB, 1, "ab.csv, ba.csv: points: the fixed and the moving ones are named alike"),
    "space": (None, POINTS[:4], 1, "fixed.csv: does not say whether"),
    "nobody's label": (None, [*LABELS, "--labels", "9"], 1, "--labels: none of [9] is in either label map"),
    "output kind": (None, [*LABELS, "--output", "m.csv"], 1, "m.csv: cannot be written as this kind of file"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(pair, tmp_path, capsys, name):
    refused_leaving_all("evaluate", BAD[name], tmp_path, capsys)


@pytest.mark.parametrize(("given", "message"), [
    ({}, "nothing to measure"),
    ({"moved_label": "seg.nii.gz"}, "moved_label: needs fixed_label"),
    ({"reference": "fixed.nii.gz"}, "reference: needs transform"),
    ({"labels": [1]}, "labels: needs fixed_label"),
])  # fmt: skip
def test_python_refuses_what_the_command_refuses(given, message):
    with pytest.raises(InputError, match=message):
        api.evaluate(**given)
