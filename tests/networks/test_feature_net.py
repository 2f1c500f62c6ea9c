"""FeatureNet, and AVSM with features: any size, scripts, gradients; both faces agree, and the image is what moves."""

import pytest
import torch

from network_cases import SHAPE, assert_moves, images
from scripts.geometry import warp
from scripts.losses import FeatureObjective
from scripts.networks import AVSM, AffineNet, FeatureNet, MomentumNet
from scripts.networks.momentum_net import STEMS

SHAPES = [(16, 16, 16), (17, 23, 9), (8, 8, 8), (7, 5, 3), (4, 4, 4), (2, 1, 1), (1, 1, 1)]


def feature_net(classes=2, channels=(4, 6, 8), **arguments):
    torch.manual_seed(0)
    return FeatureNet(classes, channels, **arguments).eval()


def network(classes=2, momentum=0.3, affine=0.05, **arguments):
    """A small network with features whose momenta and affines are not near zero."""
    features = feature_net(classes)
    affine_net = AffineNet(channels=(4, 8), hidden=8, image_channels=1 + classes)
    momentum_net = MomentumNet((4, 6, 6, 8, 8), image_channels=1 + classes)
    net = AVSM(affine_net, momentum_net, features=features, **{"affine_steps": 2, "vsvf_steps": 2, **arguments})
    torch.nn.init.normal_(net.affine_net.head.weight, std=affine)
    torch.nn.init.normal_(net.momentum_net.head[1].conv.weight, std=momentum)
    return net.eval()


@pytest.fixture(autouse=True)
def no_gradients(request):
    with torch.set_grad_enabled("gradient" in request.node.name):
        yield


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("classes", [1, 4])
def test_the_image_and_its_memberships_at_any_size(shape, classes):
    net, image = feature_net(classes), images(2, shape)
    seen = net(image)
    assert seen.shape == (2, 1 + classes, *shape) and seen.dtype == torch.float32 and seen[:, :1].equal(image)
    memberships, logits = seen[:, 1:], net.logits(image)
    assert logits.shape == (2, 1 + classes, *shape) and memberships.min() >= 0 and memberships.sum(1).max() <= 1 + 1e-6
    # Background and labels together are certain; the background is what is left out.
    odds = logits.double().exp()
    chances = odds / odds.sum(1, keepdim=True)
    torch.testing.assert_close(memberships, chances[:, 1:].float(), atol=1e-5, rtol=0)
    torch.testing.assert_close(1 - memberships.sum(1), chances[:, 0].float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(8, 12, 4), (16, 16, 16)])
def test_sizes_that_fit_the_levels_are_monais_unet(shape):
    net, image = feature_net(2, (4, 6, 8)), images(1, shape)
    assert type(net.unet).__module__.startswith("monai.") and net.multiple == 4
    torch.testing.assert_close(net.logits(image), net.unet(image), rtol=0, atol=0)


@pytest.mark.parametrize("norm", ["INSTANCE", "BATCH"])
def test_script_of_features_equals_eager(norm):
    net = feature_net(norm=norm)
    scripted = torch.jit.script(net)
    for shape in SHAPES:
        image = images(2, shape)
        torch.testing.assert_close(scripted(image), net(image), atol=1e-5, rtol=1e-4)


def test_learns_the_labels_of_a_single_image_with_gradients():
    torch.manual_seed(0)
    net, image = FeatureNet(2, (4, 8)), images(1, (12, 12, 12))
    label = (image > 0.3).float() + (image > 0.7).float()
    objective, optimiser = FeatureObjective(2), torch.optim.Adam(net.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()

        class Seen:
            fixed_input = net(image)

        losses.append(objective(Seen, image, 0, None, label)["loss"])
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < 0.25 * losses[0]
    memberships = net(image)[:, 1:]
    found = torch.cat([1 - memberships.sum(1, keepdim=True), memberships], 1).argmax(1, keepdim=True)
    assert (found == label).float().mean() > 0.95


@pytest.mark.parametrize(("arguments", "message"), [
    ({"classes": 0}, "at least 1 class and 2 levels, got 0 classes"),
    ({"channels": (8,)}, r"got 2 classes and channels \[8\]"),
    ({"channels": ()}, r"channels \[\]"),
])  # fmt: skip
def test_refuses_settings_without_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        FeatureNet(**arguments)


# AVSM with features.


def test_forward_equals_register():
    net, moving, fixed = network(), images(2), images(2, seed=1)
    result = net.register(moving, fixed)
    torch.testing.assert_close(net(torch.cat([moving, fixed], dim=1)), torch.cat([result.moved, result.map], dim=1))


def test_script_equals_eager():
    net = network()
    scripted = torch.jit.script(net)
    for shape in (SHAPE, (16, 11, 20)):
        pair = torch.cat([images(shape=shape), images(shape=shape, seed=1)], dim=1)
        eager = net(pair)
        assert eager.shape == (1, 4, *shape)
        assert_moves(eager[:, 1:])
        torch.testing.assert_close(scripted(pair), eager, atol=1e-5, rtol=1e-4)


def test_moved_is_the_image_and_all_that_is_seen_moves_with_it():
    net, moving, fixed = network(classes=3), images(2), images(2, seed=1)
    result = net.register(moving, fixed, vsvf_steps=3)
    assert result.moved.shape == (2, 1, *SHAPE)
    assert result.network_input.shape == result.fixed_input.shape == (2, 4, *SHAPE)
    torch.testing.assert_close(result.fixed_input, net.features(fixed))
    torch.testing.assert_close(result.network_input, warp(net.features(moving), result.map), atol=1e-5, rtol=1e-4)
    assert result.moved.equal(result.network_input[:, :1])
    for moved, map in zip(result.moved_steps, result.maps, strict=True):
        torch.testing.assert_close(moved, warp(moving, map), atol=1e-5, rtol=1e-4)
    # Both networks were shown the features of the original images.
    expected = net.affine_net(net.features(moving), result.fixed_input, 2)
    torch.testing.assert_close(result.affine, expected[-1])
    seen = warp(net.features(moving), result.affine_map)
    torch.testing.assert_close(result.momenta[0], net.momentum_net(seen, result.fixed_input))


@pytest.mark.parametrize("channel", [1, 2])
def test_each_feature_matters_to_both_stages(channel):
    net, moving, fixed = network(), images(), images(seed=1)
    before = net.register(moving, fixed)
    net.features.unet.register_forward_hook(
        lambda module, inputs, logits: logits + (torch.arange(3) == channel).view(-1, 1, 1, 1)
    )
    after = net.register(moving, fixed)
    assert (before.affines[0] - after.affines[0]).abs().max() > 1e-5
    assert (before.momenta[0] - after.momenta[0]).abs().max() > 1e-5
    only = net.register(moving, fixed, affine=before.affine)
    assert (before.momenta[0] - only.momenta[0]).abs().max() > 1e-5


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("image_channels", [1, 3])
@pytest.mark.parametrize("changed", range(6))
def test_momentum_net_looks_at_every_channel(stem, image_channels, changed):
    torch.manual_seed(0)
    net = MomentumNet((4, 6, 6, 8, 8), stem=stem, head_std=0.1, image_channels=image_channels)
    pair = torch.rand(1, 2 * image_channels, 12, 11, 9, generator=torch.Generator().manual_seed(0))
    other = pair.clone()
    other[:, changed % (2 * image_channels)] = 1 - other[:, changed % (2 * image_channels)]
    outputs = [net(*images.split(image_channels, dim=1)) for images in (pair, other)]
    assert (outputs[0] - outputs[1]).abs().max() > 1e-4
