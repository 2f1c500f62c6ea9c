"""A network whose features guide the engine: classes that it sees in both images are laid on each other."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from refusals import one_line
from register_cases import write_pair
from scripts.networks import AVSM
from scripts.optimize import AffineEngine, Guides, RegistrationEngine
from scripts.registration import Pair, Registrar
from scripts.registration.methods import EngineStage, Method, chosen_network
from scripts.registration.sampling import SamplePaird

GRID = (24, 28, 24)


class Told(nn.Module):
    """Features that see one ball in the fixed image and the same ball elsewhere in any other."""

    def __init__(self, fixed):
        super().__init__()
        self.fixed = fixed

    def forward(self, image):
        place = torch.tensor([12.0, 14.0, 12.0]) + (0.0 if image.equal(self.fixed) else 2.0)
        away = torch.cartesian_prod(*(torch.arange(n) for n in GRID)).view(*GRID, 3) - place
        return torch.sigmoid(6 - away.norm(dim=-1))[None, None]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A knee and itself, a little darker: nothing in the images asks for a deformation."""
    files = write_pair(tmp_path_factory.mktemp("guided"))
    step = SamplePaird(GRID, 0, "geometry", "common", "RAS", None, 0.1, 99.9)
    found = step({"pair": Pair.read({"fixed": files["fixed"], "moving": files["fixed"]})})["sampled"]
    return replace(found, moving=0.99 * found.fixed)


def register(pair, weight):
    network = AVSM(nn.Identity(), nn.Identity(), features=Told(pair.fixed), affine_steps=0, vsvf_steps=0)
    stage = EngineStage(network, AffineEngine(), RegistrationEngine("fast"))
    method = Method(network, [stage], [stage], "lncc", guide_weight=weight)
    assert method.facts["guide_weight"] == weight
    return method(pair)


def test_classes_meet_closer_than_by_the_images_alone(pair):
    told = Told(pair.fixed)
    ball = Guides(tuple(told(image) for image in (pair.moving, pair.fixed)), 1.0)
    alone, guided = register(pair, 0.0), register(pair, 64.0)
    assert ball.loss(guided.registration.map) < 0.2 * ball.loss(alone.registration.map)
    assert (guided.guided, guided.optimised, alone.guided, alone.optimised) == (True, False, False, True)


def test_labels_that_were_given_drive_in_place_of_the_classes(pair):
    given = replace(pair, guides=Guides((pair.moving, pair.fixed), 2.0))
    first, second = (register(given, weight).registration.map for weight in (0.0, 64.0))
    assert first.equal(second)


@pytest.mark.parametrize(("transform", "stages"), [("deformable", ["engine"]), ("affine", [])])
def test_the_shipped_network_guides_the_engine(transform, stages):
    registrar = Registrar("hippocampus_labels", preset="fast", transform=transform)
    facts = registrar.settings["method"]
    assert facts["affines"] == ["engine"] and facts["stages"] == stages and facts["guide_weight"] > 0
    assert json.loads(json.dumps(facts)) == facts


def test_a_network_that_guides_has_no_steps():
    with one_line("has no steps; leave them away", "affine_steps, vsvf_steps: this network guides the engine"):
        chosen_network("fast", None, "weights.pt", vsvf_steps=2, guide_weight=64.0)
