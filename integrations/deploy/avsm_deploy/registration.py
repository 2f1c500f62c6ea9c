"""One registration by the bundle's own ``inference.json``; its files are those of ``avsm register``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.registration import inference_parser
from scripts.settings import PRESETS

from .model import Model

__all__ = ["register"]


def register(fixed: Path, moving: Path, model: Model, settings: Mapping[str, Any], output: Path) -> None:
    """Register two images and write ``transform.h5``, ``moved.nii.gz`` and the other files.

    Args:
        fixed: a file, or a folder with one DICOM series.
        moving: likewise.
        model: the weights and the config they belong to.
        settings: of the request; they outdo those of the model. A preset without a network takes nothing of it.
        output: folder for the files.

    Raises:
        InputError: for images, weights or settings that cannot be used, as ``avsm register`` has it (perhaps as the
            cause of what the config's parser raises).
    """
    # It tells of the folder that it writes to, which is not where the files will be.
    logging.getLogger("scripts.registration.write").setLevel(logging.WARNING)
    settings = {**settings, "fixed": fixed, "moving": moving, "output_dir": output}
    if PRESETS[settings["preset"]].network:
        parser = inference_parser(config_files=[model.config], ckpt_path=model.weights, **settings)
        # The state dict lies in a temporary folder: metrics.json tells of the file that it came from.
        parser["network_facts#ckpt_path"] = str(model.path)
        parser["network_facts#model"] = None
        parser["facts#weights_sha256"] = model.sha256
    else:
        parser = inference_parser(**settings)
    parser.get_parsed_content("initialize")
    parser.get_parsed_content("batch").run()
