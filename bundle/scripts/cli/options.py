"""Options that several subcommands share; imports nothing heavy."""

from __future__ import annotations

import argparse
import errno
import math
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import shown
from ..settings import SPACE_HELP, SPACES, Setting, is_plain

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


def plain_word(text: str) -> str:
    """A word that MONAI's config parser leaves as it is."""
    if not text.strip() or not is_plain(text):
        raise argparse.ArgumentTypeError(f"{shown(text)} is no name; correct it")
    return text


def number(kind: type, least: float, most: float = math.inf) -> Callable[[str], int | float]:
    """A type of finite numbers, ``int`` or ``float``, between limits."""
    setting = Setting("", "", kind=kind, least=least, most=most)

    def convert(text: str) -> int | float:
        with suppress(ValueError):
            if setting.may_be(value := setting.kind(text)):
                return value
        raise argparse.ArgumentTypeError(f"{shown(text)} is not {setting.wanted}; correct it")

    return convert


def add_file(parser: argparse.ArgumentParser, option: str, metavar: str, help: str, **more: Any) -> None:
    """Add an option that takes a path."""
    parser.add_argument(option, metavar=metavar, type=path_word, help=help, **more)


def add_transform(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add ``--transform``, a list in ANTs' order."""
    text = f"transform file(s) in ANTs' order: the first listed acts on a point first; {TRANSFORM_FILES}"
    more = {"required": True} if required else {"default": []}
    add_file(parser, "--transform", "T", text, action="extend", nargs="+", **more)


def add_space(parser: argparse.ArgumentParser) -> None:
    """Add ``--space``."""
    parser.add_argument("--space", choices=SPACES, help=SPACE_HELP)
