"""Means over the pairs of a run."""

import math

import pytest

from scripts.metrics.summary import summarise


def test_summarise():
    rows = [
        {"name": "a", "dice": 0.5, "folds": 0.0, "one": math.nan, "none": math.nan},
        {"name": "b", "dice": 0.7, "folds": 4.0, "one": 3.0, "none": math.nan},
        {"name": "c", "dice": math.nan, "folds": 2.0, "one": math.nan},
    ]
    summary = summarise(rows)
    assert summary == pytest.approx(
        {
            "pairs": 3,
            "dice": 0.6,
            "dice_std": 0.02**0.5,
            "folds": 2.0,
            "folds_std": 2.0,
            "one": 3.0,
            "one_std": 0.0,
            "none": None,
            "none_std": None,
        }
    )
    assert summarise([]) == {"pairs": 0}
