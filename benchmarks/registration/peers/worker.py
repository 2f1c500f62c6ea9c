"""A process for an engine that takes its number of threads from the environment, and only when it is loaded.

Each number of threads has a process of its own, which is kept for the pairs that follow and ends with ours.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from typing import Any

__all__ = ["call", "processor_seconds", "start"]

THREADS = ("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "OMP_NUM_THREADS")
_WORKERS: dict[tuple[str, int], ProcessPoolExecutor] = {}
_SPENT = [0.0]  # processor seconds of the calls so far


def _begin(module: str, threads: int) -> None:
    """The first thing that a worker does."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.update(dict.fromkeys(THREADS, str(threads)))
    importlib.import_module(module)


def _end_with_parent() -> None:
    """A worker holds both ends of its own queue, so that nothing else tells it that we were killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def start(module: str, threads: int) -> None:
    """See that the worker with an engine loaded is there; waits until it is.

    Raises:
        RuntimeError: when the engine cannot be loaded.
    """
    if (module, threads) not in _WORKERS:
        # A fork would carry over the threads and the environment that another engine has begun with.
        context = multiprocessing.get_context("spawn")
        _WORKERS[module, threads] = ProcessPoolExecutor(1, context, _begin, (module, threads))
        call(module, threads, os.getpid)


def call(module: str, threads: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function that can be pickled returns in the worker.

    Raises:
        RuntimeError: when it raises one, or the process dies; the next pair then gets a new one.
    """
    start(module, threads)
    try:
        result, seconds = _WORKERS[module, threads].submit(_timed, function, *arguments).result()
    except BrokenExecutor as error:
        _WORKERS.pop((module, threads)).shutdown(wait=False)
        raise RuntimeError(f"{module}: its process died (out of memory, or a fault of the engine)") from error
    _SPENT[0] += seconds
    return result


def processor_seconds() -> float:
    """Processor time that the calls so far have taken in their workers."""
    return _SPENT[0]


def _timed(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """In the worker: what a function returns, and the processor time that it took."""
    begin = time.process_time()
    return function(*arguments), time.process_time() - begin
