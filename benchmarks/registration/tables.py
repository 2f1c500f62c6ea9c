"""Tables 1 and 2 from the rows: Markdown for people, CSV for further work."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scripts.storage import atomic_path

from .cases import MODES
from .methods import of_table1, order
from .protocol import head
from .timing import elsewhere, with_times

__all__ = ["ABLATION", "ABLATION_ROWS", "Cell", "by_method", "cell", "write_tables"]

ABLATION = "ablation-"
ABLATION_PARTS = ("Af-Reg", "Af-Multi", "Af-Sym", "Af-MK", "vSVF", "vSVF-MK", "vSVF-Multi", "vSVF-Sym")
ABLATION_ROWS = ("I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX")
"""Row n of the paper's Table 2 has the first n - 1 of the parts."""

_MEASURES = (
    "dice",
    "dice_affine",
    "hd95",
    "assd",
    "folds",
    "folds_sum",
    "folds_central",
    "folds_central_sum",
    "std_log_jacobian",
    "symmetry_ln",
    "symmetry_mm",
    "inverse_consistency_mm",
    "map_error_mm",
    "seconds",
    "cpu_seconds",
    "seconds_gpu",
)
_MODE_NAMES = {"longitudinal": "longitudinal", "cross_subject": "cross-subject"}
Rows = Sequence[Mapping[str, Any]]


class Cell:
    """Rows of one method on one data set.

    Args:
        rows: of its pairs, failed ones included.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows = list(rows)
        self.done = [row for row in rows if row["status"] == "done"]
        self.failed = len(self.rows) - len(self.done)

    def values(self, key: str) -> np.ndarray:
        """A measure of the pairs that have it."""
        found = [row[key] for row in self.done if row.get(key) is not None]
        return np.array(found, dtype=np.float64)

    def mean(self, key: str) -> float:
        """NaN where no pair has it."""
        values = self.values(key)
        return float(values.mean()) if values.size else math.nan

    def std(self, key: str) -> float:
        """Of the sample; NaN below two pairs."""
        values = self.values(key)
        return float(values.std(ddof=1)) if values.size > 1 else math.nan


def by_method(rows: Rows) -> dict[str, Cell]:
    """Cells of one data set in the order of the tables; what the registry does not know comes last."""
    known = {name: number for number, name in enumerate(order())}

    def place(name: str) -> tuple[int, str]:
        # A variant stands beside the method that it is one of: the longest known name that it begins with.
        base = max((one for one in known if name == one or name.startswith(f"{one}-")), key=len, default="")
        return known.get(base, len(known)), name

    names = sorted({row["method"] for row in rows}, key=place)
    return {name: Cell([row for row in rows if row["method"] == name]) for name in names}


def cell(rows: Rows) -> Cell:
    """A cell of rows."""
    return Cell(rows)


def number(value: float, digits: int = 3) -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def spread(found: Cell, key: str, digits: int = 3) -> str:
    """Mean (standard deviation); how many pairs it is of where these are not all."""
    text, count = number(found.mean(key), digits), len(found.values(key))
    if math.isfinite(found.std(key)):
        text += f" ({number(found.std(key), digits)})"
    return text if count in (0, len(found.done)) else f"{text}, {count} of {len(found.done)} pairs"


def _folds(found: Cell, key: str) -> str:
    """Mean count, and the mean sum of |J| where there is any."""
    count = found.mean(key)
    if not math.isfinite(count):
        return "–"
    return "0" if count == 0 else f"{count:.3g} [{found.mean(f'{key}_sum'):.2g}]"


def _seconds(found: Cell, key: str) -> str:
    """A mean, marked where it is of another machine than the table's."""
    value = found.mean(key)
    if not math.isfinite(value):
        return "not measured"
    mark = " †" if elsewhere(found.done, "gpu" if key == "seconds_gpu" else "cpu") else ""
    return (f"{value:.2g}" if value < 10 else f"{value:.0f}") + mark


def _pairs(found: Cell) -> str:
    return f"{len(found.done)}" + (f", {found.failed} failed" if found.failed else "")


def _markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    table = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return "\n".join([*table, *(f"| {' | '.join(line)} |" for line in lines)]) + "\n"


def _title(found: Cell) -> str:
    return found.rows[0]["name"]


def _of(rows: Rows, **values: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if all(row[key] == value for key, value in values.items())]


def table1(rows: Rows, absent: Mapping[str, str]) -> str:
    """The paper's Table 1 of one family, and below it all measures of each of its data sets.

    Args:
        rows: of one family, without the ablation's; their times as `with_times` gives them.
        absent: method → why it could not run.
    """
    modes = [mode for mode in MODES if _of(rows, mode=mode)]
    cells = {mode: by_method(_of(rows, mode=mode)) for mode in modes}
    names = list(by_method(rows))
    header = ["method"]
    for mode in modes:
        header += [f"{_MODE_NAMES[mode]}: Dice", "folds, corners", "folds, central"]
    header += ["CPU: processor s", "wall s", "GPU s", "timed pairs", "pairs"]
    lines = []
    for name in names:
        found = [cells[mode].get(name) for mode in modes]
        line = [next(_title(one) for one in found if one is not None)]
        for one in found:
            if one is None:
                line += ["not run", "–", "–"]
            elif not one.done:
                line += [f"failed: {one.rows[0]['error']}".replace("|", "/"), "–", "–"]
            else:
                line += [spread(one, "dice"), _folds(one, "folds"), _folds(one, "folds_central")]
        # Time does not know of modes: the mean over all pairs, as the paper gives it.
        both = Cell(_of(rows, method=name))
        line += [_seconds(both, key) for key in ("cpu_seconds", "seconds", "seconds_gpu")]
        line += [str(len(both.values("cpu_seconds")))]
        line += [" + ".join(_pairs(one) for one in found if one is not None)]
        lines.append(line)
    for name, reason in absent.items():
        if name not in names:
            lines.append([f"`{name}`", f"not run: {reason}", *[""] * (len(header) - 2)])
    text = _markdown(header, lines)
    for mode in modes:
        text += f"\n### More measures: {_of(rows, mode=mode)[0]['title']}\n\n" + _details(cells[mode])
    return text


def _details(cells: Mapping[str, Cell]) -> str:
    header = ["method", "Dice after its affine", "HD95, mm", "std log J", "symmetry (ln)", "symmetry, mm"]
    header += ["there and back by its own inverse, mm", "error to the true map, mm"]
    keys = (
        "dice_affine",
        "hd95",
        "std_log_jacobian",
        "symmetry_ln",
        "symmetry_mm",
        "inverse_consistency_mm",
        "map_error_mm",
    )
    digits = (3, 2, 3, 2, 2, 3, 2)
    lines = [
        [_title(one), *(spread(one, key, places) for key, places in zip(keys, digits, strict=True))]
        for one in cells.values()
        if one.done
    ]
    return _markdown(header, lines)


def table2(rows: Rows) -> str:
    """The paper's Table 2 of one family from the ablation's rows; rows that were not run say so."""
    modes = [mode for mode in MODES if _of(rows, mode=mode)]
    header = ["row", *ABLATION_PARTS]
    for mode in modes:
        header += [f"{_MODE_NAMES[mode]}: Dice", "folds, corners", "symmetry (ln)", "better?"]
    header += ["training"]
    lines, before = [], dict.fromkeys(modes, math.nan)
    for number_, name in enumerate(ABLATION_ROWS):
        line = [name, *("✓" if part < number_ else "" for part in range(len(ABLATION_PARTS)))]
        training = "not run"
        for mode in modes:
            found = Cell(_of(rows, mode=mode, method=f"{ABLATION}{name}"))
            if not found.done:
                line += ["failed" if found.failed else "not run", "–", "–", ""]
                continue
            dice = found.mean("dice")
            better = "" if math.isnan(before[mode]) else ("✓" if dice > before[mode] else "✗")
            line += [spread(found, "dice"), _folds(found, "folds"), spread(found, "symmetry_ln", 2), better]
            before[mode] = dice
            training = found.done[0]["parameters"].get("training", "")
        lines.append([*line, training])
    return _markdown(header, lines)


def learn2reg_table(rows: Rows) -> str:
    """Our measures beside those of Learn2Reg's script, from the files written for it."""
    found = {name: one for name, one in by_method([row for row in rows if row.get("learn2reg")]).items() if one.done}
    header = ["method", "pairs", "Dice: ours", "its", "largest difference", "HD95: ours", "its", "largest difference"]
    header += ["std log J: ours", "its", "with its offset of 3"]
    lines = []
    for one in found.values():
        theirs = {
            key: [row["learn2reg"][key] for row in one.done] for key in ("dice", "hd95", "sdlogj", "sdlogj_script")
        }
        line = [_title(one), str(len(one.done))]
        for key, places in (("dice", 4), ("hd95", 3)):
            pairs = [(row[key], other) for row, other in zip(one.done, theirs[key], strict=True)]
            gaps = [abs(a - b) for a, b in pairs if a is not None and b is not None]
            line += [number(one.mean(key), places), number(_mean(theirs[key]), places), number(max(gaps), places)]
        line += [number(one.mean("std_log_jacobian")), *(number(_mean(theirs[k])) for k in ("sdlogj", "sdlogj_script"))]
        lines.append(line)
    return _markdown(header, lines)


def _mean(values: Iterable[float | None]) -> float:
    found = [value for value in values if value is not None]
    return float(np.mean(found)) if found else math.nan


def csv_text(rows: Rows) -> str:
    """Mean and standard deviation of every measure, a line for each method and data set."""
    stream = io.StringIO()
    columns = ["family", "dataset", "mode", "method", "name", "pairs", "failed", "threads", "settings"]
    columns += [f"{key}_{kind}" for key in _MEASURES for kind in ("mean", "std")]
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    for data_set in dict.fromkeys(row["dataset"] for row in rows):
        for name, found in by_method(_of(rows, dataset=data_set)).items():
            first = found.rows[0]
            line = {key: first[key] for key in ("family", "dataset", "mode", "name", "threads", "settings")}
            line |= {"method": name, "pairs": len(found.done), "failed": found.failed}
            for key in _MEASURES:
                line |= {f"{key}_mean": _plain(found.mean(key)), f"{key}_std": _plain(found.std(key))}
            writer.writerow(line)
    return stream.getvalue()


def pairs_csv(rows: Rows) -> str:
    """Every row of one family, a line for each pair."""
    stream = io.StringIO()
    columns = ["dataset", "method", "pair", "status", "error", *_MEASURES]
    writer = csv.DictWriter(stream, columns, extrasaction="ignore", restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _plain(row[key]) for key in columns if row.get(key) is not None})
    return stream.getvalue()


def _plain(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return f"{value:.6g}" if math.isfinite(value) else ""


def write_tables(
    rows: Rows, absent: Mapping[str, Mapping[str, str]], folder: Path, csv_files: bool = True
) -> list[Path]:
    """Write all tables that there are rows for.

    Args:
        rows: of `current`.
        absent: of `Store.absent`.
        folder: created if need be.
        csv_files: also write all measures and rows as CSV.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []

    def write(name: str, text: str) -> None:
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text)
        written.append(folder / name)

    for family in dict.fromkeys(row["family"] for row in rows):
        mine = _of(rows, family=family)
        ablation = [row for row in mine if row["method"].startswith(ABLATION)]
        methods = [row for row in mine if not row["method"].startswith(ABLATION)]
        timed = iter(with_times(methods))
        mine = [row if row["method"].startswith(ABLATION) else next(timed) for row in mine]
        methods = [row for row in mine if of_table1(row["method"])]
        for name, chosen, make, title in (
            ("table1", methods, lambda some: table1(some, absent["methods"]), "Table 1: methods"),
            ("table2", ablation, table2, "Table 2: ablation"),
            ("learn2reg", [row for row in methods if row.get("learn2reg")], learn2reg_table, "Learn2Reg's measures"),
        ):
            if chosen:
                sets = {row["dataset"]: {**row["data"], "title": row["title"]} for row in chosen}
                text = f"# {title}, {family}\n\n" + "\n".join(head(chosen, sets)) + "\n\n" + make(chosen)
                write(f"{name}_{family}.md", text)
        if csv_files:
            write(f"measures_{family}.csv", csv_text(mine))
            write(f"pairs_{family}.csv", pairs_csv(mine))
    return written
