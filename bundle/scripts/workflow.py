"""What every workflow does first: one-line errors, seeds, and checks that must not wait for hours."""

from __future__ import annotations

import logging
import os

import torch

from .errors import end_on_sigterm, one_line_errors
from .layers import keep_large_blocks
from .monai_parts import set_determinism
from .settings import checked
from .storage import check_output_dir


def begin(seed: int | None = None, threads: int | None = None, output_dir: str | os.PathLike | None = None) -> None:
    """Begin a workflow: error reports, SIGTERM, memory, log format, seed, threads, and whether results can be written.

    None leaves seed and threads as they are. ``output_dir`` is checked now, as it is first written to when all data
    have been read. InputError when a value is impossible, or the output directory can't be written to.
    """
    one_line_errors()
    end_on_sigterm()
    keep_large_blocks()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger(__package__).setLevel(logging.INFO)
    if seed is not None:
        set_determinism(checked("seed", seed))
    if threads is not None:
        torch.set_num_threads(checked("threads", threads))
    if output_dir is not None:
        check_output_dir(output_dir)
