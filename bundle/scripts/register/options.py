"""What the options of ``inference.json`` amount to."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from ..data import list_pairs
from ..data.errors import InputError
from ..optimize import AffineOptimiser, InstanceOptimiser
from .read import single_pair

__all__ = ["instance_optimiser", "requested_pairs", "usable_device"]


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
    regularisation: float = 10.0,
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
        momentum_rate,
        affine_rate,
        affine_optimiser=AffineOptimiser(steps=affine_steps),
    )
