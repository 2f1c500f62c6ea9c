"""Labels and landmarks that drive: exact derivatives, and what they reach."""

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from scripts.geometry import (
    compose_displacements,
    identity_affine,
    identity_map,
    smallest_jacobian_determinant,
    voxels_per_unit,
    warp,
)
from scripts.layers.scaling_squaring import exponential
from scripts.losses import MembershipDice
from scripts.networks.momentum_net import half_shape
from scripts.optimize import AffineEngine, Guides, Landmarks, RegistrationEngine
from scripts.optimize.engine import _Level, _Newton

SHAPE = (20, 24, 22)
EXTENT = torch.tensor([12.0, 18.0, 15.0])  # mm of a normalised unit


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def blobs(shape=SHAPE, seed=0):
    """A smooth image ``(1, 1, D, H, W)``."""
    return torch.nn.functional.interpolate(random(1, 1, 6, 7, 6, seed=seed), shape, mode="trilinear")


def landmarks(count=7, weight=2.0, tolerance=1.0, by=0.1, seed=1):
    """Points, and where they belong: shifted by up to so many normalised units."""
    fixed = 1.4 * random(count, 3, seed=seed) - 0.7
    return Landmarks(fixed, fixed + by * (2 * random(count, 3, seed=seed + 1) - 1), EXTENT, weight, tolerance)


def memberships(seed=3):
    """Two labels ``(1, 2, D, H, W)``."""
    image = blobs(seed=seed)
    return torch.cat([(image > 0.6).float(), (image < 0.35).float()], dim=1)


@pytest.mark.parametrize(("away", "cost"), [(0.0, 0.0), (0.4, 0.0), (0.5, 0.0), (1.5, 1.0), (2.5, 4.0)])
def test_a_landmark_within_half_of_the_tolerance_costs_nothing(away, cost):
    fixed = torch.zeros(1, 3)
    of = Landmarks(fixed, torch.tensor([[0.0, away * 2 / EXTENT[1], 0.0]]), EXTENT, weight=3.0, tolerance=2.0)
    assert of.loss(identity_map(list(SHAPE))) == pytest.approx(3 * cost, abs=1e-5)


def test_costs_have_their_derivative():
    of, places = landmarks(), (random(2, 7, 3, seed=5) - 0.5).double().requires_grad_()
    of = Landmarks(*(one.double() for one in (of.fixed, of.moving, of.extent)), of.weight, of.tolerance)
    (expected,) = torch.autograd.grad(of.costs(places)[0].sum(), places)
    torch.testing.assert_close(of.costs(places)[1], expected)


def test_equations_of_affines_are_those_of_differentiation():
    of = landmarks(tolerance=0.1)
    affines = (identity_affine(2) + 0.1 * random(2, 3, 4, seed=4)).requires_grad_()
    (expected,) = torch.autograd.grad(of.costs(of.under(affines))[0].sum(), affines)
    slope, matrix = of.equations(affines.detach())
    torch.testing.assert_close(slope, expected.flatten(1), rtol=1e-4, atol=1e-4)
    assert torch.linalg.eigvalsh(matrix).min() > -1e-6 * matrix.abs().max() and torch.allclose(
        matrix, matrix.transpose(1, 2)
    )


@pytest.mark.parametrize("squared", [0.0, 0.5, 1.0])
def test_overlap_of_memberships_and_its_derivative(squared):
    one, other = (random(2, 1, 6, 5, 4, seed=seed).double() for seed in (0, 1))
    one, other = ((1 - squared) * membership + squared * (membership > 0.4) for membership in (one, other))
    of, moved = MembershipDice(other), one.requires_grad_()
    loss = of.loss(of.moments(moved))
    sums = [
        (one.square().sum((1, 2, 3, 4)) + other.square().sum((1, 2, 3, 4))),
        (one - other).square().sum((1, 2, 3, 4)),
    ]
    torch.testing.assert_close(loss, sums[1] / sums[0])
    (expected,) = torch.autograd.grad(loss.sum(), moved)
    torch.testing.assert_close(of.derivative(moved, of.moments(moved))[0], expected)
    assert of.loss(of.moments(other)).abs().max() < 1e-12


def test_the_slope_of_a_level_is_the_derivative_of_its_objective():
    guides = Guides((memberships(3), memberships(4)), 2.0, landmarks(by=0.3))
    of = _Level(RegistrationEngine(regularisation=1e-6, fold_weight=0.0), blobs(), blobs(seed=9), guides=guides)
    of.begin(identity_affine(1))
    zero = torch.zeros_like(of.identity)
    plain = _Level(RegistrationEngine(regularisation=1e-6, fold_weight=0.0), blobs(), blobs(seed=9))
    plain.begin(identity_affine(1))
    slope = of.slope(of.evaluate(zero, zero)[0])[0] - plain.slope(plain.evaluate(zero, zero)[0])[0]
    direction = of.smooth(torch.randn(zero.shape, generator=torch.Generator().manual_seed(0)))
    direction *= 0.01 / direction.abs().max()
    values = [
        sum(sign * one.evaluate(zero, part * direction)[0].objective for one, sign in ((of, 1), (plain, -1)))
        for part in (0.5, -0.5)
    ]
    assert values[0] - values[1] == pytest.approx((slope * direction).sum().item(), rel=0.05)


@pytest.mark.parametrize(("tolerance", "by"), [(0.5, 0.15), (2.0, 0.25)])
def test_landmarks_are_reached_without_folds(tolerance, by):
    image, of = blobs(), landmarks(5, 10.0, tolerance, by)
    guides = Guides(landmarks=of)
    affine = AffineEngine(halvings=(1, 0), angles=())(image, image, guides=guides).affine
    found = RegistrationEngine()(image, image, affine, guides=guides)
    ends = _Level(RegistrationEngine(), image, image, guides=guides)
    ends.begin(found.affine, found.displacement)
    low = ends.low
    coordinates = identity_map(low) + found.displacement
    carried = torch.einsum("bij,bjdhw->bidhw", found.affine[:, :, :3], coordinates) + found.affine[:, :, 3].view(
        1, 3, 1, 1, 1
    )
    places = of.on(low)._carried(carried)[1]
    distances = ((places - of.moving) * EXTENT).norm(dim=1)
    before = ((of.fixed - of.moving) * EXTENT).norm(dim=1)
    assert before.max() > 2 and distances.max() < tolerance
    assert ends.evaluate(torch.zeros(1, 3, *low), torch.zeros(1, 3, *low))[0].smallest > 0
    assert found.after < found.before


def test_labels_drive_where_images_say_nothing():
    """Constant images: what moves, moves by the labels."""
    flat = torch.full((1, 1, *SHAPE), 0.5)
    fixed, shift = memberships(), 2 / voxels_per_unit(list(SHAPE))
    moving = warp(fixed, identity_map(list(SHAPE)) - 0.5 * shift.view(1, 3, 1, 1, 1), padding="border")
    guides = Guides((moving, fixed), 1.0)
    before = guides.loss(identity_map(list(SHAPE)))
    found = RegistrationEngine(edges=0.0)(flat, flat, guides=guides)
    low = identity_map(list(found.displacement.shape[2:])) + found.displacement
    whole = torch.nn.functional.interpolate(low, SHAPE, mode="trilinear", align_corners=True)
    assert guides.loss(whole) < 0.4 * before


def test_where_labels_drive_the_last_level_goes_on_and_keeps_farther_from_folds():
    engine, guides = RegistrationEngine(), Guides((memberships(), memberships(4)), 16.0, meet=True)
    plain, landed, labelled = (engine.scaled(list(SHAPE), one).settings for one in (None, Guides(), guides))
    assert plain == landed and plain.iterations[:-1] == labelled.iterations[:-1]
    assert labelled.iterations[-1] > plain.iterations[-1] and labelled.fold_weight > plain.fold_weight
    image = blobs()
    ends = [one(image, image, guides=guides) for one in (engine, engine)]
    torch.testing.assert_close(*(one.displacement for one in ends), rtol=0, atol=0)
    assert smallest_jacobian_determinant(identity_map(half_shape(list(SHAPE))) + ends[0].displacement).min() > 0


def test_labels_by_nearest_voxels_are_those_of_scipy():
    labels = memberships()
    assert Guides((labels, labels)).by_nearest().nearest and not Guides((0.9 * labels, labels)).by_nearest().nearest
    of = _Level(RegistrationEngine(), blobs(), blobs(seed=9))
    low = of.identity + 0.1 * (random(*of.identity.shape) - 0.5)
    whole = torch.nn.functional.interpolate(low, SHAPE, mode="trilinear", align_corners=True)
    places = ((whole[0].flatten(1).t() + 1) * voxels_per_unit(list(SHAPE))).t().numpy()
    clear = (np.abs(places % 1 - 0.5) > 0.17).all(axis=0)  # half of the third in which values change
    inside = (places >= 0).all(axis=0) & (places <= np.array(SHAPE)[:, None] - 1).all(axis=0)
    moved = of.pulled(labels, low, nearest=True)[0].flatten(1).numpy()
    assert 0.2 < (clear & inside).mean() < 0.9
    for label, found in zip(labels[0].numpy(), moved, strict=True):
        expected = map_coordinates(label, places, order=0)
        np.testing.assert_allclose(found[clear & inside], expected[clear & inside], atol=1e-4)


def test_where_labels_drive_further_steps_go_on_and_make_one_map():
    image, guides = blobs(), Guides((memberships(), memberships(4)), 16.0, meet=True)
    assert RegistrationEngine().scaled(list(SHAPE), Guides()).further == 0
    found = RegistrationEngine()(image, image, guides=guides)
    assert len(found.momenta) == len(found.velocities) > 1 and len(found.evaluations) > len(found.momenta)
    whole = None
    for velocity in found.velocities:
        flow = exponential(-velocity, RegistrationEngine().settings.squarings, midpoint=True)
        whole = flow if whole is None else compose_displacements(whole, flow)
    torch.testing.assert_close(found.displacement, whole)


def test_steps_hold_back_where_they_would_fold():
    """A single voxel that would fold does not shorten the step elsewhere."""
    of = _Level(RegistrationEngine(), blobs(), blobs(seed=9))
    state = of.begin(identity_affine(1))
    descent = _Newton(of)
    _, free = descent(state)
    smallest = torch.ones(1, *of.low)
    middle = tuple(n // 2 for n in of.low)
    smallest[0, *middle] = 0.0
    _, held = descent.held(smallest)
    there = (slice(None), slice(None), *middle)
    corner = (slice(None), slice(None), 1, 1, 1)
    assert held[there].norm() < 0.7 * free[there].norm()
    assert (held[corner] - free[corner]).norm() < 0.3 * free[corner].norm()


def test_guides_are_of_one_pair():
    with pytest.raises(ValueError, match="guides are those of one pair, got 2"):
        RegistrationEngine()(*[blobs().expand(2, -1, -1, -1, -1)] * 2, guides=Guides(landmarks=landmarks()))
