"""What the readers of images share: words of their errors, a quiet screen, and the size of packed data."""

from __future__ import annotations

import os
import re
import tempfile
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..errors import InputError

FORMATS = "NIfTI (.nii, .nii.gz), NRRD (.nrrd, .nhdr) or MetaImage (.mha, .mhd)"

_CHUNK = 1 << 20
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
_STDERR_LOCK = threading.Lock()
_ITK_ORIGIN = re.compile(r"^\S+\.(?:cxx|hxx|h|txx):\d+:\s*|\b(?:itk::|ITK )ERROR: |\b\w+\(0x[0-9a-f]+\): |Reason: .*$")


def one_line(reason: BaseException | str) -> str:
    """An error as one short line, without the places in C++ sources that ITK puts in front."""
    text = str(reason)
    steps = [line for line in text.splitlines() if line.startswith("[nrrd]")]
    text = " ".join((steps[-1] if steps else text).split())
    while (shorter := _ITK_ORIGIN.sub("", text).strip()) != text:
        text = shorter
    if isinstance(reason, str):
        return text[:160]
    return f"{type(reason).__name__}: {text[:160]}" if text else type(reason).__name__


def unreadable(file: Path, reason: BaseException | str) -> InputError:
    """The error for a file that is no image."""
    return InputError(f"{file}: cannot be read as an image ({one_line(reason)}); give a sound {FORMATS} file")


def check_spacing(file: Path, values: Sequence[float], field: str) -> None:
    """Refuse a spacing as the header has it.

    Raises:
        InputError: if one of ``values`` (mm) is not a positive finite number.
    """
    if not all(np.isfinite(v) and v > 0 for v in values):
        raise InputError(
            f"{file}: {field} {[float(v) for v in values]} must be positive numbers of mm; mend the header"
        )


def check_volume(file: Path, shape: Sequence[int]) -> tuple[int, int, int]:
    """The three sizes of one volume; axes beyond the third must have length one.

    Raises:
        InputError: fewer axes, more than one volume, or an axis with fewer than two voxels.
    """
    shape = tuple(int(n) for n in shape)
    if len(shape) < 3 or any(n != 1 for n in shape[3:]):
        raise InputError(f"{file}: not 3-D, its shape is {shape}; give a volume with exactly three axes")
    if min(shape[:3]) < 2:
        raise InputError(f"{file}: empty or flat, its shape is {shape[:3]}; every axis needs at least 2 voxels")
    return shape[:3]


def check_size(file: Path, found: int, expected: int) -> None:
    """Refuse data that are shorter than the header says; both in bytes.

    Raises:
        InputError: if they are.
    """
    if found < expected:
        raise InputError(
            f"{file}: cannot be read as an image (truncated: its header tells of {expected} bytes of voxels, "
            f"the data hold {found}); copy the file again"
        )


def damaged(file: Path, reason: BaseException | str) -> InputError:
    """The error for packed data that do not unpack."""
    return InputError(f"{file}: gzip data truncated or damaged ({one_line(reason)}); copy the file again")


def unpacked_size(file: Path, stream: BinaryIO) -> int:
    """Bytes that a gzip or zlib stream holds, unpacked to its end.

    ITK stops at the last voxel, before the checksum at the stream's end, and takes damaged data for good.

    Raises:
        InputError: if it is truncated or damaged.
    """
    total, unpack = 0, zlib.decompressobj(_GZIP_OR_ZLIB)
    try:
        packed = stream.read(_CHUNK)
        while packed:
            total += len(unpack.decompress(packed))
            packed = unpack.unused_data or stream.read(_CHUNK)
            if unpack.eof:
                # A gzip file may be several streams in a row.
                if not packed.startswith(b"\x1f\x8b"):
                    return total
                unpack = zlib.decompressobj(_GZIP_OR_ZLIB)
        raise EOFError("the stream stops before its end marker")
    except (EOFError, zlib.error, OSError) as error:
        raise damaged(file, error) from error


@contextmanager
def itk_reading(file: Path) -> Iterator[None]:
    """Run ITK's readers: the screen stays quiet, and whatever they raise becomes the one line that a user sees.

    Raises:
        InputError: if the block raises anything else than KeyboardInterrupt and its like.
    """
    log: list[str] = []
    try:
        with quiet_stderr(log):
            yield
    except InputError:
        raise
    except Exception as error:  # ITK raises RuntimeError, its Python wrapping half a dozen other types
        # MetaImage's reader says on the screen what is wrong, and raises with the last reason of the C library.
        said = log[0] if "File cannot be read" in str(error) else ""
        raise unreadable(file, said.strip() or error) from error


@contextmanager
def quiet_stderr(log: list[str]) -> Iterator[None]:
    """Keep what C++ code writes to the standard error off the screen, and add it to ``log`` at the end.

    The file descriptor is turned aside for the whole process, so only one thread at a time gets in.
    """
    with _STDERR_LOCK, tempfile.TemporaryFile() as sink:
        screen = os.dup(2)
        try:
            os.dup2(sink.fileno(), 2)
            yield
        finally:
            os.dup2(screen, 2)
            os.close(screen)
            sink.seek(0)
            log.append(sink.read().decode(errors="replace"))
