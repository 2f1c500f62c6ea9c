"""What every workflow does first: one-line errors, seeds, and checks that must not wait for hours."""

from __future__ import annotations

import logging
import os
import time
import uuid
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.utils import set_determinism

from ..errors import InputError, one_line_errors
from ..layers import keep_large_blocks
from ..processes import is_first
from ..storage import atomic_path, check_output_dir, make_output_dir
from .checkpoints import LAST

RUN_NAME = "mlflow_run_name.txt"


def begin(
    seed: int | None = None,
    threads: int | None = None,
    output_dir: str | os.PathLike | None = None,
    log_level: str = "INFO",
) -> None:
    """Begin a workflow: error reports, memory, log format, seed, threads, and whether results can be written.

    Args:
        seed: makes the run repeatable; None leaves all as it is.
        threads: CPU threads of torch; None leaves the choice to it.
        output_dir: checked now, as it is first written to when all data have been read; None for no check.
        log_level: of this project's own messages.

    Raises:
        InputError: when seed or threads is impossible, or the output directory can't be written to.
    """
    one_line_errors()
    keep_large_blocks()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger(__name__.split(".")[0]).setLevel(log_level)
    if seed is not None:
        if not _is_whole(seed) or not 0 <= seed < 2**32:
            raise InputError(f"seed={seed}: give a whole number from 0 to {2**32 - 1}, or null")
        set_determinism(seed)
    if threads is not None:
        if not _is_whole(threads) or threads < 1:
            raise InputError(f"threads={threads}: give a whole number of at least 1, or null")
        torch.set_num_threads(threads)
    if output_dir is not None:
        check_output_dir(output_dir)


def bfloat16_pays(device: torch.device | str) -> bool:
    """Whether convolutions in bfloat16 are faster than in float32 on a device; the ``amp`` of configs.

    On a CPU that has no instructions for it (AVX-512 BF16 or AMX), PyTorch takes a hundred times as long.
    """
    if torch.device(device).type != "cpu":
        return True
    if hasattr(torch.cpu, "get_capabilities"):
        able = torch.cpu.get_capabilities()
        return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def run_name(output_dir: str | os.PathLike) -> str:
    """Name of the MLflow run of an output folder: new for a new run, the same again when a run is resumed.

    It begins with the folder's name. Of several processes the first tracks the run; the others, whose trackers are
    switched off, get a name that nothing is kept under.

    Args:
        output_dir: folder of the run.
    """
    if not is_first():
        return "another process"
    folder = make_output_dir(output_dir)
    file = folder / RUN_NAME
    if (folder / LAST).is_file() and file.is_file():
        return file.read_text().strip()
    # A name of its own keeps a run from joining one that was left open.
    name = f"{folder.resolve().name}_{time.strftime('%Y%m%d_%H%M%S')}_{uuid.uuid4().hex[:8]}"
    with atomic_path(file) as path:
        path.write_text(name + "\n")
    return name


class EpochSetter:
    """Tells a data set the epoch before it starts, so that what is drawn in it is a function of seed and epoch.

    Args:
        dataset: with ``set_epoch``.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def attach(self, engine: Engine) -> None:
        """Register on a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, lambda: self.dataset.set_epoch(engine.state.epoch))
