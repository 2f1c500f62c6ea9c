"""Transform and inverse undo each other to a tolerance in mm: the field is made as fine as that takes, and no finer."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from flows import vortex
from scripts.formats.images import Image
from scripts.layers import VSVF
from scripts.metrics import displacement_jacobian
from scripts.registration import world as world_room
from scripts.registration.grids import NetworkGrids
from scripts.registration.measure import _round_trip_notes
from scripts.registration.round_trip import round_trip
from scripts.registration.update import Registered
from scripts.registration.world import WorldTransformsd, world_transforms
from scripts.spatial.frame import Frame

SPACING = 4.0
FRAME = Frame((24, 28, 20), np.diag([SPACING, SPACING, SPACING, 1.0]), "image")


def registration(strength):
    return vortex(strength, FRAME.shape)


def transforms(strength, **options):
    grids = NetworkGrids(FRAME, FRAME, "header")
    found = registration(strength)
    return world_transforms(found, VSVF(), grids, FRAME, FRAME, **options), found


def trip(transform, inverse):
    return round_trip(transform, inverse, FRAME, FRAME)["max"]


def fineness(transform):
    return transform.frame.spacing.max()


@pytest.mark.parametrize("tolerance", [0.4, 0.1, 0.05])
def test_the_field_becomes_fine_enough(tolerance):
    (plain, undo), _ = transforms(0.8, field_spacing=100.0, tolerance=None)
    assert trip(plain, undo) > 0.5  # else there is nothing to mend
    (fine, undo), _ = transforms(0.8, field_spacing=100.0, tolerance=tolerance)
    assert trip(fine, undo) <= tolerance
    assert fineness(fine) < fineness(plain)


def test_no_finer_than_that_takes():
    (plain, _), _ = transforms(0.01, field_spacing=100.0, tolerance=None)
    (fine, _), _ = transforms(0.01, field_spacing=100.0, tolerance=0.5)
    assert fineness(fine) == fineness(plain)


def test_the_error_falls_with_the_square_of_the_spacing():
    errors = [trip(*transforms(0.5, field_spacing=s, tolerance=None)[0]) for s in (8.5, 4.25, 2.125)]
    assert errors[0] / errors[1] > 3
    assert errors[1] / errors[2] > 3


def test_memory_has_the_last_word(monkeypatch):
    (plain, _), _ = transforms(0.8, field_spacing=100.0, tolerance=None)
    monkeypatch.setattr(world_room, "_FINEST", 9 * math.prod(plain.frame.shape))
    (found, undo), _ = transforms(0.8, field_spacing=100.0, tolerance=1e-6)
    assert trip(found, undo) > 1e-6
    assert fineness(found) == pytest.approx(fineness(plain) / 2)


def test_points_that_leave_the_grid_come_back():
    """A velocity that carries the outer layers off the grid, where a displacement that ends there has no inverse."""
    found = registration(0.0)
    ramp = torch.linspace(-1, 1, 12).view(1, 1, -1, 1, 1).expand_as(found.velocities[0][:, :1])
    found.velocities[0] = torch.cat([0.5 * ramp, torch.zeros_like(found.velocities[0][:, 1:])], dim=1)
    grids = NetworkGrids(FRAME, FRAME, "header")
    transform, inverse = world_transforms(found, VSVF(), grids, FRAME, FRAME, field_spacing=1.5, tolerance=None)
    corners = np.stack(np.meshgrid(*[[-0.8, 0.0, 0.8]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    points = FRAME.normalised_to_world(corners)
    there = transform.apply(points)
    # exp(-v) draws towards the middle, exp(v) away from it: from 0.8 to 0.8 e^0.5 > 1, off the grid.
    away = inverse[-1].apply(points)
    np.testing.assert_allclose(FRAME.world_to_normalised(there)[:, 0], corners[:, 0] * math.exp(-0.5), atol=0.01)
    assert np.abs(FRAME.world_to_normalised(away)[:, 0]).max() > 1.2
    np.testing.assert_allclose(transform.apply(away), points, atol=0.1)


def in_the_world(found):
    """`WorldTransformsd` of a registered pair, and the folds of its transform on the fixed image's own grid."""
    image = Image(np.zeros(FRAME.shape, np.float32), FRAME, Path("image.nii.gz"))
    item = {"images": {"fixed": image, "moving": image}, "grids": NetworkGrids(FRAME, FRAME, "header")}
    step = WorldTransformsd(SimpleNamespace(vsvf=VSVF()), field_spacing=100.0, tolerance=None, keep_better=False)
    item = step({**item, "registered": found})
    points = np.stack(np.indices(FRAME.shape), axis=-1)
    field = item["transform"].apply(FRAME.voxel_to_world(points)) - FRAME.voxel_to_world(points)
    return item, displacement_jacobian(field, FRAME).folds


def test_a_flow_is_shortened_until_nothing_folds_on_the_images_grid():
    strength, asked = 6.0, []

    def registered(factor=1.0, shorter=None):
        return Registered(registration(strength * factor), None, {}, 0, {}, [], {"length": factor}, shorter)

    def shorter(factor, why):
        asked.append(factor)
        return registered(factor, shorter)

    item, folds = in_the_world(registered())
    assert folds > 0 and "displacement" not in item  # nothing that could be shortened
    item, folds = in_the_world(registered(shorter=shorter))
    assert folds == item["regularity"].folds == 0 and 0 < item["registered"].twin["length"] == asked[-1] < 1
    inner = FRAME.voxel_to_world(np.stack(np.indices(FRAME.shape), axis=-1))
    np.testing.assert_allclose(item["displacement"], item["transform"].apply(inner) - inner, atol=1e-4)
    assert asked == sorted(asked, reverse=True)
    *_, longer = [1.0, *asked][:-1]
    assert in_the_world(registered(longer))[1] > 0  # no shorter than it must be
    strength = 0.3
    item, folds = in_the_world(registered(shorter=shorter))
    assert folds == 0 and item["registered"].twin["length"] == 1.0


@pytest.mark.parametrize(("tolerance", "told"), [(None, False), (1e-4, True), (100.0, False)])
def test_the_user_is_told_of_an_inverse_that_is_not_as_exact_as_asked(tolerance, told):
    notes = _round_trip_notes({"mean": 0.01, "max": 0.5}, {"round_trip_tolerance": tolerance})
    assert [line for line in notes if "0.5 mm at the worst point" in line] == notes and bool(notes) == told


@pytest.mark.parametrize("arguments", [{"tolerance": 0.0}, {"tolerance": -1}, {"field_spacing": 0}])
def test_bad_arguments(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"{name}=.*positive"):
        WorldTransformsd(None, **arguments)
