"""Affines and affine maps: the algebra of (A | b), the grids, and their agreement."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.geometry import (
    affine_map,
    apply_affine,
    compose,
    compose_affines,
    identity_affine,
    identity_map,
    invert_affine,
)

SHAPES = [(4, 6, 9), (2, 2, 2), (7, 3, 5), (1, 4, 2)]


def random_affine(batch=2, scale=0.3, seed=0, dtype=torch.float64):
    noise = torch.randn(batch, 3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (torch.eye(3, 4, dtype=torch.float64) + scale * noise).to(dtype)


def linspace(size):
    return [0.0] if size == 1 else [-1 + 2 * i / (size - 1) for i in range(size)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_identity_map_holds_the_coordinates_of_the_voxel_centres(shape, dtype):
    grid = identity_map(shape, dtype=dtype)
    assert grid.shape == (1, 3, *shape) and grid.dtype == dtype
    for axis in range(3):
        expected = torch.tensor(linspace(shape[axis]), dtype=dtype)
        expected = expected.view([-1 if a == axis else 1 for a in range(3)]).expand(shape)
        torch.testing.assert_close(grid[0, axis], expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_affine_map_applies_the_affine_to_the_identity(shape):
    affine = random_affine()
    grid = identity_map(shape, dtype=torch.float64)
    expected = torch.einsum("bij,xjdhw->bidhw", affine[:, :, :3], grid) + affine[:, :, 3].view(2, 3, 1, 1, 1)
    torch.testing.assert_close(affine_map(affine, shape), expected)
    torch.testing.assert_close(apply_affine(affine, grid), expected)


def test_compose_affines_composes_their_maps():
    outer, inner, shape = random_affine(seed=1), random_affine(seed=2), [5, 4, 3]
    expected = apply_affine(outer, affine_map(inner, shape))
    torch.testing.assert_close(affine_map(compose_affines(outer, inner), shape), expected)
    # The grid's composition does the same wherever the inner map stays on the outer's grid.
    inner = random_affine(seed=2, scale=0.02)
    inner[:, :, :3] *= 0.8
    composed = compose(affine_map(outer, [6, 7, 8]), affine_map(inner, shape))
    torch.testing.assert_close(composed, affine_map(compose_affines(outer, inner), shape))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), batch=st.integers(1, 3))
def test_invert_affine_undoes_from_both_sides(seed, batch):
    affine = random_affine(batch=batch, scale=0.1, seed=seed)
    identity = identity_affine(batch, dtype=torch.float64)
    torch.testing.assert_close(compose_affines(affine, invert_affine(affine)), identity)
    torch.testing.assert_close(compose_affines(invert_affine(affine), affine), identity)


def test_invert_affine_refuses_a_singular_matrix():
    with pytest.raises(RuntimeError, match="singular"):
        invert_affine(torch.zeros(1, 3, 4))


def test_affine_algebra_keeps_full_precision_under_autocast():
    outer, inner = random_affine(seed=1, dtype=torch.float32), random_affine(seed=2, dtype=torch.float32)
    expected = compose_affines(outer, inner), invert_affine(outer), affine_map(outer, [3, 4, 5])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = compose_affines(outer, inner), invert_affine(outer), affine_map(outer, [3, 4, 5])
    for got, want in zip(result, expected, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, want)
