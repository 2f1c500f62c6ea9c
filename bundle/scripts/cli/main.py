"""Subcommands, and how every one of them ends: exit status and one line for an error."""

from __future__ import annotations

import argparse
import atexit
import errno
import gc
import os
import re
import sys
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from types import ModuleType
from typing import Any, NoReturn

from .. import __version__
from ..errors import end_on_sigterm, input_error

COMMANDS = ("register", "series", "apply", "jacobian", "evaluate", "convert", "template", "longitudinal")
"""Modules of this room, one a subcommand, in the order in which help lists them."""

_DESCRIPTION = """\
Register two 3D medical images, and use and judge the transforms that come of it.

A transform carries points of the FIXED image to the MOVING image; images and labels go the other way, from moving to
fixed. Files are ITK's: Slicer, ANTs and SimpleITK read them as they are."""

_NEAR = 0.75  # how alike an option is that may have been meant
_MENDS = {
    errno.ENOSPC: "free some space or write elsewhere",
    errno.EDQUOT: "free some space or write elsewhere",
    errno.EACCES: "change its permissions or write elsewhere",
    errno.EPERM: "change its permissions or write elsewhere",
    errno.EROFS: "write elsewhere",
    errno.ENAMETOOLONG: "give a shorter name",
}


class _Parser(argparse.ArgumentParser):
    """Ends with one line and status 2 where argparse prints its usage, too; knows no shortened options.

    What it does not know is told before what is missing: files in another tool's order are both.
    """

    files = ""  # how they are given to a subcommand
    needed = ()

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter, **options})

    def format_help(self) -> str:
        for action in self.needed:  # told as such
            action.required = True
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        words = [word if len(word) <= 150 else f"{word[:60]}..." for word in message.split()]
        text = " ".join(words) if len(words) <= 60 else f"{' '.join(words[:60])} ..."
        self.exit(2, f"error: {text}; see {self.prog} --help\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[argparse.Namespace, list[str]]:
        needed = self.needed = [action for action in self._actions if action.required and action.option_strings]
        for action in needed:
            action.required = False
        try:
            found, unknown = super().parse_known_args(args, namespace)
        finally:
            for action in needed:
                action.required = True
        if self.files and unknown:
            known = [option for action in self._actions for option in action.option_strings]
            near = get_close_matches(unknown[0].partition("=")[0], known, 1, _NEAR)
            hint = f"; {near[0]} perhaps" if near else ""
            if not unknown[0].startswith("-"):
                hint = f"; give every file by its option, {self.files}"
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        missing = [max(action.option_strings, key=len) for action in needed if getattr(found, action.dest) is None]
        if missing:
            self.error(f"the following arguments are required: {', '.join(missing)}")
        return found, unknown


def _parse(arguments: Sequence[str] | None) -> tuple[Any, argparse.Namespace]:
    """The module of the subcommand and its options; ends the process with status 2 for what cannot be understood."""
    parser = _Parser(prog="avsm", description=_DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"avsm {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    modules = {name: import_module(f".{name}", __package__) for name in COMMANDS}
    for name, module in modules.items():
        command = subparsers.add_parser(name, help=module.HELP, description=module.DESCRIPTION, epilog=module.EPILOG)
        command.files = module.USAGE
        module.add_options(command)
    options = parser.parse_args(arguments)
    # For what argparse cannot say: options that need each other.
    refuse = subparsers.choices[options.command].error
    options.usage_error = lambda line: refuse(_by_options(line, vars(options)))
    return modules[options.command], options


def _by_options(line: str, names: Collection[str]) -> str:
    """A line that calls settings by their keywords, with their options in place of these."""

    def option(found: re.Match) -> str:
        # One plain word is a name at the beginning alone.
        begins = found.start() == 0 and line.startswith((":", "="), found.end())
        named = found[0] in names and ("_" in found[0] or begins)
        return "--" + found[0].replace("_", "-") if named else found[0]

    # Not where the word is part of a path.
    return re.sub(r"(?<![\w./\\-])\w+(?=[:,;=]?(\s|$)|=)", option, line)


def _line(error: Exception, options: argparse.Namespace) -> str | None:
    """The one line for an error that a user can cause, or None for a fault of the program."""
    bad_input = input_error(error)
    if bad_input is not None:
        return _by_options(str(bad_input).strip().splitlines()[-1], vars(options) if options else ())
    if not isinstance(error, OSError):
        return None
    if error.errno is None:
        return " ".join(str(error).split())
    place = f"{str(error.filename)[:300]}: " if error.filename else ""
    mend = _MENDS.get(error.errno)
    return f"{place}{error.strerror}{f'; {mend}' if mend else ''}"


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Show a warning meant for users as one line; others as Python does."""

    def show(message: Warning | str, category: type[Warning], *place: Any, **options: Any) -> None:
        if issubclass(category, UserWarning):
            print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)
        else:
            default(message, category, *place, **options)

    with warnings.catch_warnings():
        default = warnings.showwarning
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = show
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Args:
        arguments: the words behind ``avsm``; None: those of the process.

    Returns:
        The exit status: 0, or 1 after an error in the user's input or files, told in one line on standard error.

    Raises:
        SystemExit: with status 2 for words that cannot be understood, with 0 for ``--help``, with 143 after SIGTERM.
    """
    module, options = _parse(arguments)
    if arguments is not None:
        return _status(module, options)
    end_on_sigterm()
    # Every 700 new objects Python looks for unused ones, and the libraries make a million as they load.
    gc.set_threshold(10_000, *gc.get_threshold()[1:])
    # PyTorch's threads wait for each other in a busy loop, by default so long that on a machine where other work runs
    # they mostly take each other's time: half of the time there, the same where nothing else runs.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    status = _status(module, options)
    if "torch" in sys.modules:
        _end(status)
    return status


def _end(status: int) -> NoReturn:
    """End the process as Python does, but for taking its modules apart, which takes half a second behind PyTorch."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _status(module: ModuleType, options: argparse.Namespace) -> int:
    """Run a subcommand; its exit status, see `main`."""
    try:
        with _one_line_warnings():
            return module.run(options)
    except KeyboardInterrupt:
        print("error: interrupted; nothing was left half written", file=sys.stderr)
        return 130
    except Exception as error:
        line = _line(error, options)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 1
