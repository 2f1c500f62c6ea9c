"""Loading weights with a clear word when they do not fit."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch
from torch import nn

from ..errors import InputError

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


def read_state(path: str | os.PathLike, key: str = "network") -> dict[str, torch.Tensor]:
    """The state dict in a weights file.

    Args:
        path: a file of ``torch.save``: a state dict, or a checkpoint that holds one under ``key`` or ``"model"``.
        key: name of the state dict inside a checkpoint.

    Raises:
        InputError: when the file is absent, is no weights file (``weights_only=True`` refuses it), or holds no state
            dict; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: weights file not found; give an existing file as ckpt_path.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # An unpickler fed with a foreign file raises whatever the bytes lead it to.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: not a readable weights file ({reason}); give a state dict of torch.save.") from error
    if isinstance(content, dict):
        for name in (key, "model"):
            if isinstance(content.get(name), dict):
                content = content[name]
                break
    if not isinstance(content, dict) or not all(isinstance(v, torch.Tensor) for v in content.values()):
        raise InputError(f"{path}: holds no state dict of tensors; give the weights of an AVSM network.")
    return content


def load_weights(
    network: nn.Module, path: str | os.PathLike, key: str = "network", same_kernel: bool = True
) -> nn.Module:
    """Load a state dict into a network, all of it or nothing.

    Args:
        network: the module to fill.
        path: see `read_state`.
        key: see `read_state`.
        same_kernel: the smoother that the weights were trained with must be the network's; False keeps the network's,
            for training on with another kernel.

    Returns:
        The network, with the weights loaded.

    Raises:
        InputError: as `read_state`, or when the state does not fit; the message names what is missing, unexpected or of
            another shape, or the kernel that differs.
    """
    return _fill(network, read_state(path, key), path, same_kernel)


def _fill(
    network: nn.Module, content: dict[str, torch.Tensor], path: str | os.PathLike, same_kernel: bool
) -> nn.Module:
    """See `load_weights`."""
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


def with_more_forces(
    state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], momentum_scale: float = 1.0
) -> dict[str, torch.Tensor]:
    """Weights of an `AVSM` whose momentum network is shown forces that those of the file do not know.

    Nothing is seen of a new force before training, and its gain is that of a new network (``start_gain``). The new
    forces have to be the last in the network's order: local correlation, its Gauss-Newton step, memberships. For a
    network of the same forces alone (``only_forces``), what predicted momenta themselves is left out.

    Args:
        state: weights without the new forces.
        expected: state dict of the new network, as it was built.
        momentum_scale: factor of what the momentum network predicted so far, gains included, if it gets new ones: a
            new force does part of its work.

    Returns:
        What the file had, with what the new network has more.
    """
    grown = dict(state)
    for name, value in state.items():
        new = expected.get(name)
        if new is None or not name.startswith("momentum_net.") or new.ndim != value.ndim:
            continue
        last = name.startswith("momentum_net.head.1.")
        if last and new.shape[0] < value.shape[0] and new.shape[1:] == value.shape[1:]:
            grown[name] = value[-new.shape[0] :]
            continue
        axis = 0 if last else 1
        if new.ndim <= axis or new.shape[axis] <= value.shape[axis]:
            continue
        rest = new.narrow(axis, value.shape[axis], new.shape[axis] - value.shape[axis])
        if rest.shape[:axis] + rest.shape[axis + 1 :] == value.shape[:axis] + value.shape[axis + 1 :]:
            old, more = (momentum_scale * value, rest) if last else (value, torch.zeros_like(rest))
            grown[name] = torch.cat([old, more.to(value.dtype)], dim=axis)
    return grown


def weights_hash(path: str | os.PathLike) -> str:
    """SHA-256 of a weights file, as hexadecimal text."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def initial_network(
    network: nn.Module, path: str | os.PathLike | None = None, momentum_scale: float | None = None
) -> nn.Module:
    """The network to train: as built, or starting from given weights.

    Args:
        network: the module.
        path: weights to start from; None (or empty) for none.
        momentum_scale: weights of a momentum network that was shown fewer forces fit, too, see `with_more_forces`;
            None: they are refused as others that do not fit.

    Returns:
        The network.

    Raises:
        InputError: as `load_weights`.
    """
    if path is None or str(path) == "":
        return network
    if momentum_scale is None:
        return load_weights(network, path, same_kernel=False)
    grown = with_more_forces(read_state(path), network.state_dict(), momentum_scale)
    return _fill(network, grown, path, same_kernel=False)
