"""Files that appear whole or not at all, and output folders that one run has at a time."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
import uuid
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError

_DICOM = b"DICM"  # at byte 128 of DICOM's files
_STAGE, _LOCK = ".unfinished", ".avsm{}.lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)
_SUFFIXES = (".nii.gz", ".seg.nrrd", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".img", ".hdr", ".gz")

SUFFIXES = (*_SUFFIXES, ".mgz", ".mgh", ".dcm")
"""Of files of images: a name that ends so is never that of a DICOM series."""


def is_there(path: str | os.PathLike) -> bool:
    """Whether a file or folder exists, or a path may name a series in a folder of DICOM files (`formats.dicom`)."""
    path = Path(path)
    if path.exists() or path.name.lower().endswith(SUFFIXES):
        return path.exists()
    return path.parent.is_dir() and any(map(_is_dicom, path.parent.iterdir()))


def _is_dicom(file: Path) -> bool:
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        return stream.read(132)[128:] == _DICOM


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path to write to, and put the file in its place only when the block succeeds.

    The temporary file lies in the folder of ``path`` (a rename across file systems is not atomic) and its name ends
    with the whole name of ``path``, so writers that choose a format by suffix (``.nii.gz``, ``.png``) choose the same.
    When the block raises, Ctrl-C included, the temporary file is removed and an earlier file at ``path`` is untouched.
    FileNotFoundError without the folder, or if nothing was written; IsADirectoryError if ``path`` is a folder.
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
            raise FileNotFoundError(f"path: nothing was written for {target}; write to the path that the block gets.")
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
    """Create the output directory; InputError when it is a file, or can't be created or written to."""
    path = Path(output_dir)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"output_dir can't be created ({error.strerror}); give a folder to write to"
        raise InputError(f"{path}: {reason}") from error
    if not os.access(path, os.W_OK):
        raise InputError(f"{path}: output_dir is not writable; give a folder to write to")
    return path


def check_output_dir(output_dir: str | os.PathLike) -> None:
    """As `make_output_dir`, without creating anything."""
    path = Path(output_dir)
    try:
        path.lstat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise InputError(f"{path}: output_dir can't be created ({error.strerror}); give a shorter name") from error
    place = next((folder for folder in (path, *path.absolute().parents) if os.path.exists(folder)), path)
    if not place.is_dir():
        raise InputError(f"{path}: output_dir can't be created ({place} is a file); give a folder to write to")
    if not os.access(place, os.W_OK):
        raise InputError(f"{path}: output_dir is not writable; give a folder to write to")


@contextmanager
def claimed(folder: str | os.PathLike, part: int | None = None) -> Iterator[bool]:
    """Keep every other run out of an output folder that exists, as long as the block runs.

    The lock is the operating system's and ends with its process, however that ends. The thread that has it may claim
    the folder again. ``part`` is the number of a process that shares the folder with those of other numbers.

    Yields whether the folder is locked; not so, after a warning, where its file system knows no locks. InputError while
    another run has it.
    """
    import filelock  # here, as a command that writes no folder needs none

    path = Path(folder).resolve() / _LOCK.format("" if part is None else f"_{part}")
    lock, locked = filelock.FileLock(path, timeout=0, is_singleton=True), True
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise InputError(
            f"{folder}: another run is writing to it; wait until that has ended, or give another output folder"
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise _unwritable(path, error) from error
        locked = False
    if not locked:
        warnings.warn(f"{folder}: its file system knows no locks; see that no other run writes to it", stacklevel=3)
    try:
        yield locked
    finally:
        if lock.lock_counter == 1:
            path.unlink(missing_ok=True)  # before it is free: later, it could be another run's already
        lock.release()


@contextmanager
def output_folder(path: str | os.PathLike, part: int | None = None) -> Iterator[Path]:
    """A folder for results, this run's alone, with the folders above it; those made for it go if the block raises.

    InputError when it can't be created or written to, or another run is writing to it.
    """
    folder = Path(path)
    made = [place for place in (folder, *folder.parents) if not os.path.exists(place)]
    try:
        with claimed(make_output_dir(folder), part):
            yield folder
    except BaseException:
        with contextlib.suppress(OSError):
            for place in made:
                place.rmdir()
        raise


@contextmanager
def staged(folder: Path, last: str | None = None, outputs: Collection[str] = ()) -> Iterator[Path]:
    """A folder inside ``folder``, whose files come up into ``folder`` if the block succeeds and vanish if it raises.

    Earlier results stay as they are until all new ones are there.

    Args:
        folder: that exists.
        last: the file that says that all others are there; while it is absent, the folder counts as not done.
        outputs: names of a result's files; where ``last`` tells of an earlier one, those that are not made anew go.

    Raises:
        InputError: when a file can't be written, or another run is writing to the folder.
    """
    with claimed(folder) as alone:
        if alone:  # what killed runs have left
            for old in folder.glob(f"{_STAGE}*"):
                shutil.rmtree(old, ignore_errors=True)
        stage = folder / f"{_STAGE}-{uuid.uuid4().hex[:12]}"
        try:
            guarded(stage, folder, Path.mkdir)
            yield stage
            new = sorted(stage.iterdir(), key=lambda path: path.name == last)
            if last is not None and (folder / last).exists():
                for name in (last, *({*outputs} - {path.name for path in new})):
                    (folder / name).unlink(missing_ok=True)
            for path in new:
                guarded(folder / path.name, folder, path.replace)
        finally:
            shutil.rmtree(stage, ignore_errors=True)


def clear_unfinished(folder: str | os.PathLike, *patterns: str) -> None:
    """Remove what `atomic_path` has left, in killed runs, of files of these names; no other run may write there."""
    for pattern in patterns:
        for path in Path(folder).glob(f".{'[0-9a-f]' * 12}-{pattern}"):
            path.unlink(missing_ok=True)


@contextmanager
def writing(path: str | os.PathLike, stage: str | os.PathLike | None = None) -> Iterator[None]:
    """One line, an InputError, that names ``path`` for what goes wrong while it is written, in a folder ``stage``."""

    def told(error: Exception) -> str:
        return str(error) if stage is None else str(error).replace(str(stage), str(Path(path).parent))

    try:
        yield
    except InputError:
        raise
    except OSError as error:
        if error.strerror is None:  # one of our own, which names file and mend
            raise InputError(told(error)) from error
        raise _unwritable(path, error) from error
    except ValueError as error:
        raise InputError(f"{path}: cannot be written: {told(error)}") from error


def guarded(path: Path, stage: Path, save: Callable[[Path], Any]) -> None:
    """Write a file of ``path``'s name into the folder ``stage``; errors as of `writing`."""
    with writing(path, stage):
        save(stage / path.name)


def _unwritable(path: str | os.PathLike, error: OSError) -> InputError:
    return InputError(
        f"{path}: cannot be written ({error.strerror}); see that the disk is not full and the folder writable"
    )


def read_json(file: Path) -> dict[str, Any] | None:
    """The object in a file; None where there is none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def file_state(file: Path) -> list[Any]:
    """What tells that a file has changed."""
    state = file.stat() if file.exists() else None
    return [str(file), *((state.st_size, state.st_mtime_ns) if state else ())]


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
