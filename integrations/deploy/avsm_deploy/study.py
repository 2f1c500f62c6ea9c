"""The series of a study, and which of them is wanted."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID

from scripts.errors import InputError
from scripts.formats.dicom_objects import Series

__all__ = ["link_files", "read_study", "select_series"]

_SHOWN = 6


def read_study(folder: Path) -> list[Series]:
    """All image series below a folder, by their headers; what is not DICOM, or an object without pixels, is left.

    Args:
        folder: looked through with its subfolders.

    Raises:
        InputError: when a DICOM file cannot be read or tells of no series.
    """
    found: dict[str, list[tuple[Path, Dataset]]] = defaultdict(list)
    for place, _, names in sorted(os.walk(folder)):
        for name in sorted(names):
            path = Path(place, name)
            header = _header(path)
            if header is not None and _is_image(path, header):
                for keyword in ("SeriesInstanceUID", "SOPInstanceUID"):
                    if not header.get(keyword):
                        raise InputError(f"{path}: a DICOM image without {keyword}; export its series again")
                found[str(header.SeriesInstanceUID)].append((path, header))
    return [Series(uid, *zip(*images, strict=True)) for uid, images in found.items()]


def _header(path: Path) -> Dataset | None:
    """A file's data set without pixels; None for a file that is not DICOM."""
    try:
        return pydicom.dcmread(path, stop_before_pixels=True)
    except InvalidDicomError:
        return None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); change its permissions or remove it") from error
    except Exception as error:  # What a damaged file leads the parser to may be anything.
        raise InputError(
            f"{path}: a damaged DICOM file ({type(error).__name__}: {error}); copy it again or remove it"
        ) from error


def _is_image(path: Path, header: Dataset) -> bool:
    """Whether a data set is an image. One that is cut off before its size must not pass for none."""
    if "Rows" in header:
        return True
    kind = UID(header.file_meta.get("MediaStorageSOPClassUID", header.get("SOPClassUID", "")))
    if kind.keyword.endswith("ImageStorage"):
        raise InputError(f"{path}: a damaged DICOM file, {kind.name} without Rows; copy it again or remove it")
    return False


def select_series(folder: Path, study: Sequence[Series], role: str, conditions: Mapping[str, Any]) -> Series:
    """The one series that meets all conditions.

    A text is a regular expression that is looked for, in capitals or not, in any of the attribute's values; a UID must
    be equal; a number must equal a value; a list must be among the values.

    Args:
        folder: of the study, for messages.
        study: its series.
        role: what it is looked for, for messages.
        conditions: keyword of DICOM → what its value must be.

    Raises:
        InputError: when none or several do; the line lists the candidates.
    """
    matching = [series for series in study if all(_meets(series.header, *item) for item in conditions.items())]
    if len(matching) == 1:
        return matching[0]
    wanted = ", ".join(f"{keyword} {value!r}" for keyword, value in conditions.items())
    if matching:
        raise InputError(
            f"{folder}: {len(matching)} series may be the {role} image ({wanted}): {_listed(matching)}; "
            "name one by its SeriesInstanceUID in request.json"
        )
    raise InputError(
        f"{folder}: no series for the {role} image ({wanted}) among {_listed(study)}; correct the rule in request.json"
    )


def _listed(study: Sequence[Series]) -> str:
    more = f" and {len(study) - _SHOWN} more" if len(study) > _SHOWN else ""
    return ", ".join(map(str, study[:_SHOWN])) + more


def _meets(header: Dataset, keyword: str, wanted: Any) -> bool:
    """Whether an attribute is what is wanted."""
    value = header.get(keyword)
    values = [] if value is None else list(value) if isinstance(value, pydicom.multival.MultiValue) else [value]
    if keyword.endswith("UID"):
        return wanted in map(str, values)
    if isinstance(wanted, list):
        return all(entry in values for entry in wanted)
    if isinstance(wanted, str):
        return any(re.search(wanted, str(entry), re.IGNORECASE) for entry in values)
    try:
        return any(float(entry) == wanted for entry in values)
    except (TypeError, ValueError):
        return False


def link_files(series: Series, folder: Path) -> Path:
    """A folder with nothing but the files of a series, as the bundle reads one; by links.

    Args:
        series: the series.
        folder: made anew.
    """
    folder.mkdir(parents=True)
    for number, file in enumerate(series.files):
        (folder / f"{number:06d}.dcm").symlink_to(file.resolve())
    return folder
