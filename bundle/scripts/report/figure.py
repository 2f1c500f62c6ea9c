"""From a figure to a file or an array."""

from __future__ import annotations

import os

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..storage import atomic_path


def save_figure(fig: Figure, path: str | os.PathLike, dpi: float | None = None) -> None:
    """Write a figure, whole or not at all.

    Args:
        fig: the figure.
        path: where to; the suffix chooses the format (``.png``, ``.pdf``, ``.svg``, ...). Its folder must exist.
        dpi: dots per inch; None: the figure's own.

    Raises:
        ValueError: if Matplotlib knows no format of that suffix.
        FileNotFoundError: if the folder does not exist.
    """
    with atomic_path(path) as temporary:
        fig.savefig(temporary, dpi="figure" if dpi is None else dpi, facecolor=fig.get_facecolor())


def figure_array(fig: Figure) -> np.ndarray:
    """Return a figure as pixels ``(height, width, 3)`` uint8, as ``mlflow.log_image`` takes them."""
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
