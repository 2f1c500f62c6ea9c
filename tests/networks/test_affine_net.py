"""AffineNet: the algebra of both compositions with oracle steps, re-warping the original, any size, gradients."""

import pytest
import torch

from scripts.geometry import affine_map, compose_affines, identity_affine, identity_map, warp
from scripts.networks import AffineNet

SHAPE = (12, 16, 14)


class Scripted(AffineNet):
    """Its steps are given beforehand; it keeps the moved images that it was shown."""

    def __init__(self, updates, **arguments):
        super().__init__(channels=(2,), hidden=2, **arguments)
        self.updates, self.seen = list(updates), []

    def step(self, moved, fixed):
        self.seen.append(moved)
        return self.updates[len(self.seen) - 1]


class RampOracle(AffineNet):
    """Reads the exact residual along D off a pair of ramps, from nothing but the images that a step is shown."""

    def step(self, moved, fixed):
        x = identity_map(list(fixed.shape[2:]))[0, 0]
        inside = (x.abs() < 0.4).flatten()
        columns = torch.stack([x.flatten()[inside], torch.ones(int(inside.sum()))], dim=1)
        slope, offset = torch.linalg.lstsq(columns, moved[0, 0].flatten()[inside].unsqueeze(1)).solution.flatten()
        wanted, at = torch.linalg.lstsq(columns, fixed[0, 0].flatten()[inside].unsqueeze(1)).solution.flatten()
        update = identity_affine(1)
        # moved(R x) = fixed(x)
        update[0, 0, 0], update[0, 0, 3] = wanted / slope, (at - offset) / slope
        return update


def random_affine(seed, scale=0.1, batch=1):
    return identity_affine(batch) + scale * torch.randn(batch, 3, 4, generator=torch.Generator().manual_seed(seed))


def blobs(shape=SHAPE, batch=1, seed=0):
    """Smooth positive images that vanish at the faces."""
    centres = 0.3 * torch.randn(batch, 3, 3, 1, 1, 1, generator=torch.Generator().manual_seed(seed))
    squares = (identity_map(shape).unsqueeze(1) - centres).square().sum(dim=2)
    return torch.exp(-squares / 0.1).sum(dim=1, keepdim=True)


@pytest.mark.parametrize("composition", ["equation1", "residual"])
@pytest.mark.parametrize("with_start", [False, True])
def test_steps_compose_as_their_name_says(composition, with_start):
    updates = [random_affine(seed) for seed in range(3)]
    start = random_affine(9) if with_start else None
    net = Scripted(updates, composition=composition)
    affines = net(blobs(), blobs(seed=1), 3, start)
    expected = identity_affine(1) if start is None else start
    for update, affine in zip(updates, affines, strict=True):
        order = (update, expected) if composition == "equation1" else (expected, update)
        expected = compose_affines(*order)
        torch.testing.assert_close(affine, expected)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_residual_order_recovers_an_affine_from_its_images(scale):
    """What a step is shown is moving o Gamma, so (moving o Gamma) o R = fixed asks for Gamma o R."""
    shape = (40, 6, 8)
    truth, start = identity_affine(1), identity_affine(1)
    truth[0, 0, 0], truth[0, 0, 3] = 1.2, 0.1
    start[0, 0, 0], start[0, 0, 3] = 0.8, 0.3
    moving, fixed = identity_map(shape)[:, :1], affine_map(truth, shape)[:, :1]
    residual = RampOracle(scale=scale, composition="residual")(moving, fixed, 2, start)
    torch.testing.assert_close(residual[0], truth, atol=1e-4, rtol=0)
    torch.testing.assert_close(residual[1], truth, atol=1e-4, rtol=0)
    # The paper's order: a x + b <- (a_R (a x + b)) + b_R is off after one step by b (a_R - 1) + b_R (1 - a), and closes
    # in on the truth over steps.
    steps = RampOracle(scale=scale, composition="equation1")(moving, fixed, 8, start)
    a_r, b_r = 1.2 / 0.8, (0.1 - 0.3) / 0.8
    assert steps[0][0, 0, 3].item() == pytest.approx(a_r * 0.3 + b_r, abs=1e-4)
    errors = [(affine - truth).abs().max().item() for affine in steps]
    assert errors[0] > 0.05 and errors[-1] < 1e-3


@pytest.mark.parametrize("composition", ["equation1", "residual"])
def test_every_step_warps_the_original(composition):
    updates = [random_affine(seed, 0.2) for seed in range(4)]
    net, moving = Scripted(updates, composition=composition), blobs()
    affines = net(moving, blobs(seed=1), 4)
    small = net.affine_grid_image(moving)
    torch.testing.assert_close(net.seen[0], small)
    for affine, moved in zip(affines, net.seen[1:], strict=False):
        torch.testing.assert_close(moved, warp(small, affine_map(affine, list(small.shape[2:]))))


@pytest.mark.parametrize("shape", [(16, 16, 16), (17, 33, 9), (8, 40, 21), (5, 4, 3), (2, 2, 2)])
@pytest.mark.parametrize("scale", [0.3, 0.5, 1.0])
def test_head_starts_at_the_identity_at_any_size(shape, scale):
    net = AffineNet(channels=(4, 6, 8), hidden=8, scale=scale)
    images = torch.rand(2, 2, 1, *shape)
    affines = net(images[0], images[1], 2)
    assert len(affines) == 2
    for affine in affines:
        torch.testing.assert_close(affine, identity_affine(2))


def test_affine_grid_averages_before_it_samples():
    # Sampled every second voxel or so, stripes would come out as a pattern of their own, from 0 to 1.
    stripes = (torch.arange(41.0) % 2).expand(1, 1, 4, 4, 41)
    small = AffineNet(channels=(2,)).affine_grid_image(stripes)[0, 0, 0, 0, 1:-1]
    assert small.sub(0.5).abs().max() < 0.2


def test_number_of_steps_is_free_and_steps_do_not_depend_on_later_ones():
    torch.manual_seed(0)
    net = AffineNet(channels=(4, 8), hidden=8)
    torch.nn.init.normal_(net.head.weight, std=0.05)
    moving, fixed = blobs(), blobs(seed=1)
    long = net(moving, fixed, 5)
    assert [len(net(moving, fixed, n)) for n in (1, 2, 5)] == [1, 2, 5]
    for got, want in zip(net(moving, fixed, 2), long, strict=False):
        torch.testing.assert_close(got, want)
    assert (long[4] - long[0]).abs().max() > 1e-3
    # Going on from step 2 is the same as not having stopped.
    torch.testing.assert_close(net(moving, fixed, 3, start=long[1])[-1], long[4])


def test_a_new_network_takes_newton_steps():
    """Before any training the steps are those of Gauss and Newton, and find a small known affine."""
    torch.manual_seed(0)
    net = AffineNet(channels=(4,), hidden=4, composition="residual", newton_window=5)
    truth, shape = random_affine(3, 0.03), (40, 48, 44)
    d, h, w = identity_map(shape).unbind(dim=1)
    moving = torch.sigmoid(2 * (torch.sin(9 * d + 3 * h) + torch.sin(8 * h - 4 * w) + torch.cos(10 * w))).unsqueeze(1)
    affines = net(moving, warp(moving, affine_map(truth, shape)), 6)
    errors = [(affine - truth).abs().max().item() for affine in affines]
    assert errors[-1] < 0.1 * (truth - identity_affine(1)).abs().max() and errors[-1] < errors[0]


def test_the_gain_and_the_networks_own_step_are_added_to_newtons():
    torch.manual_seed(0)
    net = AffineNet(channels=(4,), hidden=4, composition="residual", newton_window=5)
    moved, fixed, view = blobs(), blobs(seed=1), torch.ones(1, 1, *SHAPE)
    newton = net.step(moved, fixed, view) - identity_affine(1)
    with torch.no_grad():
        net.head.bias.copy_(torch.arange(13) / 100)
        net.head.bias[12] = -0.25
    own = (torch.arange(12) / 100).view(1, 3, 4)
    torch.testing.assert_close(net.step(moved, fixed, view) - identity_affine(1), 0.75 * newton + own)
    torch.testing.assert_close(net.step(moved, fixed) - identity_affine(1), own)


def test_with_any_contrast_negatives_get_the_step_of_the_images():
    torch.manual_seed(0)
    net = AffineNet(channels=(4,), hidden=4, composition="residual", newton_window=5, any_contrast=True)
    torch.nn.init.normal_(net.head.weight)
    moved, fixed, view = blobs(), blobs(seed=1), torch.ones(1, 1, *SHAPE)
    step = net.step(moved, fixed, view)
    torch.testing.assert_close(net.step(moved, 1 - fixed, view), step, rtol=1e-3, atol=1e-3)
    assert (step - identity_affine(1)).abs().max() > 0.1
    torch.testing.assert_close(torch.jit.script(net)(moved, fixed, 2), net(moved, fixed, 2))
    # The derivative is finite where images are flat.
    moved = torch.zeros(1, 1, *SHAPE, requires_grad=True)
    net.step(moved, fixed, view).sum().backward()
    assert moved.grad.isfinite().all()


def test_newton_steps_train_the_gain():
    torch.manual_seed(0)
    net = AffineNet(channels=(4,), hidden=4, composition="residual", newton_window=5)
    net(blobs(seed=0), blobs(seed=1), 2)[-1].square().sum().backward()
    assert net.head.bias.grad[12].abs() > 0


@pytest.mark.parametrize(("arguments", "message"), [
    ({"scale": 0.0}, "scale must lie in"),
    ({"scale": float("nan")}, "scale must lie in"),
    ({"composition": "sum"}, "one of equation1, residual, got 'sum'"),
    ({"newton_window": 4, "composition": "residual"}, "odd and at least 3, got 4"),
    ({"newton_window": 1, "composition": "residual"}, "odd and at least 3, got 1"),
    ({"newton_window": 5}, "needs the residual composition, got 'equation1'"),
])  # fmt: skip
def test_refuses_settings_without_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        AffineNet(**arguments)
