"""What glibc does with freed memory: on large images it decides a third of the time and a fifth of the memory."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

# Names of mallopt's parameters in malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST = 2**30


@functools.cache
def _libc(name: str) -> Any:
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):  # another C library, which has its own ways
        return None


def hand_back() -> bool:
    """Give all memory that was freed back to the system, as glibc hoards it; whether this C library can."""
    trim = _libc("malloc_trim")
    if trim is not None:
        trim(0)
    return trim is not None


def keep_large_blocks() -> bool:
    """Use freed blocks of up to `_LARGEST` bytes again; whether this C library can.

    Blocks above 32 MB otherwise come fresh from the system each time, zeroed a page at a time: of a registration at
    384×384×160, a third of the time.
    """
    mallopt = _libc("mallopt")
    return mallopt is not None and bool(mallopt(_MMAP_THRESHOLD, _LARGEST) and mallopt(_TRIM_THRESHOLD, _LARGEST))
