"""Equations 5 and 10 and Figure 7's measure: hand-computed numbers, exact inverses, units."""

import math

import pytest
import torch

from scripts.geometry import affine_map, identity_map, invert_affine
from scripts.losses import affine_symmetry, inverse_consistency, inverse_consistency_error, map_symmetry

SHAPE = (14, 12, 16)


def random_affine(scale=0.05, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    noise = scale * torch.randn(batch, 3, 4, generator=generator, dtype=torch.float64)
    return torch.eye(3, 4, dtype=torch.float64) + noise


def shift(vector, shape=SHAPE):
    identity = identity_map(shape, dtype=torch.float64)
    return identity + torch.tensor(vector, dtype=torch.float64).view(1, 3, 1, 1, 1)


def smooth_map(seed, amplitude, shape=SHAPE):
    generator = torch.Generator().manual_seed(seed)
    coarse = amplitude * torch.randn(1, 3, 4, 4, 4, generator=generator, dtype=torch.float64)
    field = torch.nn.functional.interpolate(coarse, size=shape, mode="trilinear", align_corners=True)
    return identity_map(shape, dtype=torch.float64) + field


def test_affine_symmetry_by_hand():
    a = torch.tensor([[[2, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, -1]]], dtype=torch.float64)
    b = torch.tensor([[[1, 1, 0, 0], [0, 1, 0, 2], [0, 0, 1, 0]]], dtype=torch.float64)
    # A_ts A - I = [[1, 1, 0], [0, 0, 0], [0, 0, 0]];  A_ts b + b_ts = (1, 2, -1).
    assert affine_symmetry(a, b).item() == pytest.approx(2 + 6)
    # A A_ts - I = [[1, 2, 0], ...];  A b_ts + b = (1, 2, -1).
    assert affine_symmetry(b, a).item() == pytest.approx(5 + 6)


def test_affine_symmetry_is_zero_for_inverses_only():
    affine = random_affine(0.3)
    torch.testing.assert_close(affine_symmetry(affine, invert_affine(affine)), torch.zeros(2).double())
    torch.testing.assert_close(affine_symmetry(invert_affine(affine), affine), torch.zeros(2).double())
    assert (affine_symmetry(affine, affine) > 1e-3).all()


@pytest.mark.parametrize("margin", [0, 3])
def test_map_symmetry_of_translations(margin):
    # 0.2 - 0.1 normalised along one axis, 0.04 along another: half of that in the paper's units, at every voxel.
    value = map_symmetry(shift((0.2, 0, 0.04)), shift((-0.1, 0, 0)), margin)
    assert value.item() == pytest.approx(0.05**2 + 0.02**2)
    lengths = inverse_consistency(shift((0.2, 0, 0.04)), shift((-0.1, 0, 0)), margin)
    assert lengths.item() == pytest.approx(math.log(0.05**2 + 0.02**2))


def test_inverse_consistency_error_of_translations():
    value = inverse_consistency_error(shift((0.2, 0, 0)), shift((0, 0, 0.4)))
    assert value.item() == pytest.approx(math.hypot(0.2 * (SHAPE[0] - 1) / 2, 0.4 * (SHAPE[2] - 1) / 2))


def test_map_symmetry_looks_through_the_exchanged_map_first():
    identity = identity_map(SHAPE, dtype=torch.float64)
    scaling, translation = 1.2 * identity, shift((0.1, 0, 0))
    # scaling(translation(x)) - x = 0.2 x + 1.2 * 0.1 where the translation stays inside the grid.
    residual = 0.1 * identity[..., 1:-1, 1:-1, 1:-1]
    residual[:, 0] += 0.06
    expected = residual.square().sum(1).mean()
    torch.testing.assert_close(map_symmetry(scaling, translation, margin=1), expected[None])


def test_affine_inverse_maps_are_symmetric_in_the_interior():
    affine = random_affine(0.02)
    maps = affine_map(affine, SHAPE), affine_map(invert_affine(affine), SHAPE)
    torch.testing.assert_close(map_symmetry(*maps, margin=2), torch.zeros(2).double())
    torch.testing.assert_close(inverse_consistency_error(*maps, margin=2), torch.zeros(2).double(), atol=1e-12, rtol=0)
    assert (inverse_consistency(*maps, margin=2) < -40).all()
    assert map_symmetry(*maps, margin=2).max() < 1e-20 < map_symmetry(maps[0], maps[0], margin=2).min()


def test_margin_leaves_out_the_faces():
    perturbed = identity_map(SHAPE, dtype=torch.float64).clone()
    perturbed[..., 0] += 0.5
    identity = identity_map(SHAPE, dtype=torch.float64)
    assert map_symmetry(perturbed, identity).item() == pytest.approx(3 * 0.25**2 / SHAPE[2])
    assert map_symmetry(perturbed, identity, margin=1).item() == pytest.approx(0, abs=1e-20)


def test_gradcheck():
    a, b = (smooth_map(s, 0.05, (4, 5, 4)).requires_grad_() for s in (5, 6))
    assert torch.autograd.gradcheck(lambda m, n: map_symmetry(m, n, 1), (a, b))
    assert torch.autograd.gradcheck(lambda m, n: inverse_consistency(m, n, 1), (a, b))
    assert torch.autograd.gradcheck(inverse_consistency_error, (a, b))
    affines = tuple(random_affine(0.2, seed=s).requires_grad_() for s in (7, 8))
    assert torch.autograd.gradcheck(affine_symmetry, affines)
