"""Options that several subcommands share; imports nothing heavy."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from ..settings import is_plain

TRANSFORM_FILES = ".h5, .hdf5, .tfm, .txt, ANTs' .mat, or a displacement field .nii, .nii.gz (intent 1007, LPS mm)"
SPACES = ("RAS", "LPS")


def given_path(text: str) -> Path:
    """A path as the caller's folder sees it; an empty word, as an unset variable of a shell leaves it, is none."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; give a path")
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:  # the home of an unknown user
        raise argparse.ArgumentTypeError(f"{text}: {error}; correct the path") from error


def plain_word(text: str) -> str:
    """A word that MONAI's config parser leaves as it is."""
    if not text.strip() or not is_plain(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no name; correct it")
    return text


def whole_number(least: int) -> Callable[[str], int]:
    """A type of whole numbers from ``least`` on."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text} is not a whole number from {least} on; correct it")
        return value

    return convert


def add_transform(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add ``--transform``, a list in ANTs' order."""
    parser.add_argument(
        "--transform",
        metavar="T",
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
        help="world of points in files that do not say it themselves: all CSV files and most VTK files (ANTs' are LPS)",
    )
