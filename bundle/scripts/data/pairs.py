"""Pairs for training and evaluation: which image is registered to which, seeded, split by subject.

A pair is a dict with `fixed`, `moving` (absolute paths), `name` (unique), and where known `fixed_label`,
`moving_label`, `fixed_subject`, `moving_subject`. An image is a dict with `image`, `subject`, and where known
`label`, `time`, as `read_datalist` gives them.
"""

import random
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, combinations
from os import PathLike
from typing import Any, Literal

from ..errors import InputError
from .lists import IMAGE_SECTIONS, name_pairs, read_datalist


def _pair(fixed: dict, moving: dict) -> dict:
    pair = {}
    for role, item in (("fixed", fixed), ("moving", moving)):
        pair[role] = item["image"]
        if "label" in item:
            pair[f"{role}_label"] = item["label"]
        pair[f"{role}_subject"] = item["subject"]
    return pair


def _by_subject(images: Sequence[dict]) -> dict[str, list[dict]]:
    groups: dict[str, list[dict]] = {}
    for item in images:
        groups.setdefault(item["subject"], []).append(item)
    return groups


def _checked_count(count: int | None, available: int, kind: str) -> int:
    if count is None:
        count = available
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        if available == 0:
            raise InputError(f"no {kind} pairs exist in this list of images; add images or change the mode")
        raise InputError(f"count={count!r} of {kind} pairs; give a whole number of at least 1, or null for all")
    if count > available:
        raise InputError(
            f"count={count} {kind} pairs asked for but only {available} exist; "
            "lower count (train_pairs, val_pairs or pair_count of the configs) or add images"
        )
    return count


def cross_subject_pairs(images: Sequence[dict], count: int | None = None, seed: int = 0) -> list[dict]:
    """Draw distinct pairs of images of different subjects at random; the same arguments give the same pairs.

    Every pair is given in both orders, next to each other, which count as two (an odd count leaves the last with one).
    A count of None takes all that exist; InputError if fewer do than asked for.
    """
    groups = _by_subject(images)
    ordered = [item for group in groups.values() for item in group]
    # Unordered pair number k is decoded from the images sorted by subject: image i meets all images behind its
    # own subject's last. So a sample of the numbers is a sample of the pairs, without listing them all.
    ends = [
        end for group, end in zip(groups.values(), accumulate(map(len, groups.values())), strict=True) for _ in group
    ]
    starts = [0, *accumulate(len(ordered) - end for end in ends)]
    available = starts[-1]
    count = _checked_count(count, available * 2, "cross-subject")
    rng = random.Random(seed)
    pairs = []
    for number in rng.sample(range(available), -(-count // 2)):
        first = bisect_right(starts, number) - 1
        a, b = ordered[first], ordered[ends[first] + number - starts[first]]
        if rng.random() < 0.5:
            a, b = b, a
        pairs += [_pair(a, b), _pair(b, a)]
    return name_pairs(pairs[:count])


def longitudinal_pairs(images: Sequence[dict], count: int | None = None, seed: int = 0) -> list[dict]:
    """Pairs of images of one subject in both orders, first that whose fixed image is the earlier one.

    Earlier is by `time` where all images of the subject have one, else by the order of the images. A count draws at
    random, the same for the same seed; None takes all that exist. InputError if fewer do than asked for.
    """
    couples = []
    for group in _by_subject(images).values():
        if all("time" in item for item in group):
            group = sorted(group, key=lambda item: item["time"])
        couples += combinations(group, 2)
    wanted = _checked_count(count, len(couples) * 2, "longitudinal")
    if count is not None:
        couples = random.Random(seed).sample(couples, -(-wanted // 2))
    pairs = [_pair(*order) for a, b in couples for order in ((a, b), (b, a))]
    return name_pairs(pairs[:wanted])


def split_subjects(images: Sequence[dict], holdout_fraction: float, seed: int = 0) -> tuple[list[dict], list[dict]]:
    """Split images by subject into those for training and those held out, each in the given order.

    ``holdout_fraction`` is the part of the subjects (not of the images) held out, in [0, 1); above 0, at least one. The
    same subjects and seed give the same split, whatever the order of the images. InputError where no subject is left.
    """
    if not 0 <= holdout_fraction < 1:
        raise InputError(f"holdout_fraction={holdout_fraction}; give a fraction of at least 0 and below 1")
    subjects = sorted({item["subject"] for item in images})
    held = max(1, round(holdout_fraction * len(subjects))) if holdout_fraction > 0 else 0
    if held >= len(subjects):
        raise InputError(f"holdout_fraction={holdout_fraction} of {len(subjects)} subjects leaves none for training")
    chosen = set(random.Random(seed).sample(subjects, held))
    return (
        [item for item in images if item["subject"] not in chosen],
        [item for item in images if item["subject"] in chosen],
    )


def training_pairs(
    dataset_dir: str | PathLike,
    section: str = "training",
    mode: Literal["cross_subject", "longitudinal", "both"] = "cross_subject",
    count: int | None = None,
    seed: int = 0,
    holdout_fraction: float = 0.0,
    part: Literal["train", "holdout"] = "train",
) -> list[dict]:
    """Pairs for training, from a data set folder or list file, in one call for JSON configs.

    Args:
        dataset_dir: a folder holding `dataset.json`, or a `.json` or `.csv` file. A plain list of pairs says itself
            what to pair: its pairs are used as listed (the first `count` of a seeded shuffle if `count` is given),
            and it cannot be split.
        section: section of the dataset.json: one of images, or one of pairs, which are used as listed.
        mode: pair different subjects, the images of one subject, or half `count` of the latter and the rest of the
            former (all of both without `count`).
        count: number of pairs; None takes all.
        seed: of the drawing of pairs.
        holdout_fraction: part of the subjects kept out of training.
        part: pairs among the training subjects, or among the ones held out; ``seed`` does not change who is held out.

    Raises:
        InputError: a bad list or setting, or fewer pairs exist than asked for.
    """
    if mode not in ("cross_subject", "longitudinal", "both"):
        raise InputError(f"mode={mode!r}; give 'cross_subject', 'longitudinal' or 'both'")
    if part not in ("train", "holdout"):
        raise InputError(f"part={part!r}; give 'train' or 'holdout'")
    found = read_datalist(dataset_dir, sections=(section,))
    entries = found.get("pairs") or found[section]
    if "pairs" in found or section not in IMAGE_SECTIONS:
        if holdout_fraction or part == "holdout":
            raise InputError(f"{dataset_dir}: a list of pairs cannot be split by subject; set holdout_fraction to 0")
        number = _checked_count(count, len(entries), "listed")
        return entries if count is None else random.Random(seed).sample(entries, number)

    if part == "holdout" and not holdout_fraction:
        raise InputError("part='holdout' with holdout_fraction=0 holds no subject; raise holdout_fraction")
    images = split_subjects(entries, holdout_fraction)[part == "holdout"]
    draw = {"cross_subject": cross_subject_pairs, "longitudinal": longitudinal_pairs}
    if mode != "both":
        return draw[mode](images, count, seed)
    if count is not None and count < 2:
        raise InputError(f"count={count} with mode='both'; give at least 2")
    same = longitudinal_pairs(images, None if count is None else count // 2, seed)
    return same + cross_subject_pairs(images, None if count is None else count - count // 2, seed)


def evaluation_pairs(
    dataset_dir: str | PathLike, section: str = "registration_val", limit: int | None = None
) -> list[dict]:
    """The first `limit` pairs for evaluation in listed order, in one call for JSON configs; None takes all.

    `section` is that of a `dataset.json`; a plain list of pairs (see `training_pairs`) has none. InputError for a bad
    list or setting.
    """
    if section in IMAGE_SECTIONS:
        raise InputError(f"section={section!r} lists images, not pairs; use registration_val or registration_test")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise InputError(f"limit={limit!r}; give a whole number of at least 1, or null for all")
    found = read_datalist(dataset_dir, sections=(section,))
    return (found.get("pairs") or found[section])[:limit]


def list_pairs(
    dataset_dir: str | PathLike | None,
    section: str,
    mode: str = "cross_subject",
    count: int | None = None,
    seed: int = 0,
    phantom_count: int | None = None,
    **options: Any,
) -> list[dict]:
    """The pairs of one section of a data set for `PairDataset`, or of the phantom for `GeneratedPairs`.

    Args:
        dataset_dir: folder with ``dataset.json``, or a pair list (``.json``, ``.csv``); None for the phantom.
        section: ``"training"`` (or any section that lists images) draws pairs of images; any other section lists pairs.
        mode: kind of pairs drawn: ``"cross_subject"``, ``"longitudinal"`` or ``"both"``.
        count: number of pairs; None for all that exist.
        seed: of the draw.
        phantom_count: number of phantom pairs where ``count`` is None, as the phantom has no end.
        options: further arguments of `training_pairs` when images are paired (``holdout_fraction``, ``part``).

    Raises:
        InputError: for whatever does not exist or does not fit.
    """
    if dataset_dir is None or str(dataset_dir) == "":
        from ..synthetic.generated import generated_pairs  # generators take a second to load

        count = phantom_count if count is None else count
        if count is None:
            raise InputError("count: the phantom has no end; give a number of pairs")
        # Sections and parts are different knees: a list of another seed shares no pair with this one.
        trained = section == "training" and options.get("part", "train") == "train"
        return generated_pairs(count, mode, seed=seed if trained else seed + 1_000_003)
    if section.startswith("training"):
        return training_pairs(dataset_dir, section=section, mode=mode, count=count, seed=seed, **options)
    return evaluation_pairs(dataset_dir, section=section, limit=count)
