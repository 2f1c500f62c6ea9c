"""Figures that show a registration, without pyplot's global state, and the report of one registration."""

from .figure import figure_array, pair_figure, report_figure, save_figure
from .page import report_page, write_report
from .panels import ReportData, make_pictures
from .planes import Plane, choose_planes

__all__ = [
    "Plane",
    "ReportData",
    "choose_planes",
    "figure_array",
    "make_pictures",
    "pair_figure",
    "report_figure",
    "report_page",
    "save_figure",
    "write_report",
]
