"""FeatureNet, and AVSM with features: any size, scripts, gradients."""

import pytest
import torch
import torch.nn.functional as F

from network_cases import images
from scripts.losses import FeatureObjective
from scripts.networks import AVSM, AffineNet, FeatureNet, MomentumNet

SHAPES = [(16, 16, 16), (17, 23, 9), (8, 8, 8), (7, 5, 3), (4, 4, 4), (2, 1, 1), (1, 1, 1)]


def feature_net(classes=2, channels=(4, 6, 8)):
    torch.manual_seed(0)
    return FeatureNet(classes, channels).eval()


@pytest.fixture(autouse=True)
def no_gradients(request):
    with torch.set_grad_enabled("gradient" in request.node.name):
        yield


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("classes", [1, 4])
def test_memberships_at_any_size(shape, classes):
    net, image = feature_net(classes), images(2, shape)
    memberships = net(image)
    assert memberships.shape == (2, classes, *shape) and memberships.dtype == torch.float32
    logits = net.logits(image)
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


@pytest.mark.parametrize("norm", ["BATCH", "INSTANCE"])
def test_by_means_of_the_training_zeros_around_an_image_do_not_matter(norm):
    torch.manual_seed(0)
    net, image = FeatureNet(2, (4, 6), norm), images(1, (40, 40, 40))
    net.train()(image)
    change = (net.eval()(F.pad(image, [8] * 6)) - F.pad(net(image), [8] * 6))[..., 20:-20, 20:-20, 20:-20]
    assert (change.abs().max() < 1e-5) == (norm == "BATCH")


def test_script_of_features_equals_eager():
    net = feature_net()
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
            classes = net(image)

        losses.append(objective(Seen, image, 0, None, label)["loss"])
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < 0.25 * losses[0]
    memberships = net(image)
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


def test_a_network_with_features_says_what_they_see_and_registers_without_them():
    torch.manual_seed(0)
    net = AVSM(AffineNet((4, 8), hidden=8), MomentumNet((4, 6, 6, 8, 8)), affine_steps=1, vsvf_steps=1).eval()
    moving, fixed = images(1), images(1, seed=1)
    without = net.register(moving, fixed)
    net.features = feature_net()
    result = net.register(moving, fixed)
    assert without.classes is None and result.classes.equal(net.features(fixed)) and result.map.equal(without.map)
