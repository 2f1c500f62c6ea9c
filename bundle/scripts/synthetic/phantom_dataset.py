"""The knee phantom as a torch dataset of pairs, fixed or endless."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from monai.data import MetaTensor

from ..errors import InputError
from .phantom import MODES, KneePhantom
from .seeded import apply_seeded

__all__ = ["PhantomPairs", "phantom_pairs"]


def phantom_pairs(
    count: int, mode: Literal["cross_subject", "longitudinal", "both"] = "cross_subject", seed: int = 0
) -> list[dict]:
    """List phantom pairs, in the manner of a data list.

    Args:
        count: number of pairs.
        mode: kind of the pairs; "both" takes turns.
        seed: of the list; lists of different seeds share no pair.

    Returns:
        Dicts with `seed` and `mode`, to be given to `PhantomPairs`.

    Raises:
        InputError: a bad count or mode.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise InputError(f"count={count!r}; give a whole number of at least 1")
    if mode != "both" and mode not in MODES:
        raise InputError(f"mode={mode!r}; give one of {(*MODES, 'both')}")
    seeds = np.random.SeedSequence((seed, 0)).generate_state(count, np.uint64) >> 1
    return [{"seed": int(s), "mode": MODES[i % 2] if mode == "both" else mode} for i, s in enumerate(seeds)]


class PhantomPairs(torch.utils.data.Dataset):
    """Phantom pairs as items like `PairDataset`'s, with the true map.

    An item is a dict with `fixed`, `moving` (float32 in [0, 1]), `fixed_label`, `moving_label` (float32, values of
    `LABELS`), each a MetaTensor (1, D, H, W), `true_map` (3, D, H, W) float32 (fixed to moving, normalised
    coordinates), and `name`.

    Args:
        data: dicts with `seed` and `mode`, see `phantom_pairs`.
        shape: grid size (D, H, W), axes in (R, A, S) order.
        cache: compute all pairs now and keep them in memory (about 3.3 MiB a pair at 48 x 64 x 48); else compute a
            pair at every access. Without effect if `fresh`.
        transform: MONAI transform of the finished item; if random, reseeded from (seed, epoch, index).
        fresh: an endless stream: seeds are drawn from (seed, epoch, index) in place of the listed ones, so that
            every epoch (see `set_epoch`) has new pairs of the listed modes.
        seed: of `fresh` and of a random `transform`.
        spacing: voxel size of the affine, mm; None spreads a knee's field of view over the grid.
        noise: see `KneePhantom`.
        bias: see `KneePhantom`.

    Raises:
        InputError: no pairs, a bad entry or a bad argument.
    """

    def __init__(
        self,
        data: Sequence[Mapping],
        shape: Sequence[int] = (48, 64, 48),
        cache: bool = True,
        transform: Callable | None = None,
        fresh: bool = False,
        seed: int = 0,
        spacing: Sequence[float] | None = None,
        noise: float = 0.03,
        bias: float = 0.12,
    ):
        if not data:
            raise InputError("data: the list of phantom pairs is empty; give at least one")
        self.data = [dict(entry) for entry in data]
        for number, entry in enumerate(self.data):
            if set(entry) != {"seed", "mode"} or entry["mode"] not in MODES:
                raise InputError(f"data[{number}]: {entry!r}; give a dict with seed and mode, mode one of {MODES}")
        self.phantom = KneePhantom(shape, spacing, noise, bias)
        self.transform = transform
        self.fresh, self.seed = fresh, int(seed)
        # Shared memory, so that workers that outlive an epoch see the new one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._cached = None
        if cache and not fresh:
            self._cached = [self.phantom.pair(entry["seed"], entry["mode"]) for entry in self.data]

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
            seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
        pair = self._cached[index] if self._cached is not None else self.phantom.pair(seed, mode)
        affine = torch.from_numpy(self.phantom.affine)
        item = {
            role: MetaTensor(pair[role].clone()[None].to(torch.float32), affine=affine.clone())
            for role in ("fixed", "moving", "fixed_label", "moving_label")
        }
        item["true_map"] = pair["true_map"].clone()
        item["name"] = f"knee_{mode}_{seed}"
        return item if self.transform is None else apply_seeded(self.transform, item, key)
