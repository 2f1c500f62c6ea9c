"""A pair of images with its labels, and a set of such pairs: what methods are measured on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scripts.formats import Image

__all__ = ["MODES", "Case", "PairSet"]

MODES = ("longitudinal", "cross_subject")


@dataclass(frozen=True, eq=False)
class Case:
    """One pair.

    Attributes:
        name: unique in its set, fit for a file name.
        fixed: image on its own grid.
        moving: likewise.
        fixed_label: label map on the fixed image's grid; no method sees it.
        moving_label: likewise.
        true_map: ``(3, D, H, W)`` fixed to moving points in normalised coordinates of the two grids, where it is known.
    """

    name: str
    fixed: Image
    moving: Image
    fixed_label: Image
    moving_label: Image
    true_map: np.ndarray | None = None


class PairSet(ABC):
    """Pairs in a fixed order, made or read one by one.

    Attributes:
        name: how commands and tables call it.
        family: what tables put side by side: sets of one family that differ by mode.
        mode: ``"longitudinal"`` or ``"cross_subject"``.
        labels: value → name of the labels whose mean the tables give.
        title: one line for the tables.
    """

    name: str
    family: str
    mode: str
    labels: Mapping[int, str]
    title: str

    def missing(self) -> str | None:
        """Why it cannot be had here, one plain line; None if it can."""
        return None

    @abstractmethod
    def parameters(self) -> dict[str, Any]:
        """What decides the pairs, as JSON can hold it."""

    @abstractmethod
    def names(self) -> Sequence[str]:
        """Names of the pairs, in order."""

    @abstractmethod
    def case(self, index: int) -> Case:
        """One pair."""

    def fingerprint(self, index: int) -> Any:
        """What tells whether a pair is still the one that was measured, without making or reading it."""
        return self.names()[index]
