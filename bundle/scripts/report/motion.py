"""The plot of a series' motion."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from .figure import save_figure

_PANELS = (("shift, mm", "trans_"), ("turn, degrees", "rot_"), ("framewise displacement, mm", "framewise_"))
_AXES = {"_x_": "right", "_y_": "front", "_z_": "up"}


def save_motion(motion: Mapping[str, np.ndarray], path: str | os.PathLike) -> None:
    """Plot shifts, turns and framewise displacement, of `motion_of`, over the volumes, as a picture."""
    figure = Figure(figsize=(9, 7), dpi=110, layout="constrained")
    panels = figure.subplots(len(_PANELS), 1, sharex=True)
    for axes, (title, prefix) in zip(panels, _PANELS, strict=True):
        for name, values in motion.items():
            if name.startswith(prefix):
                label = next((word for part, word in _AXES.items() if part in name), None)
                axes.plot(values, linewidth=1, marker="." if len(values) < 60 else None, label=label)
        axes.set_ylabel(title)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="upper right", ncols=3, fontsize="small")
    panels[-1].set_xlabel("volume")
    save_figure(figure, path)
