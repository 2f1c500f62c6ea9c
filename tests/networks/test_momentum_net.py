"""MomentumNet: its grid, its stems, its start near zero and the first optimiser step."""

import pytest
import torch
import torch.nn.functional as F

from scripts.geometry import identity_map, resize_volume, voxels_per_unit
from scripts.networks import AVSM, AffineNet, MomentumNet
from scripts.networks.image_force import correlation_forces, foreground_box_mask
from scripts.networks.momentum_net import STEMS, depth_to_space, half_shape, reduced, space_to_depth

SMALL = (4, 6, 6, 8, 8)


def test_space_to_depth_continues_odd_axes():
    image = torch.arange(3.0).view(1, 1, 1, 1, 3)
    folded = space_to_depth(image)
    assert folded.shape == (1, 8, 1, 1, 2) and folded[0, :, 0, 0, 0].tolist() == [0, 1] * 4
    assert folded[0, :, 0, 0, 1].tolist() == [2, 2] * 4


def test_depth_to_space_undoes_space_to_depth():
    image = torch.rand(2, 3, 4, 6, 8)
    torch.testing.assert_close(depth_to_space(space_to_depth(image)), image, rtol=0, atol=0)


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(32, 24, 40), (17, 15, 32), (9, 3, 2)])
def test_a_reduced_image_spans_the_same_extent(shape, factor):
    x = identity_map(shape)
    small = reduced(x, factor)
    assert list(small.shape[2:]) == [max(2, -(-n // factor)) for n in shape]
    torch.testing.assert_close(reduced(torch.ones_like(x), factor), torch.ones_like(small))
    if min(small.shape[2:]) == 2:
        return  # all of it lies at faces
    # Away from the faces, where averages are cut off, coordinates are those of the coarse grid.
    inner = [slice(1, n - 1) for n in small.shape[2:]]
    same = identity_map(list(small.shape[2:]))[:, :, *inner]
    torch.testing.assert_close(small[:, :, *inner], same, rtol=0, atol=1e-5)


def test_what_a_coarse_grid_cannot_hold_is_averaged_away():
    stripes = torch.arange(32).remainder(2).float().view(1, 1, -1, 1, 1).expand(1, 1, 32, 16, 16)
    for factor in (2, 4):
        assert (reduced(stripes, factor) - 0.5).abs().max() < 0.2


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("factor", [2, 4])
def test_a_coarse_momentum_is_that_of_the_reduced_images(stem, factor):
    torch.manual_seed(0)
    net = MomentumNet(SMALL, stem=stem, head_std=0.1, force_windows=(5,)).eval()
    moved, fixed = torch.rand(1, 1, 30, 33, 20), torch.rand(1, 1, 30, 33, 20)
    coarse = net(reduced(moved, factor), reduced(fixed, factor))
    found = net(moved, fixed, factor)
    assert found.shape == (1, 3, 15, 17, 10) and found.abs().max() > 0
    torch.testing.assert_close(found, resize_volume(coarse, [15, 17, 10]))
    torch.testing.assert_close(net(moved, fixed, 1), net(moved, fixed))


@pytest.mark.parametrize("force", [(), (5, 9)])
@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("shape", [(16, 16, 16), (17, 15, 32), (20, 33, 9), (7, 5, 3), (2, 3, 2)])
def test_momentum_lies_on_half_the_grid_rounded_up_and_starts_near_zero(stem, shape, force):
    torch.manual_seed(0)
    momentum = MomentumNet(SMALL, stem=stem, force_windows=force)(torch.rand(2, 1, *shape), torch.rand(2, 1, *shape))
    assert momentum.shape == (2, 3, *[-(-n // 2) for n in shape])
    assert list(momentum.shape[2:]) == half_shape(list(shape)) and momentum.dtype == torch.float32
    # Without forces, whose steps act from the start.
    assert force or 0 < momentum.abs().max() < 1e-3


@pytest.mark.parametrize("stem", STEMS)
def test_first_adam_step_at_the_papers_rate_keeps_the_map_near_the_identity(stem):
    """Adam's first step moves every weight by its rate whatever the gradient, and the smoother passes the mean."""
    torch.manual_seed(0)
    shape = (24, 48, 48)
    network = AVSM(AffineNet(channels=(4,), hidden=4), MomentumNet(stem=stem), affine_steps=0, vsvf_steps=2)
    optimiser = torch.optim.Adam(network.momentum_net.parameters(), lr=5e-4)
    x = identity_map(shape)
    moving = torch.exp(-(x - 0.15).square().sum(1, keepdim=True) / 0.2)
    fixed = torch.exp(-(x + 0.1).square().sum(1, keepdim=True) / 0.3)

    def largest():
        displacement = (network.register(moving, fixed).map - x) * voxels_per_unit(list(shape)).view(1, 3, 1, 1, 1)
        return displacement.norm(dim=1).max().item()

    with torch.no_grad():
        assert largest() < 0.05
    (network.register(moving, fixed).moved - fixed).square().mean().backward()
    optimiser.step()
    with torch.no_grad():
        assert 0 < largest() < 5


@pytest.mark.parametrize("stem", STEMS)
def test_gains_of_newton_steps_start_where_they_are_told(stem):
    """Before any training it registers: a few vSVF steps bring most of a smooth deformation back."""
    torch.manual_seed(0)
    shape = (24, 28, 26)
    momentum_net = MomentumNet(SMALL, stem=stem, force_windows=(9,))
    network = AVSM(AffineNet(channels=(4,), hidden=4), momentum_net, affine_steps=0, vsvf_steps=4)
    x = identity_map(shape)
    bend = 0.12 * torch.exp(-x.square().sum(1, keepdim=True) / 0.3) * torch.tensor([1.0, -0.5, 0.7]).view(1, 3, 1, 1, 1)

    def texture(at):
        return 0.5 + 0.4 * (torch.sin(5 * at[:, :1]) * torch.cos(4 * at[:, 1:2]) * torch.sin(4 * at[:, 2:] + 0.5))

    with torch.no_grad():
        found = network.register(texture(x), texture(x + bend))
    before, after = bend.square().mean(), (found.map - x - bend).square().mean()
    assert after < 0.25 * before
    with torch.no_grad():
        still = network.register(texture(x), texture(x))
    assert (still.map - x).abs().max() < 1e-3


@pytest.mark.parametrize("windows", [(5,), (5, 9)])
@pytest.mark.parametrize("any_contrast", [False, True])
@pytest.mark.parametrize("stem", STEMS)
def test_with_forces_there_is_nothing_else(stem, any_contrast, windows):
    """Gains of the network's times forces within what both images show; equal images are left alone."""
    torch.manual_seed(0)
    shape = (18, 21, 24)
    net = MomentumNet(SMALL, stem=stem, force_windows=windows, head_std=0.3, any_contrast=any_contrast).eval()
    moved, fixed = torch.rand(2, 1, 1, *shape) + 0.1
    moved[:, :, :4], fixed[..., 20:] = 0, 0  # where the fields of view end
    momentum = net(moved, fixed)
    assert momentum.abs().max() > 1e-3 and momentum.shape == (1, 3, 9, 11, 12) and net(fixed, fixed).abs().max() < 1e-6
    assert momentum[:, :, :2].abs().max() == 0 and momentum[..., 10:].abs().max() == 0
    torch.testing.assert_close(torch.jit.script(net)(moved, fixed), momentum)
    last, blocks = net.head[1].conv, 8 if stem == "quarter" else 1
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([2.0, 3.0]).repeat_interleave(blocks))
    view = foreground_box_mask(moved) * foreground_box_mask(fixed)
    force, step = correlation_forces(moved, fixed, list(windows), view=view, longest=0.2, any_contrast=any_contrast)
    expected = 2 * force + 3 * step / voxels_per_unit(list(shape)).view(1, 3, 1, 1, 1)
    inner = slice(None, 10)  # the last blocks of odd axes are means of what there is
    torch.testing.assert_close(net(moved, fixed)[..., inner, inner], F.avg_pool3d(expected, 2)[..., inner, inner])


def test_with_any_contrast_negatives_are_registered_as_the_images_are():
    torch.manual_seed(0)
    net = MomentumNet(SMALL, stem="quarter", force_windows=(5,), head_std=0.3, any_contrast=True).eval()
    moved, fixed = torch.rand(2, 1, 1, 18, 20, 24) * 0.8 + 0.1
    momentum = net(moved, fixed)
    torch.testing.assert_close(net(1 - moved, fixed), momentum, rtol=1e-2, atol=1e-2 * momentum.abs().max().item())


def test_forces_stay_in_single_precision_under_autocast():
    torch.manual_seed(0)
    net = MomentumNet(SMALL, stem="quarter", force_windows=(5,))
    images = torch.rand(2, 1, 1, 20, 20, 20)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        force = net.force(images[0], images[1])
        assert net(images[0], images[1]).dtype == torch.float32
    view = foreground_box_mask(images[0]) * foreground_box_mask(images[1])
    expected = correlation_forces(images[0], images[1], [5], view=view, longest=0.2)
    torch.testing.assert_close(force, torch.cat(expected, dim=1), rtol=0, atol=0)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"force_windows": (4,)}, r"odd and at least 3, got \[4\]"),
    ({"force_windows": (9, 1)}, r"odd and at least 3, got \[9, 1\]"),
    ({"stem": "pool"}, "one of space_to_depth, conv, quarter, got 'pool'"),
    ({"channels": (8, 16, 32)}, "5 entries"),
])  # fmt: skip
def test_refuses_settings_without_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        MomentumNet(**arguments)
