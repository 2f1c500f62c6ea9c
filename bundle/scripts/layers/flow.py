"""The flows of velocities on a grid finer than their own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.interpolate import make_interp_spline
from torch import Tensor

from .vsvf import VSVF

__all__ = ["flow_displacements"]


def flow_displacements(vsvf: VSVF, velocities: Sequence[Tensor], factor: int = 1) -> tuple[Tensor, Tensor]:
    """ψ_T - id and ψ_T⁻¹ - id of the velocities' flows, integrated on a grid ``factor`` times finer than theirs.

    ψ_T = exp(-v(1)) ∘ ... ∘ exp(-v(T)) and its inverse are each integrated on their own; on a grid they undo each other
    up to interpolation errors, which fall with the square of its spacing: the velocity between its own nodes is that of
    the cubic spline through them, as a piecewise linear one would leave kinks.

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
    """The cubic spline through a volume's nodes on a grid with the same corners."""
    for axis, size in enumerate(shape, start=2):
        nodes = np.linspace(0, 1, volume.shape[axis])
        weights = make_interp_spline(nodes, np.eye(len(nodes)), k=min(3, len(nodes) - 1))(np.linspace(0, 1, size))
        volume = torch.tensordot(volume, torch.from_numpy(weights).to(volume), dims=([axis], [1])).movedim(-1, axis)
    return volume.contiguous()
