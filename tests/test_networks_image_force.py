"""The force of local correlation: the derivative by autograd, its direction, its scale, and cases without contrast."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from scripts.geometry import identity_map, voxels_per_unit, warp
from scripts.losses import local_correlation
from scripts.networks import correlation_force


def smooth(seed, shape):
    generator = torch.Generator().manual_seed(seed)
    return F.avg_pool3d(torch.rand(1, 1, *shape, generator=generator), 3, 1, 1)


@pytest.mark.parametrize("window", [3, 5, 7])
def test_is_the_derivative_of_the_local_correlation_where_windows_are_whole(window):
    shape = (20, 22, 25)
    moved, fixed = smooth(0, shape).requires_grad_(), smooth(1, shape)
    score = local_correlation(moved, fixed, window, stride=1, eps=1e-4)
    (derivative,) = torch.autograd.grad(score.sum(), moved)
    windows = torch.tensor([n - window + 1 for n in shape]).prod()
    step = torch.stack(torch.gradient(moved.detach()[0, 0]))[None]
    per_unit = voxels_per_unit(list(shape)).view(1, 3, 1, 1, 1)
    expected = derivative * windows * step * per_unit.mean() / per_unit
    inner = (..., *[slice(window, -window)] * 3)
    assert expected[inner].abs().max() > 0.1
    torch.testing.assert_close(correlation_force(moved, fixed, [window])[inner], expected[inner], rtol=1e-3, atol=1e-4)


def test_several_windows_are_averaged():
    moved, fixed = smooth(0, (12, 13, 14)), smooth(1, (12, 13, 14))
    expected = (correlation_force(moved, fixed, [3]) + correlation_force(moved, fixed, [9])) / 2
    torch.testing.assert_close(correlation_force(moved, fixed, [3, 9]), expected)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shift", [-2.0, 2.0])
def test_points_to_where_the_moving_image_matches(axis, shift):
    """A ball beside its place: the mean force is along the displacement that brings it back, on unequal axes, too."""
    shape = (24, 32, 40)
    x = identity_map(shape)
    voxels = (x + 1) * voxels_per_unit(list(shape)).view(1, 3, 1, 1, 1)

    def ball(offset):
        centre = torch.tensor([12.0, 16.0, 20.0])
        centre[axis] += offset
        return torch.sigmoid(7 - (voxels - centre.view(1, 3, 1, 1, 1)).norm(dim=1, keepdim=True))

    moving, fixed = ball(shift), ball(0.0)
    force = correlation_force(moving, fixed, [9])
    mean = force.mean(dim=(0, 2, 3, 4))
    assert mean[axis] * shift > 0
    assert mean[axis].abs() > 10 * mean[[other for other in range(3) if other != axis]].abs().max()
    before = local_correlation(moving, fixed, 9)
    assert local_correlation(warp(moving, x + 0.2 * force), fixed, 9) > before


def test_vanishes_on_equal_images_and_flat_ones_and_has_no_gradient():
    image = smooth(0, (12, 12, 12)).requires_grad_()
    force = correlation_force(image, image, [5])
    assert force.abs().max() < 1e-4
    assert not force.requires_grad
    flat = torch.full((1, 1, 12, 12, 12), 0.3)
    assert correlation_force(flat, image, [5]).abs().max() == 0
    assert correlation_force(image, flat, [5]).isfinite().all()


def test_does_not_depend_on_contrast_but_for_its_regulariser():
    moved, fixed = smooth(0, (14, 14, 14)), smooth(1, (14, 14, 14))
    force = correlation_force(moved, fixed, [5], eps=1e-8)
    torch.testing.assert_close(
        correlation_force(0.5 * moved + 0.2, 2 * fixed, [5], eps=1e-8), force, rtol=1e-2, atol=2e-3
    )
