"""A folder with one DICOM series, or one enhanced multi-frame image, as a volume in the world.

Headers and plain pixels are read by pydicom, compressed pixels by SimpleITK. The place of every slice comes from its
own tags: SimpleITK's series reader would take 1 mm for an absent pixel spacing, the identity for a broken orientation,
a mean step across missing slices, and no shear where the gantry was tilted. It would also invert MONOCHROME1.
"""

from __future__ import annotations

import math
import os
import struct
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError
from ..spatial.frame import Frame
from ..storage import SUFFIXES
from .reading import (
    FORMATS,
    Voxels,
    check_memory,
    check_spacing,
    check_volume,
    in_rows,
    itk_reading,
    one_line,
)

if TYPE_CHECKING:
    from pydicom import Dataset

_POSITION_TOLERANCE_MM = 0.01
_POSITION_TOLERANCE = 0.01  # of the distance of slices
_ROUNDING = 0.75  # of the last decimal written: half by rounding, and what the fit of a line adds
_ROUNDING_LIMIT = 0.2  # of the distance of slices; a missing slice makes at least 0.5
_ORIENTATION_TOLERANCE = 1e-4
_PERPENDICULAR_TOLERANCE = 1e-3
_SERIES, _NUMBER, _DESCRIPTION, _SOP_CLASS = 0x0020000E, 0x00200011, 0x0008103E, 0x00080016
_POSITION, _ORIENTATION, _SPACING = 0x00200032, 0x00200037, 0x00280030
_INTERCEPT, _SLOPE, _MODALITY_LUT, _PIXELS = 0x00281052, 0x00281053, 0x00283000, 0x7FE00010
_NAMES = {
    _POSITION: "Image Position (0020,0032)",
    _ORIENTATION: "Image Orientation (0020,0037)",
    _SPACING: "Pixel Spacing (0028,0030)",
    _INTERCEPT: "Rescale Intercept (0028,1052)",
    _SLOPE: "Rescale Slope (0028,1053)",
}
# SamplesPerPixel to PixelRepresentation: what says how many bytes there must be, and what they mean.
_LAYOUT = {
    "SamplesPerPixel": 0x00280002,
    "PhotometricInterpretation": 0x00280004,
    "NumberOfFrames": 0x00280008,
    "Rows": 0x00280010,
    "Columns": 0x00280011,
    "BitsAllocated": 0x00280100,
    "BitsStored": 0x00280101,
    "HighBit": 0x00280102,
    "PixelRepresentation": 0x00280103,
}
_SHARED, _PER_FRAME = 0x52009229, 0x52009230
# Functional groups of an enhanced image: position, orientation, measures, transformation of values.
_GROUPS = {
    0x00209113: (_POSITION,),
    0x00209116: (_ORIENTATION,),
    0x00289110: (_SPACING,),
    0x00289145: (_INTERCEPT, _SLOPE),
}
_OF_A_FILE = (*_NAMES, *_LAYOUT.values(), _SERIES, _NUMBER, _DESCRIPTION, _SOP_CLASS)
_OF_A_FILE += (_MODALITY_LUT, _SHARED, _PER_FRAME)
_DEFLATED, _RLE = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.5"


@dataclass(frozen=True)
class _Slice:
    """One DICOM image, or a frame of one: the tags that are needed, without pixels, and numbers of `_LAYOUT`."""

    file: Path
    tags: Dataset
    size: tuple[int, int, int]  # columns, rows, frames
    stored: np.dtype
    frame: int = 0
    groups: Mapping[int, str] | None = None  # what its functional groups say; None for an image without

    @property
    def name(self) -> str:
        """For messages."""
        return self.file.name if self.groups is None else f"frame {self.frame + 1} of {self.file.name}"

    def text(self, tag: int) -> str:
        """A tag's value as it is written; empty where it is absent."""
        return (self.groups or {}).get(tag) or _text(self.tags, tag)

    def numbers(self, tag: int, count: int, default: float | None = None) -> np.ndarray:
        """A tag's numbers, ``(count,)``."""
        text = self.text(tag)
        if not text and default is not None:
            return np.full(count, default)
        try:
            values = np.array([float(word) for word in text.split("\\")])
        except ValueError:
            values = np.empty(0)
        if values.shape != (count,) or not np.isfinite(values).all():
            found = f"'{text}'" if text else "absent"
            raise InputError(
                f"{self.file}: {_NAMES[tag]} is {found}, not {count} numbers; export the series again as a volume"
            )
        return values


def read_series(folder: Path) -> Voxels:
    """Read a DICOM series of a folder, whose subfolders are not looked into, or an enhanced multi-frame file.

    ``folder/NAME`` is the series of a folder whose number, UID or description is NAME.

    The array ``(D, H, W)`` is columns, rows, slices, in the order of ITK, with each slice's modality LUT (rescale slope
    and intercept, or table) applied. InputError if the folder holds no series or several, or if its slices make no
    volume: one is damaged, missing, there twice, turned or of another size, its pixels are too few, or a tag of its
    place is absent.
    """
    slices = _of_series(folder)
    if folder.is_file() and len(slices) < 2:
        raise InputError(f"{folder}: one DICOM file; give the folder that holds the files of its series")
    slices, frame = _stack(folder, slices)
    scales = [_scale(item) for item in slices]
    stack = np.empty(frame.shape[::-1], kind := _type(slices, scales))
    check_memory(folder, 2 * stack.size * kind.itemsize)
    file = None
    for plane, item, scale in zip(stack, slices, scales, strict=True):
        if item.file != file:
            file, found = item.file, _read(item.file, (*_LAYOUT.values(), _PIXELS), pixels=True)
        plane[:] = _values(item, found, scale)
    array = in_rows(stack.transpose(2, 1, 0))
    inverse = any(item.text(_LAYOUT["PhotometricInterpretation"]) == "MONOCHROME1" for item in slices)
    notes = ("MONOCHROME1: viewers show its low values bright; the values are kept",) if inverse else ()
    step = max(0.0 if scale is None or scale[0] == 1 else abs(scale[0]) for scale in scales)
    return Voxels(array, frame, notes, step)


def series_files(path: Path) -> list[Path]:
    """The files of one series, as `read_series` reads them; InputError where there are several."""
    return list(dict.fromkeys(item.file for item in _of_series(path)))


def _text(tags: Dataset, tag: int) -> str:
    # Not pydicom's value, which has gone through its conversions and warnings.
    value = tags.get_item(tag).value if tag in tags else None
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    return str(value or "").strip(" \0")


def is_candidate(file: Path) -> bool:
    """Whether a path in a folder is a file that could be a slice."""
    return file.is_file() and not file.name.startswith(".") and file.name.upper() != "DICOMDIR"


def _damaged(file: Path, reason: str = "damaged or without an image") -> InputError:
    return InputError(f"{file}: a DICOM file, but {reason}; copy it again or remove it from the folder")


def _read(file: Path, tags: Sequence[int], pixels: bool) -> Dataset | None:
    """Tags of a DICOM file; None for one that is clearly none, InputError for one that seems so and can't be read."""
    import pydicom

    with file.open("rb") as stream:
        head = stream.read(134)
    preamble = head[128:132] == b"DICM"
    named = file.suffix.lower() in (".dcm", ".ima", ".dicom")
    # Files of old scanners begin with their first group at once.
    if not (preamble or named or head[:2] in (b"\x08\0", b"\x02\0")):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if preamble and pydicom.filereader.read_file_meta_info(file).get("TransferSyntaxUID") == _DEFLATED:
                raise InputError(f"{file}: deflated DICOM is not read; save the series uncompressed")
            found = pydicom.dcmread(file, stop_before_pixels=not pixels, force=True, specific_tags=list(tags))
            found.get_item(_PIXELS)
    except InputError:
        raise
    except Exception as error:  # pydicom raises a dozen types for broken files
        if not (preamble or named):
            return None
        raise _damaged(file) from error
    return found if preamble or named or _SOP_CLASS in found else None


def _slices(file: Path) -> list[_Slice]:
    """What a file's header tells of its image, or of each frame; nothing for a file that is clearly not DICOM."""
    if not is_candidate(file):
        return []
    tags = _read(file, _OF_A_FILE, pixels=False)
    if tags is None:
        return []
    try:
        size = (int(tags.Columns), int(tags.Rows), int(_text(tags, _LAYOUT["NumberOfFrames"]) or 1))
        samples, colours = int(tags.get("SamplesPerPixel") or 1), _text(tags, _LAYOUT["PhotometricInterpretation"])
        bits, signed = int(tags.BitsAllocated), int(tags.get("PixelRepresentation") or 0)
    except Exception as error:
        raise _damaged(file) from error
    if samples != 1 or not colours.startswith("MONOCHROME"):
        raise InputError(
            f"{file}: RGB or vector voxels, {max(samples, 3)} values in each; save an image of one value per voxel"
        )
    if bits not in (8, 16, 32) or min(size) < 1:
        raise _damaged(file, f"its pixels of {bits} bits are not supported" if min(size) > 0 else "without an image")
    alone = _Slice(file, tags, size, np.dtype(f"{'i' if signed else 'u'}{bits // 8}"))
    if _PER_FRAME not in tags:
        return [alone]
    shared, frames = (tags[tag].value if tag in tags else [] for tag in (_SHARED, _PER_FRAME))
    if len(frames) != size[2]:
        raise _damaged(file, f"it tells of the places of {len(frames)} frames and has {size[2]}")
    always = [group for groups in shared for group in _told(groups)]
    return [replace(alone, frame=k, groups=dict([*always, *_told(groups)])) for k, groups in enumerate(frames)]


def _told(groups: Dataset) -> list[tuple[int, str]]:
    """What functional groups say of a frame, or of all."""
    found = (
        (tag, group) for key, tags in _GROUPS.items() if key in groups for group in groups[key].value for tag in tags
    )
    return [(tag, text) for tag, group in found if (text := _text(group, tag))]


def _values(item: _Slice, found: Dataset, scale: tuple[float, float] | None) -> np.ndarray:
    """A slice's values by its modality LUT, ``(rows, columns)``."""
    from pydicom.pixels import apply_modality_lut

    stored = _stored(item, found)
    if scale is None:
        return apply_modality_lut(stored, item.tags)
    slope, intercept = scale
    return stored if scale == (1, 0) else stored * slope + intercept


def _stored(item: _Slice, found: Dataset) -> np.ndarray:
    """A slice's pixels as stored, ``(rows, columns)``; InputError if there are too few of them, or they are damaged."""
    from pydicom.pixels import pixel_array

    try:
        if _PIXELS not in found:
            raise _damaged(item.file, "without pixels")
        packed, data = found.file_meta.get("TransferSyntaxUID"), found.PixelData or b""
        compressed = packed is not None and packed.is_compressed
        if not compressed:
            expected = math.prod(item.size) * item.stored.itemsize
            if len(data) < expected or data[expected:].strip(b"\0"):  # zeros may fill up
                raise _damaged(item.file, f"its pixels take {len(data)} bytes where its header tells of {expected}")
            if len(data) > expected + expected % 2:
                found.PixelData = data[: expected + expected % 2]
        if compressed and packed != _RLE:
            return _decompressed(item, found)
        return pixel_array(found, index=item.frame, decoding_plugin="pydicom" if compressed else "")
    except InputError:
        raise
    except Exception as error:
        raise _damaged(item.file, f"its pixels are truncated or damaged ({one_line(error)})") from error


def _decompressed(item: _Slice, found: Dataset) -> np.ndarray:
    """JPEG, JPEG-LS and JPEG 2000 pixels, by SimpleITK from a copy without the tags by which it would change them."""
    import SimpleITK
    from pydicom.encaps import encapsulate, get_frame
    from pydicom.uid import SecondaryCaptureImageStorage, generate_uid

    whole = found.PixelData
    stream = get_frame(whole, item.frame, number_of_frames=item.size[2]).rstrip(b"\0\xff")
    if _coded_size(stream) != item.size[:2] or not stream.endswith(b"\xff\xd9"):
        raise _damaged(item.file, f"its compressed pixels are cut off, or not {item.size[:2]} as its header tells")
    found.PhotometricInterpretation, found.NumberOfFrames, found.PixelData = "MONOCHROME2", 1, encapsulate([stream])
    found.SOPClassUID = found.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    found.SOPInstanceUID = found.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    with tempfile.TemporaryDirectory() as folder, itk_reading(item.file):
        copy = os.path.join(folder, "copy.dcm")
        found.save_as(copy, enforce_file_format=True)
        found.PixelData = whole
        pixels = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(copy, imageIO="GDCMImageIO")).reshape(item.size[1::-1])
    if ((stored := pixels.astype(item.stored)) != pixels).any():
        raise _damaged(item.file, f"its compressed pixels are not {item.stored}, as its header tells")
    return stored


def _coded_size(stream: bytes) -> tuple[int, int] | None:
    """Columns and rows by the header of a JPEG, JPEG-LS or JPEG 2000 stream itself; None if it has none."""
    if stream[:4] == b"\xff\x4f\xff\x51":  # JPEG 2000: SIZ holds the corners of the image
        right, bottom, left, top = struct.unpack(">4I", stream[8:24])
        return right - left, bottom - top
    place = 2
    while stream[:2] == b"\xff\xd8" and place + 9 <= len(stream) and stream[place] == 0xFF:
        kind, length = stream[place + 1], int.from_bytes(stream[place + 2 : place + 4], "big")
        if kind == 0xF7 or (0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC)):  # start of a frame
            rows, columns = struct.unpack(">2H", stream[place + 5 : place + 9])
            return columns, rows
        place += 2 + length
    return None


def _scale(item: _Slice) -> tuple[float, float] | None:
    """Rescale slope and intercept; None for a table in their place."""
    if _MODALITY_LUT in item.tags and item.tags[_MODALITY_LUT].value:
        return None
    (slope,), (intercept,) = item.numbers(_SLOPE, 1, 1.0), item.numbers(_INTERCEPT, 1, 0.0)
    if slope == 0:
        raise InputError(f"{item.file}: {_NAMES[_SLOPE]} is 0; export the series again")
    return float(slope), float(intercept)


def _type(slices: Sequence[_Slice], scales: Sequence[tuple[float, float] | None]) -> np.dtype:
    """The narrowest usual type that holds what any slice can hold; single precision does what 16 bits are scaled to."""
    kinds = {item.stored for item in slices}
    widest = np.result_type(*kinds)
    if set(scales) == {(1.0, 0.0)}:
        return widest
    if None in scales or not all(value.is_integer() for scale in scales for value in scale):
        return np.dtype(np.float64 if widest.itemsize > 2 else np.float32)
    ends = np.array([(np.iinfo(k).min, np.iinfo(k).max) for k in kinds], dtype=float).ravel()
    reach = np.array([slope * ends + intercept for slope, intercept in scales])
    for kind in (np.int16, np.uint16, np.int32):
        if np.iinfo(kind).min <= reach.min() and reach.max() <= np.iinfo(kind).max:
            return np.dtype(kind)
    return np.dtype(np.float64)


def _of_series(path: Path) -> list[_Slice]:
    """The slices of the one series of a file or folder, or of that which the last part of the path names."""
    wanted, folder = ("", path) if path.exists() else (path.name, path.parent)
    if wanted.lower().endswith(SUFFIXES):
        raise InputError(f"{path}: file does not exist; correct the path")
    series: dict[str, list[_Slice]] = defaultdict(list)
    for file in sorted(folder.iterdir()) if folder.is_dir() else [folder]:
        for item in _slices(file):
            series[item.text(_SERIES)].append(item)
    if not series:
        raise InputError(
            f"{folder}: not a file, and as a folder without DICOM images; give one {FORMATS} file, or a folder that "
            "holds the files of one DICOM series"
        )
    tags = (_SERIES, _NUMBER, _DESCRIPTION)
    found = [items for items in series.values() if not wanted or wanted in map(items[0].text, tags)]
    if len(found) == 1:
        return found[0]
    shown = ", ".join(
        f"'{items[0].text(_DESCRIPTION) or 'no description'}' (number {items[0].text(_NUMBER) or 'none'}, {uid}, "
        f"{len(items)} files)"
        for uid, items in list(series.items())[:5]
    )
    more = f" and {len(series) - 5} more" if len(series) > 5 else ""
    what = f"{len(found)} series called {wanted!r} among" if wanted else f"{len(series)} DICOM series,"
    raise InputError(f"{folder}: {what} {shown}{more}; name one by its number or UID: {folder}/NUMBER or --series")


def _stack(folder: Path, slices: list[_Slice]) -> tuple[list[_Slice], Frame]:
    """The slices in the order of their places along their normal, and the frame they make."""
    first = slices[0]
    if several := [item.file for item in slices if item.size[2] > 1 and item.groups is None]:
        raise InputError(
            f"{several[0]}: multi-frame DICOM that tells no frame's place; convert it to NIfTI, by dcm2niix say"
        )
    orientation, spacing = first.numbers(_ORIENTATION, 6), first.numbers(_SPACING, 2)
    for item in slices[1:]:
        _check_alike(item, first, orientation, spacing)
    shape = check_volume(folder, (*first.size[:2], len(slices)))
    check_spacing(first.file, spacing, _NAMES[_SPACING])
    axes, rounding = orientation.reshape(2, 3), _ROUNDING * _last_decimal([first.text(_ORIENTATION)])
    rounding = rounding if rounding <= _PERPENDICULAR_TOLERANCE else 0.0  # "1\\0" is not a rounded number
    if np.abs(axes @ axes.T - np.eye(2)).max() > max(_PERPENDICULAR_TOLERANCE, 2 * rounding):
        raise InputError(
            f"{first.file}: {_NAMES[_ORIENTATION]} {orientation.tolist()} is not two perpendicular unit vectors; "
            "export the series again"
        )
    # Made perpendicular as ITK does, so that what is drawn there fits.
    column, normal = (vector / np.linalg.norm(vector) for vector in (axes[1], np.cross(*axes)))
    row = np.cross(column, normal)
    positions = np.array([item.numbers(_POSITION, 3) for item in slices])
    order = np.argsort(positions @ normal, kind="stable")
    slices, positions = [slices[i] for i in order], positions[order]
    step = _step(folder, slices, normal, positions, 2 * rounding)
    distance = float(np.linalg.norm(step))
    direction = np.stack([row, column, step / distance], axis=1)
    # Pixel Spacing counts rows first; the array's first axis runs along a row, from column to column.
    frame = Frame.from_parts(
        shape, (spacing[1], spacing[0], distance), positions[0], direction, "LPS", os.fspath(folder)
    )
    return slices, frame


def _last_decimal(texts: Sequence[str]) -> float:
    """The unit of the last decimal of numbers as DICOM writes them, of the one with most decimals."""
    return 10.0 ** min(Decimal(word).as_tuple().exponent for text in texts for word in text.split("\\"))


def _check_alike(item: _Slice, first: _Slice, orientation: np.ndarray, spacing: np.ndarray) -> None:
    """Refuse a slice that does not continue the first one's volume."""
    if item.size != first.size:
        raise InputError(
            f"{item.file}: {item.size[:2]} pixels, but {first.size[:2]} in {first.file.name}; "
            "keep the slices of one volume in the folder"
        )
    for tag, own, expected in (
        (_ORIENTATION, item.numbers(_ORIENTATION, 6), orientation),
        (_SPACING, item.numbers(_SPACING, 2), spacing),
    ):
        if np.abs(own - expected).max() > _ORIENTATION_TOLERANCE:
            raise InputError(
                f"{item.file}: {_NAMES[tag]} {own.tolist()} differs from {expected.tolist()} of {first.file.name}; "
                "keep the slices of one volume in the folder"
            )


def _step(folder: Path, slices: Sequence[_Slice], normal: np.ndarray, positions: np.ndarray, lean: float) -> np.ndarray:
    """Step from slice to slice, ``(3,)`` in mm, LPS, of slices sorted along their normal.

    Positions may be off an even line by what rounds them to the decimals they are written with: at slices of 1.25 mm
    and one decimal, by 0.05 mm. By as much the line may lean, and by ``lean`` of its length, which is what rounds the
    normal; it is then taken for upright, as ITK does.
    """
    heights = positions @ normal
    gaps, numbers = np.diff(heights), np.arange(len(slices))
    usual = float(np.median(gaps))
    if (same := np.flatnonzero(gaps <= _POSITION_TOLERANCE_MM)).size:
        one, other = slices[same[0]].name, slices[same[0] + 1].name
        raise InputError(
            f"{folder}: {one} and {other} lie in one place ({same.size} such neighbours of {len(slices)} slices); "
            "give a folder with one volume, each slice once"
        )
    rounding = min(_ROUNDING * _last_decimal([item.text(_POSITION) for item in slices]), _ROUNDING_LIMIT * usual)
    allowed = max(_POSITION_TOLERANCE * usual, _POSITION_TOLERANCE_MM, rounding)
    fitted = np.polynomial.polynomial.polyfit(numbers, positions, 1)
    off = np.abs(positions - fitted[0] - numbers[:, None] * fitted[1]).max(axis=1)
    if off.max() > allowed:
        worst = int(np.abs(gaps - usual).argmax())
        if abs(gaps[worst] - usual) > allowed:
            raise InputError(
                f"{folder}: {gaps[worst]:.4g} mm between {slices[worst].name} and {slices[worst + 1].name}, "
                f"{usual:.4g} mm between most slices; a slice is missing or belongs to another volume, copy all of one"
            )
        raise InputError(
            f"{slices[int(off.argmax())].file}: lies {off.max():.4g} mm off the line of the slices; "
            "give a folder with one volume"
        )
    span = positions[-1] - positions[0]
    if np.abs(span - (span @ normal) * normal).max() <= 2 * rounding + lean * np.linalg.norm(span):
        span = np.linalg.norm(span) * normal
    return span / (len(slices) - 1)
