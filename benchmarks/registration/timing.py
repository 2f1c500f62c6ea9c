"""Times of one machine: a row's own, and those of rows that were timed once more beside all others.

Rows come from the machines of many sessions, and processors differ by more than methods do. The option ``times``
registers pairs again, all methods in one go, and keeps the seconds as ``timings`` of their rows, an entry for each
machine. A table shows the times of one machine; of a method that was never timed on it those of another, marked.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["add_timing", "elsewhere", "timed_on", "with_times"]

_CPU, _GPU = ("seconds", "cpu_seconds"), ("seconds_gpu",)


def add_timing(row: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """A row with the times of a second measurement, in place of earlier ones of that machine.

    Args:
        row: as it was.
        found: the same row, measured again.

    Returns:
        The row with its first measures and times, ``timings``, and the time of the second measurement as its own, so
        that it wins over copies of the first.
    """
    entry = {key: found[key] for key in ("machine", *_CPU, *_GPU)}
    others = [one for one in row.get("timings", []) if one["machine"] != entry["machine"]]
    return {**row, "timings": [*others, entry], "time": found["time"]}


def with_times(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of one table with the times of one machine, as far as it has any.

    It is the machine that most methods were timed on by the option ``times``; without any, that on which most were
    measured; of several the latest. Processor and wall seconds are of one machine, seconds on a GPU of one with a GPU.

    Args:
        rows: done and failed ones of all methods of the table.

    Returns:
        Copies. Their times are None where the pair was not timed on the machine but others of its method were; where no
        pair of a method was, they keep their own. ``times_of`` tells which, for `timed_on` and `elsewhere`.
    """
    copies = [{**row, "times_of": {}} for row in rows]
    for kind, keys in (("cpu", _CPU), ("gpu", _GPU)):
        _choose(copies, kind, keys)
    return copies


def timed_on(rows: Iterable[Mapping[str, Any]], kind: str) -> Mapping[str, Any] | None:
    """The machine of the times of rows of `with_times`; None where there are none.

    Args:
        rows: of one table; those of others have none.
        kind: ``"cpu"`` or ``"gpu"``.
    """
    return next((one["machine"] for row in rows if (one := _told(row, kind)) and one["here"]), None)


def elsewhere(rows: Iterable[Mapping[str, Any]], kind: str) -> bool:
    """Whether any times of rows of `with_times` are of another machine than the table's."""
    return any((one := _told(row, kind)) and not one["here"] for row in rows)


def _told(row: Mapping[str, Any], kind: str) -> Mapping[str, Any] | None:
    return row.get("times_of", {}).get(kind)


def _choose(rows: list[dict[str, Any]], kind: str, keys: Sequence[str]) -> None:
    entries = [[one for one in _entries(row) if one.get(keys[-1]) is not None] for row in rows]
    chosen = _machine(rows, entries)
    methods: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        methods.setdefault(row["method"], []).append(index)
    for indices in methods.values():
        timed = {index: _entry(entries[index], chosen) for index in indices}
        # Times of the option were taken side by side; they are not mixed with those of single runs.
        best = max((one["again"] for one in timed.values() if one), default=None)
        for index in indices:
            if best is None and entries[index]:
                rows[index]["times_of"][kind] = {"machine": rows[index]["machine"], "here": False}
            elif best is not None:
                one = timed[index]
                shown = one if one and one["again"] == best else None
                rows[index].update({key: shown[key] if shown else None for key in keys})
                if shown:
                    rows[index]["times_of"][kind] = {"machine": shown["machine"], "here": True}


def _entries(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All times of a row, those of the option, which have ``again``, first."""
    if row["status"] != "done":
        return []
    own = {key: row.get(key) for key in (*_CPU, *_GPU)}
    again = [{**one, "again": True} for one in row.get("timings", [])]
    return [*again, {**own, "machine": row["machine"], "again": False}]


def _entry(entries: Iterable[Mapping[str, Any]], chosen: str | None) -> Mapping[str, Any] | None:
    return next((one for one in entries if _key(one) == chosen), None)


def _machine(rows: Sequence[Mapping[str, Any]], entries: Sequence[Sequence[Mapping[str, Any]]]) -> str | None:
    """The machine of the times, by its key; None where nothing was timed."""
    again: dict[str, set[str]] = {}
    timed: dict[str, set[str]] = {}
    latest: dict[str, float] = {}
    for row, mine in zip(rows, entries, strict=True):
        for one in mine:
            key = _key(one)
            timed.setdefault(key, set()).add(row["method"])
            latest[key] = max(latest.get(key, row["time"]), row["time"])
            if one["again"]:
                again.setdefault(key, set()).add(row["method"])
    return max(timed, key=lambda key: (len(again.get(key, ())), len(timed[key]), latest[key]), default=None)


def _key(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry["machine"], sort_keys=True)
