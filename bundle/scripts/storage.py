"""Files that appear whole or not at all."""

from __future__ import annotations

import json
import math
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError

_SUFFIXES = (".nii.gz", ".seg.nrrd", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".img", ".hdr", ".gz")


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path to write to, and put the file in its place only when the block succeeds.

    The temporary file lies in the folder of ``path`` (a rename across file systems is not atomic) and its name ends
    with the whole name of ``path``, so writers that choose a format by suffix (``.nii.gz``, ``.png``) choose the same.
    When the block raises, Ctrl-C included, the temporary file is removed and an earlier file at ``path`` is untouched.

    Args:
        path: where the file shall be in the end. Its folder must exist.

    Yields:
        The temporary path; the block must create a file there.

    Raises:
        FileNotFoundError: if the folder does not exist, or if the block wrote nothing.
        IsADirectoryError: if ``path`` is a folder.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"path: the folder of {target} does not exist; create it first.")
    if target.is_dir():
        raise IsADirectoryError(f"path: {target} is a folder; name a file.")
    # Not tempfile.mkstemp: it creates files that only their owner may read, and the mode would outlive the rename.
    temporary = target.with_name(f".{uuid.uuid4().hex[:12]}-{target.name}")
    try:
        yield temporary
        if not temporary.is_file():
            raise FileNotFoundError(
                f"path: nothing was written for {target}; write to the path that the block is given."
            )
        # A full disk may show itself only when the bytes are forced out of the cache.
        with open(temporary, "rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def file_stem(path: str | os.PathLike) -> str:
    """File name without folder and image suffix: `a/case_01.nii.gz` gives `case_01`."""
    name = Path(path).name
    for suffix in _SUFFIXES:
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return Path(name).stem


def make_output_dir(output_dir: str | os.PathLike) -> Path:
    """Create the output directory, or say in one line why it can't be.

    Raises:
        InputError: when it is a file, or can't be created or written to.
    """
    path = Path(output_dir)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{path}: output_dir can't be created ({error.strerror}); give a folder to write to"
        ) from error
    if not os.access(path, os.W_OK):
        raise InputError(f"{path}: output_dir is not writable; give a folder to write to")
    return path


def check_output_dir(output_dir: str | os.PathLike) -> None:
    """Check, without creating anything, that the output directory can be created and written to.

    Raises:
        InputError: as `make_output_dir`.
    """
    path = Path(output_dir)
    place = next((folder for folder in (path, *path.absolute().parents) if folder.exists()), path)
    if not place.is_dir():
        raise InputError(f"{path}: output_dir can't be created ({place} is a file); give a folder to write to")
    if not os.access(place, os.W_OK):
        raise InputError(f"{path}: output_dir is not writable; give a folder to write to")


def write_json(content: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Write JSON, whole or not at all; NaN and infinity, which JSON does not know, become null."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(plain(content), indent=2, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """What JSON can hold: NaN and infinity become null."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)
