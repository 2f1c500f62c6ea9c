"""Rows in a form that is small enough to be committed, so that what one machine has measured is not lost with it.

A file for each data set, ``DATASET.jsonl.xz``. A line holds what all pairs of a method have in common (settings,
parameters, machine, versions) and, as ``pairs``, a list for each measure with an entry for each pair; a measure of a
measure, such as the Dice of label 1, is named by both, ``labels/1/dice``. Lines are in the order of their methods.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from scripts.errors import InputError
from scripts.storage import atomic_path

__all__ = ["pack", "read_archive", "unpack", "write_archive"]

_DIGITS = 8  # more than verifying asks for
_NESTED = ("labels", "learn2reg")
_SHARED = (
    "method",
    "name",
    "dataset",
    "family",
    "mode",
    "title",
    "settings",
    "threads",
    "deterministic",
    "parameters",
    "data",
    "machine",
    "versions",
)


def pack(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows as lines of an archive.

    Args:
        rows: of `rows.Store`.
    """
    groups: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {}
    for row in rows:
        shared = {key: row[key] for key in _SHARED if key in row}
        own = _flat({key: value for key, value in row.items() if key not in _SHARED})
        groups.setdefault(json.dumps(shared, sort_keys=True), (shared, []))[1].append(own)
    lines = []
    for shared, pairs in groups.values():
        pairs.sort(key=lambda pair: pair["pair"])
        keys = list(dict.fromkeys(key for pair in pairs for key in pair))
        lines.append({**shared, "pairs": {key: [pair.get(key) for pair in pairs] for key in keys}})
    return sorted(lines, key=lambda line: (line["method"], line["settings"], line["pairs"]["pair"]))


def unpack(line: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a line of an archive; what a pair does not have is left out."""
    shared = {key: value for key, value in line.items() if key != "pairs"}
    columns = line["pairs"]
    rows = []
    for values in zip(*columns.values(), strict=True):
        row = dict(shared)
        for key, value in zip(columns, values, strict=True):
            if value is not None:
                *parents, last = key.split("/")
                place = row
                for name in parents:
                    place = place.setdefault(name, {})
                place[last] = value
        rows.append(row)
    return rows


def read_archive(folder: Path | None) -> list[dict[str, Any]]:
    """All rows of an archive; none without a folder or files.

    Raises:
        InputError: for a line that is no line of an archive.
    """
    rows = []
    for path in sorted(folder.glob("*.jsonl.xz")) if folder is not None else []:
        try:
            lines = lzma.decompress(path.read_bytes()).decode().splitlines()
        except (lzma.LZMAError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: cannot be read ({error}); restore the file from version control") from error
        for number, text in enumerate(lines, 1):
            try:
                rows += unpack(json.loads(text))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise InputError(
                    f"{path}: line {number} holds no rows ({error}); restore the file from version control"
                ) from error
    return rows


def write_archive(rows: Iterable[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Write rows, a file for each data set, in place of those that are there.

    Args:
        rows: of `rows.Store`.
        folder: created if need be.

    Returns:
        The files.
    """
    sets: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        sets.setdefault(row["dataset"], []).append(row)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, mine in sorted(sets.items()):
        lines = [json.dumps(_rounded(line), separators=(",", ":")) for line in pack(mine)]
        path = folder / f"{name}.jsonl.xz"
        with atomic_path(path) as temporary:
            temporary.write_bytes(lzma.compress(("\n".join(lines) + "\n").encode(), preset=9 | lzma.PRESET_EXTREME))
        written.append(path)
    return written


def _flat(row: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Measures of measures by one name each; what a method tells of itself stays as it is."""
    found = {}
    for key, value in row.items():
        if isinstance(value, Mapping) and (before or key in _NESTED):
            found |= _flat(value, f"{before}{key}/")
        else:
            found[f"{before}{key}"] = value
    return found


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(entry) for entry in value]
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value
