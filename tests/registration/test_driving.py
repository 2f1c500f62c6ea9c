"""Labels and landmarks that drive a registration: by files, in space, and told apart from those that only measure."""

import json

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from refusals import one_line
from register_cases import register, write_pair
from scripts.api import register as by_python
from scripts.formats import Points, read_image, read_points, write_points
from scripts.registration import Driving, Pair
from scripts.registration.grids import lay_grids

GRID = {"grid": [24, 32, 24]}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A pair with landmarks: voxels inside of labels, and where a turn and a bend carry them."""
    folder = tmp_path_factory.mktemp("driving")
    files = write_pair(folder)
    frame = read_image(files["fixed"]).frame
    shape = np.array(frame.shape)
    voxels = shape / 2 + (shape / 5) * np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [1, 1, 0.5]])
    fixed = frame.voxel_to_world(voxels)
    moving = fixed + np.array([6.0, -4.0, 5.0]) + 3 * np.sin(fixed[:, ::-1] / 20)
    for role, points in (("fixed", fixed), ("moving", moving)):
        names = tuple(f"p{number}" for number in range(len(points)))
        write_points(Points(points, names), folder / f"{role}.csv", "LPS")
        write_points(Points(points, names), folder / f"{role}.fcsv", "RAS")
        files[f"{role}_points"] = folder / f"{role}.fcsv"
    return files


def landmark_options(files, kind="fcsv"):
    return [
        word
        for role in ("fixed", "moving")
        for word in (f"--{role}-points", str(files["fixed"].parent / f"{role}.{kind}"))
    ]


def carried(folder, files):
    """Distances of landmarks under what was written, by SimpleITK."""
    transform = sitk.ReadTransform(str(folder / "transform.h5"))
    fixed, moving = (
        pd.read_csv(files["fixed"].parent / f"{role}.csv")[["x", "y", "z"]] for role in ("fixed", "moving")
    )
    there = np.array([transform.TransformPoint(point) for point in fixed.to_numpy().tolist()])
    return np.linalg.norm(there - moving.to_numpy(), axis=1)


def test_landmarks_are_met_within_the_tolerance_in_what_is_written(files, tmp_path):
    metrics = register(files, tmp_path / "out", *landmark_options(files), "--point-weight", "10")
    distances = carried(tmp_path / "out", files)
    assert distances.max() < 1.0 and metrics["folds"] == 0
    assert metrics["landmarks_mm"]["mean"]["final"] == pytest.approx(distances.mean(), abs=0.01)
    assert metrics["landmarks_mm"]["mean"]["before"] > 1 and metrics["landmarks_mm"]["count"] == 6
    assert metrics["driven_by"] == {"points": {"weight": 10.0, "tolerance_mm": 1.0}}
    assert metrics["initialisation"]["method"] == "landmarks"
    assert "which were registered by" not in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("kind", ["rigid", "affine"])
def test_landmarks_drive_other_kinds_of_transform(files, tmp_path, kind):
    words = ("--transform", kind, "--no-report")
    driven = register(files, tmp_path / "out", *landmark_options(files), "--point-weight", "100", *words,
        "--point-tolerance", "0.3", labels=False)  # fmt: skip
    alone = register(files, tmp_path / "alone", *landmark_options(files), "--point-weight", "0", *words, labels=False)
    assert "driven_by" not in alone and alone["initialisation"]["method"] != "landmarks"
    assert driven["landmarks_mm"]["mean"]["final"] < 0.7 * alone["landmarks_mm"]["mean"]["final"]
    assert any("landmarks: the farthest is" in warning for warning in driven["warnings"])


def test_points_of_a_csv_table_are_in_the_space_that_is_said(files, tmp_path):
    words = ("--no-report", "--transform", "affine", "--point-weight", "0")
    lps = register(files, tmp_path / "a", *landmark_options(files, "csv"), "--space", "LPS", *words, labels=False)
    ras = register(files, tmp_path / "b", *landmark_options(files), *words, labels=False)
    assert lps["landmarks_mm"]["mean"] == pytest.approx(ras["landmarks_mm"]["mean"], abs=1e-6)


def overlap(folder, files):
    """Mean Dice of the labels under what was written, by SimpleITK."""
    fixed, moving = (sitk.ReadImage(str(files[f"{role}_label"])) for role in ("fixed", "moving"))
    transform = sitk.ReadTransform(str(folder / "transform.h5"))
    measures = sitk.LabelOverlapMeasuresImageFilter()
    measures.Execute(
        fixed, sitk.Cast(sitk.Resample(moving, fixed, transform, sitk.sitkNearestNeighbor), fixed.GetPixelID())
    )
    values = np.setdiff1d(np.unique(sitk.GetArrayViewFromImage(fixed)), 0)
    return np.mean([measures.GetDiceCoefficient(int(value)) for value in values])


def test_labels_drive_and_are_told_apart(files, tmp_path):
    driven = register(files, tmp_path / "out", "--label-weight", "4")
    alone = register(files, tmp_path / "alone", "--no-report")
    dice = [metrics["labels"]["mean"]["dice"]["final"] for metrics in (alone, driven)]
    assert dice[1] > dice[0] + 0.02 and driven["folds"] == 0
    assert overlap(tmp_path / "out", files) == pytest.approx(dice[1], abs=0.003)
    assert driven["driven_by"]["labels"]["weight"] == 4 and "driven_by" not in alone
    assert "which were registered by" in (tmp_path / "out" / "report.html").read_text()


def test_after_a_transform_to_start_from_both_still_meet(files, tmp_path):
    options = [*landmark_options(files), "--point-weight", "10", "--no-report"]
    register(files, tmp_path / "first", "--transform", "affine", "--no-report", labels=False)
    for name in ("affine.tfm", "transform.h5"):
        start = ["--initial-transform", str(tmp_path / "first" / name)]
        metrics = register(files, tmp_path / name, *options, *start, "--label-weight", "2")
        assert carried(tmp_path / name, files).max() < 1.0
        assert metrics["labels"]["mean"]["dice"]["final"] > metrics["labels"]["mean"]["dice"]["affine"]


def test_a_list_and_python_give_the_same(files, tmp_path):
    table = tmp_path / "pairs.csv"
    roles = ("fixed", "moving", "fixed_points", "moving_points")
    table.write_text("name," + ",".join(roles) + "\none," + ",".join(str(files[role]) for role in roles) + "\n")
    from scripts.cli import main

    words = ["--grid", "24", "32", "24", "--threads", "1", "--no-report", "--transform", "affine"]
    assert main(["register", "--pairs", str(table), "--output", str(tmp_path / "out"), *words]) == 0
    metrics = json.loads((tmp_path / "out" / "one" / "metrics.json").read_text())
    row = pd.read_csv(tmp_path / "out" / "pairs.csv").iloc[0]
    assert row["landmarks_mm_final"] == metrics["landmarks_mm"]["mean"]["final"]
    given = {role: str(files[role]) for role in roles[2:]}
    result = by_python(str(files["fixed"]), str(files["moving"]), **given, **GRID, transform="affine", threads=1)
    assert result.metrics["landmarks_mm"] == metrics["landmarks_mm"]


def shifted(files, folder, by):
    """The fixed points moved so far along x."""
    points = read_points(files["fixed_points"])
    write_points(Points(points.coordinates + np.array([by, 0.0, 0.0]), points.names), folder / "far.fcsv", "RAS")
    return str(folder / "far.fcsv")


BAD = {  # name -> the options by files and folder, words of the error
    "one file": (lambda f, d: {"fixed_points": str(f["fixed_points"])}, "fixed_points: need moving_points as well"),
    "outside": (lambda f, d: {"fixed_points": shifted(f, d, 900), "moving_points": str(f["moving_points"])},
        "far.fcsv: 6 of 6 lie outside of"),
    "fewer": (lambda f, d: {"fixed_points": np.zeros((2, 3)), "moving_points": str(f["moving_points"])},
        "moving.fcsv: points: need as many fixed as moving ones"),
    "no points": (lambda f, d: {"fixed_points": [["a"]]}, "fixed_points: points: list is no array of numbers"),
    "flat points": (lambda f, d: {"fixed_points": [[0, 0]]}, "points: need finite coordinates of shape (N, 3)"),
    "not finite": (lambda f, d: {"fixed_points": [[0, 0, 0], [np.nan, 1, 2]]},
        "fixed_points: points: need finite coordinates, got [nan, 1.0, 2.0] as number 2"),
    "no space": (lambda f,
        d: {role: str(f["fixed"].parent / f"{role[:-7]}.csv") for role in ("fixed_points", "moving_points")}, "space"),
    "no labels": (lambda f, d: {"label_weight": 1.0}, "label_weight: fixed_label is missing"),
    "no label in common": (lambda f, d: {"label_weight": 1.0, "fixed_label": str(f["fixed_label"]),
        "moving_label": other(f, d)}, "have no label in common"),
    "a network": (lambda f, d: {"preset": "fast", **{role: str(f[role]) for role in ("fixed_points", "moving_points")}},
        "fixed_points: nothing drives this preset's network"),
    "a network and labels": (lambda f, d: {"preset": "fast", "label_weight": 1.0}, "label_weight: nothing drives"),
    "a weight of none": (lambda f, d: {"point_weight": 2.0}, "point_weight: is of landmarks, and there are none"),
    "a space of none": (lambda f, d: {"space": "RAS"}, "space: is of landmarks, and there are none"),
    "negative": (lambda f, d: {"point_weight": -1.0}, "point_weight=-1.0: give a number from 0 on"),
    "no tolerance": (lambda f, d: {"point_tolerance": 0.0}, "point_tolerance=0.0: give a number from 0.001 on"),
}  # fmt: skip


def other(files, folder):
    """The moving label map with other values."""
    image = sitk.ReadImage(str(files["moving_label"]))
    sitk.WriteImage(sitk.Cast(image, sitk.sitkUInt8) * 20, str(folder / "other.nii.gz"))
    return str(folder / "other.nii.gz")


@pytest.mark.parametrize(("make", "words"), BAD.values(), ids=BAD)
def test_what_cannot_drive_is_refused_in_one_line(files, tmp_path, make, words):
    with one_line(words):
        by_python(str(files["fixed"]), str(files["moving"]), **make(files, tmp_path), threads=1)


@pytest.mark.parametrize("space", [None, "LPS"])
def test_points_as_arrays_are_those_of_a_file(files, space):
    images = {role: str(files[role]) for role in ("fixed", "moving")}
    signs = (-1, -1, 1) if space else (1, 1, 1)
    roles = ("fixed_points", "moving_points")
    arrays = {role: (read_points(files[role]).coordinates * signs).tolist() for role in roles}
    found, known = (
        Pair.read({**images, **arrays}, space),
        Pair.read({**images, **{role: files[role] for role in roles}}),
    )
    for role in roles:
        np.testing.assert_allclose(getattr(found, role).coordinates, getattr(known, role).coordinates, atol=1e-9)


@pytest.mark.parametrize("points", [[[0, 0, 0], [9, 0, 0]], [[0, 0, 0], [9, 0, 0], [18.1, 0, 0], [27, 0.1, 0]]])
def test_points_on_a_line_give_no_pose(files, points):
    pair = Pair.read({role: files[role] for role in ("fixed", "moving")})
    frames = {role: getattr(pair, role).frame for role in ("fixed", "moving")}
    given = {f"{role}_points": Points(np.array(points, float) + frame.centre) for role, frame in frames.items()}
    pair = Pair(pair.fixed, pair.moving, **given)
    assert Driving(point_weight=1.0).pose(pair) is None
    grids = lay_grids(pair.fixed, pair.moving, [24, 32, 24], 10_000, "geometry", "common", "RAS", None)
    assert Driving(point_weight=1.0).guides(pair, grids) is not None
    assert Driving(point_weight=0.0).guides(pair, grids) is None
