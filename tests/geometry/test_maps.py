"""Warping, composition and resampling: exact shifts, outside references, extrapolation, properties over shapes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from scripts.geometry import affine_map, compose, compose_displacements, identity_map, resize_map, warp
from tensor_cases import noise, scale

SHAPE = (5, 8, 6)
shapes = st.tuples(*[st.integers(2, 17)] * 3)


def translation(voxels, shape=SHAPE):
    shift = torch.tensor(voxels, dtype=torch.float64).view(1, 3, 1, 1, 1) / scale(shape)
    return identity_map(shape, dtype=torch.float64) + shift


def bumps(shape, amplitude, phase):
    """A smooth map, a sum of sines that vanishes on no face."""
    x = identity_map(shape, dtype=torch.float64)
    return x + amplitude * torch.sin(1.5 * x.roll(1, dims=1) + phase) * torch.cos(x.roll(2, dims=1) - phase)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("voxels", [(0, 0, 0), (1, 0, 0), (0, -2, 0), (0, 0, 3), (2, 1, -1), (-4, 7, 5)])
def test_warp_by_whole_voxels_is_an_exact_shift(voxels, mode):
    image = noise(2, 3, *SHAPE)
    expected = torch.zeros_like(image)
    for index in np.ndindex(SHAPE):
        source = tuple(i + v for i, v in zip(index, voxels, strict=True))
        if all(0 <= s < n for s, n in zip(source, SHAPE, strict=True)):
            expected[(..., *index)] = image[(..., *source)]
    moved = warp(image, translation(voxels).repeat(2, 1, 1, 1, 1), mode=mode)
    # A rounded coordinate may put a face's voxel 1e-16 outside, which costs that much of its value.
    torch.testing.assert_close(moved, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("order", [0, 1])
def test_warp_agrees_with_scipy(order):
    image = noise(1, 2, *SHAPE)
    # Larger than the field of view in places; both continue with the nearest face, or with zero a voxel beyond it.
    coordinates = identity_map((4, 7, 9), dtype=torch.float64) + 0.4 * noise(1, 3, 4, 7, 9, seed=1)
    voxels = ((coordinates + 1) * scale(SHAPE))[0].numpy()
    mode = {0: "nearest", 1: "bilinear"}[order]
    expected = [map_coordinates(c.numpy(), voxels, order=order, mode="nearest") for c in image[0]]
    moved = warp(image, coordinates, mode=mode, padding="border")
    torch.testing.assert_close(moved[0], torch.from_numpy(np.stack(expected)))
    inside = np.all((voxels > 0) & (voxels < np.array(SHAPE).reshape(3, 1, 1, 1) - 1), axis=0)
    assert inside.mean() > 0.2
    np.testing.assert_allclose(warp(image, coordinates, mode=mode)[0].numpy()[:, inside], moved[0].numpy()[:, inside])


@pytest.mark.parametrize(
    ("image", "result"), [(torch.float64, torch.float64), (torch.bfloat16, torch.float32), (torch.uint8, torch.float32)]
)
def test_warp_computes_in_float32_at_least(image, result):
    coordinates = torch.float64 if image == torch.float64 else torch.float32
    volume = torch.ones(1, 1, *SHAPE, dtype=image)
    moved = warp(volume, identity_map(SHAPE, dtype=coordinates))
    assert moved.dtype == result
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert warp(volume, identity_map(SHAPE, dtype=coordinates)).dtype == result


@settings(max_examples=40, deadline=None)
@given(shape=shapes, seed=st.integers(0, 1000))
def test_identity_is_neutral(shape, seed):
    image, identity = noise(1, 2, *shape, seed=seed), identity_map(shape, dtype=torch.float64)
    torch.testing.assert_close(warp(image, identity), image)
    # Far outside too: nothing may be clamped.
    map = identity + 1.5 * noise(1, 3, *shape, seed=seed + 1)
    torch.testing.assert_close(compose(identity, map), map)
    torch.testing.assert_close(compose(map, identity), map)


@settings(max_examples=30, deadline=None)
@given(outer=shapes, inner=shapes, seed=st.integers(0, 1000))
def test_composition_of_affine_maps_on_any_two_grids(outer, inner, seed):
    first = torch.eye(3, 4, dtype=torch.float64) * 0.6 + 0.08 * noise(1, 3, 4, seed=seed).clamp(-1, 1)
    second = torch.eye(3, 4, dtype=torch.float64) + 0.5 * noise(1, 3, 4, seed=seed + 1)
    expected = second[:, :, :3] @ affine_map(first, inner).flatten(2) + second[:, :, 3:]
    composed = compose(affine_map(second, outer), affine_map(first, inner))
    torch.testing.assert_close(composed.flatten(2), expected)


def test_compose_continues_the_displacement_of_the_face():
    shape = (4, 4, 4)
    outer = identity_map(shape, dtype=torch.float64)
    outer[:, 1, -1] += 0.3
    result = compose(outer, translation((100, 0, 0), shape)) - translation((100, 0, 0), shape)
    torch.testing.assert_close(result[:, 1], torch.full_like(result[:, 1], 0.3))


def test_compose_displacements_is_compose_without_the_identity():
    outer, inner = bumps((6, 5, 7), 0.3, 0.0), bumps((6, 5, 7), 0.2, 1.0)
    identity = identity_map((6, 5, 7), dtype=torch.float64)
    result = compose_displacements(outer - identity, inner - identity)
    torch.testing.assert_close(identity + result, compose(outer, inner))


@settings(max_examples=30, deadline=None)
@given(low=shapes, high=shapes, seed=st.integers(0, 1000))
def test_resize_keeps_affine_maps_affine(low, high, seed):
    affine = torch.eye(3, 4, dtype=torch.float64) + 0.5 * noise(1, 3, 4, seed=seed)
    torch.testing.assert_close(resize_map(affine_map(affine, low), list(high)), affine_map(affine, high))
