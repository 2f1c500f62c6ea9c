"""Figures 5, 7 and 8 from the rows: box plots of Dice and of symmetry, Dice and folds over test steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from scripts.report.figure import save_figure

from .methods import FIGURE8_STEPS, of_table1, steps_of
from .tables import ABLATION, by_method

__all__ = ["box_plots", "steps_figure", "write_figures"]

COLOURS = {"longitudinal": "#4fae6c", "cross_subject": "#e8893b"}
NAMES = {"longitudinal": "longitudinal", "cross_subject": "cross-subject"}
_DPI = 110
_LOWEST_LN = -25.0  # what is below is rounding, of methods that move nothing or are symmetric by construction
Rows = Sequence[Mapping[str, Any]]


def _style(axes: Any) -> None:
    axes.grid(axis="y", linewidth=0.4, alpha=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def box_plots(rows: Rows, key: str, label: str, title: str) -> Figure | None:
    """A measure of every method as box plots, longitudinal and cross-subject side by side (Figures 5 and 7).

    Args:
        rows: of one family.
        key: of the measure.
        label: of the axis.
        title: one line.

    Returns:
        The figure; None where no row has the measure.
    """
    rows = [row for row in rows if row["status"] == "done" and row.get(key) is not None]
    if key == "symmetry_ln":
        rows = [row for row in rows if row[key] > _LOWEST_LN]
    if not rows:
        return None
    modes = [mode for mode in COLOURS if any(row["mode"] == mode for row in rows)]
    cells = by_method(rows)
    width = 0.8 / len(modes)
    fig = Figure(figsize=(2.2 + 0.62 * len(cells), 4.6), dpi=_DPI, layout="constrained")
    axes = fig.add_subplot()
    for number, mode in enumerate(modes):
        values, places = [], []
        for place, found in enumerate(cells.values()):
            mine = [row[key] for row in found.done if row["mode"] == mode]
            if mine:
                values.append(mine)
                places.append(place + (number - (len(modes) - 1) / 2) * width)
        boxes = axes.boxplot(
            values,
            positions=places,
            widths=0.8 * width,
            patch_artist=True,
            manage_ticks=False,
            medianprops={"color": "black", "linewidth": 1.2},
            flierprops={"marker": "o", "markersize": 3, "markerfacecolor": "none", "markeredgewidth": 0.6},
        )
        for box in boxes["boxes"]:
            box.set(facecolor=COLOURS[mode], alpha=0.85, linewidth=0.8)
    axes.set_xticks(range(len(cells)), [found.rows[0]["name"] for found in cells.values()], rotation=38, ha="right")
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlim(-0.6, len(cells) - 0.4)
    axes.set_ylabel(label)
    counts = {mode: max(sum(r["mode"] == mode for r in found.done) for found in cells.values()) for mode in modes}
    axes.set_title(title, fontsize=10)
    axes.legend(
        handles=[Patch(facecolor=COLOURS[m], label=f"{NAMES[m]}, {_pairs(counts[m])}") for m in modes],
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        frameon=False,
        fontsize=8,
    )
    _style(axes)
    return fig


def _pairs(count: int) -> str:
    return f"{count} pair{'' if count == 1 else 's'}"


def steps_figure(rows: Rows, title: str, variant: str = "") -> Figure | None:
    """Dice and folds over the number of vSVF steps at test time (Figure 8), of the pairs measured with all of them.

    Args:
        rows: of one family.
        title: one line.
        variant: ending of the methods' names, with its dash.

    Returns:
        The figure; None with fewer than two numbers of steps, or no pair that they share.
    """
    cells = by_method([row for row in rows if row["status"] == "done"])
    steps = [n for n in FIGURE8_STEPS if f"avsm-{n}{variant}" in cells]
    if len(steps) < 2:
        return None
    pairs = [{(row["dataset"], row["pair"]) for row in cells[f"avsm-{n}{variant}"].done} for n in steps]
    shared = set.intersection(*pairs)
    if not shared:
        return None
    cells = by_method([row for one in cells.values() for row in one.done if (row["dataset"], row["pair"]) in shared])
    title = f"{title}, {_pairs(len(shared))}"
    fig = Figure(figsize=(8.4, 3.4), dpi=_DPI, layout="constrained")
    fig.suptitle(title, fontsize=10)
    for number, (key, label) in enumerate((("dice", "mean Dice"), ("folds", "mean number of folds (corners)"))):
        axes = fig.add_subplot(1, 2, number + 1)
        for mode, colour in COLOURS.items():
            means = []
            for n in steps:
                found = [row[key] for row in cells[f"avsm-{n}{variant}"].done if row["mode"] == mode]
                means.append(np.mean(found) if found else np.nan)
            if np.isfinite(means).any():
                axes.plot(steps, means, "o-", color=colour, markersize=4, label=NAMES[mode])
                if key == "folds":
                    spread = [
                        max(row["folds"] for row in cells[f"avsm-{n}{variant}"].done if row["mode"] == mode)
                        for n in steps
                    ]
                    axes.plot(steps, spread, ":", color=colour, linewidth=1)
        axes.set_xticks(steps)
        axes.set_xlabel("vSVF steps at test time")
        axes.set_ylabel(label)
        if key == "folds":
            # Without a fold the axis would be a thousandth high.
            axes.set_ylim(0, max(axes.get_ylim()[1], 1.0))
            handles, _ = axes.get_legend_handles_labels()
            axes.legend(handles=[*handles, Line2D([], [], color="grey", linestyle=":", label="worst pair")], fontsize=8)
        else:
            axes.legend(fontsize=8)
        _style(axes)
    return fig


def write_figures(rows: Rows, folder: Path) -> list[Path]:
    """Write Figures 5, 7 and 8 of every family that has rows for them; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for family in dict.fromkeys(row["family"] for row in rows):
        mine = [row for row in rows if row["family"] == family and not row["method"].startswith(ABLATION)]
        table = [row for row in mine if of_table1(row["method"])]
        found = {
            "figure5": box_plots(table, "dice", "mean Dice of a pair", f"Figure 5, {family}: Dice"),
            "figure7": box_plots(
                table, "symmetry_ln", "ln(1/|V| ‖φ⁻¹∘(φᵗˢ)⁻¹ − id‖²)", f"Figure 7, {family}: symmetry, lower is better"
            ),
        }
        for variant in sorted({steps_of(row["method"])[1] for row in mine if steps_of(row["method"])}):
            words = f", {variant[1:]}" if variant else ""
            title = f"Figure 8, {family}{words}: steps at test time"
            found[f"figure8{variant}"] = steps_figure(mine, title, variant)
        for name, fig in found.items():
            if fig is not None:
                path = folder / f"{name}_{family}.png"
                save_figure(fig, path)
                written.append(path)
    return written
