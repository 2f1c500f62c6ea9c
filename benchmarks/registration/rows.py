"""What has been measured, one small JSON file for each method, data set and pair, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from scripts.storage import atomic_path, plain

from .archive import read_archive

__all__ = ["Store", "settings_key"]

PROTOCOL = 1
"""Raised when what is measured changes, so that older rows are measured anew."""


def settings_key(**parts: Any) -> str:
    """A short hash of everything that decides a row."""
    text = json.dumps(plain({"protocol": PROTOCOL, **parts}), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _word(name: str) -> str:
    """A name as part of a path."""
    return re.sub(r"[^\w.+-]+", "_", name)


class Store:
    """The rows below a folder, and those that earlier sessions have committed.

    Args:
        folder: created when the first row is written.
        archive: folder of rows as `archive` keeps them, which is only read; of a pair that both hold, the row that was
            measured last counts. None for none.

    Raises:
        InputError: for an archive that cannot be read.
    """

    def __init__(self, folder: Path, archive: Path | None = None) -> None:
        self.folder = Path(folder)
        self._kept = {self.path(row["dataset"], row["method"], row["pair"]): row for row in read_archive(archive)}

    def path(self, data_set: str, method: str, pair: str) -> Path:
        """Where a row lies."""
        return self.folder / "rows" / _word(data_set) / _word(method) / f"{_word(pair)}.json"

    def read(self, data_set: str, method: str, pair: str) -> dict[str, Any] | None:
        """A row; None where there is none that can be read."""
        path = self.path(data_set, method, pair)
        return _later(_read(path), self._kept.get(path))

    def write(self, row: Mapping[str, Any]) -> None:
        """Write a row; an earlier one of the same pair goes."""
        self._write(self.path(row["dataset"], row["method"], row["pair"]), row)

    def rows(self) -> list[dict[str, Any]]:
        """All rows, in the order of their paths."""
        paths = sorted({*self.folder.glob("rows/*/*/*.json"), *self._kept})
        found = (_later(_read(path), self._kept.get(path)) for path in paths)
        return [row for row in found if row is not None]

    def write_absent(self, absent: Mapping[str, Mapping[str, str]]) -> None:
        """Keep why methods or data sets could not be run: kind → name → line."""
        self._write(self.folder / "absent.json", absent)

    def absent(self) -> dict[str, dict[str, str]]:
        """What `write_absent` has kept."""
        return {"methods": {}, "datasets": {}, **(_read(self.folder / "absent.json") or {})}

    def _write(self, path: Path, content: Mapping[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(plain(content), indent=1) + "\n")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _later(one: dict[str, Any] | None, other: dict[str, Any] | None) -> dict[str, Any] | None:
    """Of two rows of a pair the one that was measured last."""
    if one is None or other is None:
        return one or other
    return one if one["time"] >= other["time"] else other


def current(rows: Iterable[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], int]:
    """Of each method on each data set the rows that were measured with the settings of the latest one.

    Rows of a data set that was made otherwise (in another size, say) than for its latest row are left out, too: no
    table compares methods on different images.

    Returns:
        These rows, and how many others were left out.
    """
    rows = list(rows)
    newest: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        if row["dataset"] not in newest or row["time"] > newest[row["dataset"]]["time"]:
            newest[row["dataset"]] = row
    count = len(rows)
    rows = [row for row in rows if plain(row["data"]) == plain(newest[row["dataset"]]["data"])]
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["dataset"], row["method"]), []).append(row)
    kept = []
    for group in groups.values():
        latest = max(group, key=lambda row: row["time"])["settings"]
        kept += [row for row in group if row["settings"] == latest]
    return kept, count - len(kept)
