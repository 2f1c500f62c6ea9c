"""A page of three rows of panels, one per plane, with every panel placed in inches: nothing moves, nothing overlaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from .drawing import BACKGROUND, FAINT_INK, INK, NORMAL, SMALL
from .planes import Plane

COLUMN, GAP = 2.15, 0.07  # inches
LEFT, RIGHT, BOTTOM, TITLES, TITLE = 0.42, 0.16, 0.34, 0.42, 0.32
_BAR = 0.56  # room for a colour bar and its numbers


@cache
def _renderer(dpi: float) -> RendererAgg:
    return RendererAgg(1, 1, dpi)


def _shorten(text: str, length: int) -> str:
    """Return at most ``length`` characters of a text and an ellipsis in its middle."""
    return text[: (length + 1) // 2] + "…" + text[len(text) - length // 2 :]


class Sheet:
    """The figure and its panels.

    Args:
        planes: one per row; all rows and columns share one scale in mm.
        columns: number of panels per row.
        title: one line over all, or None.
        bars: the columns that have a colour bar at their right.
        head: room under the title, inches.
        bottom: room under the legend, inches.
        dpi: dots per inch.

    Attributes:
        fig: the figure, which belongs to no window and to no global state.
        axes: panels, by row and column.
        width: of the page, inches.
        height: of the page, inches.
        top: from the upper edge to the first row, inches.
    """

    def __init__(
        self,
        planes: Sequence[Plane],
        columns: int,
        title: str | None,
        bars: Sequence[int],
        head: float = 0.0,
        bottom: float = 0.0,
        dpi: float = 110,
    ) -> None:
        scale = COLUMN / max(plane.size[1] for plane in planes)
        # A volume much longer than wide would make a page that no screen shows.
        scale = min(scale, 3 * COLUMN * 1.3 / sum(plane.size[0] for plane in planes))
        heights = [plane.size[0] * scale for plane in planes]
        cells = [max(h, 0.75) for h in heights]  # room for the row's name beside thin volumes
        self._starts = [LEFT + c * (COLUMN + GAP) + _BAR * sum(bar < c for bar in bars) for c in range(columns)]
        self.width = self._starts[-1] + COLUMN + _BAR * (columns - 1 in bars) + RIGHT
        self.top = TITLES + (0.12 if title is None else TITLE) + head
        self.height = self.top + sum(cells) + 2 * GAP + BOTTOM + bottom
        self._below = BOTTOM + bottom
        self.fig = Figure(figsize=(self.width, self.height), dpi=dpi, facecolor=BACKGROUND)
        self.axes: list[list[Axes]] = []
        self._middles: list[float] = []
        y = self.height - self.top
        for plane, cell, height in zip(planes, cells, heights, strict=True):
            width = plane.size[1] * scale
            self._middles.append(y - cell / 2)
            row = []
            for start in self._starts:
                row.append(self._add(start + (COLUMN - width) / 2, y - (cell + height) / 2, width, height))
            self.axes.append(row)
            y -= cell + GAP
        for middle, plane in zip(self._middles, planes, strict=True):
            text = f"{plane.name}\nslice {plane.index + 1} of {plane.count}"
            self.text(0.5 * LEFT, middle, text, rotation=90, ha="center", va="center")
        if title is not None:
            title = self.fit_text(title, self.width - LEFT - RIGHT, 11, "bold")
            y = self.height - 0.5 * TITLE
            self.text(self.width / 2, y, title, ha="center", va="center", size=11, weight="bold")

    def text(self, x: float, y: float, text: str, **style):
        """Write at inches from the lower left corner; signs such as ``$`` are only signs."""
        style = {"color": INK, "size": SMALL, "parse_math": False} | style
        return self.fig.text(x / self.width, y / self.height, text, **style)

    def text_width(self, text: str, size: float = SMALL, weight: str = "normal") -> float:
        """Return the width of a line of text in inches."""
        font, dpi = FontProperties(size=size, weight=weight), self.fig.dpi
        return _renderer(dpi).get_text_width_height_descent(text, font, ismath=False)[0] / dpi

    def fit_text(self, text: str, width: float, size: float = SMALL, weight: str = "normal") -> str:
        """Return a text as one line of at most ``width`` inches.

        What does not fit is left out of the middle: paths begin and end with what matters.
        """
        text = " ".join(text.split())
        if self.text_width(text, size, weight) <= width:
            return text
        low, high = 0, len(text)
        while high - low > 1:  # the most characters that fit
            middle = (low + high) // 2
            fits = self.text_width(_shorten(text, middle), size, weight) <= width
            low, high = (middle, high) if fits else (low, middle)
        return _shorten(text, low)

    def _add(self, x: float, y: float, width: float, height: float) -> Axes:
        axes = self.fig.add_axes((x / self.width, y / self.height, width / self.width, height / self.height))
        axes.set_axis_off()
        return axes

    def name_columns(self, names: Sequence[tuple[str, str]]) -> None:
        """Write a name and a detail over every column."""
        base = self.height - self.top
        for start, (name, detail) in zip(self._starts, names, strict=True):
            x = start + COLUMN / 2
            self.text(x, base + 0.23, name, ha="center", size=NORMAL, weight="bold")
            self.text(x, base + 0.08, detail, ha="center", color=FAINT_INK)

    def colour_bar(self, column: int, colours: Colormap, limits: Sequence[float], ticks: Mapping[float, str]) -> None:
        """Draw a colour bar at the right of a column."""
        inner = self.height - self.top - self._below
        height = min(2.4, 0.8 * inner)
        axes = self._add(self._starts[column] + COLUMN + 0.1, self._below + (inner - height) / 2, 0.1, height)
        axes.set_axis_on()
        bar = self.fig.colorbar(ScalarMappable(Normalize(*limits), colours), cax=axes)
        bar.set_ticks(list(ticks), labels=list(ticks.values()))
        bar.minorticks_off()
        bar.ax.tick_params(colors=INK, labelsize=SMALL, length=2, pad=2)
        bar.outline.set_edgecolor("#555555")

    def legend(self, entries: Sequence[tuple[str, str, bool]]) -> None:
        """Say under the panels what is drawn in them.

        Args:
            entries: text, colour, and whether it is an area and not a line.
        """
        handles = [
            Patch(color=colour, label=text) if area else Line2D([], [], color=colour, lw=1.5, label=text)
            for text, colour, area in entries
        ]
        self.fig.legend(
            handles=handles,
            loc="center",
            bbox_to_anchor=(0.5, (self._below - 0.5 * BOTTOM) / self.height),
            ncols=len(handles),
            frameon=False,
            labelcolor=INK,
            fontsize=SMALL,
        )
