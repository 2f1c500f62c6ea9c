"""Whether a registration worked, where it did not, and what to do about it: the top of a report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from .numbers import find, number, worse_labels

GOOD = "No problem found"
CONFIRM = (
    "Confirm it by eye: outlines of labels coincide in the moved image, edges run on from square to square of the "
    "checkerboard, and the deformation grid bends without crossing."
)
_NAMED = 6  # labels named in a line
_FALL = 1e-3  # of a similarity; less is rounding


class Problem(NamedTuple):
    """Something to check before the result is used: what and where, and what to do."""

    what: str
    advice: str


def headline(count: int) -> str:
    """Return the verdict in a few words, for a number of problems and warnings."""
    return GOOD if count == 0 else f"{count} point{'s' * (count > 1)} to check before use"


def find_problems(metrics: Mapping[str, Any], jacobian: np.ndarray) -> list[Problem]:
    """Return what the measures say against a registration, the worst first.

    Args:
        metrics: content of ``metrics.json``.
        jacobian: ``(D, H, W)``, determinant of the map.
    """
    return [*_folds(metrics, jacobian), *_labels(metrics), *_similarity(metrics)]


def _folds(metrics: Mapping[str, Any], jacobian: np.ndarray) -> Iterator[Problem]:
    folds = metrics.get("folds") or 0
    if folds > 0:
        voxel = np.unravel_index(np.argmin(jacobian), jacobian.shape)
        yield Problem(
            f"{folds} voxel{'s are' if folds > 1 else ' is'} folded; |J| is lowest at voxel "
            f"({', '.join(map(str, voxel))}) of the fixed image, counted from 0: {number(float(jacobian[voxel]))}",
            "Do not trust the transform there (red in the pictures); --preset default makes none.",
        )


def _labels(metrics: Mapping[str, Any]) -> Iterator[Problem]:
    labels = worse_labels(metrics)
    if labels:
        changes = [
            f"{label} ({' → '.join(number(find(metrics, 'labels', label, 'dice', s)) for s in ('before', 'final'))})"
            for label in labels[:_NAMED]
        ]
        more = f" and {len(labels) - _NAMED} more" if len(labels) > _NAMED else ""
        yield Problem(
            f"Dice is lower than before the registration for label{'s' * (len(labels) > 1)} {', '.join(changes)}{more}",
            "Compare the outlines in the moving and the moved image, and see that a value means the same in both label "
            "maps; then try --preset best, or weights trained on this anatomy.",
        )


def _similarity(metrics: Mapping[str, Any]) -> Iterator[Problem]:
    falls = []
    for name, key in (("NCC", "ncc"), ("mk-LNCC", "mk_lncc")):
        before, final = (find(metrics, "similarity", key, stage) for stage in ("before", "final"))
        if before is not None and final is not None and before - final > _FALL:
            falls.append(f"{name} fell from {number(before)} to {number(final)}")
    if falls:
        yield Problem(
            f"The images are less similar than before the registration: {', '.join(falls)}",
            "Between two modalities this may be right. Otherwise see in the moving image whether both show the same "
            "region the same way up, and try another --initialisation, --preset or --model.",
        )
