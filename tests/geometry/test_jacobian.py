"""Jacobian determinants and folds: affine truths and folds laid by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.geometry import (
    affine_map,
    corner_jacobian_determinants,
    count_folds,
    fold_mask,
    identity_map,
    jacobian_determinant,
    std_log_jacobian,
)
from tensor_cases import scale

SHAPE = (6, 7, 5)
shapes = st.tuples(*[st.integers(2, 17)] * 3)
MEASURES = [jacobian_determinant, corner_jacobian_determinants, fold_mask, count_folds, std_log_jacobian]


def voxel_map(shape=SHAPE):
    """The identity in voxel coordinates, to lay displacements by hand; `normalised` brings it back."""
    return (identity_map(shape, dtype=torch.float64) + 1) * scale(shape)


def normalised(voxels):
    return voxels / scale(voxels.shape[2:]) - 1


@settings(max_examples=40, deadline=None)
@given(shape=shapes, seed=st.integers(0, 1000))
def test_affine_determinants_are_exact(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.eye(3, dtype=torch.float64) + 0.4 * torch.randn(2, 3, 3, generator=generator, dtype=torch.float64)
    shift = torch.randn(2, 3, 1, generator=generator, dtype=torch.float64)
    map = affine_map(torch.cat([matrix, shift], dim=2), shape)
    # Normalised axes of unequal lengths: the determinant is the same in voxels, as both sides scale alike.
    expected = torch.linalg.det(matrix).view(2, 1, 1, 1, 1).expand(2, 1, *shape)
    torch.testing.assert_close(jacobian_determinant(map), expected)
    torch.testing.assert_close(corner_jacobian_determinants(map), expected.expand(2, 8, *shape))
    negative = (torch.linalg.det(matrix) < 0).long()
    count, depth = count_folds(map)
    assert count.tolist() == (negative * math.prod(shape)).tolist()
    torch.testing.assert_close(depth, negative * torch.linalg.det(matrix).abs() * math.prod(shape))


@pytest.mark.parametrize(("places", "determinants"), [((0.0, 1, 3), (1, 1.5, 2)), ((0.0, 1, 0), (1, 1e-3, 1e-3))])
def test_std_log_jacobian_by_hand(places, determinants):
    """Gaps of 1 and 2 voxels along D; or J = 1, 0, -1, clipped at the floor."""
    map = voxel_map((3, 2, 2))
    map[:, 0] = torch.tensor(places, dtype=torch.float64).view(3, 1, 1)
    expected = torch.tensor(determinants, dtype=torch.float64).log().repeat(4).std()
    torch.testing.assert_close(std_log_jacobian(normalised(map), floor=1e-3), expected.view(1))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_swapping_two_neighbours_folds_their_surroundings(axis):
    """Exchange x = 2 and 3 of one line along an axis: steps 1, 2, -1, 2, 1 there, and nothing sheared off the line."""
    map = voxel_map()
    line = [0, 3, 3, 2]
    line[axis + 1] = slice(None)
    first, second = list(line), list(line)
    first[axis + 1], second[axis + 1] = 2, 3
    map[(0, axis, *first[1:])], map[(0, axis, *second[1:])] = 3.0, 2.0
    # Only one coordinate is changed, so every determinant is that coordinate's own step: -1 between 2 and 3.
    mask = torch.zeros(1, *SHAPE, dtype=torch.bool)
    mask[(0, *first[1:])] = mask[(0, *second[1:])] = True
    assert torch.equal(fold_mask(normalised(map)), mask)
    count, depth = count_folds(normalised(map))
    assert count.tolist() == [2] and count.dtype == torch.int64 and depth.item() == pytest.approx(2.0)


def test_checkerboard_escapes_central_differences_but_not_corners():
    # Even and odd slices move towards and through each other: steps -0.4, 2.4, -0.4, ... with a central step of 1.
    map = voxel_map()
    map[:, 0, 0::2] += 0.7
    map[:, 0, 1::2] -= 0.7
    central = jacobian_determinant(normalised(map))
    torch.testing.assert_close(central[:, :, 1:-1], torch.ones(1, 1, 4, 7, 5, dtype=torch.float64))
    count, depth = count_folds(normalised(map))
    assert count.tolist() == [6 * 7 * 5] and depth.item() == pytest.approx(0.4 * 6 * 7 * 5)


@pytest.mark.parametrize(("axis", "bit"), [(0, 4), (1, 2), (2, 1)])
def test_corner_bits_say_which_differences_are_backward(axis, bit):
    # Squares along one axis: forward step 2i + 1, backward 2i - 1, and one of them for both at the faces.
    map = voxel_map()
    map[:, axis] = map[:, axis] ** 2
    i = voxel_map()[0, axis]
    n = SHAPE[axis]
    forward, backward = 2 * i.clamp(max=n - 2) + 1, 2 * i.clamp(min=1) - 1
    corners = corner_jacobian_determinants(normalised(map))
    assert corners.shape == (1, 8, *SHAPE)
    for index in range(8):
        torch.testing.assert_close(corners[0, index], backward if index & bit else forward)


def test_a_corner_determinant_takes_all_three_axes():
    # phi = (x + y z, y, z + x y): D phi at a voxel by forward or backward steps, worked out with unit steps.
    map = voxel_map()
    x, y, z = map[:, 0].clone(), map[:, 1].clone(), map[:, 2].clone()
    map[:, 0], map[:, 2] = x + y * z, z + x * y
    # det [[1, z, y], [0, 1, 0], [y, x, 1]] = 1 - y^2, whichever way the steps go (it is linear along each axis).
    torch.testing.assert_close(
        corner_jacobian_determinants(normalised(map))[:, :4, 1:-1, 1:-1, 1:-1].amax(1), (1 - y**2)[:, 1:-1, 1:-1, 1:-1]
    )
    torch.testing.assert_close(jacobian_determinant(normalised(map))[:, 0], 1 - y**2)


def test_an_undefined_map_is_not_free_of_folds():
    map = normalised(voxel_map())
    map[0, 1, 3, 3, 2] = math.nan
    count, depth = count_folds(map)
    # The voxel, and the six neighbours whose differences reach it.
    assert count.tolist() == [7] and math.isnan(depth.item())


@pytest.mark.parametrize("function", MEASURES)
@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 2, 4, 4, 4), "shape"), ((3, 4, 4, 4), "shape"), ((1, 3, 4, 1, 4), "2 voxels"), ((1, 3, 1, 1, 1), "2 voxels")],
)
def test_refuses_what_has_no_jacobian(function, shape, message):
    with pytest.raises(ValueError, match=message):
        function(torch.zeros(shape))
