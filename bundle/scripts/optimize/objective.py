"""ℓv of Equation 11 and the penalty on folds, which instance optimisation and vSVF-opt minimise."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..geometry import warp
from ..losses import folding, vsvf_regularisation
from ..networks import AVSM, Registration

__all__ = ["both_flows", "fold_penalty", "pair_objective"]


def pair_objective(
    registration: Registration,
    fixed: Tensor,
    similarity: Callable,
    regularisation: float,
    mask: Tensor | None = None,
    moving_mask: Tensor | None = None,
) -> Tensor:
    """Sim(I0 ∘ Φ⁻¹, I1) + λvr Σ_τ ⟨m₀, v₀⟩ of a registration, each pair, ``(B,)``.

    Args:
        registration: of the pairs.
        fixed: ``(B, 1, D, H, W)``.
        similarity: loss of (moved, fixed, mask) with ``reduction`` ``"none"``, giving ``(B,)``.
        regularisation: λvr.
        mask: weights in [0, 1] on the fixed grid that limit the similarity, as ``fixed``.
        moving_mask: the same on the moving grid. It follows the map, but what it leaves out has no gradient: moving the
            mask away must not pay.
    """
    if moving_mask is not None:
        seen = warp(moving_mask, registration.map.detach())
        mask = seen if mask is None else mask * seen
    value = similarity(registration.moved, fixed, mask)
    for momentum, velocity in zip(registration.momenta, registration.velocities, strict=True):
        value = value + regularisation * vsvf_regularisation(momentum, velocity, reduction="none")
    return value


def both_flows(network: AVSM, registration: Registration) -> tuple[Tensor, Tensor]:
    """ψ_T - id and ψ_T⁻¹ - id of a registration with at least one vSVF step, each ``(B, 3, d, h, w)`` normalised.

    Args:
        network: whose vSVF unit integrates.
        registration: of the pairs.
    """
    back: Tensor | None = None
    for velocity in registration.velocities:
        back = network.vsvf.retreat(back, velocity)
    return registration.displacement, back


def fold_penalty(flows: tuple[Tensor, Tensor], margin: float) -> Tensor:
    """`folding` of a deformation and of its inverse, added up, each pair, ``(B,)``.

    Args:
        flows: of `both_flows`.
        margin: determinant below which a voxel counts.
    """
    return sum(folding(flow, margin, reduction="none") for flow in flows)
