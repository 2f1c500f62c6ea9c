"""Writes Figures 4 and 6: registers a few pairs again, as rows keep no images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.report.figure import save_figure

from .ablate import BASES, latest_trainings, trained_row
from .cases import PairSet
from .method import Method
from .pictures import examples_figure, picture, symmetry_figure

__all__ = ["write_examples"]

WITHOUT, WITH = "VIII", "IX"
"""Rows of the ablation that differ by the vSVF's symmetry loss alone."""


def write_examples(
    sets: Mapping[str, PairSet],
    method: Method,
    output: Path,
    folder: Path,
    pairs: int,
    overrides: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Figure 4 of each set, and Figure 6 where the ablation's last two rows have been trained on it.

    Args:
        sets: data sets.
        method: of Figure 4.
        output: folder that holds the ablation's trainings.
        folder: for the figures.
        pairs: columns of Figure 4.
        overrides: config ids for the ablation's networks.

    Returns:
        The files; sets that are missing here have none.
    """
    written = []
    for name, data_set in sets.items():
        if data_set.missing() is not None or method.missing() is not None:
            continue
        pictures = {}
        for index in range(len(data_set.names()))[:pairs]:
            case = data_set.case(index)
            pictures[f"pair {index + 1}"] = picture(case, method(case.fixed, case.moving))
        fig = examples_figure(pictures, f"Figure 4, {name}: {method.name}")
        written.append(_saved(fig, folder / f"figure4_{name}.png"))
        base = next((key for key, one in BASES.items() if name in one.sets), None)
        ablation = None if base is None else latest_trainings(output, base, (WITHOUT, WITH))
        if ablation is None:
            continue
        case = data_set.case(0)
        found = []
        for row in (WITHOUT, WITH):
            network = trained_row(base, ablation, row, overrides)
            found.append(picture(case, network(case.fixed, case.moving)))
        fig = symmetry_figure(*found, f"Figure 6, {name}: rows {WITHOUT} and {WITH}")
        written.append(_saved(fig, folder / f"figure6_{name}.png"))
    return written


def _saved(fig: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(fig, path)
    return path
