"""The text headers of NRRD and MetaImage files: what ITK reads in them without a word, and where the voxels are."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from ..errors import InputError
from .reading import check_size, unpacked_size, unreadable

_MOST_LINES = 10_000
_LONGEST_LINE = 1 << 16
# MetaImage's fields of numbers: n of them in n dimensions, or n to the power given.
_META_NUMBERS = {"DimSize": 1, "ElementSpacing": 1, "ElementSize": 1}
_META_NUMBERS |= dict.fromkeys(("Offset", "Position", "Origin"), 1)
_META_NUMBERS |= dict.fromkeys(("TransformMatrix", "Rotation", "Orientation"), 2)
_META_SCALING = {"Slope": 1.0, "Offset": 0.0}
# The worlds that ITK's NRRD reader turns to LPS; any other it takes for LPS.
_NRRD_SPACES = ("right-anterior-superior", "left-anterior-superior", "left-posterior-superior", "ras", "las", "lps")


@dataclass
class TextHeader:
    """A header's fields and the place of its voxels.

    Attributes:
        fields: value of each field as written; NRRD's names in lower case.
        data: file that holds the voxels; None where they are spread over several.
        start: byte of ``data`` at which they start.
        packing: ``"raw"``, ``"zip"`` for gzip and zlib, or ``""`` for an encoding of which only ITK knows the length.
        notes: what ITK reads without a word and a user should know.
    """

    fields: dict[str, str]
    data: Path | None = None
    start: int = 0
    packing: str = ""
    notes: list[str] = field(default_factory=list)


def read_header(file: Path) -> TextHeader:
    """The header of a ``.nrrd``, ``.nhdr``, ``.mha`` or ``.mhd`` file.

    Raises:
        InputError: if it is not one, a number of the geometry is not a finite number, or its data file is missing.
    """
    nrrd = file.suffix.lower() in (".nrrd", ".nhdr")
    with file.open("rb") as stream:
        header = TextHeader(_nrrd_fields(stream) if nrrd else _meta_fields(stream), file, stream.tell())
    if not header.fields:
        raise unreadable(file, f"it has no {'NRRD' if nrrd else 'MetaImage'} header")
    (_examine_nrrd if nrrd else _examine_meta)(file, header)
    if header.data is not None and not header.data.is_file():
        raise InputError(f"{file}: its data file {header.data} does not exist; put it there or mend the header")
    return header


def check_data(file: Path, header: TextHeader, expected: int) -> None:
    """Refuse voxels that are truncated or damaged, of which ITK reads some without a word.

    Args:
        file: the image.
        header: its header; a note is added where the data file holds more than the header tells of.
        expected: bytes of all voxels.

    Raises:
        InputError: if they are.
    """
    if header.data is None or not header.packing:
        return
    if header.packing == "raw":
        found = header.data.stat().st_size - header.start
        if found > expected:
            header.notes.append(f"{header.data.name} holds {found - expected} bytes more than the header tells of")
    else:
        with header.data.open("rb") as stream:
            stream.seek(header.start)
            found = unpacked_size(file, stream)
    check_size(file, found, expected)


def _lines(stream: BinaryIO) -> Iterator[str]:
    """Lines of a header as text; no more than one can have."""
    for line in islice(iter(lambda: stream.readline(_LONGEST_LINE), b""), _MOST_LINES):
        yield line.decode("latin-1").strip()


def _nrrd_fields(stream: BinaryIO) -> dict[str, str]:
    """Fields of a NRRD header; the stream is left at the first byte after it. Empty if it is none."""
    lines, fields = _lines(stream), {}
    if not next(lines, "").startswith("NRRD"):
        return {}
    for line in lines:
        if not line:
            break
        name, colon, value = line.partition(":")
        if colon and not line.startswith("#") and not value.startswith("="):
            fields[name.strip().lower()] = value.strip()
    return fields


def _meta_fields(stream: BinaryIO) -> dict[str, str]:
    """Fields of a MetaImage header; the stream is left at the first byte after it. Empty if it is none."""
    fields = {}
    for line in _lines(stream):
        name, sign, value = line.partition("=")
        if not sign:
            continue
        fields[name.strip()] = value.strip()
        if name.strip() == "ElementDataFile":
            return fields
    return {}


def _beside(file: Path, name: str) -> Path | None:
    """A data file named in a header; None for a list or a pattern of files."""
    if not name or "%" in name or name.split()[0].upper() == "LIST":
        return None
    return Path(os.path.normpath(file.parent / name))


def _examine_nrrd(file: Path, header: TextHeader) -> None:
    fields, notes = header.fields, header.notes
    external = fields.get("data file", fields.get("datafile"))
    if external is not None:
        header.data, header.start = _beside(file, external), 0
    for name in ("space directions", "space origin"):
        words = re.findall(r"[^\s(),]+", fields.get(name, ""))
        if not all(word == "none" or math.isfinite(_number(word)) for word in words):
            raise InputError(
                f"{file}: {name} {fields[name][:80]} in its header must be finite numbers; mend the header"
            )
    encoding = fields.get("encoding", "").lower()
    skips = any(fields.get(name, "0") != "0" for name in ("line skip", "lineskip", "byte skip", "byteskip"))
    if not skips:
        header.packing = {"raw": "raw", "gzip": "zip", "gz": "zip"}.get(encoding, "")
    if "space directions" not in fields:
        notes.append(
            "no space directions: the axes are taken for left, posterior, superior"
            + ("" if "spacings" in fields else ", voxels for 1 mm")
        )
    elif fields.get("space", "").lower() not in _NRRD_SPACES:
        notes.append(f"space '{fields.get('space', '')}' is read as left-posterior-superior")
    if set(fields.get("space units", "mm").replace('"', " ").split()) - {"mm"}:
        notes.append(f"space units {fields['space units']} are read as mm")


def _examine_meta(file: Path, header: TextHeader) -> None:
    fields, notes = header.fields, header.notes
    _check_meta_numbers(file, fields)
    name = fields["ElementDataFile"]
    if name.upper() != "LOCAL":
        header.data, header.start = _beside(file, name), 0
    truth = {key: fields.get(key, "").lower().startswith(("t", "1")) for key in ("BinaryData", "CompressedData")}
    if truth["CompressedData"]:
        header.packing = "zip"
    elif truth["BinaryData"] and fields.get("HeaderSize", "0") == "0":
        header.packing = "raw"
    if "ElementSpacing" not in fields and "ElementSize" not in fields:
        notes.append("no ElementSpacing: voxels are taken for 1 mm")
    if not {"TransformMatrix", "Rotation", "Orientation"} & fields.keys():
        notes.append("no TransformMatrix: the axes are taken for left, posterior, superior")
    if fields.get("DistanceUnits", "mm").lower() not in ("mm", "?"):
        notes.append(f"DistanceUnits {fields['DistanceUnits']} are read as mm")
    scaling = [_number(fields.get(f"ElementToIntensityFunction{name}", str(x))) for name, x in _META_SCALING.items()]
    if scaling != list(_META_SCALING.values()):
        notes.append("its ElementToIntensityFunction is not applied, as in ITK: voxels are as stored")


def _check_meta_numbers(file: Path, fields: Mapping[str, str]) -> None:
    """ITK reads 0 where a MetaImage header has a word or NaN."""
    try:
        dimensions = int(fields.get("NDims", ""))
    except ValueError as error:
        raise unreadable(file, f"NDims = {fields.get('NDims', '')} in its header is no number of axes") from error
    for name, power in _META_NUMBERS.items():
        if name not in fields:
            continue
        numbers, count = [_number(word) for word in fields[name].split()], dimensions**power
        sound = len(numbers) == count and all(map(math.isfinite, numbers))
        if not sound or (name == "DimSize" and not all(v.is_integer() and v > 0 for v in numbers)):
            raise InputError(
                f"{file}: {name} = {fields[name][:80]} in its header must be {count} "
                f"{'positive whole' if name == 'DimSize' else 'finite'} numbers; mend the header"
            )


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return math.nan
