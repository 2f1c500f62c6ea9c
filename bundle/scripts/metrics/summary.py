"""The table of a run: its files, and means over its pairs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

PAIRS = "pairs.csv"
SUMMARY = "summary.json"


def summarise(rows: Sequence[dict]) -> dict:
    """``pairs`` (how many) and the mean of every measure over the pairs, its standard deviation as ``<name>_std``.

    ``name`` is left out, NaN values take no part; None where no pair had a value.
    """
    summary: dict = {"pairs": len(rows)}
    for key in (key for key in (rows[0] if rows else ()) if key != "name"):
        values = [row[key] for row in rows if key in row and not math.isnan(row[key])]
        summary[key] = statistics.fmean(values) if values else None
        summary[f"{key}_std"] = statistics.stdev(values) if len(values) > 1 else (0.0 if values else None)
    return summary
