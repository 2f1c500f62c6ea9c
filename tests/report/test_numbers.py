"""Numbers become text, tables, the few to see first, and a verdict."""

from __future__ import annotations

import numpy as np
import pytest

from report_cases import SHAPE, stages
from scripts.report.numbers import make_highlights, make_tables
from scripts.report.verdict import find_problems


@pytest.mark.parametrize(
    ("metrics", "title", "head", "rows"),
    [
        ({"seconds": {"read": 1.0, "total": 2.5}}, "Time (s)", (), [("read", "1.000"), ("total", "2.500")]),
        (
            {"similarity": {"ncc": {"before": 0.1, "final": 0.9}}},
            "Similarity",
            ("", "before", "affine", "final"),
            [("NCC", "0.100", "n/a", "0.900")],
        ),
        (
            {"labels": {"7": {"dice": {"before": 0.1, "final": None}}, "mean": {"dice": {"before": 0.2}}}},
            "Overlap of labels",
            ("label", "before", "affine", "final"),
            [("mean", "0.200", "n/a", "n/a"), ("7", "0.100", "n/a", "n/a")],
        ),
        (
            {"fixed": {"path": "a", "shape": [1, 2, 3]}, "moving": {"path": "b", "spacing": (0.5, 1.0, 2.0)}},
            "Images",
            ("", "fixed", "moving"),
            [("file", "a", "b"), ("voxels", "1 × 2 × 3", "n/a"), ("spacing (mm)", "n/a", "0.5 × 1 × 2")],
        ),
        ({"versions": {"a": "1"}, "seed": 0}, "Versions", (), [("a", "1"), ("seed", "0")]),
        ({"settings": {"inverse_tolerance": 0.05, "grid": None}}, "Settings", (), [("inverse tolerance", "0.05")]),
    ],
)
def test_tables(metrics, title, head, rows):
    (table,) = make_tables(metrics)
    assert (table.title, tuple(table.head), list(table.rows)) == (title, head, rows)


@pytest.mark.parametrize(
    "metrics", [{}, {"labels": {}, "similarity": {}, "optimisation": None, "settings": {}, "warnings": []}]
)
def test_missing_numbers_make_no_table(metrics):
    assert make_tables(metrics) == make_highlights(metrics) == find_problems(metrics, np.ones(SHAPE)) == []


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({"folds": 0}, []),
        ({"folds": 1}, ["1 voxel is folded", "(4, 5, 6)", "-0.250"]),
        ({"labels": {"2": {"dice": stages(0.5, 0.6, 0.4)}}}, ["for label 2 (0.500 → 0.400)"]),
        ({"labels": {str(n): {"dice": stages(0.5, 0.6, 0.4)} for n in range(9)}}, ["for labels 0 ", "and 3 more"]),
        ({"labels": {"2": {"dice": stages(0.5, 0.6, 0.499)}, "3": {"dice": stages(None, 0.6, None)}}}, []),
        ({"similarity": {"ncc": stages(0.9, 0.9, 0.8)}}, ["less similar", "NCC fell from 0.900 to 0.800"]),
        ({"similarity": {"ncc": stages(0.9, 0.9, 0.8999)}}, []),
        ({"similarity": {"ncc": stages(float("nan"), 0.9, 0.8), "mk_lncc": stages(0.1, 0.2, 0.3)}}, []),
    ],
)
def test_problems_say_what_and_where(metrics, words):
    jacobian = np.ones(SHAPE)
    jacobian[4, 5, 6] = -0.25
    problems = find_problems(metrics, jacobian)
    assert len(problems) == bool(words)
    for problem in problems:
        assert problem.advice and all(word in problem.what for word in words)
