"""Numbers become text, tables, and the few to see first."""

import pytest

from scripts.report.numbers import make_highlights, make_tables


@pytest.mark.parametrize(("metrics", "title", "head", "rows"), [
    ({"seconds": {"read": 1.0, "total": 2.5}}, "Time (s)", (), [("read", "1.000"), ("total", "2.500")]),
    ({"similarity": {"ncc": {"before": 0.1, "final": 0.9}}}, "Similarity", ("", "before", "affine", "final"),
        [("NCC", "0.100", "n/a", "0.900")]),
    ({"labels": {"7": {"dice": {"before": 0.1, "final": None}}, "mean": {"dice": {"before": 0.2}}}},
        "Overlap of labels", ("label", "before", "affine", "final"),
        [("mean", "0.200", "n/a", "n/a"), ("7", "0.100", "n/a", "n/a")]),
    ({"fixed": {"path": "a", "shape": [1, 2, 3]}, "moving": {"path": "b", "spacing": (0.5, 1.0, 2.0)}}, "Images",
        ("", "fixed", "moving"),
        [("file", "a", "b"), ("voxels", "1 × 2 × 3", "n/a"), ("spacing (mm)", "n/a", "0.5 × 1 × 2")]),
    ({"versions": {"a": "1"}, "seed": 0}, "Versions", (), [("a", "1"), ("seed", "0")]),
    ({"settings": {"inverse_tolerance": 0.05, "grid": None}}, "Settings", (), [("inverse tolerance", "0.05")]),
])  # fmt: skip
def test_tables(metrics, title, head, rows):
    (table,) = make_tables(metrics)
    assert (table.title, tuple(table.head), list(table.rows)) == (title, head, rows)


@pytest.mark.parametrize(
    "metrics", [{}, {"labels": {}, "similarity": {}, "optimisation": None, "settings": {}, "warnings": []}]
)
def test_missing_numbers_make_no_table(metrics):
    assert make_tables(metrics) == make_highlights(metrics) == []
