"""A network's own file, ``models/NAME.json``: architecture, steps, smoother, grid, weights; complete by itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..monai_parts import ConfigParser, config_parser
from .avsm import AVSM


def _parser(path: str | os.PathLike) -> ConfigParser:
    if not Path(path).is_file():
        raise InputError(f"{path}: no such network file; give the model of a file in models/, or a network_file")
    parser = config_parser([path])
    parser["bundle_root"] = str(Path(path).absolute().parents[1])
    return parser


def network_setting(path: str | os.PathLike, name: str) -> Any:
    """A setting in a network's file, such as ``grid``; None where the file leaves it open; InputError without one."""
    parser = _parser(path)
    return parser.get_parsed_content(name) if name in parser else None


def network_from(path: str | os.PathLike, affine_steps: int | None, vsvf_steps: int | None) -> AVSM:
    """The network of a file, without weights, with the file's steps where these are None; InputError without a file."""
    parser, steps = _parser(path), {"affine_steps": affine_steps, "vsvf_steps": vsvf_steps}
    parser.update({name: count for name, count in steps.items() if count is not None})
    return parser.get_parsed_content("network_def")
