"""Forces of local correlation and the Gauss-Newton step: autograd, known affines, no contrast."""

import pytest
import torch
import torch.nn.functional as F

from scripts.geometry import (
    affine_map,
    apply_affine,
    compose_affines,
    identity_affine,
    identity_map,
    voxels_per_unit,
    warp,
)
from scripts.networks.image_force import correlation_forces, edges, foreground_box_mask, newton_step
from tensor_cases import local_correlation


def correlation_force(*images_and_windows, **options):
    return correlation_forces(*images_and_windows, **options)[0]


def newton_force(*images_and_windows, **options):
    return correlation_forces(*images_and_windows, **options)[1]


def smooth(seed, shape):
    generator = torch.Generator().manual_seed(seed)
    return F.avg_pool3d(torch.rand(1, 1, *shape, generator=generator), 3, 1, 1)


def test_what_is_out_of_view_has_no_force_and_no_say():
    shape = (20, 22, 25)
    moved, fixed = smooth(0, shape), smooth(1, shape)
    view = torch.zeros(1, 1, *shape)
    view[..., 4:-3, :] = 1
    forces = correlation_forces(moved, fixed, [5, 9], view=view)
    other = torch.where(view > 0, fixed, smooth(2, shape) + 5)
    for force, again in zip(forces, correlation_forces(moved, other, [5, 9], view=view), strict=True):
        assert force[..., :4, :].abs().max() == force[..., -3:, :].abs().max() == 0 < force.abs().max()
        torch.testing.assert_close(again, force)
    for force, whole in zip(
        correlation_forces(moved, fixed, [5], view=torch.ones_like(view)),
        correlation_forces(moved, fixed, [5]),
        strict=True,
    ):
        assert torch.equal(force, whole)


@pytest.mark.parametrize("longest", [0.05, 0.2])
def test_a_direction_is_no_longer_than_its_bound(longest):
    moved, fixed = 3 * smooth(0, (20, 22, 25)), smooth(1, (20, 22, 25))
    (free, step), (bound, same) = (correlation_forces(moved, fixed, [5], longest=at) for at in (0.0, longest))
    lengths = [force.norm(dim=1, keepdim=True) for force in (free, bound)]
    assert lengths[0].max() > 2 * longest and lengths[1].max() <= longest * (1 + 1e-5)
    below = lengths[0] <= longest
    torch.testing.assert_close(torch.where(below, bound, 0), torch.where(below, free, 0))
    torch.testing.assert_close(bound * lengths[0], free * lengths[1])
    assert torch.equal(step, same)


@pytest.mark.parametrize("window", [3, 5])
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


def test_with_any_contrast_opposite_greys_are_equal_ones():
    moved, fixed, view = smooth(0, (12, 13, 14)), smooth(1, (12, 13, 14)), torch.ones(1, 1, 12, 13, 14)
    calls = [
        lambda of, **any_contrast: torch.cat(correlation_forces(moved, of, [5], **any_contrast)),
        lambda of, **any_contrast: newton_step(moved, of, view, 5, **any_contrast),
        lambda of, **_: edges(of),
    ]
    for call in calls:
        found = call(fixed, any_contrast=True)
        torch.testing.assert_close(call(1 - fixed, any_contrast=True), found, rtol=1e-3, atol=1e-4)
        assert found.abs().max() > 0.003
    for call in calls[:2]:
        assert (call(1 - fixed) - call(fixed)).abs().max() > 0.003


def test_edges_are_where_greys_change():
    image = torch.zeros(2, 1, 8, 9, 10)
    image[0, ..., 5:], image[1] = 0.1, smooth(0, (8, 9, 10))[0]
    found = edges(image)
    assert (found[0, ..., 4:6] > 0.5).all() and found[0, ..., :4].max() < 0.1 > found[0, ..., 6:].max()
    assert found.min() >= 0 and found.max() < 1 and edges(torch.zeros(1, 1, 8, 9, 10)).isfinite().all()
    torch.testing.assert_close(edges(0.5 * image + 0.2)[1], found[1], rtol=1e-2, atol=1e-2)


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
    assert local_correlation(warp(moving, x + 0.02 * force), fixed, 9) > before


def test_vanishes_on_equal_images_and_flat_ones_and_has_no_gradient():
    image = smooth(0, (12, 12, 12)).requires_grad_()
    force = correlation_force(image, image, [5])
    assert force.abs().max() < 1e-4 and not force.requires_grad
    flat = torch.full((1, 1, 12, 12, 12), 0.3)
    assert correlation_force(flat, image, [5]).abs().max() == 0 and correlation_force(image, flat, [5]).isfinite().all()


def test_newton_force_is_damped_where_there_is_no_edge_and_has_no_gradient():
    image, other = smooth(0, (12, 12, 12)).requires_grad_(), smooth(1, (12, 12, 12))
    assert newton_force(image, image, [5]).abs().max() < 1e-3
    force = newton_force(image, other, [5, 9])
    assert not force.requires_grad and newton_force(torch.full((1, 1, 12, 12, 12), 0.3), other, [5]).abs().max() == 0
    for damping in (0.1, 1.0):
        # ab / (a² + d) is at most b / (2 √d), and a window's normalised intensities go no further than √n.
        assert newton_force(image, other, [5], damping=damping).abs().max() < 125**0.5 / damping**0.5
    torch.testing.assert_close(
        newton_force(0.5 * image + 0.2, 2 * other, [5], eps=1e-9), newton_force(image, other, [5], eps=1e-9)
    )


@pytest.mark.parametrize("contrast", [0.1, 0.8])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_newton_force_has_the_length_of_a_displacement(axis, contrast):
    """Of a blob beside its place, at its two flanks: about the shift, whatever the axes' sizes and the contrast."""
    shape = (24, 28, 32)
    voxels = (identity_map(shape) + 1) * voxels_per_unit(list(shape)).view(1, 3, 1, 1, 1)

    def blob(offset):
        centre = torch.tensor([12.0, 14.0, 16.0])
        centre[axis] += offset
        return contrast * torch.exp(-(voxels - centre.view(1, 3, 1, 1, 1)).square().sum(1, keepdim=True) / 4.5)

    force = newton_force(blob(0.5), blob(0.0), [15], damping=0.001, eps=1e-7)
    for side in (-1, 1):
        at = [12, 14, 16]
        at[axis] += side
        assert 0.3 < force[0, axis, at[0], at[1], at[2]].item() < 0.8


def textured(points):
    """An image at any points, in [0, 1], that has contrast in every window and no symmetry."""
    d, h, w = points.unbind(dim=1)
    waves = (
        torch.sin(9 * d + 3 * h) + torch.sin(8 * h - 4 * w) + torch.cos(10 * w + 3 * d) + torch.sin(7 * d - 6 * w + 1)
    )
    return torch.sigmoid(2 * waves).unsqueeze(1)


def near_identity(seed, size):
    return identity_affine(1) + size * torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(20, 24, 28), (33, 16, 21)])
@pytest.mark.parametrize(("seed", "contrast"), [(0, 0.5), (1, 0.5), (2, 0.5), (0, -0.5), (1, -0.5)])
def test_newton_steps_find_a_known_affine(seed, contrast, shape):
    truth = near_identity(seed, 0.04)
    moving = textured(identity_map(shape))
    fixed = contrast * textured(affine_map(truth, list(shape))) + 0.6
    errors, affine = [], identity_affine(1)
    for _ in range(6):
        coordinates = affine_map(affine, list(shape))
        view = (warp(torch.ones_like(moving), coordinates) > 0.99).float()
        step = newton_step(warp(moving, coordinates), fixed, view, 7, any_contrast=contrast < 0)
        affine = compose_affines(affine, identity_affine(1) + step)
        errors.append((affine - truth).abs().max().item())
    assert errors[0] < (0.3 if contrast > 0 else 0.45) * (truth - identity_affine(1)).abs().max()
    # A thirtieth of a voxel: what linear interpolation leaves.
    assert errors[-1] < 3e-3


def test_newton_step_is_zero_where_nothing_can_be_told_and_bounded():
    image, flat = smooth(0, (16, 16, 16)), torch.full((1, 1, 16, 16, 16), 0.3)
    view = torch.ones_like(image)
    for moved, fixed, seen in ((flat, image, view), (image, image, view), (image, smooth(1, (16, 16, 16)), 0 * view)):
        assert newton_step(moved, fixed, seen, 5).abs().max() < 1e-3
    ramp = identity_map((16, 16, 16))[:, :1] * 0.01
    for seed in range(5):
        step = newton_step(ramp + 1e-3 * smooth(seed, (16, 16, 16)), smooth(seed + 1, (16, 16, 16)), view, 5)
        assert step.isfinite().all() and (apply_affine(step, identity_map((2, 2, 2)))).abs().max() <= 0.3 + 1e-5


def test_newton_step_does_not_see_what_is_out_of_view():
    moved, fixed = smooth(0, (18, 18, 18)), smooth(1, (18, 18, 18))
    view = torch.zeros_like(moved)
    view[..., :10] = 1
    # Differences at the last layer in view look one voxel farther.
    other = moved.clone()
    other[..., 11:] = 0
    torch.testing.assert_close(newton_step(other, fixed, view, 5), newton_step(moved, fixed, view, 5))
    other[..., 5:] = 0
    assert (newton_step(other, fixed, view, 5) - newton_step(moved, fixed, view, 5)).abs().max() > 1e-3


def test_pairs_of_a_batch_do_not_meet():
    moved, fixed = (torch.cat([smooth(s, (12, 14, 16)) for s in seeds]) for seeds in ((0, 1), (2, 3)))
    view = torch.ones_like(moved)
    together = newton_step(moved, fixed, view, 5)
    alone = torch.cat([newton_step(*(v[n : n + 1] for v in (moved, fixed, view)), 5) for n in range(2)])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("low", "high", "inner"),
    [((2, 3, 4), (8, 9, 10), ((3, 7), (4, 8), (5, 9))), ((0, 0, 0), (12, 13, 14), ((1, 11), (1, 12), (1, 13)))],
)
def test_the_foreground_box_is_that_of_what_is_not_zero_without_its_outermost_layer(low, high, inner):
    image = torch.zeros(1, 1, 12, 13, 14)
    # Two opposite corners span it, zeros between them or not.
    image[0, 0, low[0], low[1], low[2]] = 0.5
    image[0, 0, high[0] - 1, high[1] - 1, high[2] - 1] = 0.2
    expected = torch.zeros_like(image)
    expected[..., slice(*inner[0]), slice(*inner[1]), slice(*inner[2])] = 1
    assert torch.equal(foreground_box_mask(image), expected) and foreground_box_mask(torch.zeros_like(image)).sum() == 0
