"""What every method of the benchmark takes and gives, ours and the peers' alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from scripts.formats import Image
from scripts.spatial import WorldTransform

__all__ = ["Answer", "Method"]


@dataclass(frozen=True)
class Answer:
    """What a method found for one pair.

    Attributes:
        transform: fixed to moving points, RAS mm, first listed, first applied: what pulls the moving image onto the
            fixed image's grid.
        seconds: wall time of the registration alone, images in memory to transform in memory; files that a command-line
            peer must exchange are part of it.
        cpu_seconds: processor time of the same, all threads and processes of the engine together; None if not known.
        inverse: moving to fixed points, as ``transform``; None where the method gives none.
        affine: the affine stage of ``transform`` alone, as ``transform``; None where the method has none.
        notes: what a reader of the table should know of this pair, such as a fall-back or a warning of the peer.
        extra: figures of the method's own, such as the steps taken.
    """

    transform: Sequence[WorldTransform]
    seconds: float
    inverse: Sequence[WorldTransform] | None = None
    affine: Sequence[WorldTransform] | None = None
    notes: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)
    cpu_seconds: float | None = None


class Method(Protocol):
    """One row of a table. Built once with its parameters; called for each pair."""

    name: str
    """How tables call it, with the setting that tells it from its siblings."""
    deterministic: bool
    """Whether a second run gives the same transform."""

    def missing(self) -> str | None:
        """Why it cannot run here, one plain line for the table (the package or program to install); None if it can."""

    def parameters(self) -> dict[str, Any]:
        """Everything that decides the answer, with the version of the program behind it, as JSON can hold it."""

    def __call__(self, fixed: Image, moving: Image, threads: int = 1) -> Answer:
        """Register one pair; no labels are seen.

        Raises:
            RuntimeError: when the peer fails; the runner records its first line and goes on.
        """
