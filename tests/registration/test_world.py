"""Transform and inverse undo each other to a tolerance in mm: the field is made as fine as that takes, and no finer."""

import math

import numpy as np
import pytest
import torch

from flows import vortex
from scripts.layers import VSVF
from scripts.registration import world as world_room
from scripts.registration.grids import NetworkGrids
from scripts.registration.result import AcceptPaird, MeasurePaird
from scripts.registration.world import inverse_consistency, world_transforms
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
    return inverse_consistency(transform, inverse, FRAME, FRAME)["max"]


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


@pytest.mark.parametrize(("tolerance", "told"), [(None, False), (1e-4, True), (100.0, False)])
def test_the_user_is_told_of_an_inverse_that_is_not_as_exact_as_asked(tolerance, told):
    notes = MeasurePaird(None, tolerance)._inverse_notes({"mean": 0.01, "max": 0.5})
    assert [line for line in notes if "0.5 mm at the worst point" in line] == notes and bool(notes) == told


@pytest.mark.parametrize("arguments", [{"tolerance": 0.0}, {"tolerance": -1}, {"field_spacing": 0}])
def test_bad_arguments(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"{name}=.*positive"):
        AcceptPaird(None, **{"field_spacing": 2.5, "tolerance": 0.1, **arguments})
