"""Options that several subcommands share; imports nothing heavy."""

from __future__ import annotations

import argparse
import errno
import math
import os
from collections.abc import Callable
from pathlib import Path

from ..settings import SPACE_HELP, SPACES, is_plain

TRANSFORM_FILES = (
    ".h5, .hdf5, .tfm, .txt, ANTs' or Greedy's .mat, or a displacement field (NIfTI of ITK, ANTs, SPM or NiftyReg; "
    ".nrrd, .nhdr, .mha, .mhd)"
)


def path_word(text: str) -> str:
    """A path as it is written, but for the home of a user; no empty word, as an unset variable of a shell leaves it."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; give a path")
    path = os.path.expanduser(text)
    if text.startswith("~") and path == text and not os.path.lexists(text):
        raise argparse.ArgumentTypeError(f"{shown(text)}: there is no such user's home folder; correct the path")
    try:
        os.lstat(path)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise argparse.ArgumentTypeError(f"{shown(text)}: is too long for a path; correct it") from error
    return path


def given_path(text: str) -> Path:
    """A path as the caller's folder sees it, see `path_word`."""
    return Path(path_word(text)).absolute()


def shown(text: str) -> str:
    """A word as an error shows it."""
    return text if len(text) <= 100 else f"{text[:80]}... ({len(text)} characters)"


def plain_word(text: str) -> str:
    """A word that MONAI's config parser leaves as it is."""
    if not text.strip() or not is_plain(text):
        raise argparse.ArgumentTypeError(f"{shown(text)!r} is no name; correct it")
    return text


def whole_number(least: int, most: float = math.inf) -> Callable[[str], int]:
    """A type of whole numbers from ``least`` on, up to ``most``."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            limit = "on" if most == math.inf else f"to {most}"
            raise argparse.ArgumentTypeError(f"{shown(text)} is not a whole number from {least} {limit}; correct it")
        return value

    return convert


def add_transform(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add ``--transform``, a list in ANTs' order."""
    parser.add_argument(
        "--transform",
        metavar="T",
        type=path_word,
        action="extend",
        nargs="+",
        required=required,
        default=None if required else [],
        help=f"transform file(s) in ANTs' order: the first listed acts on a point first; {TRANSFORM_FILES}",
    )


def add_space(parser: argparse.ArgumentParser) -> None:
    """Add ``--space``."""
    parser.add_argument(
        "--space",
        choices=SPACES,
        help=SPACE_HELP,
    )


def number(least: float) -> Callable[[str], float]:
    """A type of finite numbers from ``least`` on."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value < math.inf:
            raise argparse.ArgumentTypeError(f"{shown(text)} is not a number from {least:g} on; correct it")
        return value

    return convert
