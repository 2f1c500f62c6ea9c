"""Kinds of linear transforms: rigid (a turn and a shift), similarity (with one scale), affine."""

from __future__ import annotations

import numpy as np

from .frame import Frame, apply_matrix

__all__ = ["KINDS", "is_of_kind", "nearest_of_kind"]

KINDS = ("rigid", "similarity", "affine")
"""Each is a special case of those after it."""

_EXACT = 1e-5  # as files of other tools keep rotations


def nearest_of_kind(linear: np.ndarray, kind: str, frame: Frame) -> np.ndarray:
    """The transform of a kind that carries the points of a box nearest to where another carries them.

    The least squares of all points of the box (Umeyama, PAMI 1991): what is left of a mirror image is its turn.

    Args:
        linear: ``(4, 4)``, RAS mm.
        kind: one of `KINDS`.
        frame: the box, of a grid.

    Returns:
        ``(4, 4)``; a rigid one has right angles and unit lengths to the last digits.
    """
    if kind == "affine":
        return linear
    axes = frame.direction * frame.extent
    # How the points there go with the points here, about their middles.
    spread = linear[:3, :3] @ axes @ axes.T
    left, stretches, right = np.linalg.svd(spread)
    side = np.array([1.0, 1.0, np.sign(np.linalg.det(left @ right))])
    found = np.eye(4)
    found[:3, :3] = left * side @ right
    if kind == "similarity":
        found[:3, :3] *= (stretches * side).sum() / np.square(frame.extent).sum()
    found[:3, 3] = apply_matrix(linear, frame.centre) - found[:3, :3] @ frame.centre
    return found


def is_of_kind(linear: np.ndarray, kind: str) -> bool:
    """Whether a matrix ``(4, 4)``, RAS mm, is of a kind, as far as files of other tools keep it."""
    if kind == "affine":
        return True
    matrix = linear[:3, :3]
    squares = matrix.T @ matrix
    scale = np.trace(squares) / 3 if kind == "similarity" else 1.0
    return bool(np.linalg.det(matrix) > 0 and np.abs(squares / scale - np.eye(3)).max() < _EXACT)
