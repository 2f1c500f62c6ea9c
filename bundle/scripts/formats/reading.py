"""What the readers of images share: words of their errors, a quiet screen, and the size of packed data."""

from __future__ import annotations

import io
import logging
import os
import re
import tempfile
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from isal import isal_zlib

from ..errors import InputError
from ..spatial.frame import Frame

FORMATS = "NIfTI (.nii, .nii.gz), NRRD (.nrrd, .nhdr), MetaImage (.mha, .mhd) or MGH (.mgz, .mgh)"

GZIP_MAGIC = b"\x1f\x8b"

_CHUNK = 1 << 17
_SURPLUS = 1 << 26
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
_STDERR_LOCK = threading.Lock()
_ITK_ORIGIN = re.compile(
    r"^Exception thrown in SimpleITK \w+: |^\S+\.(?:cxx|hxx|h|txx):\d+:\s*|\b(?:s?itk::|ITK )ERROR: |"
    r"\b\w+\(0x[0-9a-f]+\): |Reason: .*$"
)


class Voxels(NamedTuple):
    """What a reader finds in a file: an array ``(D, H, W)``, or more axes of a field; the rest as of `images.Image`."""

    array: np.ndarray
    frame: Frame
    notes: tuple[str, ...] = ()
    step: float = 0.0


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


@contextmanager
def parsing(file: Path, kind: str) -> Iterator[None]:
    """One line, an InputError, for whatever a library raises over a file that is damaged or not of its kind."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{file}: is no {kind}, or damaged; copy it again, or give another") from error


def check_spacing(file: Path, values: Sequence[float], field: str) -> None:
    """Refuse a spacing as the header has it, of which one value (mm) is not a positive finite number."""
    if not all(np.isfinite(v) and v > 0 for v in values):
        raise InputError(
            f"{file}: {field} {[float(v) for v in values]} must be positive numbers of mm; mend the header"
        )


def check_volume(file: Path, shape: Sequence[int]) -> tuple[int, int, int]:
    """The three sizes of one volume; InputError where there are more than one, fewer axes, or one of a single voxel."""
    shape = tuple(int(n) for n in shape)
    if len(shape) < 3 or any(n != 1 for n in shape[3:]):
        advice = "; avsm series registers a series of volumes" if len(shape) == 4 and min(shape) > 1 else ""
        raise InputError(f"{file}: not 3-D, its shape is {shape}; give a volume with exactly three axes{advice}")
    if min(shape[:3]) < 2:
        raise InputError(f"{file}: empty or flat, its shape is {shape[:3]}; every axis needs at least 2 voxels")
    return shape[:3]


def check_size(file: Path, found: int, expected: int) -> None:
    """Refuse data that are shorter than the header says; both in bytes."""
    if found < expected:
        raise InputError(
            f"{file}: cannot be read as an image (truncated: its header tells of {expected} bytes of voxels, "
            f"the data hold {found}); copy the file again"
        )


def check_memory(file: Path, needed: int) -> None:
    """Refuse data of more than half of the memory; a sparse or packed file of little size may tell of any amount."""
    if needed > (memory := os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) / 2:
        raise InputError(
            f"{file}: its header tells of {needed / 2**30:.4g} GB of voxels, too many for the {memory / 2**30:.4g} GB "
            "of memory here; crop or downsample the image, or mend the header"
        )


class Unpacked(io.RawIOBase):
    """The content of a gzip or zlib stream, unpacked no further than it is read; several gzip streams in a row are one.

    What is truncated or damaged raises InputError when it is reached, a wrong checksum at the end.
    """

    def __init__(self, file: Path, stream: BinaryIO) -> None:
        self._file, self._stream, self._packed = file, stream, b""
        self._unpack: Any = isal_zlib.decompressobj(_GZIP_OR_ZLIB)

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as comes easily; 0 at the end."""
        try:
            while self._unpack is not None:
                data = self._unpack.decompress(self._packed, len(buffer))
                self._packed = self._unpack.unconsumed_tail
                if data:
                    buffer[: len(data)] = data
                    return len(data)
                if self._unpack.eof:
                    self._packed = self._unpack.unused_data or self._stream.read(_CHUNK)
                    again = self._packed.startswith(GZIP_MAGIC)
                    self._unpack = isal_zlib.decompressobj(_GZIP_OR_ZLIB) if again else None
                elif not self._packed:
                    self._packed = self._stream.read(_CHUNK)
                    if not self._packed:
                        raise EOFError("the stream stops before its end marker")
        except (EOFError, isal_zlib.error, OSError) as error:
            raise InputError(
                f"{self._file}: gzip data truncated or damaged ({one_line(error)}); copy the file again"
            ) from error
        return 0


def unpacked(file: Path, stream: BinaryIO) -> io.BufferedReader:
    """`Unpacked`, as a file that reads as many bytes as it is asked for."""
    return io.BufferedReader(Unpacked(file, stream), _CHUNK)


def count_left(stream: BinaryIO, most: int) -> int:
    """Bytes left in a stream, dropped; counted no further than ``most`` and `_SURPLUS`, as packed ones may never end.

    Reading to the end is what finds damage: the checksum of packed data lies there.
    """
    total = 0
    while total < most + _SURPLUS and (data := stream.read(_CHUNK)):
        total += len(data)
    return total


@contextmanager
def opened(file: Path) -> Iterator[tuple[BinaryIO, bool]]:
    """A file's content, unpacked if it is packed by gzip, whatever its name says; and whether it was."""
    with file.open("rb") as raw:
        packed = raw.read(2) == GZIP_MAGIC
        raw.seek(0)
        yield unpacked(file, raw) if packed else raw, packed


def read_array(
    file: Path, stream: BinaryIO, shape: tuple[int, ...], kind: np.dtype, left: int | None
) -> tuple[np.ndarray, int]:
    """The next voxels of a stream, first axis fastest, and how many bytes come after them.

    ``left`` is the bytes from there to the end of the file; None for packed data, of which nobody knows, and which are
    read to their end. InputError if there are fewer than the array's, or more than memory holds.
    """
    needed = int(np.prod(shape, dtype=object)) * kind.itemsize
    if left is not None:
        check_size(file, left, needed)
    check_memory(file, needed)
    array = np.empty(shape, kind, order="F")
    found = stream.readinto(array.reshape(-1, order="F").view(np.uint8))  # type: ignore[attr-defined]
    check_size(file, found, needed)
    return array, count_left(stream, 0) if left is None else left - needed


def in_rows(array: np.ndarray, kind: np.dtype | None = None) -> np.ndarray:
    """A copy with the last axis fastest of an array ``(D, H, W, ...)`` that has the first one fastest.

    By blocks of the memory's caches: NumPy's own copy takes three times as long.
    """
    result = np.empty(array.shape, array.dtype if kind is None else kind)
    for start in range(0, array.shape[2], 16):
        result[:, :, start : start + 16] = array[:, :, start : start + 16]
    return result


@contextmanager
def itk_reading(file: Path) -> Iterator[None]:
    """Run ITK's readers: the screen stays quiet, and whatever they raise becomes the one line that a user sees."""
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
    # Of packed data that do not unpack, MetaImage's reader says so on the screen alone and returns what is in memory.
    if "Uncompress failed" in log[0]:
        raise unreadable(file, "its packed data do not unpack; CompressedDataSize in the header must be their bytes")


@contextmanager
def quiet_stderr(log: list[str]) -> Iterator[None]:
    """Keep what C++ code writes to the standard error off the screen, and add it to ``log`` at the end.

    The file descriptor is turned aside for the whole process, so only one thread at a time gets in, and what other
    threads log waits.
    """
    with _STDERR_LOCK, tempfile.TemporaryFile() as sink, ExitStack() as waiting:
        for handler in logging.getLogger().handlers:
            handler.acquire()
            waiting.callback(handler.release)
        screen = os.dup(2)
        try:
            os.dup2(sink.fileno(), 2)
            yield
        finally:
            os.dup2(screen, 2)
            os.close(screen)
            sink.seek(0)
            log.append(sink.read().decode(errors="replace"))
