"""A folder with one DICOM series as a volume in the world.

The place of every slice comes from its own tags. ITK's series reader would take 1 mm for an absent pixel spacing, the
identity for a broken orientation, a mean step across missing slices, and no shear where the gantry was tilted.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..spatial.frame import Frame
from .itk_images import VOXEL_TYPES, check_voxels, to_array
from .reading import FORMATS, check_spacing, check_volume, itk_reading

_POSITION_TOLERANCE_MM = 0.01
_POSITION_TOLERANCE = 0.01  # of the distance of slices
_ORIENTATION_TOLERANCE = 1e-4
_PERPENDICULAR_TOLERANCE = 1e-3
_SERIES, _DESCRIPTION = "0020|000e", "0008|103e"
_POSITION, _ORIENTATION, _SPACING = "0020|0032", "0020|0037", "0028|0030"
_NAMES = {
    _POSITION: "Image Position (0020,0032)",
    _ORIENTATION: "Image Orientation (0020,0037)",
    _SPACING: "Pixel Spacing (0028,0030)",
}


@dataclass(frozen=True)
class _Slice:
    """One DICOM image: its file, series, size (x, y, frames), voxel type of ITK, and tags of `_NAMES` as written."""

    file: Path
    series: str
    description: str
    size: tuple[int, ...]
    kind: str
    tags: dict[str, str]

    def numbers(self, tag: str, count: int) -> np.ndarray:
        """A tag's numbers, ``(count,)``."""
        text = self.tags.get(tag, "")
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


def read_series(folder: Path) -> tuple[np.ndarray, Frame, tuple[str, ...]]:
    """Read the one DICOM series of a folder; its subfolders are not looked into.

    Returns:
        The array ``(D, H, W)``: columns, rows, slices, in the order of ITK, with each slice's rescale slope and
        intercept applied; its frame; and no notes.

    Raises:
        InputError: if the folder holds no series or several, or if its slices make no volume: one is damaged, missing,
            there twice, turned or of another size, or a tag of its place is absent.
    """
    import itk

    slices = [item for file in sorted(folder.iterdir()) if (item := _slice(file)) is not None]
    _check_one_series(folder, slices)
    slices, frame = _stack(folder, slices)
    # The widest type of all slices: ITK would read them all as the first one's, and cut off what another's slope made.
    widest = np.result_type(*{VOXEL_TYPES[item.kind][1] for item in slices})
    # Reals are made by a rescale slope here; single precision holds what it makes of 16 bits.
    voxel, dtype = ("F", np.float32) if widest.kind == "f" else _voxel_type(widest)
    with itk_reading(folder):
        reader = itk.ImageSeriesReader[itk.Image[getattr(itk, voxel), 3]].New(ImageIO=itk.GDCMImageIO.New())
        reader.SetFileNames([os.fspath(item.file) for item in slices])
        reader.Update()
        array = to_array(reader.GetOutput(), dtype)
    return array, frame, ()


def _slice(file: Path) -> _Slice | None:
    """What a file's header tells; None for a file that is clearly not DICOM."""
    if not file.is_file() or file.name.startswith(".") or file.name.upper() == "DICOMDIR":
        return None
    import itk

    io = itk.GDCMImageIO.New()
    try:
        with itk_reading(file):
            io.SetFileName(os.fspath(file))
            io.ReadImageInformation()
            tags = io.GetMetaDataDictionary()
            known = {tag: tags[tag].strip(" \0") for tag in (*_NAMES, _SERIES, _DESCRIPTION) if tags.HasKey(tag)}
    except InputError as error:
        if not _is_dicom(file):
            return None
        raise InputError(
            f"{file}: a DICOM file, but damaged or without an image; copy it again or remove it from the folder"
        ) from error
    size = tuple(io.GetDimensions(i) for i in range(io.GetNumberOfDimensions()))
    return _Slice(file, known.get(_SERIES, ""), known.get(_DESCRIPTION, ""), size, check_voxels(file, io), known)


def _is_dicom(file: Path) -> bool:
    """Whether a file is named as DICOM or has its mark after the preamble."""
    if file.suffix.lower() in (".dcm", ".ima", ".dicom"):
        return True
    with file.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _check_one_series(folder: Path, slices: Sequence[_Slice]) -> None:
    if not slices:
        raise InputError(
            f"{folder}: not a file, and as a folder without DICOM images; give one {FORMATS} file, or a folder that "
            "holds the files of one DICOM series"
        )
    series = defaultdict(list)
    for item in slices:
        series[item.series].append(item)
    if len(series) > 1:
        shown = ", ".join(
            f"'{items[0].description or 'no description'}' ({uid}, {len(items)} files)"
            for uid, items in list(series.items())[:5]
        )
        more = f" and {len(series) - 5} more" if len(series) > 5 else ""
        raise InputError(f"{folder}: {len(series)} DICOM series, {shown}{more}; give a folder with the files of one")


def _stack(folder: Path, slices: list[_Slice]) -> tuple[list[_Slice], Frame]:
    """The slices in the order of their places along their normal, and the frame they make."""
    first = slices[0]
    if several := [item.file for item in slices if item.size[2:] > (1,)]:
        raise InputError(f"{several[0]}: multi-frame DICOM is not supported; convert it to NIfTI, by dcm2niix say")
    orientation, spacing = first.numbers(_ORIENTATION, 6), first.numbers(_SPACING, 2)
    for item in slices[1:]:
        _check_alike(item, first, orientation, spacing)
    shape = check_volume(folder, (*first.size[:2], len(slices)))
    check_spacing(first.file, spacing, _NAMES[_SPACING])
    row, column = orientation[:3], orientation[3:]
    if np.abs((row @ row - 1, column @ column - 1, row @ column)).max() > _PERPENDICULAR_TOLERANCE:
        raise InputError(
            f"{first.file}: {_NAMES[_ORIENTATION]} {orientation.tolist()} is not two perpendicular unit vectors; "
            "export the series again"
        )
    positions = np.array([item.numbers(_POSITION, 3) for item in slices])
    heights = positions @ np.cross(row, column)
    order = np.argsort(heights, kind="stable")
    slices, positions = [slices[i] for i in order], positions[order]
    step = _uniform_step(folder, slices, heights[order], positions)
    distance = float(np.linalg.norm(step))
    direction = np.stack([row, column, step / distance], axis=1)
    # Pixel Spacing counts rows first; the array's first axis runs along a row, from column to column.
    frame = Frame.from_parts(
        shape, (spacing[1], spacing[0], distance), positions[0], direction, "LPS", os.fspath(folder)
    )
    return slices, frame


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


def _uniform_step(folder: Path, slices: Sequence[_Slice], heights: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Step from slice to slice in mm, LPS, ``(3,)``, of slices sorted by their height along the normal."""
    gaps = np.diff(heights)
    usual = float(np.median(gaps))
    allowed = max(_POSITION_TOLERANCE * usual, _POSITION_TOLERANCE_MM)
    if (same := np.flatnonzero(gaps <= _POSITION_TOLERANCE_MM)).size:
        one, other = slices[same[0]].file.name, slices[same[0] + 1].file.name
        raise InputError(
            f"{folder}: {one} and {other} lie in one place ({same.size} such neighbours of {len(slices)} slices); "
            "give a folder with one volume, each slice once"
        )
    worst = int(np.abs(gaps - usual).argmax())
    if abs(gaps[worst] - usual) > allowed:
        raise InputError(
            f"{folder}: {gaps[worst]:.4g} mm between {slices[worst].file.name} and {slices[worst + 1].file.name}, "
            f"{usual:.4g} mm between most slices; a slice is missing or belongs to another volume, copy all of one"
        )
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    off = np.linalg.norm(positions - positions[0] - np.arange(len(slices))[:, None] * step, axis=1)
    if off.max() > allowed:
        raise InputError(
            f"{slices[int(off.argmax())].file}: lies {off.max():.4g} mm off the line of the slices; "
            "give a folder with one volume"
        )
    return step


def _voxel_type(dtype: np.dtype) -> tuple[str, type]:
    """ITK's name of the wrapping of an integer type, and the type."""
    return next(pair for pair in VOXEL_TYPES.values() if np.dtype(pair[1]) == dtype)
