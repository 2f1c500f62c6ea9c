"""A data set that draws from several, by weight."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from monai.data import MetaTensor
from torch.utils.data import Dataset

from ..errors import InputError
from .seeded import SeededDataset

_ROLES = ("fixed", "moving")


class MixtureDataset(SeededDataset):
    """Pairs of several data sets, drawn anew for every epoch.

    Which source an item comes from, and which of its items, depends on (seed, epoch, index) alone. Items have the same
    keys whatever their source, so that they make batches: `fixed`, `moving`, `fixed_label`, `moving_label`,
    `fixed_mask`, `moving_mask` (MetaTensors (1, D, H, W) with nothing but their affine), `affine` (3, 4) and `name`. A
    pair without labels gets labels of zeros, which cost nothing in the loss on labels; one without masks has been seen
    everywhere, and without an affine its own is not known (NaN).

    Args:
        sources: data sets of pairs on one grid.
        weights: how often each is drawn, in relation to each other; None draws all equally often.
        length: items of the mixture.
        seed: of the draws.
        labels: whether the labels of each source are given; None gives all.

    Raises:
        InputError: no sources, an empty one, weights or flags that do not fit, or a length below 1.
    """

    def __init__(
        self,
        sources: Sequence[Dataset],
        weights: Sequence[float] | None = None,
        length: int = 2800,
        seed: int = 0,
        labels: Sequence[bool] | None = None,
    ) -> None:
        super().__init__(seed, sources=sources)
        weights = [1.0] * len(self.sources) if weights is None else [float(w) for w in weights]
        labels = [True] * len(self.sources) if labels is None else list(labels)
        if not self.sources:
            raise InputError("sources: the mixture has none; give at least one data set")
        if empty := [n for n, source in enumerate(self.sources) if len(source) == 0]:
            raise InputError(f"sources[{empty[0]}]: an empty data set; leave it out or list pairs")
        for name, given in (("weights", weights), ("labels", labels)):
            if len(given) != len(self.sources):
                raise InputError(f"{name}: {len(given)} for {len(self.sources)} sources; give one for each")
        if not all(math.isfinite(w) and w >= 0 for w in weights) or sum(weights) <= 0:
            raise InputError(f"weights={weights}; give numbers of at least 0, not all of them 0")
        if isinstance(length, bool) or not isinstance(length, int) or length < 1:
            raise InputError(f"length={length!r}; give a whole number of at least 1")
        self.weights = np.array(weights) / sum(weights)
        self.labels, self.length = labels, length

    def drawn(self, index: int) -> tuple[int, int]:
        """Number of the source and index in it that an item comes from in the current epoch."""
        return self._draw(self.key(index))

    def _draw(self, key: tuple[int, int, int]) -> tuple[int, int]:
        rng = np.random.default_rng(key)
        number = int(rng.choice(len(self.sources), p=self.weights))
        return number, int(rng.integers(len(self.sources[number])))

    def __len__(self) -> int:
        return self.length

    def item(self, key: tuple[int, int, int]) -> dict:
        """The item drawn for (seed, epoch, index), with its keys made complete."""
        number, place = self._draw(key)
        given = self.sources[number][place]
        item = {role: _bare(given[role]) for role in _ROLES}
        labelled = self.labels[number] and all(f"{role}_label" in given for role in _ROLES)
        for role in _ROLES:
            image, label, mask = item[role], f"{role}_label", f"{role}_mask"
            item[label] = _bare(given[label] if labelled else torch.zeros_like(image))
            item[mask] = _bare(given[mask] if mask in given else torch.ones_like(image))
        item["affine"] = given.get("affine", torch.full((3, 4), torch.nan))
        item["name"] = given["name"]
        return item


def _bare(image: torch.Tensor) -> MetaTensor:
    """Float32 with nothing but its affine: what files carry besides differs between sources."""
    affine = image.affine if isinstance(image, MetaTensor) else torch.eye(4, dtype=torch.float64)
    return MetaTensor(torch.as_tensor(image).as_subclass(torch.Tensor).to(torch.float32), affine=affine.clone())
