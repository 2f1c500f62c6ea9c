"""The flows of velocities on a grid finer than their own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.interpolate import BSpline
from torch import Tensor

from .vsvf import VSVF

__all__ = ["flow_displacements"]


def flow_displacements(vsvf: VSVF, velocities: Sequence[Tensor], factor: int = 1) -> tuple[Tensor, Tensor]:
    """ψ_T - id and ψ_T⁻¹ - id of the velocities' flows, integrated on a grid ``factor`` times finer than theirs.

    ψ_T = exp(-v(1)) ∘ ... ∘ exp(-v(T)) and its inverse are each integrated on their own; on a grid they undo each other
    up to interpolation errors, which fall with the square of its spacing. The velocity is the cubic B-spline whose
    coefficients are the nodes: a piecewise linear one would leave kinks, and the spline through the nodes swings beyond
    them where they alternate. On held-out hippocampi the latter's flows had more folds on the images' own grids, took
    longer to agree, and lost 0.001 to 0.002 of Dice.

    Args:
        vsvf: the unit that integrates.
        velocities: v₀(1) ... v₀(T), ``(1, 3, d, h, w)``, normalised.
        factor: intervals of the finer grid for one of the velocities' grid.

    Returns:
        Both ``(1, 3, d', h', w')``, normalised, n' = (n - 1) factor + 1.

    Raises:
        ValueError: without a velocity.
    """
    if not velocities:
        raise ValueError("flow_displacements: there is no velocity; an affine registration has no flow.")
    shape = [(n - 1) * factor + 1 for n in velocities[0].shape[2:]]
    fine = [_interpolated(velocity, shape) for velocity in velocities]
    unit = vsvf.refined(factor)
    forward = torch.zeros_like(fine[0])
    backward = torch.zeros_like(fine[0])
    for velocity in fine:
        forward = unit.advance(forward, velocity)
        backward = unit.retreat(backward, velocity)
    return forward, backward


def _interpolated(volume: Tensor, shape: Sequence[int]) -> Tensor:
    """The cubic B-spline with a volume's nodes for coefficients, on a grid with the same corners; it meets those."""
    for axis, size in enumerate(shape, start=2):
        count = volume.shape[axis]
        nodes = np.eye(count)
        # Continued linearly by a node beyond either end.
        ends = [2 * nodes[0] - nodes[min(1, count - 1)], 2 * nodes[-1] - nodes[max(0, count - 2)]]
        spline = BSpline(np.arange(-3, count + 3), np.vstack([ends[0], nodes, ends[1]]), 3)
        weights = torch.from_numpy(spline(np.linspace(0, count - 1, size))).to(volume)
        volume = torch.tensordot(volume, weights, dims=([axis], [1])).movedim(-1, axis)
    return volume.contiguous()
