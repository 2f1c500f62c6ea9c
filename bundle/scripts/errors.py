"""Bad input: the one error that users are meant to see, and how it becomes one line."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from reprlib import Repr
from traceback import walk_tb
from types import FrameType, TracebackType
from typing import Any, NoReturn


class InputError(ValueError):
    """A user's bad input: a file, a data list or a setting.

    The message is one clear line that names the file or argument, the value found, and the mend.
    """


_short = Repr()
_short.maxstring = _short.maxother = 200
_short.maxlist = _short.maxtuple = _short.maxdict = 4


def shown(value: object) -> str:
    """A value of any size and depth as an error shows it: short, and on one line."""
    try:
        return _short.repr(value)
    except ValueError:  # Python does not write whole numbers of thousands of digits
        return f"a value with a {type(value).__name__} of too many digits"


ROOMS = str(Path(__file__).resolve().parent)


def _refused_setting(error: BaseException) -> bool:
    """Whether one of this project's constructors refused its argument, which comes from a config or an override."""
    if not isinstance(error, ValueError) or error.__traceback__ is None:
        return False
    for frame, _ in reversed(list(walk_tb(error.__traceback__))):
        if not frame.f_code.co_filename.startswith(ROOMS):
            return False
        if frame.f_code.co_name in ("__init__", "__post_init__"):
            return True
    return False


def input_error(error: BaseException | None) -> ValueError | None:
    """The bad input behind an exception (config parsing and transforms wrap what they meet), or None.

    Bad input is an `InputError`, or a ``ValueError`` by which a constructor of this project refuses a setting.
    """
    while error is not None:
        if isinstance(error, InputError) or _refused_setting(error):
            return error
        error = error.__cause__ or error.__context__
    return None


def one_line_errors() -> None:
    """Show bad input and Ctrl-C as one line on standard error; every other error keeps its traceback."""
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        bad_input = input_error(error)
        if isinstance(error, KeyboardInterrupt):
            print("error: interrupted; what was not finished is removed", file=sys.stderr)
        elif bad_input is None:
            previous(kind, error, trace)
        else:
            # A loader's worker process hands its error on with a traceback before it.
            print(f"error: {str(bad_input).splitlines()[-1].split('InputError: ')[-1]}", file=sys.stderr)

    if getattr(previous, "__qualname__", "") != hook.__qualname__:
        sys.excepthook = hook


def end_on_sigterm() -> None:
    """Let SIGTERM, as a scheduler sends it, end this process as Ctrl-C does: what is unfinished goes, a line says so.

    A handler that a program around this one has set stays.
    """
    main = threading.current_thread() is threading.main_thread()
    if main and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _end)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_DFL)  # a second one ends it at once
    # Not print: the signal may have come in the midst of one.
    os.write(2, b"error: ended by SIGTERM; what was not finished is removed\n")
    sys.unraisablehook = partial(_raise_later, sys.unraisablehook)
    _exit(number)


def _exit(number: int, frame: FrameType | None = None) -> NoReturn:
    raise SystemExit(128 + number)


def _raise_later(previous: Callable[[Any], Any], lost: Any) -> None:
    """Python drops what is raised while it frees an object, and the process would go on: raise it again soon."""
    if isinstance(lost.exc_value, SystemExit):
        signal.signal(signal.SIGTERM, _exit)
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
    else:
        previous(lost)
