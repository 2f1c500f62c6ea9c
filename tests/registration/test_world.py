"""From a registration to the world: what is written is what was found, and its inverse undoes it to a tolerance."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from flows import vortex
from scripts.formats.transform_files import write_transform
from scripts.geometry import identity_map
from scripts.layers import VSVF
from scripts.metrics import world_jacobian
from scripts.networks import Registration
from scripts.registration.grids import NetworkGrids
from scripts.registration.result import AcceptPaird, _inverse_notes
from scripts.registration.world import inverse_consistency, inverse_transform, world_transform
from scripts.spatial.frame import Frame
from scripts.spatial.inversion import NumericalInverse
from scripts.spatial.transform import WorldTransform
from world_cases import AFFINE, frame, sitk_points

# Grids of the network, about 4 mm, on images of 2 mm that hold them.
FIXED = frame((24, 28, 20), (12, -25, 40), (4.0, 3.8, 4.2), (-71.3, 44.0, 310.5))
MOVING = frame((24, 28, 20), (-30, 8, 15), (4.1, 3.9, 4.0), (25.0, -90.2, -12.0))
GRIDS = NetworkGrids(FIXED, MOVING, "header")
IMAGES = [grid.resized([2 * n - 1 for n in grid.shape]) for grid in (FIXED, MOVING)]
LOW = (12, 14, 10)


def carried(points, sign=1):
    """A diffeomorphism of normalised coordinates ``(..., 3)``, or its inverse: shears, one after the other."""
    x, y, z = np.moveaxis(np.asarray(points, float), -1, 0)
    for axis in (0, 1)[::sign]:
        if axis == 0:
            x = x + sign * 0.12 * np.sin(1.2 * y + 0.6 * z)
        else:
            y = y + sign * 0.1 * np.cos(2.5 * z)
    return np.stack([x, y, z], axis=-1)


def composed(low=LOW):
    """The registration of `carried` and an affine, given at nodes."""
    nodes = identity_map(list(low))
    places = np.moveaxis(nodes[0].numpy(), 0, -1)
    displacement = torch.from_numpy(np.moveaxis(carried(places) - places, -1, 0)[None]).float()
    return Registration(
        torch.zeros(1, 1, *FIXED.shape), AFFINE, displacement, momenta=[displacement], velocities=[displacement],
        composed=True,
    )  # fmt: skip


def integrated():
    """The registration of the first shear of `carried` alone, as the flow of a velocity, and an affine."""
    y, z = identity_map(list(LOW))[0, 1:]
    velocity = torch.stack([-0.12 * torch.sin(1.2 * y + 0.6 * z), torch.zeros_like(y), torch.zeros_like(y)])[None]
    return Registration(torch.zeros(1, 1, *FIXED.shape), AFFINE, -velocity, momenta=[velocity], velocities=[velocity])


def placed(registration, tolerance=0.05, grids=GRIDS, images=IMAGES, **options):
    transform = world_transform(registration, VSVF(), grids, *images, tolerance, **options)
    return transform.covering(images[0]), [inverse_transform(transform, grids, *images, tolerance, **options)]


def chained(inverse, points):
    for part in inverse:
        points = part.apply(points)
    return points


def inner_points(count=3000, reach=0.7):
    return np.random.default_rng(0).uniform(-reach, reach, (count, 3))


@pytest.mark.parametrize("kind", ["composed", "flow"])
def test_transform_and_inverse_are_those_in_closed_form(tmp_path, kind):
    """An affine after a known diffeomorphism; SimpleITK reads both files and carries points there and back."""
    first_alone = lambda p, sign=1: p + sign * 0.12 * np.sin(1.2 * p[:, 1:2] + 0.6 * p[:, 2:]) * np.eye(3)[0]  # noqa: E731
    registration, true = (composed((47, 55, 39)), carried) if kind == "composed" else (integrated(), first_alone)
    transform, inverse = placed(registration)
    normalised = inner_points()
    points = FIXED.normalised_to_world(normalised)
    linear = WorldTransform.from_network(FIXED, MOVING, AFFINE)
    there = linear.apply(FIXED.normalised_to_world(true(normalised)))
    np.testing.assert_allclose(transform.apply(points), there, atol=0.06)
    np.testing.assert_allclose(chained(inverse, there), points, atol=0.08)
    back = FIXED.normalised_to_world(true(normalised, -1))
    np.testing.assert_allclose(chained(inverse, linear.apply(points)), back, atol=0.08)
    assert world_jacobian([transform], IMAGES[0]).folds == 0
    names = [str(tmp_path / name) for name in ("transform.h5", "inverse_transform.h5")]
    write_transform(transform, names[0])
    write_transform(inverse, names[1])
    forward, backward = map(sitk.ReadTransform, names)
    some = slice(200)
    np.testing.assert_allclose(sitk_points(forward, points[some]), transform.apply(points[some]), atol=1e-3)
    np.testing.assert_allclose(sitk_points(backward, sitk_points(forward, points[some])), points[some], atol=0.06)


def test_what_is_composed_is_written_as_it_is():
    """The linear interpolation of the nodes, whatever the tolerance, on their own grid."""
    registration = composed()
    nodes = FIXED.resized(LOW).voxel_to_world(np.stack(np.indices(LOW), -1)).reshape(-1, 3)
    expected = WorldTransform.from_network(FIXED, MOVING, AFFINE, registration.displacement)
    for tolerance in (0.02, 10.0):
        transform, _ = placed(registration, tolerance)
        np.testing.assert_allclose(transform.frame.spacing, FIXED.resized(LOW).spacing)
        middle = nodes[(np.abs(FIXED.world_to_normalised(nodes)) < 0.9).all(axis=1)] + 1.3
        np.testing.assert_allclose(transform.apply(middle), expected.apply(middle), atol=2e-3)


@pytest.mark.parametrize("kind", ["composed", "flow"])
@pytest.mark.parametrize("tolerance", [0.4, 0.1, 0.05])
def test_the_inverse_is_as_exact_as_asked_and_no_finer_than_that_takes(kind, tolerance):
    found = composed((24, 28, 20)) if kind == "composed" else vortex(0.5, FIXED.shape)
    small = [grid.resized([8 * n for n in grid.shape]) for grid in (FIXED, MOVING)]
    transform, inverse = placed(found, tolerance, images=small)
    error = inverse_consistency([transform], inverse, FIXED, MOVING)
    assert error["points"] > 3000 and error["max"] < 1.3 * tolerance
    refined = inverse[-1].frame.spacing.max() < 1.9 * FIXED.spacing.max()
    assert error["max"] > tolerance / 4 or not refined


@pytest.mark.parametrize(
    ("finest", "between"), [(4_000_000, 2), (120_000, 1), (20_000, 0)], ids=["voxels and between", "voxels", "fewer"]
)
def test_a_written_inverse_is_exact_at_the_moving_voxels(tmp_path, finest, between):
    """A map with kinks at all its nodes, of which no grid is the inverse: SimpleITK reads it beside Newton's steps."""
    found = composed()
    noise = 0.15 * torch.rand(found.displacement.shape, generator=torch.Generator().manual_seed(0)) - 0.075
    found.displacement = found.displacement + noise
    moving = IMAGES[1]
    transform, (inverse,) = placed(found, finest=finest)
    write_transform(inverse, tmp_path / "inverse.h5")
    inner = moving.resized([9, 11, 7]).voxel_to_world(np.argwhere(np.ones((5, 7, 3))) + 2)
    voxels = np.rint(moving.world_to_voxel(inner))
    off = []
    for places in (voxels, voxels + 0.25):
        points = moving.voxel_to_world(places)
        exact, error = NumericalInverse(transform, 1e-4).solve(points)
        assert error.max() < 1e-4
        written = sitk_points(sitk.ReadTransform(tmp_path / "inverse.h5"), points)
        off.append(np.linalg.norm(written - exact, axis=1).max())
    assert (off[0] < 0.02) == (between > 0) and off[1] > 0.05
    steps = moving.spacing / inverse.frame.spacing
    np.testing.assert_allclose(steps, between) if between else np.testing.assert_array_less(steps, 0.95)
    assert math.prod(inverse.frame.shape) <= 2.5 * finest
    if between:
        nodes = inverse.frame.world_to_voxel(moving.corners)
        np.testing.assert_allclose(nodes, np.rint(nodes), atol=1e-6)


def test_the_inverse_of_thick_slices_has_nodes_between_them():
    thick = Frame((*MOVING.shape[:2], 5), MOVING.affine @ np.diag([1.0, 1.0, 4.2, 1.0]))
    _, (inverse,) = placed(composed(), 1e-4, images=[FIXED, thick])
    np.testing.assert_allclose(thick.spacing / inverse.frame.spacing, (2, 2, 7))


def test_points_that_leave_the_grid_come_back():
    """A velocity that carries the outer layers off the grid, where a displacement that ends there has no inverse."""
    fixed = Frame(FIXED.shape, np.diag([4.0, 4.0, 4.0, 1.0]))
    found = vortex(0.0, fixed.shape)
    ramp = torch.linspace(-1, 1, 12).view(1, 1, -1, 1, 1).expand_as(found.velocities[0][:, :1])
    found.velocities[0] = torch.cat([0.5 * ramp, torch.zeros_like(found.velocities[0][:, 1:])], dim=1)
    found.displacement = VSVF().advance(None, found.velocities[0])
    transform, inverse = placed(found, grids=NetworkGrids(fixed, fixed, "header"), images=[fixed, fixed])
    corners = np.stack(np.meshgrid(*[[-0.8, 0.0, 0.8]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    points = fixed.normalised_to_world(corners)
    there = transform.apply(points)
    # exp(-v) draws towards the middle, exp(v) away from it: from 0.8 to 0.8 e^0.5 > 1, off the grid.
    away = inverse[-1].apply(points)
    np.testing.assert_allclose(fixed.world_to_normalised(there)[:, 0], corners[:, 0] * math.exp(-0.5), atol=0.01)
    assert np.abs(fixed.world_to_normalised(away)[:, 0]).max() > 1.2
    np.testing.assert_allclose(transform.apply(away), points, atol=0.2)


@pytest.mark.parametrize(("worst", "told"), [(0.4, False), (0.6, True)])
def test_the_user_is_told_where_the_inverse_is_off_by_more_than_half_a_voxel(worst, told):
    where = Frame((8, 8, 8), np.diag([1.0, 1.5, 2.0, 1.0]))
    pair = SimpleNamespace(fixed=SimpleNamespace(frame=FIXED), moving=SimpleNamespace(frame=where))
    notes = _inverse_notes({"mean": 0.01, "max": worst}, pair)
    assert [line for line in notes if f"{worst:g} mm off at the worst point" in line] == notes and bool(notes) == told


@pytest.mark.parametrize("tolerance", [0.0, -1, None])
def test_bad_arguments(tolerance):
    with pytest.raises(ValueError, match=r"tolerance=.*positive"):
        AcceptPaird(None, tolerance)
