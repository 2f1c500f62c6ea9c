"""Both integrators: translations, matrix exponentials, orders of convergence, inverses, gradients."""

from functools import partial
from itertools import pairwise

import pytest
import torch
from scipy.linalg import expm

from scripts.geometry import affine_map, compose_displacements, identity_map
from scripts.layers import MultiGaussianSmoother, advect, exponential
from tensor_cases import scale

SHAPE = (9, 12, 11)
INTEGRATORS = {
    "scaling_squaring": exponential,
    # The advected map is exp(-v), so both functions of this table give exp(v).
    "rk4": lambda velocity, steps: advect(torch.zeros_like(velocity), -velocity, steps),
}
STARTS = INTEGRATORS | {"midpoint": partial(exponential, midpoint=True)}
GENERATORS = {
    "rotation": [[0, -0.5, 0.2], [0.5, 0, -0.1], [-0.2, 0.1, 0]],
    "scaling": [[-0.4, 0, 0], [0, -0.3, 0], [0, 0, -0.5]],
    "shear": [[0, 0.3, 0], [0, 0, -0.2], [0.1, 0, 0]],
}


def random_velocity(shape, speed, seed=0):
    """White noise through a kernel that even these small grids resolve, largest length ``speed`` voxels."""
    momentum = torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    velocity = MultiGaussianSmoother([0.15, 0.25], [0.5, 0.5])(momentum)
    return velocity * speed / (velocity * scale(shape)).norm(dim=1).max()


def linear_velocity(matrix, shape, shift=(0.0, 0.0, 0.0)):
    return affine_map(torch.cat([matrix, torch.tensor(shift, dtype=torch.float64).view(3, 1)], dim=1)[None], shape)


def interior(shape, limit=0.5):
    return (identity_map(shape).abs() < limit).all(dim=1, keepdim=True).expand(-1, 3, -1, -1, -1)


@pytest.mark.parametrize(("integrator", "steps"), [("scaling_squaring", 1), ("scaling_squaring", 6), ("rk4", 10)])
@pytest.mark.parametrize("voxels", [(0.0, 0.0, 0.0), (0.4, -1.3, 2.0), (30.0, -40.0, 8.0)])
def test_constant_velocity_translates_up_to_the_faces(integrator, steps, voxels):
    velocity = (torch.tensor(voxels, dtype=torch.float64).view(1, 3, 1, 1, 1) / scale(SHAPE)).expand(1, 3, *SHAPE)
    torch.testing.assert_close(INTEGRATORS[integrator](velocity, steps), velocity.contiguous())


@pytest.mark.parametrize(("integrator", "order"), [("scaling_squaring", 1), ("midpoint", 2), ("rk4", 4)])
@pytest.mark.parametrize("name", GENERATORS)
def test_order_of_convergence_on_linear_velocities(integrator, order, name):
    """Linear fields are interpolated and differenced exactly, so that only the error in time is left."""
    generator = torch.tensor(GENERATORS[name], dtype=torch.float64)
    expected = linear_velocity(torch.from_numpy(expm(generator.numpy())) - torch.eye(3), SHAPE)
    velocity, inside = linear_velocity(generator, SHAPE), interior(SHAPE)
    counts = {"scaling_squaring": (3, 4, 5), "midpoint": (2, 3, 4), "rk4": (2, 4, 8)}[integrator]
    errors = [(STARTS[integrator](velocity, n) - expected)[inside].abs().max() for n in counts]
    for coarse, fine in pairwise(errors):
        assert torch.log2(coarse / fine).item() == pytest.approx(order, abs=0.25)


def test_order_of_rk4_on_a_curved_velocity():
    velocity = random_velocity(SHAPE, 1.5)
    start = random_velocity(SHAPE, 1.0, seed=1)
    reference = advect(start, velocity, 256)
    errors = [(advect(start, velocity, n) - reference).abs().max() for n in (8, 16, 32)]
    for coarse, fine in pairwise(errors):
        assert torch.log2(coarse / fine).item() == pytest.approx(4, abs=0.3)


def test_order_of_scaling_and_squaring_on_a_curved_velocity():
    velocity = random_velocity((16, 20, 18), 2.0)
    reference = exponential(velocity, 14)
    errors = [(exponential(velocity, n) - reference).abs().mean() for n in (2, 3, 4)]
    for coarse, fine in pairwise(errors):
        assert torch.log2(coarse / fine).item() == pytest.approx(1, abs=0.35)


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_exp_v_and_exp_minus_v_are_inverses(integrator):
    shape = (20, 24, 22)
    velocity, integrate = random_velocity(shape, 2.0), INTEGRATORS[integrator]
    for outer, inner in ((velocity, -velocity), (-velocity, velocity)):
        trip = compose_displacements(integrate(outer, 8), integrate(inner, 8))
        assert ((trip * scale(shape)).norm(dim=1)[interior(shape)[:, 0]] < 0.06).all()
    # Nothing of the sort holds for the first-order guess, id - v.
    assert ((compose_displacements(-velocity, velocity)) * scale(shape)).norm(dim=1).max() > 0.15


def test_inverse_consistency_error_halves_as_steps_double():
    """On linear fields, where no interpolation error hides it: exp(v) o exp(-v) = (1 - M²/4^n)^(2^n)."""
    velocity, inside = linear_velocity(torch.tensor(GENERATORS["rotation"]).double(), SHAPE), interior(SHAPE, 0.4)
    errors = []
    for n in (2, 3, 4, 5):
        trip = compose_displacements(exponential(velocity, n), exponential(-velocity, n))
        errors.append(trip[inside].abs().max())
    for coarse, fine in pairwise(errors):
        assert torch.log2(coarse / fine).item() == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("start_speed", [0.0, 2.0])
def test_integrators_agree(start_speed):
    """psi_0 o exp(-v) by advecting psi_0, and by composing it with the exponential."""
    shape = (20, 24, 22)
    velocity, start = random_velocity(shape, 2.0), random_velocity(shape, 1.0, seed=1) * start_speed
    advected = advect(start, velocity, 20)
    composed = compose_displacements(start, exponential(-velocity, 8))
    difference = ((advected - composed) * scale(shape)).norm(dim=1)
    assert difference[interior(shape, 0.8)[:, 0]].max() < 0.1 and difference[interior(shape, 0.8)[:, 0]].mean() < 0.02
    # The order matters: exp(-v) o psi_0 is another map.
    other = compose_displacements(exponential(-velocity, 8), start)
    if start_speed > 0:
        assert ((other - composed) * scale(shape)).norm(dim=1).max() > 0.3


@pytest.mark.parametrize("shape", [(1, 4, 5), (2, 2, 2), (7, 3, 1)])
def test_scaling_and_squaring_on_thin_grids(shape):
    velocity = torch.full((1, 3, *shape), 0.25)
    torch.testing.assert_close(exponential(velocity, 5), velocity)
