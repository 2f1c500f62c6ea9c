"""The data set that a config asks for: pairs of a data list, or the phantom where no data set is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.utils.data import Dataset

from ..errors import InputError
from ..synthetic.generated import GeneratedPairs, generated_pairs
from ..synthetic.knee_labels import KneeLabels
from ..synthetic.phantom import KneePhantom
from ..synthetic.shapes import RandomShapes
from .augmented import AugmentedPairs
from .dataset import PairDataset

_GENERATORS = {"shapes": RandomShapes, "knee_labels": KneeLabels}


def registration_dataset(
    data: Sequence[dict],
    transform: Callable | None,
    grid: Sequence[int],
    augment: Callable | None = None,
    cache: bool = True,
    fresh: bool = False,
    seed: int = 0,
    require_labels: bool = False,
    pose: Mapping[str, Any] | None = None,
) -> Dataset:
    """The data set of a list of pairs: a `PairDataset`, `GeneratedPairs` of the phantom, or `AugmentedPairs` of one.

    Args:
        data: from `list_pairs`.
        transform: per-image preprocessing of files (the phantom needs none: it is made on the grid, normalised).
        grid: network grid ``(D, H, W)``.
        augment: random MONAI transform of finished pair dicts.
        cache: keep preprocessed images in memory.
        fresh: new phantom pairs in every epoch.
        seed: of augmentation and fresh pairs.
        require_labels: every pair must have both labels, as a loss on labels needs them.
        pose: arguments of `AugmentedPairs`, which draws poses before ``augment`` acts; None leaves images in theirs.

    Raises:
        InputError: for an empty list, files that fail their checks, or a pair without the labels required.
    """
    plain_augment = augment if pose is None else None
    if data and "seed" in data[0]:
        plain: Dataset = GeneratedPairs(data, KneePhantom(grid), plain_augment, fresh, seed, cache)
    else:
        for pair in data if require_labels else ():
            if missing := [role for role in ("fixed", "moving") if pair.get(f"{role}_label") is None]:
                problem = "no label, but label_weight is above 0; list its label or set label_weight to 0"
                raise InputError(f"{pair[missing[0]]}: {problem}")
        plain = PairDataset(data, transform, cache, plain_augment, seed)
    return plain if pose is None else _augmented(plain, pose, augment, seed)


def _augmented(plain: Dataset, pose: Mapping[str, Any], augment: Callable | None, seed: int) -> AugmentedPairs:
    try:
        return AugmentedPairs(plain, augment=augment, seed=seed, **pose)
    except TypeError as error:
        raise InputError(f"pose: {str(error).split('() ')[-1]}; see the arguments of AugmentedPairs") from error


def generated_dataset(
    kind: str,
    grid: Sequence[int],
    count: int = 2800,
    mode: str = "both",
    seed: int = 0,
    split: str = "train",
    fresh: bool = True,
    pose: Mapping[str, Any] | None = None,
    **options: Any,
) -> Dataset:
    """Generated pairs beyond the phantom, in one call for JSON configs; new ones in every epoch if ``fresh``.

    Args:
        kind: ``"shapes"`` (`RandomShapes`) or ``"knee_labels"`` (`KneeLabels`).
        grid: network grid ``(D, H, W)``.
        count: number of pairs of an epoch to draw from.
        mode: see `generated_pairs`, as ``seed`` and ``split``.
        seed: of the pairs.
        split: ``"train"`` or ``"held_out"``, which share no pair.
        fresh: see above.
        pose: as of `registration_dataset`; None for the generator's own.
        options: further arguments of the generator (``path`` of a knee's label map).

    Raises:
        InputError: for an unknown kind, or what the generator refuses.
    """
    if kind not in _GENERATORS:
        raise InputError(f"kind={kind!r}; give one of {tuple(_GENERATORS)}")
    generator = _GENERATORS[kind](shape=grid, **options)
    pairs = generated_pairs(count, mode, seed, split)
    plain = GeneratedPairs(pairs, generator, fresh=fresh, seed=seed)
    return plain if pose is None else _augmented(plain, {"extent": generator.extent, **pose}, None, seed)
