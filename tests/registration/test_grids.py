"""The network's grids on two images: initialisations, extents, and what must not change them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from register_cases import reoriented
from scripts.errors import InputError
from scripts.formats.images import Image
from scripts.registration.grids import foreground_box, grid_shape, lay_grids, native_grid
from scripts.registration.pair import Pair
from scripts.registration.sampling import sample
from scripts.spatial.frame import Frame
from world_cases import frame, noise


def blob(shape=(30, 34, 26), centre=(15, 17, 13), radii=(8, 10, 7)):
    """A bright ellipsoid on an exact background of zero."""
    index = np.stack(np.indices(shape), axis=-1)
    inside = ((index - np.asarray(centre)) ** 2 / np.asarray(radii) ** 2).sum(-1) <= 1
    return np.where(inside, 1 + noise(shape), 0).astype(np.float32)


def image(array, where=None, name="image.nii.gz"):
    where = frame(array.shape) if where is None else where
    return Image(array, where, Path("/data") / name)


def same(a, b, tolerance=1e-6):
    return a.fixed.same_as(b.fixed, tolerance) and a.moving.same_as(b.moving, tolerance)


FIXED = image(blob(), frame((30, 34, 26), (5, -8, 12), (1.2, 0.9, 1.7), (-40, 25, 300)))
MOVING = image(blob(centre=(12, 20, 14), radii=(9, 8, 8)), frame((30, 34, 26), (2, 3, -6), (1, 1, 2), (-35, 30, 290)))


@settings(max_examples=50, deadline=None)
@given(st.tuples(*[st.floats(5, 600)] * 3), st.integers(16**3, 10**6))
def test_grid_shape_keeps_its_bounds(extent, voxels):
    shape = grid_shape(extent, voxels)
    assert np.prod(shape) <= voxels and all(n % 8 == 0 and n >= 16 for n in shape)


def test_foreground_box_lies_between_voxels():
    """Slices of 0, 0.25, 1: the level of a fiftieth is crossed 0.08 of a voxel after the first."""
    array = np.zeros((6, 6, 6))
    array[1:5, 1:5, 1:5], array[2:4, 2:4, 2:4] = 0.25, 1.0
    np.testing.assert_allclose(foreground_box(array), [[0.08] * 3, [4.92] * 3], atol=1e-3)


@pytest.mark.parametrize("value", [0.0, -1000.0, 37.0])
def test_foreground_box_follows_padding(value):
    array = blob() + value
    padded = np.pad(array, [(3, 0), (0, 5), (2, 1)], constant_values=value)
    np.testing.assert_allclose(foreground_box(padded) - foreground_box(array), [[3, 0, 2]] * 2, atol=1e-5)


@pytest.mark.parametrize("initialisation", ["geometry", "moments", "header"])
def test_both_grids_have_one_shape_extent_and_direction(initialisation):
    grids = lay_grids(FIXED, MOVING, grid_voxels=20_000, initialisation=initialisation)
    assert grids.fixed.shape == grids.moving.shape
    np.testing.assert_allclose(grids.fixed.affine[:3, :3], grids.moving.affine[:3, :3])
    initial = grids.initial.linear
    np.testing.assert_allclose(initial[:3, :3], np.eye(3), atol=1e-9)
    if initialisation == "header":
        np.testing.assert_allclose(initial, np.eye(4), atol=1e-9)


@pytest.mark.parametrize("initialisation", ["geometry", "moments", "header"])
def test_grids_cover_both_foregrounds(initialisation):
    grids = lay_grids(FIXED, MOVING, grid_voxels=20_000, initialisation=initialisation)
    for item, grid in ((FIXED, grids.fixed), (MOVING, grids.moving)):
        voxels = grid.world_to_voxel(item.frame.voxel_to_world(np.argwhere(item.array > 0)))
        assert grid.contains_voxel(voxels).all()


def test_geometry_puts_centres_on_each_other():
    grids = lay_grids(FIXED, MOVING, initialisation="geometry")
    # The ellipsoids' centres are those of their boxes.
    there = grids.initial.apply(FIXED.frame.voxel_to_world((15, 17, 13)))
    np.testing.assert_allclose(there, MOVING.frame.voxel_to_world((12, 20, 14)), atol=2.0)


def test_moments_puts_masses_on_each_other():
    # One side of the ellipsoid is heavier, and a far speck makes the box misleading.
    heavy = blob()
    heavy[:, :, :13] *= 0.3
    heavy[29, 33, 25] = 1.5
    item = image(heavy)
    grids = lay_grids(item, MOVING, initialisation="moments")

    def mass(one):
        return np.tensordot(one.array, np.stack(np.indices(one.array.shape), -1), 3) / one.array.sum()

    there = grids.initial.apply(item.frame.voxel_to_world(mass(item)))
    np.testing.assert_allclose(there, MOVING.frame.voxel_to_world(mass(MOVING)), atol=0.3)


SPACING = (1.5, 1.0, 2.0)
ODD = image(noise((11, 14, 9)) + 1, Frame((11, 14, 9), np.diag([*SPACING, 1.0])), "odd.nii.gz")
EVEN_AFFINE = np.diag([*SPACING, 1.0])
EVEN_AFFINE[:3, 3] = 2.3, -0.7, 5.1
EVEN = image(noise((12, 13, 10), 1) + 1, Frame((12, 13, 10), EVEN_AFFINE), "even.nii.gz")


@pytest.mark.parametrize("initialisation", ["geometry", "moments"])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("flips", [(False, False, False), (True, False, True)])
def test_images_of_the_grids_own_spacing_are_not_interpolated(initialisation, order, flips):
    """Along the voxels' axes a grid of their spacing lies on them, half a voxel from the centres if need be."""
    given = [reoriented(item, order, flips) for item in (ODD, EVEN)]
    grids = lay_grids(*given, (16, 16, 16), initialisation=initialisation, spacing=SPACING)
    for item, grid in zip((ODD, EVEN), (grids.fixed, grids.moving), strict=True):
        np.testing.assert_allclose(grid.spacing, SPACING)
        first = grid.world_to_voxel(item.frame.voxel_to_world((0, 0, 0)))
        np.testing.assert_allclose(first, np.round(first), atol=1e-9)
        seen = sample(item.array, item.frame, grid)
        where = tuple(slice(n, n + size) for n, size in zip(np.round(first).astype(int), item.array.shape, strict=True))
        np.testing.assert_allclose(seen[where], item.array, rtol=1e-5)
    if initialisation == "geometry":
        before = ODD.frame.centre - grids.fixed.centre, EVEN.frame.centre - grids.moving.centre
        assert all((np.abs(off) <= 0.501 * np.asarray(SPACING)).all() for off in before)


@pytest.mark.parametrize(
    ("shape", "affine"),
    [((11, 14, 9), np.diag([1.5, 1.0, 2.1, 1.0])), ((11, 14, 9), frame((11, 14, 9), (3, 0, 0), SPACING).affine)],
)
def test_other_spacings_and_axes_keep_the_grids_centre(shape, affine):
    other = image(noise(shape) + 1, Frame(shape, affine), "other.nii.gz")
    grids = lay_grids(ODD, other, (16, 16, 16), spacing=SPACING)
    np.testing.assert_allclose(grids.moving.centre, other.frame.centre, atol=0.01)


@pytest.mark.parametrize("initialisation", ["geometry", "moments", "header"])
def test_padding_and_cropping_background_change_nothing(initialisation):
    expected = lay_grids(FIXED, MOVING, grid_voxels=20_000, initialisation=initialisation)
    padded = np.pad(FIXED.array, [(4, 1), (0, 7), (2, 2)])
    affine = FIXED.frame.affine.copy()
    affine[:3, 3] = FIXED.frame.voxel_to_world((-4, 0, -2))
    fixed = Image(padded, Frame(padded.shape, affine), FIXED.path)
    assert same(lay_grids(fixed, MOVING, grid_voxels=20_000, initialisation=initialisation), expected)
    cropped = np.ascontiguousarray(MOVING.array[2:-1, 8:, 3:-2])
    affine = MOVING.frame.affine.copy()
    affine[:3, 3] = MOVING.frame.voxel_to_world((2, 8, 3))
    moving = Image(cropped, Frame(cropped.shape, affine), MOVING.path)
    assert same(lay_grids(FIXED, moving, grid_voxels=20_000, initialisation=initialisation), expected)


@pytest.mark.parametrize(("options", "message"), [
    ({"initialisation": "centre"}, "initialisation=centre: must be one of geometry, moments, header"),
    ({"extent": "large"}, "extent=large: must be one of common, own"),
    ({"grid_voxels": 100}, "grid_voxels=100: give a number from 4096"),
    ({"spacing": (1, 1, 1)}, "needs a grid and extent common"),
    ({"grid": (8, 8)}, "grid"),
    ({"orientation": "RAR"}, "orientation"),
])  # fmt: skip
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        lay_grids(FIXED, MOVING, **options)


def test_header_needs_an_overlap():
    far = image(blob(), frame((30, 34, 26), origin=(5000, 0, 0)), "far.nii.gz")
    with pytest.raises(InputError, match=r"far\.nii\.gz: its field of view does not overlap"):
        lay_grids(FIXED, far, initialisation="header")
    lay_grids(FIXED, far, initialisation="geometry")


def test_notes_on_headers_that_disagree():
    array = blob()
    one = image(array, frame(array.shape, spacing=(1.4, 1.4, 4)), "a.mha")
    other = image(array, frame(array.shape, spacing=(1.4, 1.4, 5)), "b.mha")
    (note,) = Pair(one, other).notes
    assert "4 and 5 mm along axis 2" in note and "a.mha and b.mha" in note and Pair(one, one).notes == []


NATIVE = {  # mm of the extent, most voxels, mm of the finest voxels -> shape, mm of the grid's voxels
    "small images as they are": ((35, 50, 36), 1_000_000, (1, 1, 1), (35, 50, 36), (1, 1, 1)),
    "axes of their own spacing": ((100, 140, 90), 1_000_000, (2, 1, 3), (50, 140, 30), (2, 1, 3)),
    "the finest axes are coarsened first": ((100, 100, 100), 100_000, (1, 1, 10), (100, 100, 10), (1, 1, 10)),
    "then all": ((80, 80, 80), 64_000, (1, 1, 1), (40, 40, 40), (2, 2, 2)),
    "never fewer than eight": ((40, 40, 5), 1_000_000, (1, 1, 5), (40, 40, 8), (1, 1, 5 / 7)),
}


@pytest.mark.parametrize("case", NATIVE)
def test_native_grid(case):
    extent, voxels, finest, shape, spacing = NATIVE[case]
    found, steps = native_grid(extent, voxels, finest)
    assert found == shape and np.prod(found) <= voxels
    np.testing.assert_allclose(steps, spacing, rtol=0.02)


def test_a_native_grid_lies_on_the_voxels():
    grids = lay_grids(FIXED, FIXED, grid_voxels=1_000_000, native=True)
    np.testing.assert_allclose(sorted(grids.fixed.spacing), sorted(FIXED.frame.spacing))
    voxels = FIXED.frame.world_to_voxel(grids.fixed.voxel_to_world(np.array([[0, 0, 0], [3, 5, 2]])))
    np.testing.assert_allclose(voxels, np.round(voxels), atol=2e-3)
