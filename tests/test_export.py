"""Export to TorchScript and ONNX at a tiny size, by the code of `make export`; the shipped weights: integrations."""

import json
import re
import zipfile

import pytest
import torch

import tiny_bundle as tiny
from scripts import export
from scripts.errors import InputError

SHAPE = (16, 32, 20)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    weights = tiny.save_weights(folder / "weights.pt")
    found = export.export(folder / "out", (), weights, SHAPE, affine_steps=2, **tiny.NETWORK)
    return folder / "out", found


def test_both_are_the_module(exported):
    _, found = exported
    assert [name.split()[0] for name in found] == ["TorchScript", "TorchScript", "ONNX"]
    assert max(max(values.values()) for values in found.values()) <= 1e-4


def test_comparison_can_fail(exported):
    """The exported files against a network of other weights: what is compared is what the network does."""
    folder, _ = exported
    image, other = export.example(SHAPE), tiny.tiny_network()
    with torch.no_grad():
        assert (other(image)[:, :1] - image[:, :1]).abs().max() > 0.01
        other.affine_net.head.bias += 0.02
    for compare, name in ((export.compare_torchscript, "model.ts"), (export.compare_onnx, "model.onnx")):
        assert min(compare(folder / name, other, image).values()) > 1e-4


def test_torchscript_carries_config_and_metadata_where_deploy_looks(exported):
    folder, _ = exported
    with zipfile.ZipFile(folder / "model.ts") as archive:
        files = {re.sub("^[^/]*/", "", name): name for name in archive.namelist()}
        config = json.loads(archive.read(files["extra/inference.json"]))
        meta = json.loads(archive.read(files["extra/metadata.json"]))
    assert config["affine_steps"] == 2 and config["network_def"]["affine_net"]["channels"] == [4, 4]
    assert meta == json.loads(export.META.read_text())
    assert str(folder.parent) not in json.dumps(config) and str(tiny.BUNDLE) not in json.dumps(config)


@pytest.mark.parametrize(("options", "message"), [
    ({"ckpt_path": "absent.pt"}, "absent.pt: weights file not found"),
    ({"shape": (16, 16)}, r"shape=\[16, 16\]: give three whole numbers"),
    ({"shape": (16, 16, 4)}, r"shape=\[16, 16, 4\]: give three whole numbers"),
    ({"config_files": [tiny.MODELS / "hippocampus_labels.json"]}, "network_def: has features, which guide an engine"),
])  # fmt: skip
def test_bad_requests(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        export.export(tmp_path / "out", **options)


@pytest.mark.parametrize(
    "values", [{"moved": 2e-3, "map": 0.0}, {"moved": 2e-4, "map": 2e-4}, {"moved": 0.0, "map": float("nan")}]
)
def test_difference_is_told_and_ends_the_export(tmp_path, monkeypatch, values):
    monkeypatch.setattr(export, "compare_onnx", lambda *_: values)
    monkeypatch.setattr(export, "onnx_export", lambda *_, **__: None)
    monkeypatch.setattr(export, "_describe", lambda *_: None)
    weights = tiny.save_weights(tmp_path / "weights.pt")
    with pytest.raises(RuntimeError, match="ONNX at 16×32×20 differs from the module"):
        export.export(tmp_path / "out", (), weights, SHAPE, affine_steps=2, **tiny.NETWORK)
