"""The numbers of one registration as tables of text: from the content of ``metrics.json``, whatever it holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

STAGES = {"before": "before", "affine": "affine", "after": "after", "final": "final"}
_WORDS = {
    "ncc": "NCC",
    "lncc": "LNCC",
    "mse": "MSE",
    "nmi": "NMI",
    "dice": "Dice",
    "hd95": "HD95 (mm)",
    "assd": "ASSD (mm)",
    "tre": "TRE",
    "std_log": "std of log",
    "mk_lncc": "mk-LNCC",
    "p99": "99th percentile",
    "axcodes": "axes point to",
    "weights_sha256": "weights, SHA-256",
    "sha256": "SHA-256",
}
_NAMES = {"ras": "RAS", "lps": "LPS", "ncc": "NCC", "lncc": "LNCC", "vsvf": "vSVF", "ckpt": "checkpoint", "amp": "AMP"}
_DEFORMATION = ("folds", "folds_network_grid", "jacobian", "inverse_consistency_mm")
_DEFORMATION_NAMES = {
    "folds": "folded voxels",
    "folds_network_grid": "folded voxels, network grid",
    "jacobian": "|J|",
    "folds_sum": "sum over folds",
    "folds_central": "folds by central differences",
}
_UNITS = {"mm": "mm", "s": "s", "percent": "%", "ms": "ms", "mb": "MB", "gb": "GB"}


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        title: over it.
        head: names of the columns; empty where every row is a name and a value.
        rows: cells. The last cell of a row shorter than ``head`` spans the columns left.
        groups: a first line of the head, names and the columns they span; empty: none.
        words: whether the cells hold words, not numbers.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    groups: tuple[tuple[str, int], ...] = ()
    words: bool = False


@dataclass(frozen=True)
class Highlight:
    """One of the few numbers to see first.

    Attributes:
        name: what it is.
        value: the number.
        detail: a few words more.
        alarming: whether a reader should look into it.
    """

    name: str
    value: str
    detail: str = ""
    alarming: bool = False


def format_value(value: Any) -> str:
    """Return a value of ``metrics.json`` as text: four digits of a number, ``n/a`` for NaN, ``none`` for None."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if math.isnan(value):
            return "n/a"
        return f"{value:.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        rows = any(isinstance(item, Sequence) and not isinstance(item, str) for item in value)
        return ("; " if rows else ", ").join(format_value(item) for item in value) or "none"
    if hasattr(value, "item"):  # a NumPy scalar
        return format_value(value.item())
    return str(value)


def format_measure(value: Any) -> str:
    """Return a measure with as many decimals as others of its size, so that columns can be read downwards."""
    if not isinstance(value, float) or not math.isfinite(value) or 0 < abs(value) < 1e-3 or abs(value) >= 1e4:
        return format_value(value)
    return f"{value:.{3 if abs(value) < 10 else 2 if abs(value) < 100 else 1}f}"


def format_key(key: str) -> str:
    """Return a key as words: ``write_time_s`` becomes ``write time (s)``."""
    key = str(key)
    if key.lower() in _WORDS:
        return _WORDS[key.lower()]
    *words, last = key.split("_")
    if words and last in _UNITS:
        return f"{format_key('_'.join(words))} ({_UNITS[last]})"
    return " ".join(_NAMES.get(word, word) for word in [*words, last] if word)


def make_tables(metrics: Mapping[str, Any]) -> list[Table]:
    """Return the tables of a report: known parts first, then what else there is; nothing for what is missing.

    Args:
        metrics: content of ``metrics.json``. Of its parts, ``labels`` may hold one entry per label and ``mean``; a
            mapping whose keys are among `STAGES` is shown as one row with a column per stage; anything else by name.
    """
    rest = {key: value for key, value in metrics.items() if key not in ("name", "warnings")}
    tables = []
    if isinstance(rest.get("labels"), Mapping):
        tables.append(_label_table(rest.pop("labels")))
    tables.append(_table("Similarity", rest.pop("similarity", None)))
    tables.append(_table("Landmarks", rest.pop("landmarks", None), as_text=format_measure))
    deformation = {key: rest.pop(key) for key in _DEFORMATION if key in rest}
    tables.append(_table("Deformation", deformation, _DEFORMATION_NAMES, format_measure))
    tables.append(_table("Instance optimisation", rest.pop("instance_optimisation", None), as_text=format_measure))
    tables.append(_table("Time (s)", rest.pop("seconds", None), as_text=format_measure))
    files = {role: rest.pop(role) for role in ("fixed", "moving") if isinstance(rest.get(role), Mapping)}
    tables.append(_file_table(files))
    tables.append(_table("Initialisation", rest.pop("initialisation", None)))
    provenance = {key: rest.pop(key) for key in ("versions", "weights_sha256", "seed") if key in rest}
    tables.append(_table("Versions", provenance, {"versions": ""}))
    tables.append(_table("Settings", rest.pop("settings", None)))
    for key in [key for key, value in rest.items() if isinstance(value, Mapping)]:
        title = format_key(key)
        tables.append(_table(title[:1].upper() + title[1:], rest.pop(key)))
    tables.append(_table("More", rest))
    return [table for table in tables if table is not None and table.rows]


def make_highlights(metrics: Mapping[str, Any]) -> list[Highlight]:
    """Return the numbers to see first, those of them that there are."""
    found = []
    similarity = _mapping(metrics.get("similarity"))
    for key, stages in list(similarity.items())[:1]:
        found.append(_change(format_key(key), stages))
    labels = _mapping(metrics.get("labels"))
    mean = _mapping(labels.get("mean") or (next(iter(labels.values())) if len(labels) == 1 else None))
    for key in ("dice", "hd95"):
        found.append(_change(f"mean {format_key(key)}" if "mean" in labels else format_key(key), mean.get(key)))
    for key, stages in _mapping(metrics.get("landmarks")).items():
        if _staged(stages) and not any(isinstance(value, Mapping) for value in stages.values()):
            found.append(_change(f"landmarks, {format_key(key)}", stages))
            break
    jacobian = _mapping(metrics.get("jacobian"))
    if {"min", "max"} <= set(jacobian):
        low, high = (_short(jacobian[key]) for key in ("min", "max"))
        found.append(Highlight("range of |J|", f"{low} to {high}", "1 keeps the volume"))
    folds = metrics.get("folds")
    if isinstance(folds, int):
        found.append(Highlight("folded voxels", format_value(folds), "should be 0", alarming=folds > 0))
    inverse = _mapping(metrics.get("inverse_consistency_mm"))
    if "mean" in inverse:
        worst = f"max {format_measure(inverse['max'])} mm" if "max" in inverse else ""
        found.append(Highlight("inverse consistency", f"{format_measure(inverse['mean'])} mm", worst))
    seconds = _mapping(metrics.get("seconds"))
    if "total" in seconds:
        found.append(Highlight("time", f"{_short(seconds['total'])} s"))
    return [highlight for highlight in found if highlight is not None]


def file_paths(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return the paths of the fixed and the moving image, where they are known."""
    paths = {role: _mapping(metrics.get(role)).get("path") for role in ("fixed", "moving")}
    return {role: str(path) for role, path in paths.items() if path is not None}


def _mapping(value: Any) -> Mapping:
    return value if isinstance(value, Mapping) else {}


def _short(value: Any) -> str:
    """Return a number in few digits."""
    if not isinstance(value, float) or not 1e-2 <= abs(value) < 1e4:
        return format_measure(value)
    return f"{value:.{2 if abs(value) < 10 else 1}f}"


def _staged(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and set(value) <= set(STAGES)


def _change(name: str, stages: Any) -> Highlight | None:
    """Return the last stage of a measure, and the first as a detail."""
    if not _staged(stages):
        return None
    present = [key for key in STAGES if key in stages]
    first, last = present[0], present[-1]
    return Highlight(name, _cell(stages, last), f"{STAGES[first]} {_cell(stages, first)}" if first != last else "")


def _rows(values: Mapping, names: Mapping[str, str], above: str = "") -> Iterator[tuple[str, Any]]:
    """Give a name and a value, or a mapping of stages, for every leaf of a nested mapping."""
    for key, value in values.items():
        name = names.get(key, format_key(key))
        name = f"{above}, {name}" if above and name else above or name
        if _staged(value) and all(isinstance(part, Mapping) for part in value.values()):
            for part in dict.fromkeys(part for parts in value.values() for part in parts):
                yield f"{name}, {format_key(part)}", {stage: parts.get(part) for stage, parts in value.items()}
        elif isinstance(value, Mapping) and not _staged(value):
            yield from _rows(value, names, name)
        else:
            yield name, value


def _table(
    title: str,
    values: Any,
    names: Mapping[str, str] | None = None,
    as_text: Callable[[Any], str] = format_value,
) -> Table | None:
    """Return the table of a nested mapping, with one column per stage where it has stages; None where it is empty."""
    if values is None:
        return None
    rows = list(_rows(values if isinstance(values, Mapping) else {title: values}, names or {}))
    stages = [stage for stage in STAGES if any(isinstance(value, Mapping) and stage in value for _, value in rows)]
    cells = tuple(
        (name, *(_cell(value, stage) for stage in stages)) if isinstance(value, Mapping) else (name, as_text(value))
        for name, value in rows
    )
    return Table(title, ("", *(STAGES[stage] for stage in stages)) if stages else (), cells)


def _cell(values: Mapping, key: str) -> str:
    return format_measure(values[key]) if values.get(key) is not None else "n/a"


def _label_table(labels: Mapping[str, Mapping]) -> Table | None:
    """Return the table of labels: a row each, the mean first, and for every measure a column per stage."""
    columns: list[tuple[str, str | None]] = []
    measures = dict.fromkeys(measure for entry in labels.values() for measure in _mapping(entry))
    for measure in measures:
        parts = [entry[measure] for entry in labels.values() if measure in _mapping(entry)]
        if all(_staged(part) for part in parts):
            columns += [(measure, stage) for stage in STAGES if any(stage in part for part in parts)]
        else:
            columns.append((measure, None))
    if not columns:
        return None
    rows = []
    for label in sorted(labels, key=lambda label: label != "mean"):
        entry = _mapping(labels[label])
        cells = (_cell(_mapping(entry.get(m)), s) if s is not None else _cell(entry, m) for m, s in columns)
        rows.append((str(label), *cells))
    groups = [("", 1)] + [(format_key(m), sum(c[0] == m for c in columns)) for m in measures]
    head = ("label", *("" if stage is None else STAGES[stage] for _, stage in columns))
    return Table("Overlap of labels", head, tuple(rows), tuple(groups))


def _file_table(files: Mapping[str, Mapping]) -> Table | None:
    """Return the table of both images: a row for every property, a column for each image."""
    if not files:
        return None
    keys = dict.fromkeys(key for entry in files.values() for key in entry)
    rows = (
        (_FILE_WORDS.get(key, format_key(key)), *(_file_cell(key, entry.get(key)) for entry in files.values()))
        for key in keys
    )
    return Table("Images", ("", *files), tuple(rows), words=True)


_FILE_WORDS = {"path": "file", "shape": "voxels", "spacing": "spacing (mm)"}


def _file_cell(key: str, value: Any) -> str:
    if key in ("shape", "spacing") and isinstance(value, Sequence) and not isinstance(value, str):
        return " × ".join(format_value(item) for item in value)
    if isinstance(value, Mapping):
        return "; ".join(f"{name} {format_value(part)}" for name, part in _rows(value, {}))
    if key == "axcodes" and not isinstance(value, str):
        return "".join(value or ())
    return format_value(value)
