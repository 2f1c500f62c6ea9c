"""NRRD and MetaImage files as volumes in the world, through SimpleITK; what it reads in headers without a word."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..spatial.frame import Frame
from .reading import (
    Voxels,
    check_memory,
    check_size,
    check_spacing,
    check_volume,
    count_left,
    in_rows,
    itk_reading,
    unpacked,
    unreadable,
)

_MOST_LINES = 10_000
_LONGEST_LINE = 1 << 16
# MetaImage's fields of numbers: n of them in n dimensions, or n to the power given.
_META_NUMBERS = dict.fromkeys(("DimSize", "ElementSpacing", "ElementSize", "Offset", "Position", "Origin"), 1)
_META_NUMBERS |= dict.fromkeys(("TransformMatrix", "Rotation", "Orientation"), 2)
_PATTERN = re.compile(r"[^%]*%0?\d{0,2}[di][^%]*")
_META_SCALING = {"Slope": 1.0, "Offset": 0.0}
# The worlds that ITK's NRRD reader turns to LPS; any other it takes for LPS.
_NRRD_SPACES = ("right-anterior-superior", "left-anterior-superior", "left-posterior-superior", "ras", "las", "lps")


@dataclass
class TextHeader:
    """A header's fields and the place of its voxels.

    Attributes:
        fields: value of each field as written; NRRD's names in lower case.
        data: the files that hold the voxels: that of the header itself, one beside it, or one for each slice.
        start: byte of a single data file at which they start.
        packing: ``"raw"``, ``"zip"`` for gzip and zlib, or ``""`` for an encoding of which only ITK knows the length.
        notes: what ITK reads without a word and a user should know.
    """

    fields: dict[str, str]
    data: list[Path]
    start: int = 0
    packing: str = ""
    notes: list[str] = field(default_factory=list)


def read_header(file: Path) -> TextHeader:
    """The header of a ``.nrrd``, ``.nhdr``, ``.mha`` or ``.mhd`` file.

    InputError if it is not one, a number of the geometry is not a finite number, or a data file is missing.
    """
    nrrd = file.suffix.lower() in (".nrrd", ".nhdr")
    fields, start, listed = _fields(file, ":" if nrrd else "=")
    if not fields:
        raise unreadable(file, f"it has no {'NRRD' if nrrd else 'MetaImage'} header")
    name = fields.get("data file", fields.get("datafile")) if nrrd else fields["ElementDataFile"]
    local = name is None or (not nrrd and name.upper() == "LOCAL")
    header = TextHeader(fields, [file] if local else _beside(file, name, listed), start if local else 0)
    (_examine_nrrd if nrrd else _examine_meta)(file, header)
    for data in header.data:
        if not data.is_file():
            raise InputError(f"{file}: its data file {data} does not exist; put it there or mend the header")
    return header


def check_data(file: Path, header: TextHeader, expected: int) -> None:
    """Refuse voxels, ``expected`` bytes, that are truncated or damaged, of which ITK reads some without a word.

    A note is added to the header where the data file holds more than it tells of.
    """
    if header.packing and len(header.data) == 1:
        data = header.data[0]
        if header.packing == "raw":
            found = data.stat().st_size - header.start
        else:
            with data.open("rb") as stream:
                stream.seek(header.start)
                found = count_left(unpacked(file, stream), expected)
        check_size(file, found, expected)
        if found > expected and header.packing == "zip" and "NDims" in header.fields:
            raise unreadable(file, "its packed data hold more than its header tells of")  # which ITK does not unpack
        if found > expected:
            header.notes.append(f"{data.name} holds {found - expected} bytes more than the header tells of")
    check_memory(file, expected)


def _fields(file: Path, sign: str) -> tuple[dict[str, str], int, list[str]]:
    """Fields of a header by name, the byte after it, and the lines after a last field that says LIST.

    ``sign`` stands between a name and its value: ``":"`` of NRRD, ``"="`` of MetaImage.
    """
    nrrd, fields, last = sign == ":", {}, ""
    with file.open("rb") as stream:
        lines = islice(iter(lambda: stream.readline(_LONGEST_LINE), b""), _MOST_LINES)
        text = (line.decode("latin-1").strip() for line in lines)
        if nrrd and not next(text, "").startswith("NRRD"):
            return {}, 0, []
        for line in text:
            if nrrd and not line:
                break
            name, found, value = line.partition(sign)
            if not found or (nrrd and (line.startswith("#") or value.startswith("="))):
                continue
            last = name.strip().lower() if nrrd else name.strip()
            fields[last] = value.strip()
            if last == "ElementDataFile" or (last in ("data file", "datafile") and _is_list(fields[last])):
                break
        start = stream.tell()
        listed = [line for line in text if line] if fields and _is_list(fields[last]) else []
    if not nrrd and last != "ElementDataFile":
        return {}, 0, []
    return fields, start, listed


def _is_list(value: str) -> bool:
    return value.split()[:1] == ["LIST"]


def _beside(file: Path, name: str, listed: list[str]) -> list[Path]:
    """The data files that a header names: one, a list, or a pattern with its first and last number and the step."""
    words = name.split()
    if _is_list(name):
        names = listed
    elif "%" in name and len(words) > 2:
        try:
            first, last, step = (int(word) for word in [*words[1:4], "1"][:3])
            numbers = islice(range(first, last + 1, step), _MOST_LINES) if _PATTERN.fullmatch(words[0]) else ()
            names = [words[0] % number for number in numbers]
        except ValueError:
            names = []
        if not names:
            raise InputError(f"{file}: its data files '{name[:80]}' make no list; mend the header")
    else:
        names = [name]
    return [Path(os.path.normpath(file.parent / one)) for one in names]


def _examine_nrrd(file: Path, header: TextHeader) -> None:
    fields, notes = header.fields, header.notes
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


def _check_meta_numbers(file: Path, fields: dict[str, str]) -> None:
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


def read_text_headed(file: Path, components: int = 1) -> Voxels:
    """Read one volume, or a field of so many components, from a ``.nrrd``, ``.nhdr``, ``.mha`` or ``.mhd`` file.

    The grid is taken from what SimpleITK says of the header, not from the image it makes: that has a negative spacing
    turned positive. InputError if the file holds no sound volume.
    """
    import SimpleITK

    header = read_header(file)
    # Its own error for complex voxels names no file and no mend.
    if "complex" in header.fields.get("kinds", ""):
        raise InputError(f"{file}: complex values; save the magnitude image")
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("NrrdImageIO" if file.suffix.lower() in (".nrrd", ".nhdr") else "MetaImageIO")
    reader.SetFileName(os.fspath(file))
    with itk_reading(file):
        reader.ReadImageInformation()
    shape, axes = check_volume(file, reader.GetSize()), reader.GetDimension()
    bits = re.fullmatch(r"(?:vector of )?(\d+)-bit .*", SimpleITK.GetPixelIDValueAsString(reader.GetPixelID()))
    if bits is None:
        raise unreadable(
            file, f"voxels of type {SimpleITK.GetPixelIDValueAsString(reader.GetPixelID())} are not supported"
        )
    if (count := reader.GetNumberOfComponents()) != components:
        if components == 1:
            raise InputError(
                f"{file}: RGB or vector voxels, {count} values in each; save an image of one value per voxel"
            )
        what = "is an image" if count == 1 else "is no displacement field"
        raise InputError(
            f"{file}: {what}: values of a voxel: {count}, need {components}; give a transform or a displacement field"
        )
    spacing = reader.GetSpacing()[:3]
    check_spacing(file, spacing, "the spacing")
    direction = np.reshape(reader.GetDirection(), (axes, axes))[:3, :3]
    frame = Frame.from_parts(shape, spacing, reader.GetOrigin()[:3], direction, "LPS", str(file))
    check_data(file, header, int(np.prod(shape, dtype=object)) * components * int(bits[1]) // 8)
    with itk_reading(file):
        voxels = SimpleITK.GetArrayViewFromImage(image := reader.Execute())
        array = in_rows(voxels.reshape(*shape[::-1], components).transpose(2, 1, 0, 3))
        del voxels, image
    return Voxels(array if components > 1 else array[..., 0], frame, tuple(header.notes))
