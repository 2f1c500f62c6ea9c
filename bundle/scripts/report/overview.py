"""The quality report of one registration as one picture: panels above, numbers below."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .drawing import (
    FAINT_INK,
    FIXED_COLOUR,
    FOLD_COLOUR,
    GRID_COLOUR,
    INK,
    MASK_COLOUR,
    MOVED_COLOUR,
    WARNING_COLOUR,
    draw_folds,
    draw_grid,
    draw_letters,
    draw_outlines,
    show_image,
)
from .numbers import Table, file_paths, make_tables
from .qa import Pictures, ReportData, make_pictures
from .sheet import LEFT, RIGHT, TITLE, Sheet

DIRECTION = (
    "The transform carries points of the fixed image to the moving image; the moved image is the moving image pulled "
    "through it onto the fixed grid."
)
CONVENTION = "Radiological convention: the patient's right is at the left of axial and coronal planes."

_LINE, _PAD = 0.18, 0.2  # inches
_COLUMNS, _GUTTER = 4, 0.4
_ROWS, _CELLS = 14, 7  # of a table at most, so that the page stays one page; the HTML page has all
_SIZE = 8.5  # points
_DPI = 140
_WARNINGS = 5


def report_figure(data: ReportData, pictures: Pictures | None = None) -> Figure:
    """Show one registration on one page.

    Three rows of eight panels, axial, coronal and sagittal, all in one scale in mm, and tables of the numbers under
    them. Long tables are cut and say so.

    Args:
        data: the registration.
        pictures: what `make_pictures` made of ``data``, where it is at hand already.

    Returns:
        A figure that belongs to no window and to no global state.

    Raises:
        ValueError: if the spacing or the orientation is not understood.
    """
    pictures = make_pictures(data) if pictures is None else pictures
    tables = make_tables(data.metrics)
    columns, depth = _flow([_height(table) for table in tables])
    warnings = [f"Warning: {warning}" for warning in data.warnings[:_WARNINGS]]
    if len(data.warnings) > _WARNINGS:
        warnings.append(f"and {len(data.warnings) - _WARNINGS} more warnings in report.html")
    paths = ", ".join(f"{role}: {path}" for role, path in file_paths(data.metrics).items())
    notes = [f"{DIRECTION} {CONVENTION}", *([paths] if paths else [])]
    top = len(notes) * _LINE + _PAD
    bottom = top + (1 + depth) * _LINE
    bars = [column for column, panel in enumerate(pictures.panels) if panel.ticks]
    # Both differences share one bar.
    bars = [column for column in bars if column + 1 not in bars]
    sheet = Sheet(
        pictures.planes,
        len(pictures.panels),
        f"Registration report: {data.name}",
        bars,
        head=_LINE * len(warnings) + 0.5 * _LINE * bool(warnings),
        bottom=bottom,
        dpi=_DPI,
    )
    for column, panel in enumerate(pictures.panels):
        for row, plane in enumerate(pictures.planes):
            axes = sheet.axes[row][column]
            show_image(axes, plane, panel.images[row], panel.colours, panel.limits)
            if panel.grid:
                draw_grid(axes, plane, pictures.positions[row], pictures.step)
            if panel.folds:
                draw_folds(axes, plane, panel.folds[row], alpha=1.0)
            for name in panel.outlines:
                draw_outlines(axes, plane, *pictures.outlines[name])
            if column == 0:
                draw_letters(axes, plane)
        if column in bars:
            sheet.colour_bar(column, panel.colours, panel.limits, panel.ticks)
    sheet.name_columns([(panel.title, panel.note) for panel in pictures.panels])
    sheet.legend(legend_entries(pictures))
    width = sheet.width - LEFT - RIGHT
    for line, warning in enumerate(warnings):
        y = sheet.height - TITLE - (line + 0.5) * _LINE
        text = sheet.fit_text(warning, width, _SIZE, "bold")
        sheet.text(sheet.width / 2, y, text, ha="center", va="center", color=WARNING_COLOUR, size=_SIZE, weight="bold")
    for line, text in enumerate(notes):
        text = sheet.fit_text(text, width, _SIZE)
        y = bottom - (line + 0.5) * _LINE
        sheet.text(sheet.width / 2, y, text, ha="center", va="center", color=FAINT_INK, size=_SIZE)
    count = 1 + max((column for column, _ in columns), default=0)
    width = (sheet.width - LEFT - RIGHT - (count - 1) * _GUTTER) / count
    for table, (column, line) in zip(tables, columns, strict=True):
        x = LEFT + column * (width + _GUTTER)
        _write_table(sheet, table, x, bottom - top - (0.5 + line) * _LINE, width)
    return sheet.fig


def legend_entries(pictures: Pictures) -> list[tuple[str, str, bool]]:
    """Return what is drawn in the pictures: text, colour, and whether it is an area and not a line."""
    entries = []
    if "fixed" in pictures.outlines:
        entries.append(("fixed label", FIXED_COLOUR, False))
    moved = [name for name in ("moving", "moved") if name in pictures.outlines]
    if moved:
        entries.append((f"{' and '.join(moved)} label", MOVED_COLOUR, False))
    if "mask" in pictures.outlines:
        entries.append(("mask of the fixed image", MASK_COLOUR, False))
    entries.append((f"deformation grid, a line every {pictures.step:g} mm of the moving image", GRID_COLOUR, False))
    if any(fold.any() for panel in pictures.panels for fold in panel.folds):
        entries.append(("folded voxels", FOLD_COLOUR, True))
    return entries


def _height(table: Table) -> int:
    """Return the lines that a table takes, with its title and a free line under it."""
    return 2 + bool(table.head) + bool(table.groups) + min(len(table.rows), _ROWS) + (len(table.rows) > _ROWS)


def _flow(heights: Sequence[int]) -> tuple[list[tuple[int, int]], int]:
    """Place blocks one under another in columns, in order, as low as that goes: their columns and lines, the depth."""
    depth = max(heights, default=0)
    while True:
        places, column, line = [], 0, 0
        for height in heights:
            if line and line + height > depth:
                column, line = column + 1, 0
            places.append((column, line))
            line += height
        if column < _COLUMNS:
            return places, depth
        depth += 1


def _write(sheet: Sheet, x: float, y: float, text: str, width: float, align: str, **style) -> None:
    """Write a text no wider than its place, which ends or begins at ``x``."""
    text = sheet.fit_text(text, width, _SIZE, style.get("weight", "normal"))
    sheet.text(x, y, text, ha=align, va="center", size=_SIZE, **style)


def _write_table(sheet: Sheet, table: Table, x: float, y: float, width: float) -> None:
    """Write a table below ``y``."""
    _write(sheet, x, y, table.title, width, "left", weight="bold")
    ends, rule = (x / sheet.width, (x + width) / sheet.width), (y - 0.55 * _LINE) / sheet.height
    sheet.fig.add_artist(Line2D(ends, (rule, rule), color="#4a4f55", lw=0.6))
    count = min(len(table.head), _CELLS)
    cell = width * (0.37 if table.words else 0.12)
    if table.groups:
        y -= _LINE
        start = 0
        for name, span in table.groups:
            stop = min(start + span, count)
            if name and start < stop:
                centre = x + width - (count - (start + stop) / 2) * cell
                sheet.text(centre, y, name, ha="center", va="center", color=FAINT_INK, size=_SIZE)
            start += span
    if table.head:
        y -= _LINE
        _write_cells(sheet, table.head[:count], x, y, width, cell, FAINT_INK)
    for row in table.rows[:_ROWS]:
        y -= _LINE
        if not table.head or len(row) < len(table.head):
            name = sheet.fit_text(row[0], 0.55 * width, _SIZE)
            _write(sheet, x, y, name, width, "left", color=FAINT_INK)
            _write(sheet, x + width, y, row[-1], width - sheet.text_width(name, _SIZE) - 0.12, "right")
        else:
            _write_cells(sheet, row[:count], x, y, width, cell, INK)
    if len(table.rows) > _ROWS:
        text = f"and {len(table.rows) - _ROWS} more rows in report.html"
        _write(sheet, x, y - _LINE, text, width, "left", color=FAINT_INK)


def _write_cells(
    sheet: Sheet, cells: Sequence[str], x: float, y: float, width: float, cell: float, colour: str
) -> None:
    """Write one row, numbers at the right."""
    _write(sheet, x, y, cells[0], width - cell * (len(cells) - 1) - 0.06, "left", color=FAINT_INK)
    for place, text in enumerate(reversed(cells[1:])):
        _write(sheet, x + width - place * cell, y, text, cell - 0.08, "right", color=colour)
