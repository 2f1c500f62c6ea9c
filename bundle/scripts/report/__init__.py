"""Figures that show a registration, without pyplot's global state, and the report of one registration."""

from .figure import figure_array, save_figure
from .overview import report_figure
from .page import report_page, write_report
from .pair import pair_figure
from .planes import Plane, choose_planes
from .qa import ReportData

__all__ = [
    "Plane",
    "ReportData",
    "choose_planes",
    "figure_array",
    "pair_figure",
    "report_figure",
    "report_page",
    "save_figure",
    "write_report",
]
