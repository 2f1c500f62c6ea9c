"""What must be set before Holoscan is imported, which MONAI does of itself where the SDK is installed."""

from __future__ import annotations

import os
import resource

__all__ = ["prepare_process"]

_STACK = 32 << 20


def prepare_process() -> None:
    """Quiet the scheduler's log, and give it the stack that it wants.

    Of bad input the log says at length what the app says in one line; ``HOLOSCAN_LOG_LEVEL`` of the user goes first. A
    stack below 32 MB makes Holoscan warn of crashes; it is left alone where the system's limit is lower.
    """
    os.environ.setdefault("HOLOSCAN_LOG_LEVEL", "OFF")
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    low = soft != resource.RLIM_INFINITY and soft < _STACK
    if low and (hard == resource.RLIM_INFINITY or hard >= _STACK):
        resource.setrlimit(resource.RLIMIT_STACK, (_STACK, hard))
