"""ANTs' affine and SyN, through antspyx."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from scripts.formats import Image, read_transforms
from scripts.spatial import LPS_FLIP, Frame, WorldTransform, ras_to_lps

from . import ants_worker, worker
from .base import Found, Peer, affine_inverse, intensities, undo_field

__all__ = ["Ants"]

STAGES = ("affine", "syn")


class Ants(Peer):
    """ANTs' registration in a process of its own, with a fixed seed.

    antspyx's own choices unless said otherwise: begins with the centres of mass, then an affine by mutual information
    of 32 bins on a regular fifth of the voxels.

    Args:
        name: how tables call it.
        stage: ``"syn"``, or ``"affine"`` alone.
        metric: of SyN: ``"mattes"`` or ``"CC"``.
        sampling: bins of ``"mattes"``, radius in voxels of ``"CC"``.
        iterations: most of SyN at each level, coarse to fine; each level halves the grid of the next.
        flow_sigma: of the Gaussian that smooths the update field, as antspyx takes it.
        step: of SyN.
        seed: of the sampling.
    """

    module = "ants"
    distribution = "antspyx"
    # Repeatable on one thread, as measured; several add in the order in which they finish.
    deterministic = False

    def __init__(
        self,
        name: str = "SyN",
        stage: str = "syn",
        metric: str = "mattes",
        sampling: int = 32,
        iterations: Sequence[int] = (40, 20, 0),
        flow_sigma: float = 3.0,
        step: float = 0.2,
        seed: int = 1,
    ) -> None:
        if stage not in STAGES:
            raise ValueError(f"Ants: stage must be one of {STAGES}, got '{stage}'.")
        settings: dict[str, Any] = {"stage": stage, "seed": seed}
        if stage == "syn":
            settings |= {"metric": metric, "sampling": sampling, "iterations": list(iterations)}
            settings |= {"flow_sigma": flow_sigma, "step": step}
        super().__init__(name, **settings)

    def load(self, threads: int) -> None:
        """Start the process."""
        worker.start(self.module, threads)

    def elsewhere(self) -> float:
        """Those of the workers."""
        return worker.processor_seconds()

    def register(self, fixed: Image, moving: Image, threads: int) -> Found:
        """Register in the process; its transforms come back as files, which are removed."""
        with tempfile.TemporaryDirectory(prefix="ants_") as folder:
            images = [(intensities(image), *_geometry(image.frame)) for image in (fixed, moving)]
            forward, backward = worker.call(self.module, threads, ants_worker.register, *images, self.settings, folder)
            (linear,) = read_transforms(forward[-1])
            if self.settings["stage"] == "affine":
                return Found([linear], [affine_inverse(linear)], [linear])
            (there,), (back,) = read_transforms(forward[0]), read_transforms(backward[-1])
        transform = WorldTransform(linear.linear, there.displacement.astype(np.float32), there.frame)
        back = WorldTransform(np.eye(4), back.displacement.astype(np.float32), back.frame)
        return Found([transform], undo_field(linear.linear, back), [linear])


def _geometry(frame: Frame) -> tuple[list[float], list[float], np.ndarray]:
    """Spacing, origin and direction, LPS."""
    return frame.spacing.tolist(), ras_to_lps(frame.origin).tolist(), LPS_FLIP[:3, :3] @ frame.direction
