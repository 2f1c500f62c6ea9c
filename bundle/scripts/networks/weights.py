"""Loading weights with a clear word when they do not fit."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from ..settings import BUNDLE
from ..storage import atomic_path

KERNEL = (".smoother.stds", ".smoother.weights")


def _kernel_text(state: dict[str, torch.Tensor]) -> str:
    """The smoother's settings in a state dict, as text; empty where there is none."""
    texts = []
    for name, value in state.items():
        if name.endswith(KERNEL):
            value = torch.atleast_1d(value)
            rows = [[round(x, 4) for x in row] for row in value.reshape(len(value), -1).tolist()]
            texts.append(str([row[0] if len(set(row)) == 1 else row for row in rows]))
    return " and weights ".join(texts)


def check_archive(path: str | os.PathLike) -> None:
    """Compare the checksums of a file of ``torch.save`` or ``torch.jit.save``, at which PyTorch does not look.

    ValueError when a part of it is damaged; other kinds of files pass.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"damaged: the checksum of {damaged} is wrong")


def read_file(path: str | os.PathLike) -> Any:
    """What a file of ``torch.save`` holds, on the CPU; nothing in it is run.

    InputError when the file is absent, damaged, or holds other objects than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: weights file not found; give an existing file (weights, ckpt_path).")
    try:
        check_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Its own text tells how to switch the protection off.
        reason = "no file of torch.save, or one that holds other objects than tensors, which could run code"
        raise InputError(f"{path}: not a readable weights file ({reason}); give a state dict of torch.save.") from error
    except Exception as error:  # An unpickler fed with a foreign file raises whatever the bytes lead it to.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: not a readable weights file ({reason}); give a state dict of torch.save.") from error


def known_hash(path: str | os.PathLike) -> str | None:
    """The SHA-256 that ``configs/metadata.json`` has of weights that are shipped; None for other files."""
    path = Path(path).resolve()
    if not path.is_relative_to(BUNDLE.resolve()):
        return None
    listed = json.loads((BUNDLE / "configs" / "metadata.json").read_text(encoding="utf-8"))["weights"]
    return listed.get(path.relative_to(BUNDLE.resolve()).as_posix(), {}).get("sha256")


def read_state(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """The state dict in a file of ``torch.save``, itself or in a checkpoint as ``"network"`` or ``"model"``.

    InputError as `read_file`, when a shipped file is not as it was shipped, or when it holds no state dict.
    """
    content, known = read_file(path), known_hash(path)
    if known is not None and weights_hash(path) != known:
        raise InputError(f"{path}: not the weights that were shipped (SHA-256 is not {known[:12]}…); install them anew")
    if isinstance(content, dict):
        for name in ("network", "model"):
            if isinstance(content.get(name), dict):
                content = content[name]
                break
    if not isinstance(content, dict) or not all(isinstance(v, torch.Tensor) for v in content.values()):
        raise InputError(f"{path}: holds no state dict of tensors; give the weights of an AVSM network.")
    return content


def load_weights(network: nn.Module, path: str | os.PathLike, same_kernel: bool = True) -> nn.Module:
    """The network with a state dict of `read_state` loaded into it, all of it or nothing.

    The smoother that the weights were trained with must be the network's; without ``same_kernel`` the network's is
    kept, for training on with another. InputError as `read_state`, or when the state does not fit; it names what is
    missing, unexpected or of another shape, or the kernel that differs.
    """
    content = read_state(path)
    expected = network.state_dict()
    ours, theirs = _kernel_text(expected), _kernel_text(content)
    if ours and theirs and ours != theirs:
        if same_kernel:
            raise InputError(
                f"{path}: trained with the smoother's stds {theirs}; the config has {ours}; "
                "set stds and std_weights to those of the training (its override file)"
            )
        content = {
            name: expected.get(name, value) if name.endswith(KERNEL) else value for name, value in content.items()
        }
    problems = [f"missing {name}" for name in expected if name not in content]
    problems += [f"unexpected {name}" for name in content if name not in expected]
    problems += [
        f"{name} is {tuple(content[name].shape)}, the network has {tuple(expected[name].shape)}"
        for name in expected
        if name in content and content[name].shape != expected[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise InputError(
            f"{path}: weights do not fit the network ({'; '.join(problems[:3])}{more}); "
            "use the network_def that they were trained with."
        )
    network.load_state_dict(content)
    return network


def save_half(state: dict[str, torch.Tensor], path: str | os.PathLike) -> None:
    """Write weights as they are shipped: half precision but for vectors, which are few and hold the smoother's kernel.

    A network's own float32 takes them up when they are loaded (`load_weights`).
    """
    with atomic_path(path) as temporary:
        torch.save({name: value.half() if value.dim() > 1 else value for name, value in state.items()}, temporary)


def weights_hash(path: str | os.PathLike) -> str:
    """SHA-256 of a weights file, as hexadecimal text."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def initial_network(network: nn.Module, path: str | os.PathLike | None = None) -> nn.Module:
    """The network to train: as built, or starting from the weights of a path, as `load_weights`."""
    if path is None or str(path) == "":
        return network
    return load_weights(network, path, same_kernel=False)
