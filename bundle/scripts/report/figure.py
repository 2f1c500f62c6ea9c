"""A registration as one Matplotlib figure: a row of panels for each plane; and from a figure to a file or an array."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from ..geometry import jacobian_determinant
from ..spatial.arrays import map_to_voxels
from ..storage import atomic_path
from .drawing import BACKGROUND, FAINT_INK, INK, draw_folds, draw_grid, draw_letters, draw_outlines, show_image
from .numbers import make_highlights
from .panels import Panel, Pictures, ReportData, make_pictures
from .verdict import CHECK, FAIL, PASS, Verdict

_PAIR_PANELS = ("moving", "fixed", "moved", "grid", "difference_before", "difference_after")
_COLOURS = {PASS: "#8fd6a8", CHECK: "#f3c969", FAIL: "#ffab9c"}
_PANEL, _TALLEST, _THINNEST = 2.1, 8.4, 1.0  # inches: a panel's width, all rows together, a row at least
_LINE = 0.2  # inches
_WARNINGS = 5  # lines of the picture; the page has all
_SMALL, _NORMAL, _LARGE = 7.5, 9.0, 11.0  # points
_DPI = 120


def report_figure(data: ReportData, pictures: Pictures) -> Figure:
    """Show a registration and what `make_pictures` made of it: verdict and first numbers above the pictures."""
    verdict = Verdict.of(data.metrics)
    if verdict is None:
        head = [(data.name, INK, _LARGE)]
    else:
        head = [(f"{data.name}: {verdict.headline}", _COLOURS[verdict.outcome], _LARGE)]
        head += [(reason.what, _COLOURS[verdict.outcome], _NORMAL) for reason in verdict.reasons]
        head += [(verdict.where, INK, _NORMAL)] if verdict.where else []
    head += [(warning, _COLOURS[CHECK], _NORMAL) for warning in data.warnings[:_WARNINGS]]
    if len(data.warnings) > _WARNINGS:
        head.append((f"and {len(data.warnings) - _WARNINGS} more in report.html", _COLOURS[CHECK], _NORMAL))
    numbers = "; ".join(
        f"{name} {value}, {detail}".rstrip(", ") for name, value, detail, _ in make_highlights(data.metrics)
    )
    return panel_figure(pictures, [*head, (numbers, FAINT_INK, _SMALL)])


def pair_figure(
    map: Tensor, spacing: Sequence[float], orientation: str, title: str = "", **volumes: Tensor | None
) -> Figure:
    """Show a registered pair in three planes, by the report's own pictures but the Jacobian and the checkerboard.

    The map is ``(1, 3, D, H, W)``, normalised coordinates. Volumes are those of `ReportData`, such as ``fixed``,
    ``moving``, ``moved`` and labels, ``(D, H, W)`` with any leading axes of length one; all on the CPU.
    """
    shape = map.shape[2:]
    data = ReportData(
        name=title,
        **{name: volume.reshape(shape).numpy() for name, volume in volumes.items() if volume is not None},
        voxel_map=map_to_voxels(map[0].numpy(), shape),
        jacobian=jacobian_determinant(map.float())[0, 0].numpy(),
        spacing=spacing,
        orientation=orientation,
    )
    pictures = make_pictures(data)
    panels = {panel.key: panel for panel in pictures.panels}
    pictures = replace(pictures, panels=[panels[key] for key in _PAIR_PANELS])
    return panel_figure(pictures, [(title, INK, _LARGE)] if title else [])


def panel_figure(pictures: Pictures, head: Sequence[tuple[str, str, float]]) -> Figure:
    """Show pictures in a row for each plane, all in one scale in mm, with a legend below.

    ``head`` are lines over the pictures: text (what does not fit is left out of its middle), colour and points.
    """
    planes, count = pictures.planes, len(pictures.panels)
    scale = min(_PANEL / max(p.size[1] for p in planes), _TALLEST / sum(p.size[0] for p in planes))  # inches per mm
    heights = [max(plane.size[0] * scale, _THINNEST) for plane in planes]
    bars = [column for column, panel in enumerate(pictures.panels) if _has_bar(pictures.panels, column)]
    width, top = 0.6 + count * (_PANEL + 0.06) + 0.5 * len(bars), _LINE * (0.5 + len(head))
    bottom = sum(heights) + 1.1
    fig = Figure(figsize=(width, top + bottom), dpi=_DPI, facecolor=BACKGROUND, layout="constrained")
    above, below = fig.subfigures(2, 1, height_ratios=(top, bottom))
    for part in (above, below):
        part.set_facecolor(BACKGROUND)
    for line, (text, colour, size) in enumerate(head):
        text = _shorten(" ".join(text.split()), int(width * 72 / (0.64 * size)))
        y = 1 - (line + 0.75) * _LINE / top
        above.text(0.5, y, text, color=colour, size=size, ha="center", va="center", parse_math=False)
    rows = below.subplots(
        len(planes), count, squeeze=False, gridspec_kw={"height_ratios": heights, "hspace": 0.02, "wspace": 0.02}
    )
    for row, (plane, height) in enumerate(zip(planes, heights, strict=True)):
        for axes, panel in zip(rows[row], pictures.panels, strict=True):
            _draw_panel(axes, pictures, panel, row)
            # All panels share the scale, so a plane that is smaller than its cell has a margin.
            for limits, centre, reach in (
                (axes.set_xlim, plane.size[1] / 2, _PANEL / scale / 2),
                (axes.set_ylim, plane.size[0] / 2, -height / scale / 2),
            ):
                limits(centre - reach, centre + reach)
        draw_letters(rows[row][0], plane)
        rows[row][0].set_ylabel(f"{plane.name}\nslice {plane.index + 1} of {plane.count}", color=INK, size=_SMALL)
    for axes, panel in zip(rows[0], pictures.panels, strict=True):
        axes.set_title(panel.title, color=INK, size=_NORMAL, weight="bold", pad=15)
        note = axes.annotate(panel.note, (0.5, 1), (0, 4), "axes fraction", "offset points", ha="center")
        note.set(color=FAINT_INK, size=_SMALL, in_layout=False)
    for column in bars:
        panel = pictures.panels[column]
        colours = ScalarMappable(Normalize(*panel.limits), panel.colours)
        bar = below.colorbar(colours, ax=rows[:, column], shrink=0.4, aspect=24, pad=0.02)
        bar.set_ticks(list(panel.ticks), labels=list(panel.ticks.values()))
        bar.minorticks_off()
        bar.ax.tick_params(colors=INK, labelsize=_SMALL, length=2, pad=2)
        bar.outline.set_edgecolor("#555555")
    handles = [Line2D([], [], color=colour, lw=2, label=text) for text, colour in pictures.legend()]
    style = {"frameon": False, "labelcolor": INK, "fontsize": _SMALL}
    below.legend(handles=handles, loc="outside lower center", ncols=len(handles), **style)
    # The layout settles here, once: it moves a little with every drawing.
    fig.get_layout_engine().execute(fig)
    fig.set_layout_engine("none")
    return fig


def _has_bar(panels: Sequence[Panel], column: int) -> bool:
    """Return whether a colour bar stands at the right of a column: one for neighbours with the same colours."""
    following = panels[column + 1].ticks if column + 1 < len(panels) else {}
    return bool(panels[column].ticks) and panels[column].ticks != following


def _draw_panel(axes: Axes, pictures: Pictures, panel: Panel, row: int) -> None:
    plane = pictures.planes[row]
    axes.set(facecolor=BACKGROUND)
    # Axes without ticks whose extent nobody has to work out; the first column's y axis has a label.
    axes.xaxis.set_visible(False)
    axes.yaxis.set(visible=panel is pictures.panels[0], ticks=[])
    axes.spines[:].set_visible(False)
    show_image(axes, plane, panel.images[row], panel.colours, panel.limits)
    if panel.grid:
        draw_grid(axes, plane, pictures.positions[row], pictures.step)
    if panel.folds:
        draw_folds(axes, plane, panel.folds[row])
    for name in panel.outlines:
        draw_outlines(axes, plane, *pictures.outlines[name])


def _shorten(text: str, length: int) -> str:
    """Return a text of at most ``length`` characters; its middle goes, as paths begin and end with what matters."""
    return text if len(text) <= length else f"{text[: (length - 1) // 2]}…{text[len(text) - length // 2 :]}"


def save_figure(fig: Figure, path: str | os.PathLike) -> None:
    """Write a figure, whole or not at all, in the format of the suffix (``.png``, ``.pdf``, ``.svg``, ...).

    Raises:
        ValueError: if Matplotlib knows no format of that suffix.
        FileNotFoundError: if the folder does not exist.
    """
    with atomic_path(path) as temporary:
        fig.savefig(temporary, dpi="figure", facecolor=fig.get_facecolor())
