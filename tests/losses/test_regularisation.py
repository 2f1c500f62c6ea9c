"""Equations 4, 9 and 13, and the fold penalty, against numbers computed by hand."""

import math
from itertools import pairwise

import pytest
import torch

from scripts.geometry import count_folds, identity_map
from scripts.losses import affine_factor, affine_regularisation, folding, vsvf_regularisation


def affine(rows):
    return torch.tensor([rows], dtype=torch.float64)


@pytest.mark.parametrize(("rows", "expected"), [
    ([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]], 0.0),
    ([[1, 0, 0, 0.5], [0, 1, 0, 0], [0, 0, 1, -2]], 4.25),
    ([[2, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]], 2.0),
    ([[1, 3, 0, 1], [0, 1, 0, 0], [0, -2, 1, 0]], 14.0),
    ([[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], 3.0),
])  # fmt: skip
def test_affine_regularisation(rows, expected):
    assert affine_regularisation(affine(rows)).item() == pytest.approx(expected)


@pytest.mark.parametrize(("epoch", "C", "K", "expected"), [
    (0, 10, 4, 8.0),
    (4, 10, 4, 40 / (4 + math.e)),
    (8, 10, 4, 40 / (4 + math.e**2)),
    (4 * math.log(4), 10, 4, 5.0),
    (6, 2, 3, 6 / (3 + math.e**2)),
    (0, 0, 4, 0.0),
])  # fmt: skip
def test_affine_factor(epoch, C, K, expected):
    assert affine_factor(epoch, C, K) == pytest.approx(expected)


def test_affine_factor_decays_to_zero_without_overflow():
    factors = [affine_factor(n) for n in (*range(200), 10_000, 10**9)]
    assert all(a >= b for a, b in pairwise(factors)) and factors[199] < 1e-19 and factors[-1] == 0


@pytest.mark.parametrize("shape", [(2, 3, 4), (8, 6, 10)])
def test_vsvf_regularisation_is_an_integral_over_the_unit_cube(shape):
    m, v = torch.zeros(2, 2, 3, *shape, dtype=torch.float64)
    m[:, 0], m[:, 2] = 0.4, -0.2
    v[:, 0], v[:, 1], v[:, 2] = 0.2, 5.0, 0.6
    # In units of the unit cube: 0.2 * 0.1 - 0.1 * 0.3, at every resolution.
    assert vsvf_regularisation(m, v).tolist() == pytest.approx([-0.01] * 2)


def test_gradcheck():
    m, v = torch.randn(2, 2, 3, 2, 3, 2, dtype=torch.float64).requires_grad_().unbind()
    assert torch.autograd.gradcheck(lambda a, b: vsvf_regularisation(a, b), (m, v))
    a = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(affine_regularisation, a)


def stretched(factor, shape=(5, 6, 7)):
    """Displacement that stretches axis 0 by a factor: every corner determinant is the factor."""
    displacement = torch.zeros(1, 3, *shape, dtype=torch.float64)
    displacement[:, 0] = (factor - 1) * identity_map(shape, dtype=torch.float64)[:, 0]
    return displacement


@pytest.mark.parametrize(
    ("factor", "margin", "expected"),
    [(1.0, 0.1, 0.0), (0.5, 0.1, 0.0), (0.1, 0.1, 0.0), (0.05, 0.1, 0.05), (-0.5, 0.1, 0.6), (0.5, 0.8, 0.3)],
)
def test_folding(factor, margin, expected):
    assert folding(stretched(factor), margin).item() == pytest.approx(expected, abs=1e-12)


def test_folding_pushes_folds_away():
    displacement = 0.2 * torch.randn(2, 3, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    displacement.requires_grad_()
    optimizer = torch.optim.Adam([displacement], 0.01)
    assert count_folds(identity_map([8, 8, 8]) + displacement.detach())[0].min() > 100
    for _ in range(300):
        optimizer.zero_grad()
        folding(displacement).sum().backward()
        optimizer.step()
    assert count_folds(identity_map([8, 8, 8]) + displacement.detach())[0].max() == 0


def test_folding_gradcheck():
    displacement = 0.3 * torch.randn(2, 3, 3, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.autograd.gradcheck(folding, displacement.requires_grad_())
