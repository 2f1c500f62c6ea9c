"""The vSVF unit: advance and its inverse, gradients, scripts, errors."""

import pytest
import torch

from scripts.geometry import compose_displacements, identity_map
from scripts.layers import RK4, VSVF, ScalingSquaring, advect, exponential
from tensor_cases import scale

SHAPE = (14, 18, 16)
INTEGRATORS = ["scaling_squaring", "rk4"]


def smooth_velocity(speed, seed=0, shape=SHAPE, batch=1):
    momentum = torch.randn(batch, 3, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    # The paper's narrowest Gaussian is below a voxel on so small a grid.
    velocity = VSVF(stds=(0.15, 0.25), weights=(0.5, 0.5)).smoother(momentum)
    return velocity * speed / (velocity * scale(shape)).norm(dim=1).max()


def worst_inside(displacement, shape=SHAPE):
    """Largest length in voxels where no path came near a face."""
    inside = (identity_map(shape).abs() < 0.6).all(dim=1)
    return (displacement * scale(shape)).norm(dim=1)[inside].max()


def test_advance_is_what_its_integrator_says():
    velocity, start = smooth_velocity(3.0), smooth_velocity(2.0, seed=1)
    squared, advected = VSVF(integrator=ScalingSquaring(5)), VSVF(integrator=RK4(7))
    expected = compose_displacements(start, exponential(-velocity, 5, midpoint=True))
    torch.testing.assert_close(squared.advance(start, velocity), expected)
    torch.testing.assert_close(advected.advance(start, velocity), advect(start, velocity, 7))


@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize("count", [1, 3])
def test_the_opposite_velocities_give_the_inverse(integrator, count):
    """psi = exp(-v1) o exp(-v2) o ..., so its inverse is ... o exp(v2) o exp(v1)."""
    unit = VSVF(integrator=integrator)
    forward = torch.zeros(1, 3, *SHAPE, dtype=torch.float64)
    inverse = forward
    for seed in range(count):
        velocity = smooth_velocity(2.0, seed=seed)
        forward = unit.advance(forward, velocity)
        inverse = compose_displacements(unit.advance(None, -velocity), inverse)
    assert worst_inside(forward) > 0.8 and worst_inside(compose_displacements(forward, inverse)) < 0.1 * count
    assert worst_inside(compose_displacements(inverse, forward)) < 0.1 * count


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_forward_smooths_then_advances(integrator):
    unit = VSVF(integrator=integrator)
    momentum = torch.randn(2, 3, *SHAPE, generator=torch.Generator().manual_seed(0))
    start = smooth_velocity(1.0).float().expand(2, -1, -1, -1, -1)
    displacement, velocity = unit(momentum, start)
    torch.testing.assert_close(velocity, unit.smoother(momentum))
    torch.testing.assert_close(displacement, unit.advance(start, velocity))


@pytest.mark.parametrize("integrator", [ScalingSquaring(3), RK4(3)])
def test_gradcheck(integrator):
    unit = VSVF(integrator=integrator)
    generator = torch.Generator().manual_seed(1)
    momentum = 2 * torch.randn(1, 3, 3, 4, 3, generator=generator, dtype=torch.float64)
    start = 0.2 * torch.randn(1, 3, 3, 4, 3, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(unit, (momentum.requires_grad_(), start.requires_grad_()))


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_scripts_equal_eager(integrator):
    unit = VSVF(integrator=integrator)
    scripted = torch.jit.script(unit)
    for shape in ((5, 6, 7), (8, 4, 9)):
        momentum = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(0))
        start = 0.1 * momentum.flip(0)
        for got, want in zip(scripted(momentum, start), unit(momentum, start), strict=True):
            torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("integrator", [ScalingSquaring, RK4])
def test_fewer_than_one_step_is_refused(integrator):
    with pytest.raises(ValueError, match="at least 1, got 0"):
        integrator(0)


def test_unknown_integrator_is_refused():
    with pytest.raises(ValueError, match="one of scaling_squaring, rk4, got 'euler'"):
        VSVF(integrator="euler")
