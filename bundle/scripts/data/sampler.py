"""Which pairs an epoch sees: a draw that is a function of seed and epoch alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Dataset, DistributedSampler

from ..errors import InputError
from ..processes import process_count, process_rank


class EpochSampler(DistributedSampler):
    """Draws a number of items anew for every epoch, without repeats inside an epoch, split over ranks.

    The paper's epochs are 400 pairs out of 2,800 or 4,200. As the draw depends on nothing but the seed and the epoch
    (which MONAI's engines set on samplers of this type), a resumed run sees what an uninterrupted one would.

    Args:
        dataset: what to draw from.
        samples: items of an epoch over all ranks; None for all of the data set.
        seed: of the draw.

    Raises:
        InputError: when the data set holds fewer items than asked for.
    """

    def __init__(self, dataset: Dataset, samples: int | None = None, seed: int = 0) -> None:
        super().__init__(dataset, process_count(), process_rank(), shuffle=True, seed=seed)
        available = len(dataset)
        samples = available if samples is None else samples
        if not 1 <= samples <= available:
            raise InputError(f"samples={samples} pairs an epoch, but the list has {available}; lower it or list more")
        # Every rank gets the same number: what does not divide is left out of this epoch.
        self.num_samples = samples // self.num_replicas
        if self.num_samples == 0:
            raise InputError(f"samples={samples} pairs an epoch for {self.num_replicas} processes; ask for more pairs")
        self.total_size = self.num_samples * self.num_replicas

    def __iter__(self) -> Iterator[int]:
        """Indices of this rank for the epoch that was set."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        drawn = torch.randperm(len(self.dataset), generator=generator)[: self.total_size]
        return iter(drawn[self.rank :: self.num_replicas].tolist())
