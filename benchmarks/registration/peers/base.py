"""What all adapters share: intensities, presence and version of the engine, the clock, maps as world transforms."""

from __future__ import annotations

import importlib
import importlib.util
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from registration.clock import Clock
from registration.method import Answer
from scripts.formats import Image
from scripts.registration import foreground_box, normalise
from scripts.spatial import Frame, WorldTransform, apply_matrix

__all__ = ["Found", "Peer", "affine_inverse", "from_positions", "intensities", "positions", "undo_field"]


@dataclass(frozen=True)
class Found:
    """An `Answer` before its time is known."""

    transform: list[WorldTransform]
    inverse: list[WorldTransform] | None = None
    affine: list[WorldTransform] | None = None
    notes: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)


class Peer(ABC):
    """A `Method` that asks another engine.

    Args:
        name: how tables call it.
        settings: what decides the answer, as JSON can hold it.
    """

    module: str
    """Python module of the engine."""
    distribution: str
    """What to install for it."""
    deterministic = True
    warms_up = True
    """Whether the first call in a process takes longer than those that follow, as it loads what it needs."""

    def __init__(self, name: str, **settings: Any) -> None:
        self.name = name
        self.settings = settings

    def missing(self) -> str | None:
        """Why the engine cannot run here; None if it can."""
        if importlib.util.find_spec(self.module) is None:
            return f"{self.name}: {self.distribution} is not installed; pip install {self.distribution}"
        return None

    def parameters(self) -> dict[str, Any]:
        """Engine, its version, and the settings."""
        return {"engine": self.distribution, "version": self.version(), **self.settings}

    def version(self) -> str | None:
        """Version of the engine; None where it is not installed."""
        try:
            return version(self.distribution)
        except PackageNotFoundError:
            return None

    def load(self, threads: int) -> None:
        """What is done once for all pairs, outside of the time."""
        importlib.import_module(self.module)

    @abstractmethod
    def register(self, fixed: Image, moving: Image, threads: int) -> Found:
        """Register one pair; raises RuntimeError when the engine fails."""

    def __call__(self, fixed: Image, moving: Image, threads: int = 1) -> Answer:
        """Register one pair, see `registration.method.Method`.

        Raises:
            RuntimeError: when the engine is missing or fails.
        """
        reason = self.missing()
        if reason is not None:
            raise RuntimeError(reason)
        self.load(threads)
        with Clock(self.elsewhere) as clock:
            found = self.register(fixed, moving, threads)
        return Answer(
            found.transform, clock.seconds, found.inverse, found.affine, found.notes, found.extra, clock.cpu_seconds
        )

    def elsewhere(self) -> float:
        """Processor seconds so far of a process of the engine's that outlives a registration."""
        return 0.0


def intensities(image: Image) -> np.ndarray:
    """Intensities as our network is shown them: percentiles 0.1 and 99.9 of the foreground brought to 0 and 1, clipped.

    Every peer gets the same, on the image's own grid, so that neither a metric's bins nor a difference of squares has
    to make up for scanners' scales.

    Returns:
        ``(D, H, W)`` float32.
    """
    return normalise(image.array, foreground_box(image.array)).astype(np.float32, copy=False)


def positions(frame: Frame) -> np.ndarray:
    """Where the voxels of a grid lie, ``(D, H, W, 3)`` RAS mm."""
    return frame.voxel_to_world(np.stack(np.indices(frame.shape, dtype=np.float64), axis=-1))


def from_positions(target: np.ndarray, frame: Frame, linear: np.ndarray) -> WorldTransform:
    """The transform that carries each voxel of a grid to a given point, and beyond the grid acts by its affine stage.

    Args:
        target: ``(D, H, W, 3)``, RAS mm, in the moving image.
        frame: the grid, of the fixed image.
        linear: the affine stage, ``(4, 4)``, RAS mm, fixed to moving.
    """
    displacement = apply_matrix(np.linalg.inv(linear), target) - positions(frame)
    return WorldTransform(linear, displacement.astype(np.float32), frame)


def affine_inverse(transform: WorldTransform) -> WorldTransform:
    """The exact inverse of an affine."""
    return WorldTransform(np.linalg.inv(transform.linear))


def undo_field(linear: np.ndarray, inverse_field: WorldTransform) -> list[WorldTransform]:
    """The inverse of ``q = L(p + d(p))``: L⁻¹, then the engine's own inverse field on the fixed image's side."""
    return [WorldTransform(np.linalg.inv(linear)), inverse_field]
