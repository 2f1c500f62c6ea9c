"""What CONTRIBUTING.md promises: a new integrator is one file and one line of a network file."""

import json
import sys

import pytest
import torch

import tiny_bundle as tiny
from scripts.geometry import identity_map
from scripts.layers import RK4, Flow, ScalingSquaring
from scripts.networks import network_from

TOY = """
from scripts.geometry import compose_displacements
from scripts.layers import Integrator


class Euler(Integrator):
    def __init__(self, steps):
        super().__init__()
        self.steps = steps

    def advance(self, displacement, velocity):
        for _ in range(self.steps):
            step = -velocity / self.steps
            displacement = step if displacement is None else compose_displacements(displacement, step)
        return displacement

    def refined(self, factor):
        return Euler(self.steps * factor)
"""


def network(tmp_path, integrator):
    """The general network, without weights, by another integrator."""
    file = json.loads((tiny.MODELS / "general.json").read_text())
    file["network_def"]["vsvf"]["integrator"] = integrator
    (tmp_path / "models").mkdir(exist_ok=True)
    path = tmp_path / "models" / "other.json"
    path.write_text(json.dumps(file))
    torch.manual_seed(0)
    return network_from(path, affine_steps=0, vsvf_steps=2).eval()


def test_a_new_integrator_registers(tmp_path, monkeypatch):
    (tmp_path / "toy_integrator.py").write_text(TOY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "toy_integrator", raising=False)
    toy = network(tmp_path, {"_target_": "toy_integrator.Euler", "steps": 20})
    exact = network(tmp_path, "rk4")
    x = identity_map([24, 20, 22])
    fixed, moving = (torch.exp(-(x - shift).square().sum(1, keepdim=True) / 0.1) for shift in (0.0, 0.06))
    with torch.no_grad():
        found, expected = (net.register(moving, fixed) for net in (toy, exact))
        flow = Flow(toy.vsvf, found.velocities).at(2)
    assert (found.moved - fixed).square().mean() < 0.5 * (moving - fixed).square().mean()
    assert (found.map - x).abs().max() > 0.03 and (found.map - expected.map).abs().max() < 0.02
    assert flow.isfinite().all() and flow.shape == (1, 3, 23, 19, 21)


@pytest.mark.parametrize(("integrator", "expected"), [
    ("rk4", RK4(10)),
    ({"_target_": "scripts.layers.RK4", "steps": 4}, RK4(4)),
    ({"_target_": "scripts.layers.ScalingSquaring", "steps": 5, "midpoint": False}, ScalingSquaring(5, False)),
])  # fmt: skip
def test_integrators_of_the_package_in_a_network_file(tmp_path, integrator, expected):
    velocity = 0.1 * torch.randn(1, 3, 6, 7, 8)
    unit = network(tmp_path, integrator).vsvf
    torch.testing.assert_close(unit.advance(None, velocity), expected.advance(None, velocity), rtol=0, atol=0)
