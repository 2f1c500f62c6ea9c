"""What to train on: the datastore's images as a ``dataset.json`` of the bundle, and epochs shared out over phases."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import RequestError
from .labels import label_values
from .studies import StudyDatastore

__all__ = ["scaled_phases", "training_list"]

_FEWEST = 2  # images that make a pair


def training_list(
    datastore: StudyDatastore, val_split: float, labelled_only: bool = False, seed: int = 0
) -> dict[str, Any]:
    """The images to train on and the pairs to validate on.

    Every image of the datastore is trained on, as the similarity needs no labels, save those that are held out.
    Validation measures Dice, so its pairs are of labelled images: of those held out where at least two can be spared,
    else of images that are trained on, too (whose labels training does not see unless a loss on labels is asked for).
    Without two labelled images there is no Dice, and validation shows the similarity of a training pair.

    Args:
        datastore: of the studies.
        val_split: part of the labelled images to hold out.
        labelled_only: train on labelled images alone, as a loss on labels needs.
        seed: of the split.

    Returns:
        ``dataset`` (the content of ``dataset.json``), ``images`` and ``validation`` (ids), ``held_out`` (whether the
        validation's images are not trained on), ``pairs`` and ``val_pairs`` (numbers), ``labels`` (values).

    Raises:
        RequestError: with fewer than two images to train on.
        InputError: for a label map that cannot be used.
    """
    labelled = datastore.labelled()
    images = labelled if labelled_only else datastore.labelled() + datastore.unlabelled()
    held = max(_FEWEST, round(val_split * len(labelled))) if val_split > 0 else 0
    can_spare = held > 0 and min(len(images) - held, len(labelled) - held) >= _FEWEST
    validation = sorted(random.Random(seed).sample(labelled, held)) if can_spare else labelled
    training = sorted(set(images) - set(validation)) if can_spare else sorted(images)
    if len(training) < _FEWEST:
        kind = "labelled images" if labelled_only else "images"
        raise RequestError(f"train: {len(training)} {kind} make no pair; add some, at least {_FEWEST}")
    if len(validation) < _FEWEST:
        validation = training[:_FEWEST]
    val_pairs = list(itertools.permutations(validation, 2))
    paths = {name: datastore.get_image_uri(name) for name in {*training, *validation}}
    labels = {name: datastore.final_label(name) for name in paths}
    values = sorted({value for path in labels.values() if path for value in label_values(path)})
    dataset = {
        "name": "MONAI Label studies",
        "training": [
            {"image": paths[n], "subject": n, **({"label": labels[n]} if labels[n] else {})} for n in training
        ],
        "registration_val": [
            {
                "fixed": paths[fixed],
                "moving": paths[moving],
                **({"fixed_label": labels[fixed], "moving_label": labels[moving]} if labels[fixed] else {}),
            }
            for fixed, moving in val_pairs
            if bool(labels[fixed]) == bool(labels[moving])
        ]
        or [{"fixed": paths[validation[0]], "moving": paths[validation[1]]}],
    }
    return {
        "dataset": dataset,
        "images": training,
        "validation": validation,
        "held_out": can_spare,
        "pairs": len(training) * (len(training) - 1),
        "val_pairs": len(dataset["registration_val"]),
        "labels": values,
    }


def scaled_phases(
    phases: Sequence[Mapping[str, Any]], epochs: int, learning_rate: float | None = None
) -> list[dict[str, Any]]:
    """A curriculum's phases, shortened or lengthened to so many epochs in all, in their proportions.

    Each phase keeps an epoch as long as there are enough; with fewer epochs than phases, the last phases stay.

    Args:
        phases: of the bundle's ``train.json``.
        epochs: of all phases together, at least 1.
        learning_rate: of all phases; None for their own.
    """
    kept = [dict(phase) for phase in phases if phase["epochs"] > 0][-epochs:]
    total = sum(phase["epochs"] for phase in kept)
    shares = [1 + (epochs - len(kept)) * phase["epochs"] / total for phase in kept]
    counts = [math.floor(share) for share in shares]
    # What rounding has left goes to the largest remainders, later phases first.
    order = sorted(range(len(kept)), key=lambda n: (shares[n] - counts[n], n), reverse=True)
    for number in order[: epochs - sum(counts)]:
        counts[number] += 1
    for phase, count in zip(kept, counts, strict=True):
        phase["epochs"] = count
        if learning_rate is not None:
            phase["learning_rate"] = learning_rate
    return kept
