"""B-splines: SimpleITK's ``BSplineTransform`` carries points alike, and they are inverted."""

import numpy as np
import pytest
import SimpleITK as sitk

from scripts.errors import InputError
from scripts.spatial import Frame, WorldTransform, invert_transforms, ras_to_lps
from world_cases import OBLIQUE, sitk_points

SHAPE = (9, 8, 10)


def spline(order, size=3.0):
    """A B-spline of ours and SimpleITK's; its coefficients lie on an oblique grid."""
    frame = Frame(SHAPE, OBLIQUE.affine * [[8], [8], [8], [1]])
    values = np.random.default_rng(order).uniform(-size, size, (*SHAPE, 3))
    images = [sitk.GetImageFromArray(np.ascontiguousarray(values[..., c].T)) for c in range(3)]
    for image in images:
        image.SetSpacing(frame.spacing.tolist())
        image.SetOrigin(ras_to_lps(frame.origin).tolist())
        image.SetDirection((np.diag((-1.0, -1, 1)) @ frame.direction).ravel().tolist())
    return WorldTransform(np.eye(4), ras_to_lps(values), frame, order), sitk.BSplineTransform(images, order)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_as_simpleitk(order):
    ours, theirs = spline(order)
    voxels = np.random.default_rng(0).uniform(-2, np.array(SHAPE) + 1, (2000, 3))
    low, high = ours.faces
    just = np.tile((low + high) / 2, (12, 1))  # within and beyond each face
    for row, (axis, value) in enumerate((a, v) for a in range(3) for v in (low[a], high[a])):
        just[2 * row : 2 * row + 2, axis] = value - 1e-6, value + 1e-6
    points = ours.frame.voxel_to_world(np.concatenate([voxels, just]))
    np.testing.assert_allclose(ours.apply(points), sitk_points(theirs, points), atol=1e-9)
    covered = ours.covers(points)
    assert covered[-12:].tolist() == [False, True, True, False] * 3 and 100 < covered.sum() < 1900
    np.testing.assert_array_equal(ours.apply(points)[~covered], points[~covered])


@pytest.mark.parametrize("order", [1, 2, 3])
def test_inverse(order):
    ours, _ = spline(order, size=1.0)
    voxels = np.random.default_rng(0).uniform(3, np.array(SHAPE) - 4, (200, 3))
    points = ours.frame.voxel_to_world(voxels)
    (inverse,) = invert_transforms([ours])
    np.testing.assert_allclose(inverse.apply(ours.apply(points)), points, atol=2e-3)


def test_refusals():
    values, frame = np.zeros((3, 4, 4, 3)), Frame((3, 4, 4), np.eye(4))
    for arguments, message in (
        ((values, frame, 3), "needs 4 coefficients along each axis"),
        ((values, frame, 4), "the order, 1 to 3"),
        ((values, frame, 0), "the order, 1 to 3"),
        ((None, None, 3), "the order, 1 to 3"),
    ):
        with pytest.raises(InputError, match=message):
            WorldTransform(np.eye(4), *arguments)
    with pytest.raises(ValueError, match="cannot be continued"):
        WorldTransform(np.eye(4), values, frame, 2).covering(frame)
