"""One registered pair on one page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from ..geometry import fold_mask
from ..io.arrays import ArrayLike, as_map, as_volume
from .planes import Plane, choose_planes

_BACKGROUND, _INK = "#101214", "#e8e8e8"
_FIXED_COLOUR, _MOVED_COLOUR, _GRID_COLOUR, _FOLD_COLOUR = "#35d6a4", "#ffb000", "#62d2ff", "#ff3355"
# Black at zero, so that agreement is dark like the page; blue and orange stay apart for colour-blind readers.
_SIGNED = LinearSegmentedColormap.from_list("signed", ["#9fd4ff", "#2a7fff", "#000000", "#ff7a1a", "#ffd9a0"])
_GRID_LINES = 24  # along the longest side, about
_DIMMED = 2.2  # how many times darker the image under the grid is
_HALO = [withStroke(linewidth=2.2, foreground="#000000")]

_COLUMN, _GAP = 2.15, 0.07  # inches
_LEFT, _RIGHT, _BOTTOM, _TITLES, _TITLE = 0.42, 0.72, 0.34, 0.42, 0.32
_SMALL, _NORMAL = 7.5, 9.0  # points


def pair_figure(
    fixed: ArrayLike,
    moving: ArrayLike,
    moved: ArrayLike,
    map: ArrayLike,
    fixed_label: ArrayLike | None = None,
    moved_label: ArrayLike | None = None,
    title: str | None = None,
    spacing: Sequence[float] | None = None,
    orientation: str | None = None,
) -> Figure:
    """Show a registered pair in three planes.

    Columns: moving, fixed, moved, moved with the deformation grid (level lines of the map's in-plane coordinates, which
    is the picture of φ⁻¹ in the paper's Figure 4; folded voxels red), difference before and after. The three images
    share one grey range, the two differences one signed range. All planes have one scale in mm.

    Args:
        fixed: ``(D, H, W)`` or ``(1, D, H, W)``.
        moving: as ``fixed``, on a grid of the same shape.
        moved: as ``fixed``.
        map: ``(3, D, H, W)`` or ``(1, 3, D, H, W)``, normalised coordinates.
        fixed_label: as ``fixed``, 0 is background. The planes go through the labels' centre of mass.
        moved_label: as ``fixed_label``.
        title: one line over all.
        spacing: voxel size along each array axis, mm. None: voxels are shown as cubes and lengths told in voxels.
        orientation: where the array axes point, ``"RAS"`` for instance; see :func:`choose_planes`.

    Returns:
        A figure that belongs to no window and to no global state.

    Raises:
        ValueError: if a shape differs from that of ``fixed``, an image is not finite, or ``spacing`` or
            ``orientation`` is not understood.
    """
    images = {"fixed": as_volume(fixed, "fixed")}
    shape = images["fixed"].shape
    images |= {"moving": as_volume(moving, "moving"), "moved": as_volume(moved, "moved")}
    labels = {
        name: as_volume(label, name)
        for name, label in (("fixed_label", fixed_label), ("moved_label", moved_label))
        if label is not None
    }
    phi = as_map(map)
    for name, array in {**images, **labels, "map": phi[0]}.items():
        if array.shape != shape:
            raise ValueError(f"{name}: has the grid {array.shape}, fixed has {shape}; all must share one grid.")
        if not np.isfinite(array).all():
            raise ValueError(f"{name}: holds NaN or infinite values; there is nothing to show.")
    images = {name: image.astype(np.float32) for name, image in images.items()}
    unit = "voxels" if spacing is None else "mm"
    spacing = (1.0, 1.0, 1.0) if spacing is None else tuple(spacing)
    planes = choose_planes(shape, list(labels.values()), spacing, orientation)
    page = _Page(planes, title is not None)
    if title is not None:
        page.fig.text(
            0.5, 1 - 0.5 * _TITLE / page.height, title, ha="center", va="center", color=_INK, size=11, weight="bold"
        )

    grey = _grey_range(images.values())
    before, after = images["moving"] - images["fixed"], images["moved"] - images["fixed"]
    reach = _largest((before, after))
    folds = fold_mask(torch.from_numpy(np.ascontiguousarray(phi))[None].float())[0].numpy()
    step = _round_step(max(n * s for n, s in zip(shape, spacing, strict=True)) / _GRID_LINES)

    outlines = [(labels.get("fixed_label"), _FIXED_COLOUR), (labels.get("moved_label"), _MOVED_COLOUR)]
    for row, plane in enumerate(planes):
        page.name_row(row, plane)
        moving_axes, fixed_axes, moved_axes, grid_axes, before_axes, after_axes = page.axes[row]
        for axes, name in zip(page.axes[row], ("moving", "fixed", "moved", "moved"), strict=False):
            # Lines are lost on a bright image.
            limits = grey if axes is not grid_axes else (grey[0], grey[0] + _DIMMED * (grey[1] - grey[0]))
            _show(axes, plane, images[name], "gray", limits)
        _show(before_axes, plane, before, _SIGNED, (-reach, reach))
        _show(after_axes, plane, after, _SIGNED, (-reach, reach))
        _draw_grid(grid_axes, plane, phi, spacing, step, folds)
        for axes, chosen in ((moving_axes, outlines[:1]), (fixed_axes, outlines[:1]), (moved_axes, outlines)):
            for label, colour in chosen:
                if label is not None:
                    _draw_outlines(axes, plane, label, colour)
        _draw_letters(moving_axes, plane)

    count = int(folds.sum())
    page.name_columns(
        [
            ("moving", "before registration"),
            ("fixed", "target"),
            ("moved", "after registration"),
            ("deformation grid φ⁻¹", f"{count} folded voxel{'' if count == 1 else 's'} in the volume"),
            ("difference before", f"moving - fixed, mean |d| {np.abs(before).mean():.3g}"),
            ("difference after", f"moved - fixed, mean |d| {np.abs(after).mean():.3g}"),
        ]
    )
    page.colour_bar(reach)
    page.legend(
        "fixed_label" in labels,
        "moved_label" in labels,
        f"φ⁻¹, a line every {step:g} {unit} of the moving image",
        count > 0,
    )
    return page.fig


class _Page:
    """The figure, with every panel placed in inches: nothing moves, nothing overlaps."""

    def __init__(self, planes: Sequence[Plane], titled: bool) -> None:
        scale = _COLUMN / max(plane.size[1] for plane in planes)
        # A volume much longer than wide would make a page that no screen shows.
        scale = min(scale, 3 * _COLUMN * 1.3 / sum(plane.size[0] for plane in planes))
        heights = [plane.size[0] * scale for plane in planes]
        cells = [max(h, 0.75) for h in heights]  # room for the row's name beside thin volumes
        self.width = _LEFT + 6 * _COLUMN + 5 * _GAP + _RIGHT
        self.top = _TITLES + (_TITLE if titled else 0.12)
        self.height = self.top + sum(cells) + 2 * _GAP + _BOTTOM
        self.fig = Figure(figsize=(self.width, self.height), dpi=110, facecolor=_BACKGROUND)
        self.axes: list[list[Axes]] = []
        self.middles: list[float] = []
        y = self.height - self.top
        for plane, cell, height in zip(planes, cells, heights, strict=True):
            width = plane.size[1] * scale
            self.middles.append((y - cell / 2) / self.height)
            row = []
            for column in range(6):
                x = _LEFT + column * (_COLUMN + _GAP) + (_COLUMN - width) / 2
                row.append(self._add(x, y - (cell + height) / 2, width, height))
            self.axes.append(row)
            y -= cell + _GAP

    def _add(self, x: float, y: float, width: float, height: float) -> Axes:
        axes = self.fig.add_axes((x / self.width, y / self.height, width / self.width, height / self.height))
        axes.set_axis_off()
        return axes

    def _column_middle(self, column: int) -> float:
        return (_LEFT + column * (_COLUMN + _GAP) + _COLUMN / 2) / self.width

    def name_row(self, row: int, plane: Plane) -> None:
        x = 0.5 * _LEFT / self.width
        text = f"{plane.name}\nslice {plane.index + 1} of {plane.count}"
        self.fig.text(x, self.middles[row], text, rotation=90, ha="center", va="center", color=_INK, size=_SMALL)

    def name_columns(self, names: Sequence[tuple[str, str]]) -> None:
        base = self.height - self.top
        for column, (name, detail) in enumerate(names):
            x = self._column_middle(column)
            self.fig.text(x, (base + 0.23) / self.height, name, ha="center", color=_INK, size=_NORMAL, weight="bold")
            self.fig.text(x, (base + 0.08) / self.height, detail, ha="center", color="#b5b5b5", size=_SMALL)

    def colour_bar(self, reach: float) -> None:
        height = min(2.4, 0.8 * (self.height - self.top - _BOTTOM))
        y = _BOTTOM + (self.height - self.top - _BOTTOM - height) / 2
        axes = self._add(self.width - _RIGHT + 0.1, y, 0.1, height)
        axes.set_axis_on()
        bar = self.fig.colorbar(ScalarMappable(Normalize(-reach, reach), _SIGNED), cax=axes)
        bar.set_ticks([-reach, 0, reach], labels=[f"-{reach:.2g}", "0", f"+{reach:.2g}"])
        bar.ax.tick_params(colors=_INK, labelsize=_SMALL, length=2, pad=2)
        bar.outline.set_edgecolor("#555555")

    def legend(self, fixed: bool, moved: bool, grid: str, folds: bool) -> None:
        entries = [
            (fixed, Line2D([], [], color=_FIXED_COLOUR, lw=1.5, label="outline of the fixed label")),
            (moved, Line2D([], [], color=_MOVED_COLOUR, lw=1.5, label="outline of the moved label")),
            (True, Line2D([], [], color=_GRID_COLOUR, lw=1, label=grid)),
            (folds, Patch(color=_FOLD_COLOUR, label="folded voxels")),
        ]
        self.fig.legend(
            handles=[handle for shown, handle in entries if shown],
            loc="center",
            bbox_to_anchor=(0.5, 0.5 * _BOTTOM / self.height),
            ncols=4,
            frameon=False,
            labelcolor=_INK,
            fontsize=_SMALL,
        )


def _sample(volume: np.ndarray) -> np.ndarray:
    """Return some evenly spread voxels: percentiles of all voxels of a large volume take seconds and say the same."""
    # An odd step does not fall in with the rows of a grid of even size.
    return volume.ravel()[:: 2 * (volume.size // 2_000_000) + 1]


def _round_step(step: float) -> float:
    """Return a round number not much below ``step``."""
    power = 10.0 ** np.floor(np.log10(step))
    return float(max(n for n in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8) if n * power <= step * (1 + 1e-9)) * power)


def _grey_range(images) -> tuple[float, float]:
    """Return one window for all images, a few outliers apart."""
    low, high = zip(*(np.percentile(_sample(image), (0.5, 99.5)) for image in images), strict=True)
    low, high = float(min(low)), float(max(high))
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _largest(differences) -> float:
    """Return the reach of the signed colour range, outliers apart, and never zero."""
    reach = max(float(np.percentile(_sample(np.abs(d)), 99.5)) for d in differences)
    return reach or max(float(np.abs(d).max()) for d in differences) or 1.0


def _show(axes: Axes, plane: Plane, volume: np.ndarray, colours, limits: tuple[float, float]) -> None:
    """Show one plane in mm, first row at the top."""
    height, width = plane.size
    axes.imshow(
        plane.cut(volume),
        cmap=colours,
        vmin=limits[0],
        vmax=limits[1],
        extent=(0, width, height, 0),
        interpolation="nearest",
    )
    # Lines drawn later must not change what the panel shows.
    axes.autoscale(False)


def _mesh(plane: Plane, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the page coordinates of the pixel centres, across and down."""
    rows, columns = image.shape
    return (np.arange(columns) + 0.5) * plane.size[1] / columns, (np.arange(rows) + 0.5) * plane.size[0] / rows


def _draw_grid(
    axes: Axes, plane: Plane, phi: np.ndarray, spacing: Sequence[float], step: float, folds: np.ndarray
) -> None:
    """Draw where the regular grid of the moving image ends up: level lines of the map's in-plane coordinates, in mm."""
    for axis in (plane.vertical, plane.horizontal):
        length = (phi.shape[axis + 1] - 1) * spacing[axis]
        image = (plane.cut(phi[axis]).astype(np.float64) + 1) / 2 * length
        # Far outside the moving image there is nothing to see, and a wild map would ask for millions of lines.
        low, high = max(image.min(), -length), min(image.max(), 2 * length)
        levels = np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step
        # A level that only touches an end of the range has no line.
        levels = levels[(levels > image.min()) & (levels < image.max())]
        if levels.size and min(image.shape) > 1:
            axes.contour(*_mesh(plane, image), image, levels=levels, colors=_GRID_COLOUR, linewidths=0.6)
    mask = plane.cut(folds)
    if mask.any():
        colours = LinearSegmentedColormap.from_list("fold", [_FOLD_COLOUR, _FOLD_COLOUR])
        height, width = plane.size
        shown = np.ma.masked_where(~mask, mask.astype(float))
        axes.imshow(shown, cmap=colours, extent=(0, width, height, 0), interpolation="nearest", alpha=0.8)


def _draw_outlines(axes: Axes, plane: Plane, label: np.ndarray, colour: str) -> None:
    """Draw the outline of every label value in the plane."""
    image = plane.cut(label)
    # One background pixel around, so that a label at the rim is closed too.
    across, down = (np.concatenate([[2 * c[0] - c[1]], c, [2 * c[-1] - c[-2]]]) for c in _mesh(plane, image))
    for value in np.unique(image[image > 0]):
        mask = np.pad((image == value).astype(float), 1)
        axes.contour(across, down, mask, levels=[0.5], colors=colour, linewidths=0.9, path_effects=_HALO)


def _draw_letters(axes: Axes, plane: Plane) -> None:
    """Write the directions of the body on the four sides of a panel."""
    places = ((0.5, 0.985, "center", "top"), (0.985, 0.5, "right", "center"))
    places += ((0.5, 0.015, "center", "bottom"), (0.015, 0.5, "left", "center"))
    for letter, (x, y, across, up) in zip(plane.letters or "", places, strict=False):
        axes.text(
            x,
            y,
            letter,
            transform=axes.transAxes,
            ha=across,
            va=up,
            color="#ffe36e",
            size=_SMALL + 1,
            weight="bold",
            path_effects=_HALO,
        )
