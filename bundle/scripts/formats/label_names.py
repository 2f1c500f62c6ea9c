"""What label values stand for: ITK-SNAP's label descriptions."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..errors import InputError

# IDX -R- -G- -B- -A- VIS MSH "LABEL"
_LINE = re.compile(r'\s*(\d+)(?:\s+\d+){3}\s+[\d.]+\s+[01]\s+[01]\s+"(.*)"\s*')
_MOST = 1 << 24  # bytes


def read_label_names(path: str | os.PathLike) -> dict[int, str]:
    """The names in a file of ITK-SNAP (*Segmentation > Export label descriptions*), by value.

    InputError for another file, a line that is none, or a value that has two names.
    """
    path, names = Path(path), {}
    try:
        if path.stat().st_size > _MOST:
            raise InputError(f"{path}: has {path.stat().st_size} bytes, more than label descriptions; check the path")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({getattr(error, 'strerror', None) or error})") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            raise InputError(
                f'{path}, line {number}: {line[:60]!r} is no label of ITK-SNAP (value, R, G, B, A, two flags, "name"); '
                "export the label descriptions anew"
            )
        if names.setdefault(int(found[1]), found[2]) != found[2]:
            raise InputError(f"{path}, line {number}: label {found[1]} has two names; remove one")
    if not names:
        raise InputError(f"{path}: holds no labels; export the label descriptions anew")
    return names


def names_of(labels: Iterable[str], names: Mapping[int, str]) -> dict[str, str]:
    """The names of labels whose values are given as text, of those that have one."""
    found = {str(value): name for value, name in names.items()}
    return {label: found[label] for label in labels if label in found}
