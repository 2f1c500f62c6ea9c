"""Names of label values, for the segment lists of Slicer and OHIF."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from scripts.errors import InputError
from scripts.formats.images import read_label

from .errors import RequestError
from .studies import FINAL, StudyDatastore

__all__ = ["label_names", "label_values", "read_names"]

logger = logging.getLogger(__name__)


def read_names(text: str | None) -> dict[str, int]:
    """The names that the server was started with.

    Args:
        text: JSON, ``{"femur": 3, "tibia": 4}``; None or empty for none.

    Raises:
        InputError: if it is not that.
    """
    if not text:
        return {}
    try:
        names = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"labels={text}: not JSON ({error}); give for example {{'femur': 3}}") from error
    sound = isinstance(names, dict) and all(type(value) is int and value > 0 for value in names.values())
    if not sound or len(set(names.values())) != len(names):
        raise InputError(f"labels={text}: give a JSON object of names and their label values, whole numbers above 0")
    return names


def label_values(path: str | os.PathLike) -> tuple[int, ...]:
    """The values but 0 of a label map, rising; a file is read once as long as it does not change.

    Raises:
        InputError: as `read_label`.
    """
    state = os.stat(path)
    return _values(os.fspath(path), state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=4096)
def _values(path: str, size: int, changed: int) -> tuple[int, ...]:
    return tuple(value for value in np.unique(read_label(path).array).tolist() if value != 0)


def label_names(datastore: StudyDatastore, given: Mapping[str, int]) -> dict[str, int]:
    """Name → value of all labels in the final label maps, rising by value.

    A name is the one that the server was started with, else the annotator's (what Slicer saves as ``label_info``), else
    ``label_VALUE``. Without any final label map the given names are all there is.

    Args:
        datastore: of the studies.
        given: names that the server was started with.
    """
    found: dict[int, str] = {}
    told: dict[int, str] = {}
    for image in datastore.labelled():
        try:
            values = label_values(datastore.get_label_uri(image, FINAL))
        except (InputError, RequestError, OSError) as error:
            logger.warning(f"{error}")
            continue
        found.update(dict.fromkeys(values, ""))
        for entry in datastore.get_label_info(image, FINAL).get("label_info") or ():
            if isinstance(entry, dict) and isinstance(entry.get("name"), str):
                told.setdefault(entry.get("idx"), entry["name"])
    named = {value: name for name, value in given.items()}
    names: dict[str, int] = {}
    for value in sorted(found) or sorted(named):
        name = named.get(value) or told.get(value) or f"label_{value}"
        # Two values must not share a name, or one of them would be lost.
        names[name if name not in names else f"label_{value}"] = value
    return names
