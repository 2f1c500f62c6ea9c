"""What a training needs to know first: the name of its run."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path

from ..processes import is_first
from ..storage import atomic_path, claimed, make_output_dir
from .checkpoints import LAST

RUN_NAME = "mlflow_run_name.txt"


def run_name(output_dir: str | os.PathLike) -> str:
    """Name of the MLflow run of an output folder: new for a new run, the same again when a run goes on.

    It begins with the folder's name. A training goes on as long as it has a checkpoint; what was killed before that, or
    has none, has left the name and an open run of MLflow behind, which goes on as well. Of several processes the first
    tracks the run; the others, whose trackers are switched off, get a name that nothing is kept under. InputError when
    another run is writing to the folder.
    """
    if not is_first():
        return "another process"
    folder = make_output_dir(output_dir)
    file = folder / RUN_NAME
    with claimed(folder):
        if file.is_file():
            return file.read_text().strip()
        # A name of its own keeps a run from joining one that was left open.
        name = f"{folder.resolve().name}_{time.strftime('%Y%m%d_%H%M%S')}_{uuid.uuid4().hex[:8]}"
        with atomic_path(file) as path:
            path.write_text(name + "\n")
    return name


def forget_run(output_dir: str | os.PathLike) -> None:
    """Let the next run of a folder be a new one of MLflow, unless it is a training that goes on from a checkpoint."""
    folder = Path(output_dir)
    if not (folder / LAST).is_file():
        (folder / RUN_NAME).unlink(missing_ok=True)
