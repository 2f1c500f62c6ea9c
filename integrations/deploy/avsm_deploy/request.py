"""What a run is asked for: which images are fixed and moving, and how to register them; a JSON file.

The shape is that of the selection rules of the SDK's own series selector, with two selections::

    {
        "selections": [
            {"name": "fixed", "conditions": {"Modality": "MR", "SeriesDescription": "baseline"}},
            {"name": "moving", "conditions": {"SeriesInstanceUID": "1.2.840.1"}}
        ],
        "settings": {"preset": "best"}
    }
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom.datadict import tag_for_keyword

from scripts.errors import InputError
from scripts.settings import config_values

__all__ = ["FILE", "ROLES", "Request", "load_request"]

ROLES = ("fixed", "moving")
FILE = "File"
"""The condition that names an image file in the input folder instead of a DICOM series."""

_NAME = "request.json"
_DEFAULT = Path(__file__).resolve().parents[1] / _NAME
_VARIABLE = "AVSM_REQUEST"
# The app comes with a network, which is used where the request does not say otherwise.
_PRESET = "fast"


# The file may come with the images, from outside: what passes is exactly what the settings' own schema allows.
_SETTINGS = (
    "preset",
    "transform",
    "affine_steps",
    "vsvf_steps",
    "initialisation",
    "extent",
    "interpolation",
    "grid",
    "seed",
    "threads",
    "device",
    "report",
)


@dataclass(frozen=True)
class Request:
    """A request.

    Attributes:
        conditions: of each of `ROLES`, keyword → value.
        settings: ids of the bundle's ``inference.json`` → values.
        path: the file it was read from.
    """

    conditions: Mapping[str, Mapping[str, Any]]
    settings: Mapping[str, Any]
    path: Path


def load_request(folder: Path) -> Request:
    """Read the request of an input folder.

    It is the folder's own ``request.json``; without one, the file that the environment variable ``AVSM_REQUEST`` names;
    without that, the app's own ``request.json``.

    Args:
        folder: the input folder.

    Raises:
        InputError: when the file is absent or no such request; the line names the entry.
    """
    own = folder / _NAME
    named = os.environ.get(_VARIABLE)
    path = own if own.is_file() else Path(named) if named else _DEFAULT
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); correct {_VARIABLE}") from error
    except RecursionError as error:
        raise InputError(f"{path}: is nested too deeply for a request; mend it") from error
    except ValueError as error:
        raise InputError(f"{path}: is not JSON ({error}); mend it") from error
    if not isinstance(content, dict) or (unknown := set(content) - {"selections", "settings"}):
        what = f"knows no {sorted(unknown)[0]!r}" if isinstance(content, dict) else "must be an object"
        raise InputError(f"{path}: {what}; give 'selections' and perhaps 'settings'")
    return Request(_conditions(content.get("selections"), path), _settings(content.get("settings", {}), path), path)


def _conditions(selections: Any, path: Path) -> dict[str, dict[str, Any]]:
    """The conditions of each role."""
    usable = isinstance(selections, list) and all(
        isinstance(entry, dict) and isinstance(entry.get("conditions"), dict) for entry in selections
    )
    names = [entry.get("name") for entry in selections] if usable else []
    if sorted(map(str, names)) != sorted(ROLES):
        raise InputError(
            f"{path}: selections must be one named 'fixed' and one named 'moving', each with its conditions; "
            f"found {names or 'none'}"
        )
    result = {}
    for entry in selections:
        role = entry["name"]
        result[role] = entry["conditions"]
        if not result[role]:
            raise InputError(f"{path}: {role}: no conditions; give a SeriesInstanceUID, or a rule on SeriesDescription")
        for keyword, value in result[role].items():
            _check_condition(f"{path}: {role}: {keyword}", keyword, value)
        if FILE in result[role] and len(result[role]) > 1:
            raise InputError(f"{path}: {role}: {FILE} names a file that is no DICOM; leave its other conditions out")
    if sum(FILE in conditions for conditions in result.values()) == 1:
        raise InputError(f"{path}: {FILE} for one image only; name files for both fixed and moving, or series for both")
    return result


def _check_condition(place: str, keyword: str, value: Any) -> None:
    """Refuse a condition that nothing can meet."""
    if keyword != FILE and tag_for_keyword(keyword) is None:
        raise InputError(f"{place}: is no keyword of DICOM; write it as in SeriesDescription")
    texts = value if isinstance(value, list) else [value]
    plain = all(isinstance(v, str | int | float) and not isinstance(v, bool) and v != "" for v in texts)
    if not texts or not plain or ((keyword == FILE or keyword.endswith("UID")) and not isinstance(value, str)):
        raise InputError(f"{place}: {value!r} is no condition; give a text, a number or, for several values, a list")
    if isinstance(value, str) and keyword != FILE and not keyword.endswith("UID"):
        try:
            re.compile(value)
        except re.error as error:
            raise InputError(f"{place}: {value!r} is no regular expression ({error}); mend it") from error


def _settings(settings: Any, path: Path) -> dict[str, Any]:
    """The settings, each of the kind it must be."""
    if not isinstance(settings, dict):
        raise InputError(f"{path}: settings must be an object, found {settings!r}")
    for name in settings:
        if name not in _SETTINGS:
            raise InputError(f"{path}: settings: no {name!r}; there are {', '.join(_SETTINGS)}")
    try:
        return config_values({"preset": _PRESET, **settings})
    except InputError as error:
        raise InputError(f"{path}: settings: {error}") from error
