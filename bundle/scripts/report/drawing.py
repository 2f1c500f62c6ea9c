"""What all pictures of a registration share: colours, intensity ranges, and drawing on one panel."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from contourpy import contour_generator
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.contour import ContourSet
from matplotlib.patheffects import withStroke
from scipy.ndimage import find_objects

from .planes import Plane

BACKGROUND, INK, FAINT_INK = "#101214", "#e8e8e8", "#b5b5b5"
FIXED_COLOUR, MOVED_COLOUR, GRID_COLOUR, FOLD_COLOUR = "#35d6a4", "#ffb000", "#62d2ff", "#ff3355"
LETTER_COLOUR, MASK_COLOUR = "#ffe36e", "#c9c9ff"

_GRID_LINES = 24  # along the longest side, about
_DIMMED = 2.2  # how many times darker the image under the grid is
_HALO = [withStroke(linewidth=2.2, foreground="#000000")]
_FOLDS = ListedColormap([FOLD_COLOUR])


def spread_sample(volume: np.ndarray) -> np.ndarray:
    """Return some evenly spread voxels: percentiles of all voxels of a large volume take seconds and say the same."""
    # An odd step does not fall in with the rows of a grid of even size.
    return volume.ravel()[:: 2 * (volume.size // 2_000_000) + 1]


def round_step(step: float) -> float:
    """Return a round number not much below ``step``."""
    power = 10.0 ** np.floor(np.log10(step))
    return float(max(n for n in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8) if n * power <= step * (1 + 1e-9)) * power)


def grid_step(shape: Sequence[int], spacing: Sequence[float]) -> float:
    """Return the distance of the deformation grid's lines, in the unit of the spacing."""
    return round_step(max(n * s for n, s in zip(shape, spacing, strict=True)) / _GRID_LINES)


def grey_range(image: np.ndarray) -> tuple[float, float]:
    """Return the window of an image, a few outliers apart, and never empty."""
    sample = spread_sample(image)
    low, high = (float(end) for end in np.percentile(sample, (0.5, 99.5)))
    if high <= low:
        low, high = float(sample.min()), float(sample.max())
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def dimmed(limits: tuple[float, float]) -> tuple[float, float]:
    """Return a window that shows an image darker: lines are lost on a bright one."""
    return limits[0], limits[0] + _DIMMED * (limits[1] - limits[0])


def signed_reach(differences: Iterable[np.ndarray]) -> float:
    """Return the reach of a signed colour range around zero, outliers apart, and never zero."""
    samples = [np.abs(difference) for difference in differences]
    reach = max(float(np.percentile(s, 99.5)) for s in samples)
    return reach or max(float(s.max()) for s in samples) or 1.0


def show_image(axes: Axes, plane: Plane, image: np.ndarray, colours: str | Colormap, limits: Sequence[float]) -> None:
    """Show the image of a plane in mm, first row at the top."""
    height, width = plane.size
    axes.imshow(
        image,
        cmap=colours,
        vmin=limits[0],
        vmax=limits[1],
        extent=(0, width, height, 0),
        # Nearest where a panel enlarges, smooth where it shrinks and nearest would drop rows.
        interpolation="antialiased",
    )
    # Lines drawn later must not change what the panel shows.
    axes.autoscale(False)


def draw_grid(axes: Axes, plane: Plane, positions: Sequence[tuple[np.ndarray, float]], step: float) -> None:
    """Draw where the regular grid of the moving image ends up: level lines of the map, as in the paper's Figure 4.

    ``positions`` are, for both in-plane axes, the image of where the map points to along that axis, in mm from the
    first voxel, and the length that counts as inside; ``step``, in mm, lies between the lines.
    """
    for image, length in positions:
        # Far outside the moving image there is nothing to see, and a wild map would ask for millions of lines.
        low, high = max(image.min(), -length), min(image.max(), 2 * length)
        levels = np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step
        # A level that only touches an end of the range has no line.
        levels = levels[(levels > image.min()) & (levels < image.max())]
        if levels.size and min(image.shape) > 1:
            across, down = plane.pixel_centres(image.shape)
            axes.contour(across, down, image, levels=levels, colors=GRID_COLOUR, linewidths=0.6)


def draw_folds(axes: Axes, plane: Plane, folds: np.ndarray) -> None:
    """Paint the pixels of the boolean image ``folds`` red."""
    if folds.any():
        height, width = plane.size
        shown = np.ma.masked_where(~folds, folds.astype(float))
        axes.imshow(shown, cmap=_FOLDS, extent=(0, width, height, 0), interpolation="nearest")


def draw_outlines(axes: Axes, plane: Plane, label: np.ndarray, colour: str) -> None:
    """Draw the outline of every value of ``label (D, H, W)`` in the plane, 0 apart."""
    # One background pixel around, so that a label at the rim is closed too.
    image = np.pad(plane.cut(label).astype(np.int64), 1)
    across, down = (
        np.concatenate([[2 * c[0] - c[1]], c, [2 * c[-1] - c[-2]]])
        for c in plane.pixel_centres((image.shape[0] - 2, image.shape[1] - 2))
    )
    values, image = np.unique(image, return_inverse=True)
    image = image.reshape(len(down), len(across))
    lines = []
    for index, box in enumerate(find_objects(image), start=1):
        if values[index] > 0:
            # An atlas has a hundred labels, each in a small part of the plane.
            box = tuple(slice(max(side.start - 1, 0), side.stop + 1) for side in box)
            mask = (image[box] == index).astype(float)
            lines += contour_generator(across[box[1]], down[box[0]], mask).lines(0.5)
    if lines:
        ContourSet(axes, [0.5], [lines], colors=colour, linewidths=0.9, path_effects=_HALO)


def draw_letters(axes: Axes, plane: Plane) -> None:
    """Write the directions of the body just inside the four sides of the image."""
    height, width = plane.size
    places = (
        ((width / 2, 0), (0, -2), "center", "top"),
        ((width, height / 2), (-2, 0), "right", "center"),
        ((width / 2, height), (0, 2), "center", "bottom"),
        ((0, height / 2), (2, 0), "left", "center"),
    )
    for letter, (place, offset, across, up) in zip(plane.letters, places, strict=True):
        style = {"color": LETTER_COLOUR, "size": 8.5, "weight": "bold", "path_effects": _HALO}
        axes.annotate(letter, place, offset, textcoords="offset points", ha=across, va=up, **style)
