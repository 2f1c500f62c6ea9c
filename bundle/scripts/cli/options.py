"""Options that several subcommands share; imports nothing heavy."""

from __future__ import annotations

import argparse

TRANSFORM_FILES = ".h5, .hdf5, .tfm, .txt, ANTs' .mat, or a displacement field .nii, .nii.gz (intent 1007, LPS mm)"
SPACES = ("RAS", "LPS")


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
