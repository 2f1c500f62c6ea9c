"""A registration as one Matplotlib figure: a row of panels for each plane; and from a figure to a file or an array."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

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
_LINE, _TITLE, _LEGEND, _LEFT, _GAP, _BAR = 0.2, 0.42, 0.3, 0.45, 0.06, 0.5  # inches
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
    planes, panels = pictures.planes, pictures.panels
    scale = min(_PANEL / max(p.size[1] for p in planes), _TALLEST / sum(p.size[0] for p in planes))  # inches per mm
    heights = [max(plane.size[0] * scale, _THINNEST) for plane in planes]
    bars = [column for column in range(len(panels)) if _has_bar(panels, column)]
    lefts = [_LEFT + n * (_PANEL + _GAP) + _BAR * sum(bar < n for bar in bars) for n in range(len(panels))]
    width, above = lefts[-1] + _PANEL + _GAP + _BAR * ((len(panels) - 1) in bars), _LINE * (0.5 + len(head))
    height = above + _TITLE + sum(heights) + _GAP * len(planes) + _LEGEND
    # Places in inches: a layout that Matplotlib works out takes as long as all the drawing.
    fig = Figure(figsize=(width, height), dpi=_DPI, facecolor=BACKGROUND)

    def write(x: float, y: float, text: str, colour: str, size: float, **style: Any) -> None:
        style = {"ha": "center", "va": "center", "parse_math": False} | style
        fig.text(x / width, 1 - y / height, text, color=colour, size=size, **style)

    for line, (text, colour, size) in enumerate(head):
        text = _shorten(" ".join(text.split()), int(width * 72 / (0.64 * size)))
        write(width / 2, (line + 0.75) * _LINE, text, colour, size)
    for left, panel in zip(lefts, panels, strict=True):
        middle = left + _PANEL / 2
        write(middle, above + 0.33 * _TITLE, panel.title, INK, _NORMAL, weight="bold")
        write(middle, above + 0.75 * _TITLE, panel.note, FAINT_INK, _SMALL)
    top = above + _TITLE
    for row, (plane, tall) in enumerate(zip(planes, heights, strict=True)):
        for left, panel in zip(lefts, panels, strict=True):
            place = left / width, 1 - (top + tall) / height, _PANEL / width, tall / height
            _draw_panel(fig.add_axes(place), pictures, panel, row, (_PANEL / scale, tall / scale))
        draw_letters(fig.axes[-len(panels)], plane)
        note = f"{plane.name}\nslice {plane.index + 1} of {plane.count}"
        write(_LEFT / 2, top + tall / 2, note, INK, _SMALL, rotation="vertical")
        top += tall + _GAP
    for column in bars:
        _draw_bar(fig, panels[column], ((lefts[column] + _PANEL + _GAP) / width, height - above - _TITLE, sum(heights)))
    handles = [Line2D([], [], color=colour, lw=2, label=text) for text, colour in pictures.legend()]
    style = {"frameon": False, "labelcolor": INK, "fontsize": _SMALL, "borderpad": 0.2}
    fig.legend(handles=handles, loc="lower center", ncols=len(handles), **style)
    return fig


def _has_bar(panels: Sequence[Panel], column: int) -> bool:
    """Return whether a colour bar stands at the right of a column: one for neighbours with the same colours."""
    following = panels[column + 1].ticks if column + 1 < len(panels) else {}
    return bool(panels[column].ticks) and panels[column].ticks != following


def _draw_bar(fig: Figure, panel: Panel, place: tuple[float, float, float]) -> None:
    """The colour bar of a panel; where: its left side, a part of the figure, top and height of all rows, inches."""
    left, top, tall = place
    width, height = fig.get_size_inches()
    axes = fig.add_axes((left, (top - 0.7 * tall) / height, 0.08 / width, 0.4 * tall / height))
    bar = fig.colorbar(ScalarMappable(Normalize(*panel.limits), panel.colours), cax=axes)
    bar.set_ticks(list(panel.ticks), labels=list(panel.ticks.values()))
    bar.minorticks_off()
    axes.tick_params(colors=INK, labelsize=_SMALL, length=2, pad=2)
    bar.outline.set_edgecolor("#555555")


def _draw_panel(axes: Axes, pictures: Pictures, panel: Panel, row: int, size: tuple[float, float]) -> None:
    """One panel; ``size``: width and height of its axes, mm."""
    plane = pictures.planes[row]
    axes.set_axis_off()
    show_image(axes, plane, panel.images[row], panel.colours, panel.limits)
    if panel.grid:
        draw_grid(axes, plane, pictures.positions[row], pictures.step)
    if panel.folds:
        draw_folds(axes, plane, panel.folds[row])
    for name in panel.outlines:
        draw_outlines(axes, plane, *pictures.outlines[name])
    # All panels share the scale, so a plane that is smaller than its cell has a margin.
    (width, height), (across, down) = size, reversed(plane.size)
    axes.set(aspect="auto", xlim=((across - width) / 2, (across + width) / 2))
    axes.set_ylim((down + height) / 2, (down - height) / 2)


def _shorten(text: str, length: int) -> str:
    """Return a text of at most ``length`` characters; its middle goes, as paths begin and end with what matters."""
    return text if len(text) <= length else f"{text[: (length - 1) // 2]}…{text[len(text) - length // 2 :]}"


def save_figure(fig: Figure, path: str | os.PathLike) -> None:
    """Write a figure, whole or not at all, in the format of the suffix (``.png``, ``.pdf``, ``.svg``, ...)."""
    with atomic_path(path) as temporary:
        fig.savefig(temporary, dpi="figure", facecolor=fig.get_facecolor())
