"""The benchmark of the verdict: what is done to an image is done to what is known of it, and failures are judged so."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from benchmarks import verdict
from scripts.formats import Image
from scripts.spatial import Frame

GOOD = {
    "settled": 0.8,
    "optimised": "lncc",
    "rival": 0.5,
    "mirror": 0.4,
    "outside": 0.0,
    "stretch": 1.1,
    "agreement": 0.1,
    "affine_agreement": 0.1,
    "missed": 0.1,
}


def subject(shape=(12, 14, 10)):
    """A smooth image whose label map and points can be told from it."""
    affine = np.eye(4)
    affine[:3] = [[0, -2.0, 0, 40], [1.5, 0, 0, -20], [0, 0, 3.0, 5]]
    where = np.indices(shape) / np.array(shape)[:, None, None, None]
    array = (where[0] + 2 * where[1] ** 2 + np.sin(4 * where[2])).astype(np.float32)
    frame = Frame(shape, affine)
    points = frame.voxel_to_world(np.array([[2, 3, 4], [9, 11, 2], [7, 5, 8]]))
    return verdict.Subject(Image(array, frame, "one"), Image((array > 1).astype(np.uint8), frame, "label"), points)


@pytest.mark.parametrize("change", [
    lambda one: one.turned(70, np.random.default_rng(1)),
    lambda one: one.mirrored(),
    lambda one: one.cut(1, False),
    lambda one: one.cut(0, True),
], ids=["turned", "mirrored", "cut", "cut, second half"])  # fmt: skip
def test_points_and_labels_stay_with_the_image(change):
    one = subject()
    other = change(one)
    values = {}
    for which in (one, other):
        voxels = which.image.frame.world_to_voxel(which.points)
        np.testing.assert_allclose(voxels, np.rint(voxels), atol=1e-6)
        inside = which.image.frame.contains_voxel(voxels)
        index = np.rint(np.where(inside[:, None], voxels, 0)).astype(int)
        values[which is one] = np.where(inside, which.image.array[tuple(index.T)], np.nan)
    kept = np.isfinite(values[False])
    assert kept.any()
    np.testing.assert_array_equal(values[True][kept], values[False][kept])
    np.testing.assert_array_equal(other.label.array, other.image.array > 1)
    assert other.label.frame.same_as(other.image.frame)


def test_a_warp_tells_where_its_points_came_from():
    one = subject((30, 36, 24))
    warped, here = one.warped(0.3, np.random.default_rng(0))
    apart = np.linalg.norm(here - warped.points, axis=1)
    assert 1 < apart.max() < 0.3 * (30 * 1.5) and warped.label is None
    read = [
        map_coordinates(which.array, which.frame.world_to_voxel(points).T, order=1)
        for which, points in ((one.image, here), (warped.image, warped.points))
    ]
    assert np.corrcoef(*read)[0, 1] > 0.99


def row(kind, final, group="a", affine=0.6, **more):
    return {"group": group, "kind": kind, "wrong": False, "dice": {"affine": affine, "final": final}} | GOOD | more


ROWS = [
    (row("plain", 0.8), False),
    (row("turned 60", 0.72, affine=0.3), False),
    (row("turned 180", 0.69), True),  # more than 0.1 below what the pair reaches
    (row("plain", 0.62, "b"), False),
    (row("inverted", 0.59, "b"), True),  # no better than the affine of the good run
    (row("cut", 0.5, dice_plain={"affine": 0.4, "final": 0.55}), False),
    (row("cut", 0.5, "b", dice_plain={"affine": 0.52, "final": 0.55}), True),
    (row("cut", 0.1, "e", dice_plain={"affine": 0.3, "final": 0.4}), None),
    (row("knee and brain", 0.9, "c", wrong=True), True),
    ({"group": "d", "kind": "plain", "wrong": False, "tre": {"affine": 4.0, "final": 3.0}} | GOOD, False),
    ({"group": "d", "kind": "mirrored", "wrong": False, "tre": {"affine": 2.0, "final": 4.5}} | GOOD, True),
    ({"group": "d", "kind": "own warp", "wrong": False, "tre": {"affine": 5.0, "final": 4.5}} | GOOD, False),
]


def test_failures():
    assert verdict.failures([one for one, _ in ROWS]) == [failed for _, failed in ROWS]


def test_report_judges_anew_and_names_what_is_missed(tmp_path):
    rows = [one | {"settled": 0.1} if failed and one["group"] != "b" else one for one, failed in ROWS]
    rows.append(row("no plain", 0.1, "without a plain run"))
    rows.append(row("remapped", 0.75, "a", settled=0.1, optimised=None))
    (tmp_path / "hippocampus_b.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    verdict.report(SimpleNamespace(work=tmp_path, out=tmp_path / "out"))
    table = (tmp_path / "out" / "verdict.md").read_text()
    assert "| hippocampus_b | 7 | 7 (100%) | 5 | 3 (60%) | 3 |" in table
    assert "- hippocampus_b: b, inverted" in table and "- hippocampus_b: b, cut" in table
    written = [json.loads(line) for line in (tmp_path / "out" / "verdict.jsonl").read_text().splitlines()]
    assert len(written) == 12 and {one["set"] for one in written} == {"hippocampus_b"}
    assert (tmp_path / "out" / "verdict.png").stat().st_size > 1000
