"""What the options of ``inference.json`` amount to."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..data.build import list_pairs
from ..errors import InputError
from ..networks import AVSM, load_weights
from ..optimize import AffineOptimiser, InstanceOptimiser, VSVFOptimiser
from .read import single_pair

__all__ = [
    "METHODS",
    "instance_optimiser",
    "method_network",
    "method_settings",
    "method_twin",
    "requested_pairs",
    "usable_device",
]

METHODS = ("avsm", "affine-opt", "vsvf-opt")
"""The network, and its two optimisation twins, which need no weights."""


def usable_device(name: str | torch.device) -> torch.device:
    """A device that holds tensors here.

    Args:
        name: such as ``cpu``, ``cuda`` or ``cuda:1``.

    Raises:
        InputError: for no name of a device, or one that this machine or this PyTorch does not have.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0].split(": ")[0]
        known = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        raise InputError(f"device={name}: cannot be used ({reason}); give one of {', '.join(known)}") from error
    return device


def requested_pairs(
    dataset_dir: str | os.PathLike | None = None,
    section: str = "registration_val",
    count: int | None = None,
    **files: str | os.PathLike | None,
) -> list[dict]:
    """The pairs that are asked for: those of a list, or the one whose files are named.

    Args:
        dataset_dir: a list of pairs (``.csv``, ``.json``) or a folder with ``dataset.json``; None for one pair.
        section: section of a ``dataset.json``.
        count: the first so many pairs of a list; None for all.
        files: ``fixed``, ``moving`` and further arguments of `single_pair`.

    Raises:
        InputError: when both or neither are given, or what is given does not exist.
    """
    given = {key: value for key, value in files.items() if value is not None and str(value) != ""}
    if dataset_dir is None or str(dataset_dir) == "":
        return single_pair(**{"fixed": None, "moving": None, **given})
    if given:
        raise InputError(f"{next(iter(given))}: a list of pairs is given as well ({dataset_dir}); give one of the two")
    return list_pairs(dataset_dir, section, count=count)


def instance_optimiser(
    steps: int,
    affine_steps: list[int] | tuple[int, ...] = (100, 100, 30),
    similarity: Callable | None = None,
    regularisation: float = 30.0,
    momentum_rate: float = 0.02,
    affine_rate: float = 1e-3,
) -> InstanceOptimiser | None:
    """The instance optimisation of a number of steps; None for 0.

    Args:
        steps: of the joint optimisation of affine and momenta.
        affine_steps: of the affine alone, before, at a quarter, half and the whole of the grid.
        similarity: of the joint optimisation, with ``reduction`` ``"none"``; mk-LNCC by default, which the affine's
            own optimisation always takes.
        regularisation: λvr of Equation 11.
        momentum_rate: rate for the momenta.
        affine_rate: rate for the affine.

    Raises:
        InputError: when ``steps`` is not a whole number from 0 on.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise InputError(f"optimisation_steps={steps}: give a whole number from 0 on")
    if steps == 0:
        return None
    return InstanceOptimiser(
        steps,
        similarity,
        regularisation,
        momentum_rate=momentum_rate,
        affine_rate=affine_rate,
        affine_optimiser=AffineOptimiser(steps=affine_steps),
    )


def method_twin(
    method: str,
    affine_opt: AffineOptimiser,
    vsvf_opt: VSVFOptimiser,
    affine_only: bool = False,
    optimisation_steps: int = 0,
) -> AffineOptimiser | VSVFOptimiser | None:
    """The optimisation twin that a method asks for; None for the network.

    Args:
        method: one of `METHODS`.
        affine_opt: what ``affine-opt`` stands for.
        vsvf_opt: what ``vsvf-opt`` stands for.
        affine_only: of the network; refused with ``vsvf-opt``.
        optimisation_steps: of instance optimisation after the network; refused with a twin.

    Raises:
        InputError: for another method, or a setting that contradicts it.
    """
    if method not in METHODS:
        raise InputError(f"method={method}: must be one of {', '.join(METHODS)}; correct the option")
    if method == "avsm":
        return None
    if optimisation_steps:
        raise InputError(
            f"optimisation_steps={optimisation_steps}: goes on from a network, which {method} does without; "
            "set it to 0, or give method avsm"
        )
    if affine_only and method == "vsvf-opt":
        raise InputError("affine_only: vsvf-opt is deformable; give method affine-opt")
    return affine_opt if method == "affine-opt" else vsvf_opt


def method_network(method: str, network: AVSM, ckpt_path: str | os.PathLike, bare: AVSM) -> AVSM:
    """The network that a method works with: with its weights, or, for the twins, none but the vSVF unit.

    Args:
        method: one of `METHODS`.
        network: the network of ``avsm``.
        ckpt_path: its weights; not looked at for the twins.
        bare: see `bare_network`.

    Raises:
        InputError: when the weights of ``avsm`` cannot be loaded (`load_weights`).
    """
    return load_weights(network, ckpt_path) if method == "avsm" else bare


def method_settings(
    method: str, network: Mapping[str, Any], bare: AVSM, twin: Any = None, **common: Any
) -> dict[str, Any]:
    """What decides a result, for ``metrics.json``.

    Args:
        method: one of `METHODS`.
        network: settings of ``avsm``; left out for the twins, which they do not concern.
        bare: the vSVF unit of the twins.
        twin: see `method_twin`.
        common: further settings, of all methods.
    """
    settings = {"method": method, **common}
    if twin is None:
        return {**settings, **network}
    if isinstance(twin, VSVFOptimiser):
        smoother = bare.vsvf.smoother
        settings["kernel"] = {
            "stds": [row[0] if len(set(row)) == 1 else row for row in _rounded(smoother.stds)],
            "weights": _rounded(smoother.weights),
            "integrator": bare.vsvf.integrator,
        }
    return {**settings, "optimiser": _plain(twin)}


def _rounded(values: torch.Tensor) -> list:
    return torch.round(values.double(), decimals=6).tolist()


def _plain(value: Any) -> Any:
    """The arguments that an object of ours was built with, as JSON can hold them."""
    if isinstance(value, list | tuple):
        found = [_plain(entry) for entry in value]
        alike = bool(found) and isinstance(found[0], dict) and all(entry == found[0] for entry in found)
        return found[0] if alike else found
    if value is None or isinstance(value, str | int | float):
        return value
    if hasattr(value, "__name__"):  # a function or a class
        return value.__name__
    names = (name for name in vars(value) if not name.startswith("_") and name not in ("training", "reduction"))
    return {"name": type(value).__name__, **{name: _plain(vars(value)[name]) for name in names}}
