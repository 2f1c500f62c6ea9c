"""Generated pairs as a torch dataset, fixed or endless, from any generator of pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from ..errors import InputError
from .phantom import MODES
from .phantom_dataset import phantom_pairs
from .seeded import apply_seeded

__all__ = ["HELD_OUT", "GeneratedPairs", "PairGenerator", "generated_pairs"]

HELD_OUT = 2**62
"""Pairs with seeds from here on (to 2**63) are never trained on; those below never evaluated on."""


class PairGenerator(Protocol):
    """What makes pairs from seeds."""

    name: str
    affine: np.ndarray

    def pair(self, seed: int, mode: str, true_map: bool = False) -> dict[str, Tensor]:
        """`fixed`, `moving`, `fixed_label`, `moving_label` (D, H, W), and `true_map` (3, D, H, W) where asked for."""
        ...


def generated_pairs(
    count: int,
    mode: Literal["cross_subject", "longitudinal", "both"] = "both",
    seed: int = 0,
    split: Literal["train", "held_out"] = "train",
) -> list[dict]:
    """List generated pairs, in the manner of a data list.

    Args:
        count: number of pairs.
        mode: kind of the pairs; "both" takes turns.
        seed: of the list; lists of different seeds share no pair.
        split: "train" takes seeds below `HELD_OUT`, "held_out" the others.

    Returns:
        Dicts with `seed` and `mode`, to be given to `GeneratedPairs`.

    Raises:
        InputError: a bad count, mode or split.
    """
    if split not in ("train", "held_out"):
        raise InputError(f"split={split!r}; give 'train' or 'held_out'")
    offset = HELD_OUT if split == "held_out" else 0
    return [{**entry, "seed": entry["seed"] % HELD_OUT + offset} for entry in phantom_pairs(count, mode, seed)]


class GeneratedPairs(torch.utils.data.Dataset):
    """Pairs of a generator as items like `PairDataset`'s.

    An item is a dict with `fixed`, `moving` (float32 in [0, 1]), `fixed_label`, `moving_label` (float32), each a
    MetaTensor (1, D, H, W), `name`, and `true_map` (3, D, H, W) where asked for.

    Args:
        data: dicts with `seed` and `mode`, see `generated_pairs`.
        generator: makes the pairs.
        transform: MONAI transform of the finished item; if random, reseeded from (seed, epoch, index).
        fresh: an endless stream: seeds are drawn from (seed, epoch, index) in place of the listed ones, on the side of
            the split that the listed seed lies on.
        seed: of `fresh` and of a random `transform`.
        true_map: give the true map too.

    Raises:
        InputError: no pairs or a bad entry.
    """

    def __init__(
        self,
        data: Sequence[Mapping],
        generator: PairGenerator,
        transform: Callable | None = None,
        fresh: bool = False,
        seed: int = 0,
        true_map: bool = False,
    ):
        if not data:
            raise InputError("data: the list of generated pairs is empty; give at least one")
        self.data = [dict(entry) for entry in data]
        for number, entry in enumerate(self.data):
            if set(entry) != {"seed", "mode"} or entry["mode"] not in MODES:
                raise InputError(f"data[{number}]: {entry!r}; give a dict with seed and mode, mode one of {MODES}")
        self.generator, self.transform = generator, transform
        self.fresh, self.seed, self.true_map = fresh, int(seed), true_map
        # Shared memory, so that workers that outlive an epoch see the new one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which changes the pairs if `fresh`, and the draws of a random transform."""
        self._epoch.fill_(int(epoch))

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict:
        index = range(len(self.data))[index]
        mode, seed = self.data[index]["mode"], self.data[index]["seed"]
        key = (self.seed, int(self._epoch), index)
        if self.fresh:
            drawn = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
            seed = drawn % HELD_OUT + (HELD_OUT if seed >= HELD_OUT else 0)
        pair = self.generator.pair(seed, mode, self.true_map)
        affine = torch.from_numpy(self.generator.affine)
        item: dict = {
            role: MetaTensor(pair[role][None].to(torch.float32), affine=affine.clone())
            for role in ("fixed", "moving", "fixed_label", "moving_label")
        }
        if self.true_map:
            item["true_map"] = pair["true_map"]
        item["name"] = f"{self.generator.name}_{mode}_{seed}"
        return item if self.transform is None else apply_seeded(self.transform, item, key)
