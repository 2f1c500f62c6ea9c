"""The benchmark of poses: what is done to a header is what the row says, and the table judges by it."""

import numpy as np
import pytest

from benchmarks import poses
from scripts.formats import Image
from scripts.spatial import Frame

CHANGES = {change.name: change for change in poses.changes()}


@pytest.mark.parametrize("name", CHANGES)
def test_the_motion_is_that_of_the_content(name):
    random = np.random.default_rng(0)
    turn = np.linalg.qr(random.normal(size=(3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * (1.0, 1.5, 2.5), (10, -20, 30)
    image = Image(random.normal(size=(5, 6, 7)), Frame((5, 6, 7), affine), "image")
    changed, motion = CHANGES[name](image)
    voxels = np.argwhere(np.ones(image.array.shape))
    there = image.frame.voxel_to_world(voxels) @ motion[:3, :3].T + motion[:3, 3]
    found = changed.frame.world_to_voxel(there)
    np.testing.assert_allclose(found, np.rint(found), atol=1e-6)
    np.testing.assert_array_equal(changed.array[tuple(np.rint(found).astype(int).T)], image.array.ravel())
    if CHANGES[name].kind in ("plain", "truthful"):
        np.testing.assert_allclose(motion, np.eye(4), atol=1e-9)
    else:
        np.testing.assert_allclose(motion[:3, :3].T @ motion[:3, :3], np.eye(3), atol=1e-9)
        assert not np.allclose(motion, np.eye(4))
    if CHANGES[name].kind == "turned":
        moved = changed.frame.centre - image.frame.centre
        assert np.linalg.norm(moved) == pytest.approx(np.linalg.norm(image.frame.extent) / 2)


def test_judgement():
    def row(case, score, family="hippocampus", kind="turned"):
        return {
            "subject": family, "family": family, "case": case, "kind": kind, "mirrored": False, "score": score,
            "pose": {}, "search_s": 0.2,
        }  # fmt: skip

    rows = [row("plain", 0.8, kind="plain"), row("a", 0.79), row("b", 0.7), row("c", 0.9)]
    rows += [row("plain", 3.0, "brain", "plain"), row("a", 3.2, "brain"), row("b", 9.0, "brain")]
    assert [one["right"] for one in poses.judged(rows)] == [True, False, True, True, False]
    assert "3 of 5 right" in poses.table(rows) and "| brain | b | 3.000 | 9.000 |" in poses.table(rows)
