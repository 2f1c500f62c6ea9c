"""Landmarks as files: CSV tables, Slicer's markups (``.mrk.json``, older ``.fcsv``) and legacy VTK points.

In memory landmarks are always RAS millimetres. A file is in RAS or LPS: Slicer's markups say which; a VTK file may say
so in its title, as Slicer's models do (``SPACE=LPS``); otherwise, and for a CSV table, the caller must. ANTs' tables
are LPS.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..spatial.frame import SPACES, convert_points
from ..storage import atomic_path

SUFFIXES = (".csv", ".fcsv", ".mrk.json", ".vtk")
_MOST = 1 << 29  # bytes
_AXES = ("x", "y", "z")
_Coordinates, _Names = list[list[float]], Sequence[str] | None
_Found = tuple[_Coordinates, _Names, str | None]  # and the space that a file declares
_FCSV_COLUMNS = "id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID"
_FCSV_SPACES = {"0": "RAS", "1": "LPS"}
_SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)


@dataclass(frozen=True, eq=False)
class Points:
    """Landmarks in order.

    Args:
        coordinates: ``(N, 3)``, RAS mm; kept as float64.
        names: a name each, or None.
        space: of the file that they were read from; RAS for others.

    Raises:
        InputError: for another shape, values that are not finite, or another number of names.
    """

    coordinates: np.ndarray
    names: tuple[str, ...] | None = None
    space: str = "RAS"

    def __post_init__(self) -> None:
        array = np.asarray(self.coordinates, dtype=np.float64)
        if array.ndim != 2 or array.shape[1] != 3:
            raise InputError(f"points: need finite coordinates of shape (N, 3), got shape {array.shape}")
        if not (finite := np.isfinite(array).all(axis=1)).all():
            number = int(np.flatnonzero(~finite)[0])
            raise InputError(f"points: need finite coordinates, got {array[number].tolist()} as number {number + 1}")
        object.__setattr__(self, "coordinates", array)
        if self.names is not None:
            object.__setattr__(self, "names", tuple(str(name) for name in self.names))
            if len(self.names) != len(array):
                raise InputError(f"points: {len(array)} points have {len(self.names)} names; give each one or none")


def points_from(source: Any, space: str | None = None) -> Points:
    """Landmarks from a file (`read_points`), `Points`, or an array ``(N, 3)`` in mm, RAS unless ``space`` is LPS."""
    if isinstance(source, Points):
        return source
    if isinstance(source, str | os.PathLike):
        return read_points(source, space)
    try:
        array = np.asarray(source, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"points: {type(source).__name__} is no array of numbers; give a file or (N, 3) mm") from error
    return Points(convert_points(array, space or "RAS", "RAS") if array.shape[-1:] == (3,) else array)


def _suffix(path: Path) -> str:
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix):
            return suffix
    raise InputError(f"{path}: not a known kind of points file; its name must end with one of {', '.join(SUFFIXES)}")


def _read_text(path: Path) -> str:
    try:
        if not path.is_file():
            what = "is not a file; give the path of a" if path.exists() else "no such"
            raise InputError(f"{path}: {what} points file; check the path")
        if (size := path.stat().st_size) > _MOST:
            raise InputError(f"{path}: has {size} bytes, more than any points file; check the path")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({error}); need an ASCII or UTF-8 file") from error
    if not text.strip():
        raise InputError(f"{path}: is empty; it must hold points")
    return text


def _short(value: Any) -> str:
    text = repr(value) if isinstance(value, str | float | None) else f"a {type(value).__name__}"
    return text if len(text) < 80 else f"{text[:80]}..."


def _number(text: Any, place: str) -> float:
    try:
        value = np.nan if isinstance(text, bool) or "_" in str(text)[:80] else float(text)
    except (TypeError, ValueError, OverflowError):
        value = np.nan
    if not np.isfinite(value):
        raise InputError(f"{place}: need a finite number of mm, got {_short(text)}")
    return value


def _settle_space(declared: str | None, space: str | None, path: Path) -> str:
    for value in (declared, space):
        if value is not None and value not in SPACES:
            raise InputError(f"{path}: its space must be one of {', '.join(SPACES)}, got {_short(value)}")
    if declared and space and declared != space:
        raise InputError(f"{path}: says that its points are {declared}, but {space} was asked for; drop the argument")
    if not (declared or space):
        raise InputError(f"{path}: does not say whether its points are RAS or LPS; give its space, RAS or LPS")
    return declared or space


def _rows(path: Path, text: str) -> list[tuple[int, list[str]]]:
    """The rows of a table that hold anything, with the number of their (last) line."""
    # Not strict, a quote that is never closed takes all rows behind it for one cell.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        return [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: is no line of a table ({error}); mend it") from error


def _read_csv(path: Path) -> _Found:
    """Read a table with columns x, y, z and perhaps label; other columns are left alone."""
    (_, head), *rows = _rows(path, _read_text(path))
    header = [cell.strip().lower() for cell in head]
    if any(header.count(axis) != 1 for axis in _AXES):
        raise InputError(
            f"{path}: its first line must name the columns x, y and z once each, got {_short(','.join(head))}"
        )
    for line, row in rows:
        if len(row) != len(header):
            raise InputError(f"{path}, line {line}: need {len(header)} cells as in the header, got {len(row)}")
    return *_cells(path, header, rows), None


def _cells(path: Path, header: Sequence[str], rows: Sequence[tuple[int, list[str]]]) -> tuple[_Coordinates, _Names]:
    columns = [header.index(axis) for axis in _AXES]
    label = header.index("label") if "label" in header else None
    points = [
        [_number(row[c], f"{path}, line {line}, {a}") for a, c in zip(_AXES, columns, strict=True)]
        for line, row in rows
    ]
    return points, None if label is None else [row[label].strip() for _, row in rows]


def _read_fcsv(path: Path) -> _Found:
    """Read Slicer's older point list: comments say the space and name the columns."""
    text = _read_text(path)
    comments = [line[1:].partition("=") for line in text.splitlines() if line.startswith("#") and "=" in line]
    said = {name.strip(): value.strip() for name, _, value in comments}
    header = [name.strip() for name in said.get("columns", _FCSV_COLUMNS).split(",")]
    if any(header.count(axis) != 1 for axis in _AXES):
        raise InputError(f"{path}: its line '# columns' must name x, y and z once each; export it from Slicer anew")
    rows = [(line, row) for line, row in _rows(path, text) if not row[0].startswith("#")]
    least = 1 + max(header.index(name) for name in (*_AXES, "label") if name in header)
    for line, row in rows:
        if not least <= len(row) <= len(header):
            raise InputError(f"{path}, line {line}: need {len(header)} cells as its columns say, got {len(row)}")
    points, names = _cells(path, header, rows)
    space = said.get("CoordinateSystem")
    return points, names if names and any(names) else None, _FCSV_SPACES.get(str(space), space)


def _read_markups(path: Path) -> _Found:
    """Read the control points of Slicer's one markup in a file."""
    try:
        content = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits, lists in lists in lists
        raise InputError(f"{path}: is not JSON of Slicer ({error}); export it from Slicer anew") from error
    markups = content.get("markups") if isinstance(content, dict) else None
    if not isinstance(markups, list) or len(markups) != 1 or not isinstance(markups[0], dict):
        raise InputError(
            f"{path}: need a Slicer markups file with one entry in its list 'markups'; save one point list"
        )
    markup = markups[0]
    units = markup.get("coordinateUnits", "mm")
    if units not in ("mm", ["mm", "mm", "mm"]):
        raise InputError(f"{path}: its coordinateUnits are {_short(units)}; need mm")
    controls = markup.get("controlPoints")
    if not isinstance(controls, list) or not all(isinstance(control, dict) for control in controls):
        raise InputError(f"{path}: its markup holds no list 'controlPoints'; export it from Slicer anew")
    points, names = [], []
    for index, control in enumerate(controls):
        position, label = control.get("position"), control.get("label", "")
        if not isinstance(label, str):
            raise InputError(f"{path}, controlPoints[{index}]: its label is {_short(label)}; need text")
        place = f"{path}, controlPoints[{index}] ({label[:40] or 'no label'})"
        defined = control.get("positionStatus", "defined") == "defined"
        if not (defined and isinstance(position, list) and len(position) == 3):
            raise InputError(f"{place}: has no defined position of three numbers; place it or remove it")
        points.append([_number(value, place) for value in position])
        names.append(label)
    return points, names if any(names) else None, markup.get("coordinateSystem")


def _read_vtk(path: Path) -> _Found:
    """Read the points of a legacy ASCII polydata file."""
    lines = _read_text(path).splitlines()
    if not lines[0].startswith("# vtk DataFile") or len(lines) < 4:
        raise InputError(f"{path}: is not a legacy VTK file; its first line must start with '# vtk DataFile'")
    if lines[2].strip().upper() != "ASCII":
        raise InputError(f"{path}: is {lines[2].strip()[:20]!r}, need ASCII; save it as an ASCII file")
    words = " ".join(lines[3:]).split()
    kind = [word.upper() for word in words[:3]]
    if kind != ["DATASET", "POLYDATA", "POINTS"]:
        raise InputError(f"{path}: need DATASET POLYDATA with its POINTS first, got {_short(' '.join(words[:3]))}")
    try:
        count = int(words[3])
    except (IndexError, ValueError) as error:
        raise InputError(
            f"{path}: POINTS must be followed by their number and type, got {_short(' '.join(words[3:5]))}"
        ) from error
    end = 5 + 3 * max(count, 0)
    values = words[5:end]
    if count < 0 or len(values) < 3 * count:
        raise InputError(f"{path}: holds {len(values)} numbers for {_short(words[3])} points; it is cut off")
    numbers = [_number(value, f"{path}, point {i // 3}") for i, value in enumerate(values)]
    if len(words) > end and not words[end][0].isalpha():
        raise InputError(f"{path}: announces {count} points, but {_short(words[end])} follows them; save it anew")
    space = next((word[6:] for word in lines[1].split() if word.startswith("SPACE=")), None)
    return [numbers[i : i + 3] for i in range(0, len(numbers), 3)], None, space


def read_points(path: str | os.PathLike, space: str | None = None) -> Points:
    """Read landmarks in the file's order, as RAS.

    Args:
        path: ``.csv`` with a header that names x, y and z (and perhaps label), ``.mrk.json`` of Slicer with one markup,
            Slicer's older ``.fcsv``, or ``.vtk``, legacy ASCII polydata. All in mm.
        space: ``"RAS"`` or ``"LPS"``: world of a file that does not say its own. For one that does, it may only agree.

    Raises:
        InputError: if the file is missing, unreadable, of another kind, or has a bad value (line or point named), or if
            its space is unknown or contradicted.
    """
    path = Path(path)
    readers = {".fcsv": _read_fcsv, ".csv": _read_csv, ".mrk.json": _read_markups, ".vtk": _read_vtk}
    points, names, declared = readers[_suffix(path)](path)
    array = np.asarray(points, dtype=np.float64).reshape(-1, 3)
    space = _settle_space(declared, space, path)
    return Points(convert_points(array, space, "RAS"), names, space)


def _csv_lines(points: _Coordinates, names: _Names, space: str) -> list[list]:
    if names is None:
        return [list(_AXES), *points]
    return [[*_AXES, "label"], *([*point, name] for point, name in zip(points, names, strict=True))]


def _fcsv_lines(points: _Coordinates, names: _Names, space: str) -> list[list]:
    """The lines of Slicer's older point list, as its version 4.11 writes them."""
    head = [["# Markups fiducial file version = 4.11"], [f"# CoordinateSystem = {space}"]]
    rows = [[n + 1, *point, *"0001110", names[n] if names else "", "", ""] for n, point in enumerate(points)]
    return [*head, f"# columns = {_FCSV_COLUMNS}".split(","), *rows]


def _markups(points: _Coordinates, names: _Names, space: str) -> dict[str, Any]:
    names = names or [""] * len(points)
    controls = [
        {"id": str(n + 1), "label": names[n], "position": point, "positionStatus": "defined"}
        for n, point in enumerate(points)
    ]
    markup = {"type": "Fiducial", "coordinateSystem": space, "coordinateUnits": "mm", "controlPoints": controls}
    return {"@schema": _SCHEMA, "markups": [markup]}


def _vtk_text(points: _Coordinates, space: str) -> str:
    """A legacy VTK file: the points, each one a vertex so that viewers show it."""
    count = len(points)
    head = ["# vtk DataFile Version 3.0", f"points SPACE={space}", "ASCII", "DATASET POLYDATA"]
    body = [" ".join(map(repr, point)) for point in points]
    return "\n".join(
        [*head, f"POINTS {count} double", *body, f"VERTICES {count} {2 * count}", *(f"1 {i}" for i in range(count)), ""]
    )


def write_points(points: Points, path: str | os.PathLike, space: str) -> None:
    """Write landmarks, whole or not at all, with all digits; ``.vtk`` has no place for names.

    ``space``, ``"RAS"`` or ``"LPS"``, is the world of the file; all but CSV files say it themselves. InputError for
    another, or a suffix that is none of `SUFFIXES`.
    """
    path = Path(path)
    suffix = _suffix(path)
    found = convert_points(points.coordinates, "RAS", space).tolist()
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as stream:
        if suffix in (".csv", ".fcsv"):
            lines = _csv_lines if suffix == ".csv" else _fcsv_lines
            csv.writer(stream, lineterminator="\n").writerows(lines(found, points.names, space))
        elif suffix == ".mrk.json":
            json.dump(_markups(found, points.names, space), stream, indent=1)
        else:
            stream.write(_vtk_text(found, space))
