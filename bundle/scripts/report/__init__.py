"""Figures that show a registration, without pyplot's global state."""

from .figure import figure_array, save_figure
from .pair import pair_figure
from .planes import Plane, choose_planes

__all__ = ["Plane", "choose_planes", "figure_array", "pair_figure", "save_figure"]
