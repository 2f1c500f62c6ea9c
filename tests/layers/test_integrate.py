"""Flows on finer grids: constant and linear velocities, and the inverse that is sought."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from scripts.geometry import affine_map, compose_displacements, count_folds, identity_map, voxels_per_unit
from scripts.layers import VSVF, integrate
from scripts.layers.integrate import _inverted, _spline

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
    forward, backward = integrate(unit(integrator), [velocity, 0.5 * velocity], factor)
    assert forward.shape[2:] == tuple((n - 1) * factor + 1 for n in SHAPE)
    torch.testing.assert_close(forward, -1.5 * velocity[..., :1, :1, :1].expand_as(forward), atol=1e-5, rtol=0)
    torch.testing.assert_close(backward, 1.5 * velocity[..., :1, :1, :1].expand_as(forward), atol=1e-5, rtol=0)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_linear_velocity_is_the_matrix_exponential(factor):
    matrix = torch.tensor([[0.1, -0.2, 0.0], [0.2, 0.0, 0.1], [0.0, 0.05, -0.15]])
    velocity = torch.einsum("ij,bjdhw->bidhw", matrix, identity_map(SHAPE))
    flows = integrate(unit(), [velocity], factor)
    inner = (..., *[slice(n // 4, n - n // 4) for n in flows[0].shape[2:]])
    for sign, flow in zip((-1, 1), flows, strict=True):
        linear = torch.cat([torch.linalg.matrix_exp(sign * matrix), torch.zeros(3, 1)], dim=1)[None]
        expected = affine_map(linear, list(flow.shape[2:])) - identity_map(list(flow.shape[2:]))
        torch.testing.assert_close(flow[inner], expected[inner], atol=2e-3, rtol=0)


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_inverse_undoes_the_flow_at_the_nodes(seed, factor):
    velocities = [rough(seed, 1.5), rough(seed + 5, 0.5)]
    forward, backward = integrate(unit(), velocities, factor)
    shape = forward.shape[2:]
    assert count_folds(identity_map(list(shape)) + forward)[0] == 0
    assert (forward * voxels(shape)).norm(dim=1).max() > factor
    left = compose_displacements(forward, backward) * voxels(shape)
    assert left.norm(dim=1).max() < 0.05


def test_the_flow_that_is_interpolated_is_near_the_one_that_is_integrated_finely():
    """What the coarser integration changes is a hundredth of a voxel of the velocities' grid on average."""
    velocity = rough(2, 1.5)
    factor = 4
    forward, backward = integrate(unit(), [velocity], factor)
    fine = _spline(velocity, [(n - 1) * factor + 1 for n in SHAPE], through=False)
    exact = unit().integrator.refined(factor)
    for found, expected in ((forward, exact.advance(None, fine)), (backward, exact.retreat(None, fine))):
        inner = (..., *[slice(2 * factor, -2 * factor)] * 3)
        difference = ((found - expected) * voxels(SHAPE)).norm(dim=1)[inner]
        assert difference.mean() < 0.015
        assert difference.max() < 0.08


def test_errors_between_nodes_fall_with_the_square_of_the_spacing():
    velocity = rough(3, 1.5)
    generator = torch.Generator().manual_seed(0)
    points = (torch.rand(1, 3, 40, 40, 1, generator=generator) - 0.5) * 1.2

    def error(factor):
        forward, backward = integrate(unit(), [velocity], factor)
        pull = {"mode": "bilinear", "padding_mode": "border", "align_corners": True}

        def carried(flow, where):
            grid = where.flip(1).permute(0, 2, 3, 4, 1)
            return where + F.grid_sample(flow, grid, **pull)

        return ((carried(forward, carried(backward, points)) - points) * voxels(SHAPE)).norm(dim=1).mean()

    coarse, fine = error(2), error(4)
    assert coarse / fine > 3


@pytest.mark.parametrize("factor", [1, 2, 3])
@pytest.mark.parametrize("shape", [(2, 3, 5), (4, 2, 2)])
def test_few_nodes_are_enough(shape, factor):
    velocity = torch.full((1, 3, *shape), 0.05)
    forward, backward = integrate(unit(), [velocity], factor)
    assert forward.isfinite().all() and backward.isfinite().all()


def test_a_fold_leaves_the_inverse_finite_and_no_worse_than_the_start():
    forward = rough(4, 4.0)
    start = torch.zeros_like(forward)
    found = _inverted(forward, start)
    before = (compose_displacements(forward, start) * voxels(SHAPE)).norm(dim=1)
    after = (compose_displacements(forward, found) * voxels(SHAPE)).norm(dim=1)
    assert count_folds(identity_map(SHAPE) + forward)[0] > 0
    assert found.isfinite().all() and (after <= before + 1e-6).all()
    assert after.mean() < 0.5 * before.mean()


def test_the_spline_goes_through_nodes_or_has_them_for_coefficients():
    volume = torch.randn(1, 3, *SHAPE, generator=torch.Generator().manual_seed(0))
    fine = [(n - 1) * 3 + 1 for n in SHAPE]
    nodes = (..., *[slice(None, None, 3)] * 3)
    torch.testing.assert_close(_spline(volume, fine, through=True)[nodes], volume, atol=1e-5, rtol=1e-5)
    smoothed = _spline(volume, fine, through=False)
    corners = (..., *[slice(None, None, n - 1) for n in fine])
    torch.testing.assert_close(smoothed[corners], volume[(..., *[slice(None, None, n - 1) for n in SHAPE])])
    assert smoothed.std() < 0.7 * volume.std()


def test_no_velocity_is_refused():
    with pytest.raises(ValueError, match="no velocity"):
        integrate(unit(), [])
