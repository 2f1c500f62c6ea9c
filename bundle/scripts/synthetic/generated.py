"""Generated pairs as a data set, fixed or endless, of any generator of pairs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from ..errors import InputError
from .seeded import SeededDataset

EXTENT_MM = (112.0, 140.0, 140.0)
"""Field of view of a knee along (R, A, S), mm, as of a sagittal DESS scan."""

MODES = ("cross_subject", "longitudinal")
HELD_OUT = 2**62
"""Pairs with seeds from here on (to 2**63) are never trained on; those below never evaluated on."""


class PairGenerator(ABC):
    """What makes pairs from seeds, on one grid.

    Args:
        shape: grid size (D, H, W), axes in (R, A, S) order.
        spacing: voxel size, mm; None spreads `EXTENT_MM`.

    Attributes:
        name: what the pairs' names begin with.
        extent: mm between the first and the last voxel along each axis.

    Raises:
        InputError: the shape is not three sizes of at least 8, or the spacing not three positive numbers.
    """

    name: str

    def __init__(self, shape: Sequence[int], spacing: Sequence[float] | None = None) -> None:
        self.shape = tuple(int(n) for n in shape)
        if len(self.shape) != 3 or min(self.shape) < 8:
            raise InputError(f"shape={self.shape}; give three grid sizes of at least 8")
        if spacing is None:
            spacing = [extent / (n - 1) for extent, n in zip(EXTENT_MM, self.shape, strict=True)]
        self.spacing = tuple(float(s) for s in spacing)
        if len(self.spacing) != 3 or min(self.spacing) <= 0:
            raise InputError(f"spacing={self.spacing}; give three positive voxel sizes in mm")
        self.extent = [(n - 1) * s for n, s in zip(self.shape, self.spacing, strict=True)]

    @property
    def affine(self) -> np.ndarray:
        """(4, 4) voxel index to world (RAS, mm), the origin in the middle of the grid."""
        affine = np.diag((*self.spacing, 1.0))
        affine[:3, 3] = [-e / 2 for e in self.extent]
        return affine

    def pair(self, seed: int, mode: str, true_map: bool = True) -> dict[str, Tensor]:
        """A pair of scans, of two subjects ("cross_subject") or of one ("longitudinal"); equal seeds give equal pairs.

        Returns:
            `fixed`, `moving` (D, H, W) float32 in [0, 1]; `fixed_label`, `moving_label` (D, H, W) uint8; if asked for,
            `true_map` (3, D, H, W) float32, fixed to moving, normalised coordinates.
        """
        if mode not in MODES:
            raise InputError(f"mode={mode!r}; give one of {MODES}")
        return self._pair(seed, mode, true_map)

    @abstractmethod
    def _pair(self, seed: int, mode: str, true_map: bool) -> dict[str, Tensor]:
        """As `pair`, of arguments that are checked."""

    def fresh_seed(self, key: tuple[int, int, int], listed: int) -> int:
        """The seed of an endless stream at (seed, epoch, index), on the side of `HELD_OUT` that `listed` lies on."""
        drawn = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
        return drawn % HELD_OUT + (HELD_OUT if listed >= HELD_OUT else 0)


def checked_probabilities(**given: float) -> None:
    """InputError unless all are from 0 to 1."""
    for name, value in given.items():
        if not 0 <= value <= 1:
            raise InputError(f"{name}={value}; give a probability from 0 to 1")


def generated_pairs(
    count: int,
    mode: Literal["cross_subject", "longitudinal", "both"] = "cross_subject",
    seed: int = 0,
    split: Literal["train", "held_out"] | None = None,
) -> list[dict]:
    """List generated pairs as dicts of `seed` and `mode` for `GeneratedPairs`; InputError for bad arguments.

    Args:
        count: number of pairs.
        mode: kind of the pairs; "both" takes turns.
        seed: of the list; lists of different seeds share no pair.
        split: "train" takes seeds below `HELD_OUT`, "held_out" the others, None both.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise InputError(f"count={count!r}; give a whole number of at least 1")
    if mode not in (*MODES, "both"):
        raise InputError(f"mode={mode!r}; give one of {(*MODES, 'both')}")
    if split not in ("train", "held_out", None):
        raise InputError(f"split={split!r}; give 'train' or 'held_out'")
    seeds = (np.random.SeedSequence((seed, 0)).generate_state(count, np.uint64) >> 1).tolist()
    if split is not None:
        seeds = [s % HELD_OUT + (HELD_OUT if split == "held_out" else 0) for s in seeds]
    return [{"seed": s, "mode": MODES[i % 2] if mode == "both" else mode} for i, s in enumerate(seeds)]


class GeneratedPairs(SeededDataset):
    """Pairs of a generator as items like `PairDataset`'s, labels included.

    Args:
        data: dicts with `seed` and `mode`, see `generated_pairs`.
        generator: makes the pairs.
        augment: MONAI transform of the finished item; if random, reseeded from (seed, epoch, index).
        fresh: an endless stream: seeds are drawn from (seed, epoch, index) in place of the listed ones, so that every
            epoch (see `set_epoch`) has new pairs of the listed modes, on the listed seeds' side of the split.
        seed: of `fresh` and of a random `augment`.
        cache: make all pairs now and keep them in memory (about 1.4 MiB a pair at 48 x 64 x 48). Not if `fresh`.

    Raises:
        InputError: no pairs.
    """

    def __init__(
        self,
        data: Sequence[Mapping],
        generator: PairGenerator,
        augment: Callable | None = None,
        fresh: bool = False,
        seed: int = 0,
        cache: bool = False,
    ) -> None:
        super().__init__(seed, augment)
        if not data:
            raise InputError("data: the list of generated pairs is empty; give at least one")
        self.data = [dict(entry) for entry in data]
        self.generator, self.fresh = generator, fresh
        self._cached = [generator.pair(**entry, true_map=False) for entry in self.data] if cache and not fresh else None

    def __len__(self) -> int:
        return len(self.data)

    def item(self, key: tuple[int, int, int]) -> dict:
        """The pair of (seed, epoch, index)."""
        seed, mode = self.data[key[2]]["seed"], self.data[key[2]]["mode"]
        if self.fresh:
            seed = self.generator.fresh_seed(key, seed)
        pair = self._cached[key[2]] if self._cached else self.generator.pair(seed, mode, true_map=False)
        affine = torch.from_numpy(self.generator.affine)
        # Clones, because whoever changes an item in place must not change the cache.
        item: dict = {
            role: MetaTensor(pair[role][None].to(torch.float32, copy=True), affine=affine.clone())
            for role in ("fixed", "moving", "fixed_label", "moving_label")
        }
        return {**item, "name": f"{self.generator.name}_{mode}_{seed}"}
