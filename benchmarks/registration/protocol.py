"""On what machine and with what versions figures were measured, and how: the head of every table."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .timing import timed_on

__all__ = ["head", "machine", "versions"]

_PACKAGES = ("avsm", "torch", "monai", "itk", "SimpleITK", "antspyx", "itk-elastix", "numpy", "scipy")

_PROTOCOL = (
    "- Seconds: of the registration alone, images in memory to transform in memory, one pair after another, mean over "
    "pairs; what loads an engine or a network is warmed up by one pair that does not count. Reading and writing of "
    "images is not in it, save for command-line engines, which need files. Processor seconds, of all threads and "
    "processes of the engine, are what to compare; wall seconds grow with whatever else the machine does at the time.",
    "- Labels: moved by nearest neighbour from their own grid to the fixed image's own grid, once. Dice and HD95 are "
    "means over the labels of the set, then over pairs (in brackets: standard deviation over pairs).",
    "- Folds: voxels of the fixed image's own grid at which any of the eight corner determinants is negative, mean "
    "over pairs [mean sum of |J| over them]; beside it by central differences, as the paper counts.",
    "- Symmetry: Figure 7's ln of the mean squared length of the composition of the registrations of a pair and of its "
    "exchange, in units where the image is [0, 1]³, 10 voxels (or an eighth of the shortest axis) from the faces.",
)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def machine() -> dict[str, Any]:
    """Processor, cores and GPU of this machine."""
    import torch

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": _processor(), "cores": cores, "gpu": gpu}


def versions() -> dict[str, str]:
    """Versions of Python and of what is installed of the engines."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def head(rows: Iterable[Mapping[str, Any]], sets: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The lines above a table: machine, versions, threads, data, protocol.

    Args:
        rows: those that the table is made of.
        sets: data set → its parameters.
    """
    rows = list(rows)
    lines = []
    for text in sorted({_machine_line(row["machine"], row["threads"]) for row in rows}):
        lines.append(f"- Machine: {text}.")
    for kind, name in (("cpu", "Times on a CPU"), ("gpu", "Times on a GPU")):
        if (found := timed_on(rows, kind)) is not None:
            lines.append(f"- {name}: {_machine_line(found, rows[0]['threads'])}; those marked † of another machine.")
    packages: dict[str, set[str]] = {}
    for row in rows:
        # An engine that is no Python package tells its version with its settings.
        engine = {row["parameters"]["engine"]: row["parameters"]["version"]} if "engine" in row["parameters"] else {}
        for name, one in {**row["versions"], **engine}.items():
            packages.setdefault(name, set()).add(one)
    words = [f"{name} {' and '.join(sorted(found))}" for name, found in packages.items()]
    lines.append(f"- Versions: {', '.join(words)}.")
    for name, parameters in sets.items():
        words = [f"{key} {value}" for key, value in parameters.items() if key not in ("set", "title")]
        details = "; ".join([parameters["title"], *(word for word in words if not word.endswith(" None"))])
        lines.append(f"- Data `{name}`: {details}.")
    return [*lines, *_PROTOCOL]


def _machine_line(about: Mapping[str, Any], threads: int) -> str:
    gpu = about["gpu"] or "no GPU"
    return f"{about['cores']} cores of {about['cpu']}, {gpu}; {threads} thread{'s' if threads > 1 else ''}"
