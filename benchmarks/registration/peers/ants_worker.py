"""What `ants_syn` asks of ANTs, in a process of its own; imports nothing else, so that the process starts quickly."""

from __future__ import annotations

import os
from typing import Any

__all__ = ["register"]


def register(fixed: tuple, moving: tuple, settings: dict[str, Any], folder: str) -> tuple[list[str], list[str]]:
    """Register two volumes.

    Args:
        fixed: array ``(D, H, W)``, spacing, origin and direction, LPS.
        moving: as ``fixed``.
        settings: of `ants_syn.Ants`.
        folder: for the transforms' files.

    Returns:
        The files, forward and backward, in the order in which points meet them.
    """
    import ants

    # This sets the seed alone: ``random_seed`` of `ants.registration` is not passed on.
    ants.config.set_ants_deterministic(False, settings["seed"])
    images = [
        ants.from_numpy(array, spacing=spacing, origin=origin, direction=direction)
        for array, spacing, origin, direction in (fixed, moving)
    ]
    options: dict[str, Any] = {"type_of_transform": "Affine"}
    if settings["stage"] == "syn":
        options = {
            "type_of_transform": "SyN",
            "syn_metric": settings["metric"],
            "syn_sampling": settings["sampling"],
            "reg_iterations": tuple(settings["iterations"]),
            "flow_sigma": settings["flow_sigma"],
            "grad_step": settings["step"],
        }
    found = ants.registration(*images, outprefix=os.path.join(folder, "ants"), **options)
    return list(found["fwdtransforms"]), list(found["invtransforms"])
