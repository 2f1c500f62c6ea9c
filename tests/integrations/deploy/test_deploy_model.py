"""The model file: its weights and its config are the ones that register."""

import json
from pathlib import Path

import pytest
import torch
from avsm_deploy.model import unpack_model
from deploy_cases import export_model
from torch import nn

from scripts.errors import InputError
from scripts.networks import load_weights
from scripts.registration import inference_parser
from scripts.settings import BUNDLE

pytestmark = pytest.mark.integrations

CONFIGS, MODELS = BUNDLE / "configs", BUNDLE / "models"


class Adapter(nn.Module):
    """An exporter's own module around the network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.network(image)


def network_of(*configs: Path):
    return inference_parser(config_files=configs, preset="fast").get_parsed_content("network_def")


@pytest.mark.parametrize("network_inside", [False, True])
def test_weights_are_the_files(tmp_path, network_inside):
    both = "['configs/inference.json','models/general.json']"
    export_model(tmp_path, config=both if network_inside else "configs/inference.json")
    model = unpack_model(tmp_path / "avsm" / "model.ts", tmp_path / "work")
    expected = torch.load(MODELS / "model.pt", weights_only=True)
    found = load_weights(network_of(model.config), model.weights).state_dict()
    assert found.keys() == expected.keys() and all(
        torch.equal(found[name], value.float()) for name, value in expected.items()
    )


def test_another_networks_config_comes_with_its_weights(tmp_path):
    """The paper's network has other channels and another kernel than the default one; an adapter changes nothing."""
    network = network_of(MODELS / "paper.json")
    files = (MODELS / "paper.json", CONFIGS / "inference.json", CONFIGS / "metadata.json")
    extra = {file.name: file.read_text() for file in files}
    file = tmp_path / "model.ts"
    torch.jit.save(torch.jit.script(Adapter(network)), str(file), _extra_files=extra)
    model = unpack_model(file, tmp_path / "work")
    config = json.loads(model.config.read_text())
    assert config["network_def"]["vsvf"]["stds"] == [0.05, 0.1, 0.15, 0.2, 0.25]
    found = load_weights(network_of(model.config), model.weights).state_dict()
    assert all(torch.equal(found[name], value) for name, value in network.state_dict().items())
    with pytest.raises(InputError, match="stds"):
        load_weights(network_of(), model.weights)
    # Without the network's file, the config's word for it is enough.
    extra = {"inference.json": json.dumps({**json.loads(extra["inference.json"]), "model": "paper"})}
    torch.jit.save(torch.jit.script(network), str(file), _extra_files=extra)
    model = unpack_model(file, tmp_path / "again")
    assert inference_parser(config_files=[model.config], preset="fast").get_parsed_content("grid") == [80, 192, 192]
    load_weights(network_of(model.config), model.weights)


def test_config_inside_decides_nothing_else(models, tmp_path):
    """Paths and devices of the exporting machine stay there."""
    file = tmp_path / "model.ts"
    extra = {"inference.json": json.dumps({"device": "mars", "output_dir": "/there", "affine_steps": 3})}
    torch.jit.save(torch.jit.load(str(models / "avsm" / "model.ts")), str(file), _extra_files=extra)
    assert json.loads(unpack_model(file, tmp_path / "work").config.read_text()) == {"affine_steps": 3}


def bad_files(folder: Path):
    (folder / "text.ts").write_text("no zip")
    torch.save({"a": torch.zeros(1)}, folder / "state.ts")
    torch.jit.save(torch.jit.script(nn.Linear(1, 1)), str(folder / "other.ts"))
    network = torch.jit.script(network_of())
    torch.jit.save(network, str(folder / "config.ts"), _extra_files={"inference.json": "{"})
    torch.jit.save(network, str(folder / "strange.ts"), _extra_files={"inference.json": '{"model": "heart"}'})
    return [
        (folder / name, words)
        for name, words in (
            ("text.ts", "cannot be read as TorchScript"),
            ("state.ts", "cannot be read as TorchScript"),
            ("other.ts", "not of an AVSM network"),
            ("config.ts", "config inside cannot be read"),
            ("strange.ts", "no config inside has the network 'heart'"),
        )
    ]


def test_bad_files(tmp_path):
    for file, words in bad_files(tmp_path):
        with pytest.raises(InputError) as caught:
            unpack_model(file, tmp_path / "work")
        assert words in str(caught.value) and str(file) in str(caught.value) and "\n" not in str(caught.value)
