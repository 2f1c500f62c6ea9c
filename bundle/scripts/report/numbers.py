"""The numbers of a report, read from the content of ``metrics.json`` by declared rows: tables, and those to see first.

What is missing or null leaves no row; what is not a number shows as ``n/a``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..settings import STAGES

_MEASURES = (("Dice", "dice"), ("HD95 (mm)", "hd95"), ("ASSD (mm)", "assd"))


@dataclass(frozen=True)
class Table:
    """One table of text.

    Attributes:
        title: over it.
        head: names of the columns; empty where every row is a name and a value.
        rows: cells.
        groups: a first line of the head, names and the columns they span; empty: none.
        words: whether the cells hold words, not numbers.
        worse: names of the rows to mark: labels that lie worse than before.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    groups: Sequence[tuple[str, int]] = ()
    words: bool = False
    worse: Sequence[str] = ()


class Highlight(NamedTuple):
    """One of the few numbers to see first; ``alarming`` where a reader should look into it."""

    name: str
    value: str
    detail: str = ""
    alarming: bool = False


def find(metrics: Mapping[str, Any], *path: str) -> Any:
    """Return the entry of nested mappings at a path of keys; None where there is none."""
    entry: Any = metrics
    for key in path:
        entry = entry.get(key) if isinstance(entry, Mapping) else None
    return entry


def number(value: Any) -> str:
    """Return a value as text: numbers with decimals by their size, so that columns can be read downwards."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "n/a"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        size = abs(value)
        if 0 < size < 1e-3:
            return f"{value:.1e}"
        return f"{value:.{3 if size < 10 else 2 if size < 100 else 1 if size < 1e4 else 0}f}"
    if isinstance(value, Mapping):
        return "\n".join(f"{key.replace('_', ' ')} {number(entry)}" for key, entry in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        nested = any(isinstance(entry, Sequence) and not isinstance(entry, str) for entry in value)
        return ("\n" if nested else ", ").join(map(number, value))
    return str(value)


def plain(value: Any) -> str:
    """Return a value as text, a number with all the digits that it was given with."""
    return number(value) if not isinstance(value, float) or not math.isfinite(value) else f"{value:.6g}"


def size(values: Any) -> str:
    """Return a number for each axis."""
    return " × ".join(map(plain, values)) if isinstance(values, Sequence) else plain(values)


class Row(NamedTuple):
    """A row of a table: its name, where its value lies, and how it is written.

    In the path, ``{}`` stands for each column of the table; a last key ``*`` gives a row for every key that there is.
    """

    name: str
    path: str
    format: Callable[[Any], str] = number


class Section(NamedTuple):
    """A declared table."""

    title: str
    rows: Sequence[Row]
    columns: Sequence[str] = ()


_SECTIONS = (
    Section(
        "Images",
        (
            Row("file", "{}.path"),
            Row("voxels", "{}.shape", size),
            Row("spacing (mm)", "{}.spacing", size),
            Row("first voxel at (RAS, mm)", "{}.origin_ras"),
            Row("axes point to", "{}.axcodes"),
        ),
        ("fixed", "moving"),
    ),
    Section("Similarity", (Row("NCC", "similarity.ncc.{}"), Row("mk-LNCC", "similarity.mk_lncc.{}")), STAGES),
    Section("Landmarks (mm)", (Row("mean", "landmarks_mm.mean.{}"), Row("largest", "landmarks_mm.max.{}")), STAGES),
    Section("Driven by, beside the images", (Row("*", "driven_by.*", plain),)),
    Section(
        "Deformation",
        (
            Row("folded voxels", "folds"),
            Row("folded voxels, network grid", "folds_network_grid"),
            Row("folded voxels by central differences", "jacobian.folds_central"),
            Row("sum of |J| over folds", "jacobian.folds_sum"),
            Row("lowest |J|", "jacobian.min"),
            Row("highest |J|", "jacobian.max"),
            Row("standard deviation of log |J|", "jacobian.std_log"),
            Row("inverse consistency, mean (mm)", "inverse_consistency_mm.mean"),
            Row("inverse consistency, 99th percentile (mm)", "inverse_consistency_mm.p99"),
            Row("inverse consistency, largest (mm)", "inverse_consistency_mm.max"),
        ),
    ),
    Section("Initialisation", (Row("*", "initialisation.*"),)),
    Section(
        "Affine",
        (
            Row("fixed to moving (RAS, mm)", "affine.matrix_ras"),
            Row("found by", "affine.found_by"),
            Row("steps kept", "affine.steps_kept"),
        ),
    ),
    Section("Optimisation", (Row("*", "optimisation.*"),)),
    Section("Time (s)", (Row("*", "seconds.*"),)),
    Section("Versions", (Row("*", "versions.*"), Row("weights, SHA-256", "weights_sha256"), Row("seed", "seed"))),
    Section("Settings", (Row("*", "settings.*", plain),)),
)


def make_tables(metrics: Mapping[str, Any]) -> list[Table]:
    """The tables of a report on the content of ``metrics.json``, labels first, without those that would be empty."""
    labels, names = metrics.get("labels") or {}, metrics.get("label_names") or {}
    tables = [_label_table(labels, names, bool(find(metrics, "driven_by", "labels")))]
    for title, declared, columns in _SECTIONS:
        rows = [row for entry in declared for row in _rows(metrics, entry, columns)]
        tables.append(Table(title, ("", *columns) if columns else (), rows, words=title == "Images"))
    return [table for table in tables if table.rows]


def _rows(metrics: Mapping[str, Any], row: Row, columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
    if row.path.endswith(".*"):
        entries = find(metrics, *row.path.split(".")[:-1])
        named = [(key.replace("_", " "), [value]) for key, value in (entries or {}).items()]
    else:
        named = [(row.name, [find(metrics, *row.path.format(column).split(".")) for column in columns or ("",)])]
    for name, values in named:
        if any(value is not None for value in values):
            yield (name, *(row.format(value) for value in values))


def _label_table(labels: Mapping[str, Any], names: Mapping[str, str], driven: bool) -> Table:
    """Return the table of labels: a row each, the mean first, and for every measure a column per stage."""
    named = {label: f"{label} {names.get(label, '')}".strip() for label in labels}
    measures = [(name, key) for name, key in _MEASURES if any(find(labels, label, key) for label in labels)]
    rows = [
        (named[label], *(number(find(labels, label, key, stage)) for _, key in measures for stage in STAGES))
        for label in sorted(labels, key=lambda label: label != "mean")
    ]
    groups = [("", 1), *((name, len(STAGES)) for name, _ in measures)]
    head = ("label", *STAGES * len(measures))
    title = "Overlap of labels" + (", which were registered by" if driven else "")
    return Table(
        title,
        head,
        rows if measures else (),
        groups,
        worse=[named[label] for label in worse_labels({"labels": labels})],
    )


def worse_labels(metrics: Mapping[str, Any], least: float = 0.005) -> list[str]:
    """Return the labels whose Dice fell by more than ``least`` from before the registration to its end."""
    labels = metrics.get("labels") or {}
    pairs = {label: [find(labels, label, "dice", stage) for stage in ("before", "final")] for label in labels}
    return [
        label for label, pair in pairs.items() if label != "mean" and None not in pair and pair[0] - pair[1] > least
    ]


_STAGED_HIGHLIGHTS = (
    ("mean Dice", ("labels", "mean", "dice")),
    ("mean HD95 (mm)", ("labels", "mean", "hd95")),
    ("landmarks, mean (mm)", ("landmarks_mm", "mean")),
    ("NCC", ("similarity", "ncc")),
)


def make_highlights(metrics: Mapping[str, Any]) -> list[Highlight]:
    """Return the numbers to see first, those of them that there are."""
    found = []
    for name, path in _STAGED_HIGHLIGHTS:
        before, final = (find(metrics, *path, stage) for stage in ("before", "final"))
        if final is not None:
            found.append(Highlight(name, number(final), f"before {number(before)}"))
    folds = metrics.get("folds")
    if folds is not None:
        found.append(Highlight("folded voxels", number(folds), "should be 0", alarming=folds > 0))
    low, high = (find(metrics, "jacobian", end) for end in ("min", "max"))
    if low is not None and high is not None:
        found.append(Highlight("volume change |J|", f"{low:.2f} to {high:.2f}", "1 keeps the volume"))
    mean, largest = (find(metrics, "inverse_consistency_mm", key) for key in ("mean", "max"))
    if mean is not None:
        detail = "" if largest is None else f"largest {number(largest)} mm"
        found.append(Highlight("inverse consistency", f"{number(mean)} mm", detail))
    seconds = find(metrics, "seconds", "total")
    return [*found, Highlight("time", f"{seconds:.1f} s")] if seconds is not None else found
