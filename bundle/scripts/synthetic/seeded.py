"""Randomness as a function of whole numbers: generators from keys, data sets whose items depend on nothing else."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset


def derived_seed(*key: int) -> int:
    """A seed in [0, 2**63) from non-negative whole numbers, independent for each key."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


def seeded(*key: int) -> torch.Generator:
    """A generator on the CPU seeded from non-negative whole numbers, independent for each key."""
    return torch.Generator().manual_seed(derived_seed(*key))


def draw(generator: torch.Generator, low: float, high: float) -> float:
    """A number between two bounds, uniformly."""
    return low + (high - low) * float(torch.rand((), generator=generator))


def apply_seeded(transform: Callable, item: dict, key: tuple[int, ...]) -> dict:
    """Apply a MONAI transform of a dict that may be random; the result depends on the item and the key alone."""
    if hasattr(transform, "set_random_state"):
        transform.set_random_state(seed=int(np.random.SeedSequence(key).generate_state(1)[0]))
    return transform(item)


class SeededDataset(Dataset):
    """A data set whose items are functions of (seed, epoch, index), whatever the workers and the order of access.

    Args:
        seed: of all draws.
        augment: random or fixed MONAI transform of the finished item, reseeded for every item; None for none.
        sources: data sets that this one draws from, which are told the epoch too.
    """

    def __init__(self, seed: int, augment: Callable | None = None, sources: Sequence[Dataset] = ()) -> None:
        self.seed, self.augment, self.sources = int(seed), augment, list(sources)
        # Shared memory, so that workers that outlive an epoch see the new one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, here and in the sources."""
        self._epoch.fill_(int(epoch))
        for source in self.sources:
            if hasattr(source, "set_epoch"):
                source.set_epoch(epoch)

    def key(self, index: int) -> tuple[int, int, int]:
        """(seed, epoch, index), the index counted from the start; IndexError beyond the end."""
        return self.seed, int(self._epoch), range(len(self))[index]

    @abstractmethod
    def item(self, key: tuple[int, int, int]) -> dict:
        """The item of a `key`, before its augmentation."""

    def __getitem__(self, index: int) -> dict:
        key = self.key(index)
        item = self.item(key)
        return item if self.augment is None else apply_seeded(self.augment, item, key)
