"""Numerical inverses: what goes through a transform and back is where it was, or the error is told."""

import warnings

import numpy as np
import pytest
import SimpleITK as sitk

from scripts.spatial.frame import ras_to_lps
from scripts.spatial.inversion import (
    TOLERANCE,
    InverseNotReachedWarning,
    NumericalInverse,
    invert_transforms,
    merge_warnings,
)
from scripts.spatial.resampling import resample_image, transform_points
from scripts.spatial.transform import WorldTransform
from world_cases import AFFINE, FRAMES, displacement, frame, noise, positions, some_points


def make(name, size=0.06):
    fixed, moving = FRAMES[name]
    return fixed, moving, WorldTransform.from_network(fixed, moving, AFFINE, displacement(size=size))


def field_of(where, function):
    """A transform whose field is ``function`` of position in mm, at the voxels of ``where``."""
    return WorldTransform(np.eye(4), function(positions(where)), where)


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("size", [0.06, 0.25])
def test_there_and_back(name, size):
    fixed, _, transform = make(name, size)
    points = some_points(fixed, 400, margin=-0.1)
    there = transform.apply(points)
    inverse = NumericalInverse(transform)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = inverse.apply(there)
    assert inverse.covers(there).all() and np.linalg.norm(transform.apply(back) - there, axis=1).max() <= TOLERANCE
    # A map that compresses by some factor gives the error of its inverse that factor.
    assert np.abs(back - points).max() < 10 * TOLERANCE
    grid = there[:6].reshape(2, 3, 3)
    np.testing.assert_allclose(inverse.apply(grid), back[:6].reshape(2, 3, 3), atol=1e-12)


@pytest.mark.parametrize("factor", [2.0, 5.0, -0.8])
def test_strong_stretching(factor):
    """Fixed-point steps alone run away where d grows faster than p."""
    where = frame((9, 9, 9), (10, 20, 30), (2, 1, 3), (5, 5, 5))
    transform = field_of(where, lambda p: factor * (p - where.centre))
    points = some_points(where, 100)
    back = NumericalInverse(transform).apply(transform.apply(points))
    np.testing.assert_allclose(back, points, atol=10 * TOLERANCE)


def test_as_simpleitk_inverts_a_field():
    where = frame((24, 26, 22), (5, -10, 20), (1.0, 1.5, 2.0), (3, -4, 7))

    def wave(p):
        x = (p - where.centre) / 12
        return 1.5 * np.stack([np.sin(x[..., 1]), np.cos(x[..., 2]), np.sin(x[..., 0])], axis=-1)

    transform = field_of(where, wave)
    vectors = sitk.GetImageFromArray(ras_to_lps(transform.displacement).transpose(2, 1, 0, 3), isVector=True)
    vectors.SetSpacing(where.spacing.tolist())
    vectors.SetOrigin(ras_to_lps(where.origin).tolist())
    vectors.SetDirection((np.diag((-1.0, -1.0, 1.0)) @ where.direction).ravel().tolist())
    theirs = from_sitk_vectors(sitk.InvertDisplacementField(vectors, 200, 1e-5, 1e-6, enforceBoundaryCondition=False))
    inside = (slice(6, -6),) * 3
    ours = NumericalInverse(transform).apply(positions(where)[inside]) - positions(where)[inside]
    assert np.abs(ours).max() > 1
    np.testing.assert_allclose(ours, theirs[inside], atol=0.02)


def from_sitk_vectors(image):
    return ras_to_lps(sitk.GetArrayFromImage(image).transpose(2, 1, 0, 3))


def test_a_shift_within_a_field_is_found_where_it_points_out_of_it():
    """Points that the field itself brought out of its grid come back into it."""
    where = frame((10, 10, 10))
    transform = field_of(where, lambda p: np.broadcast_to((20.0, 0.0, 0.0), p.shape))
    points = some_points(where, 50)
    np.testing.assert_allclose(NumericalInverse(transform).apply(points + np.array([20.0, 0, 0])), points, atol=1e-9)


def test_affines_are_inverted_exactly_and_the_order_turned():
    fixed, _, transform = make("oblique, other size")
    bend = WorldTransform(np.eye(4), transform.displacement, transform.frame)
    first, last = transform.affine_part, WorldTransform(np.diag((2.0, 1.0, 0.5, 1.0)))
    points = some_points(fixed, 50, margin=-0.1)
    chain = [bend, first, last]
    there = transform_points(points, chain, "RAS")
    inverses = invert_transforms(chain)
    assert [type(t) for t in inverses] == [WorldTransform, WorldTransform, NumericalInverse]
    np.testing.assert_allclose(inverses[0].linear, np.diag((0.5, 1.0, 2.0, 1.0)), atol=0)
    np.testing.assert_allclose(transform_points(there, inverses, "RAS"), points, atol=10 * TOLERANCE)
    assert invert_transforms([]) == []


def folding():
    """A field that maps the middle of its grid onto itself backwards, and so leaves places that it never reaches."""
    where = frame((16, 16, 16))
    return where, field_of(where, lambda p: np.where(p[..., :1] < 8, 6.0, -6.0) * np.array([0, 1.0, 0]))


def test_what_is_not_reached_is_told():
    where, _ = folding()
    # Everything moves by 30 mm out of the grid, so that nothing comes to lie in it.
    transform = field_of(where, lambda p: np.broadcast_to((0.0, 30.0, 0.0), p.shape))
    points = some_points(where, 20, margin=-0.1)
    mixed = np.concatenate([points, points + np.array([0, 30.0, 0])])
    inverse = NumericalInverse(transform)
    with pytest.warns(InverseNotReachedWarning, match="20 of 40 points, remaining error up to 30 mm") as caught:
        found = inverse.apply(mixed)
    np.testing.assert_allclose(found[20:], points, atol=1e-9)
    error = np.linalg.norm(transform.apply(found) - mixed, axis=1)
    assert caught[0].message.worst == pytest.approx(error.max()) and len(caught) == 1 and caught[0].filename == __file__


def test_a_tear_is_told_and_finite():
    where, transform = folding()
    inverse = NumericalInverse(transform)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = inverse.apply(positions(where))
    found_error = np.linalg.norm(transform.apply(found) - positions(where), axis=-1)
    assert np.isfinite(found).all()
    missed = int((found_error > TOLERANCE).sum())
    assert sum(w.message.count for w in caught if isinstance(w.message, InverseNotReachedWarning)) == missed > 0


def test_one_warning_for_one_application():
    """`resample_image` asks for `covers` and `apply`; blocks are told together by `merge_warnings`."""
    where, transform = folding()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        resample_image(noise(where.shape), where, where, invert_transforms([transform]))
    ours = [w.message for w in caught if isinstance(w.message, InverseNotReachedWarning)]
    assert len(ours) == 1
    merged = merge_warnings([ours[0], InverseNotReachedWarning(5, 10, 99.0, TOLERANCE)])
    assert (merged.count, merged.total, merged.worst) == (ours[0].count + 5, ours[0].total + 10, 99.0)


def test_refusals():
    with pytest.raises(ValueError, match="no displacement field"):
        NumericalInverse(WorldTransform(np.eye(4)))
    with pytest.raises(ValueError, match="positive"):
        NumericalInverse(make("identity")[2], 0)
