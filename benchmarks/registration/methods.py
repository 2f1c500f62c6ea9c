"""Every method by the name of its rows, in the order of the tables."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .method import Method
from .ours import AtStart, Ours
from .peers import PEERS

__all__ = ["FIGURE8_STEPS", "OURS", "build_methods", "of_table1", "order", "steps_of"]

FIGURE8_STEPS = range(1, 9)
TABLE1_STEPS = (2, 3, 4, 5)  # the paper's and more, those of the default network among them

_AFFINE_NET = {"transform": "affine", "keep_best_affine": False}
OURS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "affine-opt": ("affine-opt", "affine-opt", {}),
    "affine-net-1": ("affine-net (1-step)", "fast", {**_AFFINE_NET, "affine_steps": 1}),
    "affine-net-7": ("affine-net (7-step)", "fast", {**_AFFINE_NET, "affine_steps": 7}),
    "vsvf-opt": ("vSVF-opt", "vsvf-opt", {}),
    **{f"avsm-{steps}": (f"AVSM ({steps}-step)", "fast", {"vsvf_steps": steps}) for steps in FIGURE8_STEPS},
    "avsm-2-instance": ("AVSM (2-step), instance optimisation", "instance", {"vsvf_steps": 2}),
    "avsm-default": ("AVSM", "default", {}),
    "avsm-best": ("AVSM, best", "best", {}),
}
"""Name → how tables call it, preset of ``avsm register``, and overrides of inference.json."""


_STEPS = re.compile(r"avsm-(\d)(?!-instance)(-.+)?")


def steps_of(name: str) -> tuple[int, str] | None:
    """The vSVF steps and variant (dash and word, or empty) of a row of AVSM without instance optimisation; or None."""
    found = _STEPS.fullmatch(name)
    return None if found is None else (int(found[1]), found[2] or "")


def of_table1(name: str) -> bool:
    """Whether a row stands in Table 1, or only in Figure 8."""
    found = steps_of(name)
    return found is None or found[0] in TABLE1_STEPS


def _ours(name: str, variant: str | None, overrides: Mapping[str, Any], files: Sequence[Path]) -> Ours:
    title, preset, own = OURS[name]
    title = title if variant is None else f"{title} [{variant}]"
    return Ours(title, preset, {**overrides, **own}, files)


def _word(name: str) -> str:
    """A peer's name as commands and files take it: ``SyN CC (paper)`` is ``syn-cc-paper``."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _builders(
    overrides: Mapping[str, Any], files: Sequence[Path], variant: str | None
) -> dict[str, Callable[[], Method]]:
    """Makers in the order of Table 1: before, affine stages, deformable engines, ours."""
    suffix = "" if variant is None else f"-{variant}"
    ours = {f"{name}{suffix}": lambda name=name: _ours(name, variant, overrides, files) for name in OURS}
    affine = {name: make for name, make in ours.items() if name.startswith("affine")}
    known = {_word(name): make for name, make in PEERS.items()}
    stages = {name: make for name, make in known.items() if name.endswith("-affine") and "-with-" not in name}
    return {
        "header": lambda: AtStart("none (world coordinates)", "header"),
        "centres": lambda: AtStart("none (centres of the fields of view)", "geometry"),
        **stages,
        **affine,
        **{name: make for name, make in known.items() if name not in stages},
        **{name: make for name, make in ours.items() if name not in affine},
    }


def order() -> list[str]:
    """Names in the order of the tables, without variants."""
    return list(_builders({}, (), None))


def build_methods(
    overrides: Mapping[str, Any] | None = None, files: Sequence[Path] = (), variant: str | None = None
) -> dict[str, Callable[[], Method]]:
    """Makers of all methods.

    Args:
        overrides: config ids of ``inference.json`` for ours, such as ``ckpt_path`` or ``grid``; what makes a method
            what it is (its steps) stands above them.
        files: config files for ours, after ``inference.json``.
        variant: tells rows of ours with these settings from others; part of their names.
    """
    return _builders(overrides or {}, files, variant)
