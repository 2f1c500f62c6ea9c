"""Loading weights: what fits, and a clear word for every way in which a file does not."""

import copy
import json
import os
import pickle
import random
import shutil

import pytest
import torch
from torch import nn

import tiny_bundle as tiny
from scripts.errors import InputError
from scripts.layers import VSVF
from scripts.networks import initial_network, load_weights, weights, weights_hash


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


class Evil:
    """Would run a command on loading."""

    def __reduce__(self):
        return os.system, ("exit 3",)


def written(content):
    return lambda path, net: path.write_bytes(content)


def saved(change):
    return lambda path, net: torch.save(change(net), path)


def cut(size):
    def make(path, net):
        torch.save(net.state_dict(), path)
        path.write_bytes(path.read_bytes()[:size])

    return make


def flipped(path, net):
    """One bit of one weight, which torch.load reads without a word."""
    torch.save(net.state_dict(), path)
    content = bytearray(path.read_bytes())
    where = content.index(net[0].weight.detach().numpy().tobytes())
    content[where + 7] ^= 1
    path.write_bytes(content)
    assert not torch.load(path, weights_only=True)["0.weight"].equal(net[0].weight)


UNREADABLE = "not a readable weights file"
BAD_FILES = {  # name -> what makes the file of a network, words of the line
    "nothing": (lambda path, net: None, "weights file not found; give an existing file"),
    "folder": (lambda path, net: path.mkdir(), "weights file not found; give an existing file"),
    "text": (written(b"these are no weights\n"), UNREADABLE),
    "empty": (written(b""), UNREADABLE),
    "bytes": (written(bytes(range(256)) * 8), UNREADABLE),
    "marks of pickles": (written(b"\x80\x02}q\x00."), UNREADABLE),
    "mark of an archive": (written(b"PK\x03\x04"), UNREADABLE),
    "truncated": (cut(-300), UNREADABLE),
    "truncated early": (cut(40), UNREADABLE),
    "whole module": (saved(lambda net: net), UNREADABLE),
    "hostile": (saved(lambda net: {"network": net.state_dict(), "extra": Evil()}), UNREADABLE),
    "hostile pickle": (written(pickle.dumps({"network": {}, "extra": Evil()}, 2)), UNREADABLE),
    "flipped": (flipped, f"{UNREADABLE} .damaged: the checksum of"),
    "bare tensor": (saved(lambda net: torch.zeros(3)), "holds no state dict of tensors"),
    "numbers": (saved(lambda net: {"epoch": 3}), "holds no state dict of tensors"),
    "missing key": (saved(lambda net: {k: v for k, v in net.state_dict().items() if k != "1.bias"}),
        "missing 1.bias.*network_def"),
    "unexpected key": (saved(lambda net: {**net.state_dict(), "2.weight": torch.zeros(1)}),
        "unexpected 2.weight.*network_def"),
    "other shape": (saved(lambda net: {**net.state_dict(), "0.weight": torch.zeros(4, 5)}),
        r"0.weight is \(4, 5\), the network has \(4, 3\).*network_def"),
    "other network": (saved(lambda net: {f"encoder.{k}": v for k, v in net.state_dict().items()}),
        "missing 0.weight; .* and 5 more.*network_def"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_named_and_change_nothing(tmp_path, name):
    make, message = BAD_FILES[name]
    path, net = tmp_path / "weights.pt", network()
    make(path, network(seed=1))
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(InputError, match=message) as caught:
        load_weights(net, path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and "\n" not in text
    assert ";" in text, "an error ends with its mend"
    assert "weights_only" not in text and "trust" not in text, "no advice to switch the protection off"
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, before[name])


def test_shipped_weights_with_one_bit_flipped_are_refused(tmp_path, monkeypatch):
    """Forty bits all over the file, those that no checksum covers included."""
    source, chance = tiny.MODELS / "model.pt", random.Random(5)
    (tmp_path / "configs").mkdir()
    (tmp_path / "models").mkdir()
    shutil.copy(tiny.CONFIGS / "metadata.json", tmp_path / "configs")
    monkeypatch.setattr(weights, "BUNDLE", tmp_path)
    path, content = tmp_path / "models" / "model.pt", source.read_bytes()
    path.write_bytes(content)
    assert weights.read_state(path).keys() == torch.load(source, weights_only=True).keys()
    for _ in range(40):
        damaged = bytearray(content)
        damaged[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=f"{UNREADABLE}|not the weights that were shipped"):
            weights.read_state(path)


def test_a_damaged_torchscript_is_found(tmp_path):
    path = tmp_path / "model.ts"
    torch.jit.script(network()).save(str(path))
    weights.check_archive(path)
    content = bytearray(path.read_bytes())
    content[content.index(torch.jit.load(str(path)).state_dict()["0.weight"].numpy().tobytes()) + 7] ^= 1
    path.write_bytes(content)
    assert torch.jit.load(str(path)).state_dict().keys() == network().state_dict().keys()
    with pytest.raises(ValueError, match="damaged: the checksum of"):
        weights.check_archive(path)


def test_hashes_of_all_shipped_weights_are_known():
    found = {path.name for path in tiny.MODELS.glob("*.pt") if weights.known_hash(path) == weights_hash(path)}
    assert found == {path.name for path in tiny.MODELS.glob("*.pt")}
    listed = json.loads((tiny.CONFIGS / "metadata.json").read_text())["weights"]
    assert {f"models/{name}" for name in found} == set(listed)


def test_shipped_weights_are_small_and_in_half_precision():
    """Matrices and kernels in half precision, read as float32; what is small, the smoother's among it, as it was."""
    files = list(tiny.MODELS.glob("*.pt"))
    assert sum(path.stat().st_size for path in files) < 40e6
    for path in files:
        for name, value in torch.load(path, weights_only=True).items():
            assert value.dtype == (torch.float16 if value.dim() > 1 else torch.float32), f"{path.name}: {name}"


def test_weights_in_half_precision_are_loaded_as_float32(tmp_path):
    whole = network(seed=1)
    weights.save_half(whole.state_dict(), tmp_path / "half.pt")
    loaded = load_weights(network(), tmp_path / "half.pt").state_dict()
    for name, value in whole.state_dict().items():
        assert loaded[name].dtype == torch.float32
        torch.testing.assert_close(loaded[name], value, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("wrap", [
    lambda state: state,
    lambda state: {"network": state, "epoch": 3},
    lambda state: {"model": state},
], ids=["state dict", "checkpoint", "monai checkpoint"])  # fmt: skip
def test_loads_state_dicts_and_checkpoints(tmp_path, wrap):
    path, trained = tmp_path / "weights.pt", network(seed=1)
    torch.save(wrap(trained.state_dict()), path)
    net = network()
    assert load_weights(net, str(path)) is net
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, trained.state_dict()[name])


class WithKernel(nn.Module):
    """A network with a smoother, as AVSM has one."""

    def __init__(self, seed, stds, weights):
        super().__init__()
        torch.manual_seed(seed)
        self.layer, self.vsvf = nn.Linear(3, 4), VSVF(stds, weights)


KERNELS = [((0.05, 0.1), (0.4, 0.6)), ((0.05, 0.2), (0.4, 0.6)), ((0.05, 0.1), (0.3, 0.7)), ((0.1,), (1.0,))]


@pytest.mark.parametrize("kernel", KERNELS[1:])
def test_weights_of_another_kernel_are_refused_or_start_a_new_training(tmp_path, kernel):
    path, trained = tmp_path / "weights.pt", WithKernel(1, *KERNELS[0])
    torch.save(trained.state_dict(), path)
    net = WithKernel(0, *kernel)
    smoother = copy.deepcopy(net.vsvf.smoother.state_dict())
    with pytest.raises(InputError, match=r"trained with .* \[0.05, 0.1\] .* set stds and std_weights") as caught:
        load_weights(net, path)
    assert str(caught.value).startswith(f"{path}: ") and (net.layer.weight != trained.layer.weight).all()
    initial_network(net, path)
    torch.testing.assert_close(net.layer.weight, trained.layer.weight)
    for name, value in net.vsvf.smoother.state_dict().items():
        torch.testing.assert_close(value, smoother[name])
