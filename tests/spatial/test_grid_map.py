"""Grids carried axis by axis land where points do, box by box, on any number of threads, and end where ITK ends."""

import numpy as np
import pytest

from scripts.metrics import world_jacobian
from scripts.spatial.frame import Frame
from scripts.spatial.grid_map import ALL, GridMap, chain_points
from scripts.spatial.inversion import NumericalInverse
from scripts.spatial.resampling import resample_image, resample_labels
from scripts.spatial.transform import WorldTransform
from world_cases import AFFINE, FRAMES, OBLIQUE, OTHER, displacement, noise

LINEAR = WorldTransform(np.array([[1.1, 0.2, 0, 5], [-0.1, 0.9, 0.1, -3], [0, 0.2, 1.2, 8], [0, 0, 0, 1.0]]))
BOXES = [(ALL, ALL, ALL), (slice(3, 4), ALL, ALL), (slice(0, 2), slice(5, 9), slice(17, 18))]


def reordered(where, order, flips):
    """The same grid, its axes in another order and direction."""
    affine, shape = where.affine.copy(), [where.shape[axis] for axis in order]
    for axis, flip in enumerate(flips):
        if flip:
            affine[:3, 3] += affine[:3, axis] * (where.shape[axis] - 1)
            affine[:3, axis] *= -1
    affine[:3, :3] = affine[:3, list(order)]
    return Frame(shape, affine)


def field(where, dtype=np.float64):
    """A transform whose field does not end in zeros, on a grid of its own over a frame."""
    transform = WorldTransform.from_network(where, OTHER, AFFINE, 3 * displacement())
    return WorldTransform(transform.linear, transform.displacement.astype(dtype), transform.frame)


CASES = {  # transforms, reference, whether the field runs along the reference's axes
    **{name: ([field(fixed)], fixed, True) for name, (fixed, _) in FRAMES.items()},
    "other order": ([field(OBLIQUE)], reordered(OBLIQUE, (2, 0, 1), (True, False, True)), True),
    "field ends": ([field(OBLIQUE)], OBLIQUE.padded((4, 0, 7)), True),
    "coarser": ([field(OBLIQUE)], OBLIQUE.resized((7, 9, 30)), True),
    "single precision": ([field(OBLIQUE, np.float32)], OBLIQUE, True),
    "affines around": ([WorldTransform(np.diag([1.0, 1, 1, 1])), field(OBLIQUE), LINEAR], OBLIQUE, True),
    "turned first": ([LINEAR, field(OBLIQUE)], OBLIQUE, False),
    "turned": ([field(OBLIQUE)], OTHER, False),
    "two fields": ([field(OBLIQUE), field(OTHER)], OBLIQUE, False),
    "sought": ([NumericalInverse(field(OBLIQUE)), LINEAR], OBLIQUE, False),
    "affine": ([LINEAR, LINEAR], OBLIQUE, True),
    "nothing": ([], OBLIQUE, True),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("box", range(len(BOXES)))
def test_as_points(name, box):
    transforms, reference, along = CASES[name]
    to_target = np.linalg.inv(OTHER.affine)
    box = tuple(slice(*part.indices(n)) for part, n in zip(BOXES[box], reference.shape, strict=True))
    grid = GridMap(transforms, reference, to_target)
    assert (grid._points is None) == along
    found = grid.coordinates(box)
    index = np.stack(np.indices(reference.shape), -1)[box]
    outside = np.zeros(len(transforms), int)
    points = chain_points(reference.voxel_to_world(index).reshape(-1, 3), transforms, outside)
    expected = np.moveaxis(OTHER.world_to_voxel(points).reshape(index.shape), -1, 0)
    single = any(
        getattr(one, "displacement", None) is not None and one.displacement.dtype == "f4" for one in transforms
    )
    np.testing.assert_allclose(found, expected, atol=1e-4 if single else 1e-9)
    if box == tuple(slice(0, n, 1) for n in reference.shape):
        np.testing.assert_array_equal(grid.outside, outside)
        assert (outside.sum() > 0) == (name in ("field ends", "turned first", "turned", "two fields", "sought"))


@pytest.mark.parametrize("name", ["field ends", "two fields"])
@pytest.mark.filterwarnings("ignore::scripts.spatial.resampling.OutsideFieldWarning")
def test_threads_change_nothing(monkeypatch, name):
    monkeypatch.setattr("scripts.spatial.resampling._BLOCK", 1000)
    transforms, reference, _ = CASES[name]
    image = noise(OTHER.shape)
    labels = (5 * image).astype(np.uint8)
    for warp, what in ((resample_image, image), (resample_labels, labels)):
        one, three = (warp(what, OTHER, reference, transforms, threads=threads) for threads in (1, 3))
        np.testing.assert_array_equal(one, three)
    one, three = (world_jacobian(transforms, reference, 1000, threads) for threads in (1, 3))
    np.testing.assert_array_equal(one.determinant, three.determinant)
    assert one.measures == pytest.approx(three.measures)
