"""A network that is lost: Newton steps or the engine take over from its affine, bad deformations shrink."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import tiny_bundle as tiny
from scripts.formats.images import Image
from scripts.geometry import apply_affine, identity_map, warp
from scripts.layers import VSVF
from scripts.losses import MultiKernelLNCC
from scripts.networks import AVSM, AffineNet, MomentumNet
from scripts.networks.inferer import RegistrationInferer
from scripts.optimize import AffineEngine, RegistrationEngine
from scripts.registration.methods import EngineStage, Method, NetworkStage
from scripts.registration.pair import Pair
from scripts.registration.sampling import SamplePaird
from scripts.synthetic.phantom import KneePhantom
from world_cases import frame

GRID = (32, 40, 32)


@pytest.fixture(scope="module")
def item(tmp_path_factory):
    """A knee and the same knee moved by some millimetres, on the network's grid."""
    folder = tmp_path_factory.mktemp("pair")
    knee = KneePhantom(GRID, noise=0.0).pair(3, "longitudinal")["fixed"].numpy().astype(np.float32)
    images = {}
    for role, shift in (("fixed", 0), ("moving", 2)):
        array = np.roll(np.pad(knee, 4), shift, axis=(0, 1, 2))
        images[role] = Image(array, frame(array.shape, (0, 0, 0), (3, 3, 3), (0, 0, 0)), folder / f"{role}.nii.gz")
    step = SamplePaird(GRID, 0, "header", "common", "RAS", None, 0.1, 99.9)
    return step({"pair": Pair(**images)})["sampled"]


def network(own=0.0, momentum=0.0, window=5):
    """Its affine steps are ``own`` off in every number, its momenta are noise of size ``momentum``."""
    torch.manual_seed(0)
    affine_net = AffineNet((4,), hidden=4, composition="residual", newton_window=window)
    momentum_net = MomentumNet((4, 4, 4, 4, 4), stem="quarter")
    net = AVSM(affine_net, momentum_net, VSVF(*tiny.KERNEL), affine_steps=3, vsvf_steps=2).eval()
    with torch.no_grad():
        affine_net.head.bias[:12] = own
        momentum_net.head[1].conv.bias.copy_(momentum * torch.randn(24))
        momentum_net.head[1].conv.weight.mul_(1e5 * momentum)
    return net


LOSS = MultiKernelLNCC()


def register(net, pair, steps=2, keep_best_affine=True, beside=()):
    """What the network finds, and the losses of its stages."""
    stage = NetworkStage(net, RegistrationInferer(3, steps), newton=keep_best_affine)
    found = Method(net, [stage, *beside], [stage], keep_best_affine=keep_best_affine)(pair)
    result = found.registration
    moved = {"before": pair.moving, "affine": warp(pair.moving, result.affine_map), "final": result.moved}
    return found, {stage: LOSS(image, pair.fixed).item() for stage, image in moved.items()}


def as_it_comes(net, pair, affine, steps=2):
    """The network's deformation after an affine, however similar."""
    with torch.no_grad():
        return RegistrationInferer(3, steps)(torch.cat([pair.moving, pair.fixed], 1), net, affine=affine)


def test_newton_steps_go_on_from_a_network_that_is_lost(item):
    lost, losses = register(network(own=-0.5, window=0), item)
    assert lost.affine_steps == 0 and lost.affine_from == "initialisation"
    assert losses["affine"] == pytest.approx(losses["before"])
    found, better = register(network(own=-0.5), item)
    assert found.affine_steps > 0 and found.affine_from == "network" and better["affine"] < 0.2 * better["before"]
    # As it comes, it is what the network's last step gives.
    raw, worse = register(network(own=-0.5), item, keep_best_affine=False)
    assert raw.affine_steps == 3 and worse["affine"] > better["before"]


def test_the_most_similar_affine_goes_on(item):
    engine = EngineStage(network(), AffineEngine(), RegistrationEngine())
    found, losses = register(network(own=-0.5, window=0), item, beside=[engine])
    assert found.affine_from == "engine" and losses["affine"] < 0.2 * losses["before"]
    assert set(found.seconds) == {"network", "optimise"} and found.facts["affine_after"] < found.facts["affine_before"]
    both, losses = register(network(), item, beside=[engine])
    of = [register(network(), item)[1]["affine"], losses["affine"]]
    assert of[1] <= of[0] and both.affine_from == ("engine" if of[1] < of[0] else "network")


def test_newton_steps_are_not_taken_past_the_best(item):
    """A network that is right is not made worse: the affine kept is the best of all that were tried."""
    _, losses = register(network(), item)
    net = network()
    with torch.no_grad():
        steps = net.affine_net(item.moving, item.fixed, 3)
        more = net.affine_net.newton(item.moving, item.fixed, 5, steps[-1])
    tried = [LOSS(net.integrate(item.moving, a, []).moved, item.fixed).item() for a in (*steps, *more)]
    assert losses["affine"] <= min(tried[:3]) + 1e-6
    x = identity_map(GRID)
    assert (apply_affine(more[-1], x) - apply_affine(steps[-1], x)).abs().max() < 0.05


@pytest.mark.parametrize("momentum", [0.3, 3.0])
def test_a_deformation_that_makes_it_worse_is_shortened_and_said(item, momentum):
    net = network(momentum=momentum)
    found, losses = register(net, item)
    raw = as_it_comes(net, item, found.registration.affine)
    assert LOSS(raw.moved, item.fixed) > losses["affine"]
    assert losses["final"] <= losses["affine"] + 1e-6
    (note,) = found.notes
    assert "less similar than the affine alone" in note
    kept = float(note.split("; ")[1].split()[0])
    longest = max(m.abs().max() for m in raw.momenta)
    torch.testing.assert_close(max(m.abs().max() for m in found.registration.momenta), kept * longest)
    if kept == 0:
        torch.testing.assert_close(found.registration.map, found.registration.affine_map, rtol=0, atol=1e-5)


class Given(torch.nn.Module):
    """Predicts what it was given."""

    def __init__(self, momentum):
        super().__init__()
        self.momentum = momentum

    def forward(self, moved, fixed, factor=1):
        return self.momentum


def test_a_deformation_that_is_better_stays(item):
    x, net = identity_map(GRID), network()
    # Bent as no affine can undo.
    bent = replace(item, moving=warp(item.moving, x + 0.06 * torch.sin(torch.pi * x.flip(1)) * (1 - x.square())))
    affine = register(net, bent)[0].registration.affine
    stds, weights = tiny.KERNEL
    engine = RegistrationEngine("vsvf-opt", stds=stds, weights=weights, iterations=(20,))
    net.momentum_net = Given(engine(bent.moving, bent.fixed, affine).momenta[0])
    found, losses = register(net, bent, 1)
    assert losses["final"] < losses["affine"] and not found.notes
    assert torch.equal(found.registration.map, as_it_comes(net, bent, found.registration.affine, 1).map)
