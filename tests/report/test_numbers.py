"""Numbers become text, tables, the few to see first, and a verdict."""

from __future__ import annotations

import numpy as np
import pytest

from report_cases import METRICS, SHAPE, stages
from scripts.report.numbers import make_highlights, make_tables, number, plain, size
from scripts.report.verdict import find_problems


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        (number, None, "n/a"),
        (number, float("nan"), "n/a"),
        (number, 123456789, "123456789"),
        (number, 0.5, "0.500"),
        (number, 12.0, "12.00"),
        (number, 12345.6, "12346"),
        (number, 4e-5, "4.0e-05"),
        (number, "a_b", "a_b"),
        (number, [1, 2.5], "1, 2.500"),
        (number, [[1, 0], [0, 1]], "1, 0\n0, 1"),
        (number, {"a_b": 1, "c": [2]}, "a b 1\nc 2"),
        (plain, 2.5, "2.5"),
        (size, [0.36, 1.0, 1], "0.36 × 1 × 1"),
    ],
)
def test_values_as_text(write, value, text):
    assert write(value) == text


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


def test_highlights():
    assert {name: (value, detail) for name, value, detail, _ in make_highlights(METRICS)} == {
        "NCC": ("0.935", "before 0.412"),
        "mean Dice": ("0.833", "before 0.500"),
        "mean HD95 (mm)": ("n/a", "before 8.000"),
        "volume change |J|": ("-0.12 to 2.50", "1 keeps the volume"),
        "folded voxels": ("17", "should be 0"),
        "inverse consistency": ("0.042 mm", "largest 0.777 mm"),
        "time": ("2.2 s", ""),
    }
    assert [tile.name for tile in make_highlights(METRICS) if tile.alarming] == ["folded voxels"]
    assert not any(tile.alarming for tile in make_highlights({"folds": 0}))


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


def test_worse_labels_are_marked():
    (table,) = make_tables({"labels": {"2": {"dice": stages(0.5, 0.6, 0.4)}, "3": {"dice": stages(0.5, 0.6, 0.7)}}})
    assert table.worse == ["2"]
