"""Wall time and processor time of a registration: the second does not depend on what else a machine is doing."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

__all__ = ["Clock", "processor_seconds"]


def processor_seconds() -> float:
    """Processor time so far, in seconds, of all threads of this process and of the processes that it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class Clock:
    """Measures a ``with`` block.

    Args:
        elsewhere: processor seconds of a process that goes on living, such as an engine's worker; None for none.

    Attributes:
        seconds: wall time of the block.
        cpu_seconds: processor time of the block, in steps of the system's clock tick (most often 10 ms).
    """

    def __init__(self, elsewhere: Callable[[], float] | None = None) -> None:
        self._elsewhere = elsewhere or (lambda: 0.0)
        self.seconds = self.cpu_seconds = 0.0

    def __enter__(self) -> Clock:
        self._begin = time.perf_counter(), processor_seconds() + self._elsewhere()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = time.perf_counter() - self._begin[0]
        self.cpu_seconds = processor_seconds() + self._elsewhere() - self._begin[1]
