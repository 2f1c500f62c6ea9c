"""What every workflow does first: one-line errors, seeds, and checks that must not wait for hours."""

from __future__ import annotations

import logging
import os
import sys
import time
import uuid
from pathlib import Path
from traceback import walk_tb
from types import TracebackType

import torch
from ignite.engine import Engine, Events
from monai.utils import set_determinism

from ..data.errors import InputError
from ..io import atomic_path
from ..layers import keep_large_blocks
from .checkpoints import LAST
from .processes import is_first
from .tables import check_output_dir, make_output_dir

RUN_NAME = "mlflow_run_name.txt"


ROOMS = str(Path(__file__).resolve().parents[1])


def _refused_setting(error: BaseException) -> bool:
    """Whether one of this project's constructors refused its argument, which comes from a config or an override."""
    if not isinstance(error, ValueError) or error.__traceback__ is None:
        return False
    code = list(walk_tb(error.__traceback__))[-1][0].f_code
    return code.co_name in ("__init__", "__post_init__") and code.co_filename.startswith(ROOMS)


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
    """Show bad input as one line on standard error (exit status 1); every other error keeps its traceback."""
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        bad_input = input_error(error)
        if bad_input is None:
            previous(kind, error, trace)
        else:
            # A loader's worker process hands its error on with a traceback before it.
            print(f"error: {str(bad_input).splitlines()[-1].split('InputError: ')[-1]}", file=sys.stderr)

    if getattr(previous, "__qualname__", "") != hook.__qualname__:
        sys.excepthook = hook


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
    logging.getLogger("scripts").setLevel(log_level)
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

    It begins with the folder's name. A name of its own keeps a run from joining one that was left open. Of several
    processes the first tracks the run; the others, whose trackers are switched off, get a name that nothing is kept
    under.

    Args:
        output_dir: folder of the run.
    """
    if not is_first():
        return "another process"
    folder = make_output_dir(output_dir)
    file = folder / RUN_NAME
    if (folder / LAST).is_file() and file.is_file():
        return file.read_text().strip()
    name = f"{folder.resolve().name}_{time.strftime('%Y%m%d_%H%M%S')}_{uuid.uuid4().hex[:8]}"
    with atomic_path(file) as path:
        Path(path).write_text(name + "\n")
    return name


class EpochSetter:
    """Tells a data set the epoch before it starts, so that what is drawn in it is a function of seed and epoch.

    Args:
        dataset: with ``set_epoch``.
    """

    def __init__(self, dataset: object) -> None:
        if not hasattr(dataset, "set_epoch"):
            raise ValueError(f"{type(dataset).__name__} has no set_epoch.")
        self.dataset = dataset

    def attach(self, engine: Engine) -> None:
        """Register on a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Set the epoch."""
        self.dataset.set_epoch(engine.state.epoch)
