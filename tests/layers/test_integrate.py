"""Flows on finer grids: constant and linear velocities, rough ones integrated finely, and their splines."""

import pytest
import torch
import torch.nn.functional as F

from scripts.geometry import affine_map, identity_map, voxels_per_unit
from scripts.layers import VSVF, Flow
from scripts.layers.integrate import _spline

SHAPE = (10, 12, 11)


def voxels(shape):
    return voxels_per_unit(list(shape)).view(1, 3, 1, 1, 1)


def rough(seed, largest, shape=SHAPE):
    """Velocities, up to so many voxels long, that vary from node to node as the network's do."""
    generator = torch.Generator().manual_seed(seed)
    velocity = F.avg_pool3d(torch.randn(1, 3, *shape, generator=generator), 3, 1, 1)
    return velocity / (velocity * voxels(shape)).norm(dim=1).max() * largest


def unit(integrator="scaling_squaring"):
    return VSVF((0.05,), (1.0,), integrator=integrator)


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
@pytest.mark.parametrize("integrator", ["scaling_squaring", "rk4"])
def test_constant_velocity_is_a_translation_up_to_the_faces(factor, integrator):
    velocity = torch.tensor([0.1, -0.2, 0.05]).view(1, 3, 1, 1, 1).expand(1, 3, *SHAPE)
    found = Flow(unit(integrator), [velocity, 0.5 * velocity]).at(factor)
    assert found.shape[2:] == tuple((n - 1) * factor + 1 for n in SHAPE)
    torch.testing.assert_close(found, -1.5 * velocity[..., :1, :1, :1].expand_as(found), atol=1e-5, rtol=0)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_linear_velocity_is_the_matrix_exponential(factor):
    matrix = torch.tensor([[0.1, -0.2, 0.0], [0.2, 0.0, 0.1], [0.0, 0.05, -0.15]])
    velocity = torch.einsum("ij,bjdhw->bidhw", matrix, identity_map(SHAPE))
    found = Flow(unit(), [velocity]).at(factor)
    shape = list(found.shape[2:])
    inner = (..., *[slice(n // 4, n - n // 4) for n in shape])
    linear = torch.cat([torch.linalg.matrix_exp(-matrix), torch.zeros(3, 1)], dim=1)[None]
    expected = affine_map(linear, shape) - identity_map(shape)
    torch.testing.assert_close(found[inner], expected[inner], atol=2e-3, rtol=0)


def test_the_flow_that_is_interpolated_is_near_the_one_that_is_integrated_finely():
    """What the coarser integration changes is a hundredth of a voxel of the velocities' grid on average."""
    velocity = rough(2, 1.5)
    factor = 4
    found = Flow(unit(), [velocity]).at(factor)
    fine = _spline(velocity, [(n - 1) * factor + 1 for n in SHAPE], through=False)
    expected = unit().integrator.refined(factor).advance(None, fine)
    inner = (..., *[slice(2 * factor, -2 * factor)] * 3)
    difference = ((found - expected) * voxels(SHAPE)).norm(dim=1)[inner]
    assert difference.mean() < 0.015 and difference.max() < 0.08


@pytest.mark.parametrize("factor", [1, 2, 3])
@pytest.mark.parametrize("shape", [(2, 3, 5), (4, 2, 2)])
def test_few_nodes_are_enough(shape, factor):
    assert Flow(unit(), [torch.full((1, 3, *shape), 0.05)]).at(factor).isfinite().all()


def test_no_velocity_is_refused():
    with pytest.raises(ValueError, match="no velocity"):
        Flow(unit(), [])
