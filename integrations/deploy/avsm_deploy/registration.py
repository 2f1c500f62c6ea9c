"""One registration by the bundle's own ``inference.json``; its files are those of ``avsm register``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow

from scripts.registration.options import usable_device

from .bundle import bundle_folder
from .model import Model

__all__ = ["register"]


def register(fixed: Path, moving: Path, model: Model, settings: Mapping[str, Any], output: Path) -> None:
    """Register two images and write ``transform.h5``, ``moved.nii.gz`` and the other files.

    Args:
        fixed: a file, or a folder with one DICOM series.
        moving: likewise.
        model: the weights and the config they belong to.
        settings: of the request; they outdo those of the model.
        output: folder for the files.

    Raises:
        InputError: for images, weights or settings that cannot be used, as ``avsm register`` has it (perhaps as the
            cause of what the config's parser raises).
    """
    if "device" in settings:
        usable_device(settings["device"])
    bundle = bundle_folder()
    # It tells of the folder that it writes to, which is not where the files will be.
    logging.getLogger("scripts.registration.write").setLevel(logging.WARNING)
    # It warns that it leaves the log alone, which is what it was told.
    logging.getLogger(ConfigWorkflow.__module__).setLevel(logging.ERROR)
    overrides = {**model.overrides, **settings}
    workflow = ConfigWorkflow(
        config_file=str(bundle / "configs" / "inference.json"),
        workflow_type="infer",
        logging_file=False,
        bundle_root=str(bundle),
        # Paths are no strings, in which the config's parser would read '#' as a reference.
        fixed=fixed,
        moving=moving,
        output_dir=output,
        ckpt_path=model.weights,
        **overrides,
        # The state dict lies in a temporary folder: metrics.json tells of the file that it came from.
        **{"settings#network#ckpt_path": str(model.path), "writer#facts#weights_sha256": model.sha256},
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()
