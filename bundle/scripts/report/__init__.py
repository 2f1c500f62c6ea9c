"""Figures that show a registration, without pyplot's global state, the report of one registration, and its verdict."""

from ..lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "figure": ("pair_figure", "report_figure", "save_figure"),
        "page": ("report_page", "write_report"),
        "panels": ("ReportData", "make_pictures"),
        "planes": ("Plane", "choose_planes"),
        "verdict": ("Verdict", "judge"),
    },
)
