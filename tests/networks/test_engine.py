"""An engine in the place of the momentum network, and the config that puts it there.

TensorRT needs its GPU; what stands for it here is the same thing without it: a TorchScript file, made by MONAI's tool.
"""

import json
import sys
import types

import pytest
import torch
from monai.bundle import ConfigWorkflow, ckpt_export

import tiny_bundle as tiny
from scripts.errors import InputError
from scripts.networks import MomentumFace, with_momentum_engine
from scripts.synthetic.phantom import write_phantom_pair

FILES = [str(tiny.CONFIGS / f"{name}.json") for name in ("inference", "inference_trt")]
META = str(tiny.CONFIGS / "metadata.json")


@pytest.fixture(autouse=True)
def runtime(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_tensorrt", types.ModuleType("torch_tensorrt"))


def network_file(folder):
    """A network file of the tiny network, for configs."""
    file = json.loads((tiny.MODELS / "general.json").read_text())
    for key, value in tiny.NETWORK.items():
        _, part, name = key.split("#")
        file["network_def"][part][name] = value
    path = folder / "tiny.json"
    path.write_text(json.dumps(file))
    return str(path)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch_tensorrt", types.ModuleType("torch_tensorrt"))
        ckpt_export("momentum_face", filepath=str(folder / "model_trt.ts"),
            ckpt_file=str(tiny.save_weights(folder / "model.pt")), meta_file=META, config_file=FILES, affine_steps=2,
            network_file=network_file(folder))  # fmt: skip
    return folder / "model_trt.ts"


def images():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1, 1, 16, 32, 16, generator=generator), torch.rand(1, 1, 16, 32, 16, generator=generator)


def test_face_has_the_state_of_the_whole(engine):
    network = tiny.tiny_network()
    face, (moved, fixed) = MomentumFace(network), images()
    assert face.state_dict().keys() == network.state_dict().keys()
    assert face(torch.cat([moved, fixed], 1)).equal(network.momentum_net(moved, fixed))


def test_registration_is_the_same_with_the_engine(engine):
    plain, compiled = tiny.tiny_network(), with_momentum_engine(tiny.tiny_network(), engine)
    with torch.no_grad():
        expected, found = plain.register(*images()), compiled.register(*images())
    assert expected.momenta[0].abs().max() > 0
    torch.testing.assert_close(found.moved, expected.moved, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.map, expected.map, rtol=0, atol=1e-5)
    assert compiled.momentum_net.compared


def test_engine_of_other_weights_is_refused(engine):
    network = tiny.tiny_network()
    with torch.no_grad():
        network.momentum_net.head[1].conv.weight *= 1.1
    with pytest.raises(InputError, match=r"model_trt\.ts: the engine's momentum differs .* by 0\.\d+ of"):
        with_momentum_engine(network, engine).register(*images())


def test_engine_of_another_grid_is_refused(tmp_path):
    fixed = torch.jit.trace(lambda image: image.view(1, 2, 8, 8, 8)[:, :, ::2, ::2, ::2], torch.rand(1, 2, 8, 8, 8))
    fixed.save(str(tmp_path / "fixed.ts"))
    with pytest.raises(InputError, match=r"does not take a grid of \[16, 32, 16\]"):
        with_momentum_engine(tiny.tiny_network(), tmp_path / "fixed.ts").register(*images())


@pytest.mark.parametrize(("content", "message"), [(None, "engine not found"), (b"no archive", "not a TorchScript")])
def test_bad_file(tmp_path, content, message):
    if content is not None:
        (tmp_path / "engine.ts").write_bytes(content)
    with pytest.raises(InputError, match=message):
        with_momentum_engine(tiny.tiny_network(), tmp_path / "engine.ts")


def test_config_registers_by_the_engine(engine, tmp_path):
    folder = write_phantom_pair(tmp_path / "pair", shape=tiny.GRID).parent / "imagesTr"
    pair = dict(zip(("fixed", "moving"), map(str, sorted(folder.iterdir())), strict=True))
    workflow = ConfigWorkflow(
        FILES,
        META,
        logging_file=False,
        workflow_type="infer",
        bundle_root=str(tiny.BUNDLE),
        output_dir=str(tmp_path / "out"),
        engine_path=str(engine),
        ckpt_path=str(engine.with_name("model.pt")),
        report=False,
        network_file=network_file(tmp_path),
        **{key: value for key, value in tiny.EVALUATE.items() if key not in tiny.NETWORK},
        **pair,
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    workflow.run()
    assert (tmp_path / "out" / "metrics.json").is_file()
    assert workflow.parser.get_parsed_content("network").momentum_net.compared
