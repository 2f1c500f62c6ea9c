"""The vSVF unit: advance and retreat, the velocity bound, gradients, scripts, errors."""

from __future__ import annotations

import pytest
import torch

from scripts.geometry import compose_displacements, identity_map, voxels_per_unit
from scripts.layers import VSVF, advect, bound_velocity, exponential

SHAPE = (14, 18, 16)
INTEGRATORS = ["scaling_squaring", "rk4"]


def scale(shape):
    return voxels_per_unit(list(shape), dtype=torch.float64).view(1, 3, 1, 1, 1)


def smooth_velocity(speed, seed=0, shape=SHAPE, batch=1):
    momentum = torch.randn(batch, 3, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    # The paper's narrowest Gaussian is below a voxel on so small a grid.
    velocity, _ = VSVF(stds=(0.15, 0.25), weights=(0.5, 0.5)).velocity(momentum)
    return velocity * speed / (velocity * scale(shape)).norm(dim=1).max()


def worst_inside(displacement, shape=SHAPE):
    """Largest length in voxels where no path came near a face."""
    inside = (identity_map(shape).abs() < 0.6).all(dim=1)
    return (displacement * scale(shape)).norm(dim=1)[inside].max()


def test_defaults():
    assert (VSVF().integrator, VSVF().steps) == ("scaling_squaring", 3)
    assert VSVF(integrator="rk4").steps == 10
    assert VSVF(steps=5).steps == 5


def test_advance_is_what_its_integrator_says():
    velocity, start = smooth_velocity(3.0), smooth_velocity(2.0, seed=1)
    squared, advected = VSVF(steps=5), VSVF(integrator="rk4", steps=7)
    expected = compose_displacements(start, exponential(-velocity, 5, midpoint=True))
    torch.testing.assert_close(squared.advance(start, velocity), expected)
    torch.testing.assert_close(advected.advance(start, velocity), advect(start, velocity, 7))


def test_both_integrators_advance_alike():
    velocity, start = smooth_velocity(1.5), smooth_velocity(1.5, seed=1)
    difference = VSVF().advance(start, velocity) - VSVF(integrator="rk4").advance(start, velocity)
    assert worst_inside(difference) < 0.1


@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize("count", [1, 3])
def test_retreat_is_the_inverse_of_advance(integrator, count):
    """psi = exp(-v1) o exp(-v2) o ..., so its inverse is ... o exp(v2) o exp(v1)."""
    unit = VSVF(integrator=integrator)
    forward = torch.zeros(1, 3, *SHAPE, dtype=torch.float64)
    inverse = forward
    for seed in range(count):
        velocity = smooth_velocity(2.0, seed=seed)
        forward, inverse = unit.advance(forward, velocity), unit.retreat(inverse, velocity)
    assert worst_inside(forward) > 0.8
    assert worst_inside(compose_displacements(forward, inverse)) < 0.1 * count
    assert worst_inside(compose_displacements(inverse, forward)) < 0.1 * count


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_forward_smooths_then_advances(integrator):
    unit = VSVF(integrator=integrator)
    momentum = torch.randn(2, 3, *SHAPE, generator=torch.Generator().manual_seed(0))
    start = smooth_velocity(1.0).float().expand(2, -1, -1, -1, -1)
    displacement, velocity = unit(momentum, start)
    torch.testing.assert_close(velocity, unit.smoother(momentum))
    torch.testing.assert_close(displacement, unit.advance(start, velocity))


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_no_momentum_leaves_the_map_alone(integrator):
    start = smooth_velocity(1.0)
    displacement, velocity = VSVF(integrator=integrator)(torch.zeros_like(start), start)
    torch.testing.assert_close(displacement, start)
    assert velocity.abs().max() == 0


def test_bound_shortens_only_what_is_too_long_and_keeps_directions():
    # Lengths in voxels: 1, 2, 4, 8 along the last axis, one half of the first.
    shape = (3, 5, 4)
    velocity = torch.zeros(2, 3, *shape, dtype=torch.float64)
    velocity[0, 1] = torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64) / scale(shape)[0, 1]
    velocity[1] = 0.01
    bounded, part = bound_velocity(velocity, 2.0)
    expected = torch.tensor([1.0, 2.0, 2.0, 2.0], dtype=torch.float64).expand(shape)
    torch.testing.assert_close(bounded[0, 1] * scale(shape)[0, 1], expected)
    assert bounded[0, (0, 2)].abs().max() == 0
    torch.testing.assert_close(bounded[1], velocity[1])
    assert part.tolist() == [0.5, 0.0]


def test_bound_measures_voxels_not_units():
    # One normalised unit is 10 voxels along D and 2 along W.
    velocity = torch.zeros(1, 3, 21, 5, 5, dtype=torch.float64)
    velocity[:, 0] = 1.0
    assert bound_velocity(velocity, 5.0)[0][0, 0].unique().tolist() == pytest.approx([0.5])
    assert bound_velocity(velocity.flip(1), 5.0)[0][0, 2].unique().tolist() == pytest.approx([1.0])


def test_bound_acts_in_the_unit_and_is_reported():
    momentum = torch.full((2, 3, *SHAPE), 0.9)
    momentum[1] = 0.001
    velocity, part = VSVF(max_velocity=2.0).velocity(momentum)
    lengths = (velocity * scale(SHAPE)).norm(dim=1).flatten(1)
    assert lengths.amax(1).tolist() == pytest.approx([2.0, 0.001 * scale(SHAPE).norm().item()], rel=1e-4)
    assert part.tolist() == [1.0, 0.0]
    free, part = VSVF().velocity(momentum)
    torch.testing.assert_close(free, momentum)
    assert part.tolist() == [0.0, 0.0]


def test_bound_lets_gradients_pass_and_survives_zero():
    velocity = 3 * torch.randn(1, 3, 3, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda v: bound_velocity(v, 1.5)[0], (velocity.requires_grad_(),))
    zero = torch.zeros(1, 3, 2, 2, 2, requires_grad=True)
    bound_velocity(zero, 1.0)[0].sum().backward()
    assert zero.grad.unique().tolist() == [1.0]


@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize("max_velocity", [None, 0.5])
def test_gradcheck(integrator, max_velocity):
    unit = VSVF(integrator=integrator, steps=3, max_velocity=max_velocity)
    generator = torch.Generator().manual_seed(1)
    momentum = 2 * torch.randn(1, 3, 3, 4, 3, generator=generator, dtype=torch.float64)
    start = 0.2 * torch.randn(1, 3, 3, 4, 3, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(unit, (momentum.requires_grad_(), start.requires_grad_()))


@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize("max_velocity", [None, 1.0])
def test_scripts_equal_eager(integrator, max_velocity):
    unit = VSVF(integrator=integrator, max_velocity=max_velocity)
    scripted = torch.jit.script(unit)
    for shape in ((5, 6, 7), (8, 4, 9)):
        momentum = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(0))
        start = 0.1 * momentum.flip(0)
        for got, want in zip(scripted(momentum, start), unit(momentum, start), strict=True):
            torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"integrator": "euler"}, "one of scaling_squaring, rk4, got 'euler'"),
        ({"steps": 0}, "at least 1, got 0"),
        ({"steps": -2, "integrator": "rk4"}, "at least 1, got -2"),
        ({"max_velocity": 0.0}, "max_velocity must be positive"),
        ({"max_velocity": -1.0}, "max_velocity must be positive"),
    ],
)
def test_refuses_settings_without_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        VSVF(**arguments)
