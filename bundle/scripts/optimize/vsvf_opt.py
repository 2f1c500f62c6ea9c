"""vSVF-opt: affine, then momenta by direct optimisation, the paper's counterpart of the whole network."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..geometry import count_folds, identity_map, resize_volume, smallest_jacobian_determinant
from ..layers import integrate
from ..losses import MultiKernelLNCC
from ..networks import AVSM, Registration
from ..networks.momentum_net import half_shape
from .affine_opt import AffineOptimiser, AffineResult
from .pyramid import Best, Level, Parameters, PyramidOptimiser, both_flows

__all__ = ["VSVFOptimiser", "VSVFResult"]

_FLOOR = 0.05  # least corner determinant of a flow that counts as free of folds, on whatever grid it is looked at
_FINER = 2  # how much finer the grid is on which the result must be free of folds, too


@dataclass
class VSVFResult:
    """What vSVF-opt found.

    Attributes:
        registration: the best registration seen, never worse than the affine alone.
        affine: what affine-opt found before.
        before: objective of the affine alone, at the last scale, ``(B,)``.
        after: objective of ``registration``, at the last scale, ``(B,)``.
        folds: folds of ``registration``, ``(B,)``.
        evaluations: of objective and gradient at each scale, the most of any pair.
    """

    registration: Registration
    affine: AffineResult
    before: Tensor
    after: Tensor
    folds: Tensor
    evaluations: list[int]


class VSVFOptimiser(PyramidOptimiser):
    """Minimises ℓv of Equation 11, Sim(I0 ∘ Φ⁻¹, I1) + λvr Σ_τ ⟨m₀, v₀⟩, over the momenta of each pair.

    The affine comes from affine-opt and stays. The momenta begin at 0 on half the grid of the first scale and are
    up-sampled between scales. Every pair is optimised on its own and keeps the momenta of lowest objective among those
    whose map has no folds, or none at all where they are no better than the affine alone. As flows are integrated anew
    on finer grids when transforms are written, the result is shortened until neither it nor its inverse folds on a grid
    twice as fine.

    What is not named here is as in `PyramidOptimiser`.

    Args:
        affine_optimiser: finds the affine; `AffineOptimiser` by default.
        iterations: of the optimiser at each scale.
        similarity: by default correlation in windows of 9 and 21 voxels of each scale's grid.
        steps: number T of vSVF steps, each with its momentum.
        optimiser: ``"adam"``, or ``"lbfgs"`` (the paper's), which ends a scale where an iteration changes next to
            nothing.
        rate: learning rate of Adam in normalised units (null: 0.02), or the first step length that L-BFGS tries
            (null: 1).
    """

    optimisers = ("adam", "lbfgs")
    positive = (*PyramidOptimiser.positive, "steps")
    penalty_counts = True

    def __init__(
        self,
        affine_optimiser: AffineOptimiser | None = None,
        scales: Sequence[float] = (0.25, 0.5, 1.0),
        iterations: Sequence[int] = (60, 60, 25),
        similarity: Callable | Sequence[Callable] | None = None,
        regularisation: float = 10.0,
        fold_weight: float = 2000.0,
        fold_margin: float = 0.2,
        steps: int = 1,
        optimiser: str = "adam",
        rate: float | None = None,
        patience: int | None = 10,
        tolerance: float = 1e-4,
    ) -> None:
        if similarity is None:
            similarity = MultiKernelLNCC((0.5, 0.5), (9, 21), dilation=1, reduction="none")
        self.affine_optimiser = AffineOptimiser() if affine_optimiser is None else affine_optimiser
        self.iterations, self.steps = tuple(iterations), steps
        self.rate = (1.0 if optimiser == "lbfgs" else 0.02) if rate is None else rate
        self.fold_weight, self.fold_margin = fold_weight, fold_margin
        rates = Parameters(0.0, self.rate)
        super().__init__(scales, iterations, similarity, regularisation, rates, optimiser, patience, tolerance)

    def __call__(
        self,
        network: AVSM,
        moving: Tensor,
        fixed: Tensor,
        affine: Tensor | None = None,
        mask: Tensor | None = None,
        moving_mask: Tensor | None = None,
    ) -> VSVFResult:
        """Optimise.

        Args:
            network: whose vSVF unit integrates (`bare_network`); weights are neither read nor changed.
            moving: ``(B, 1, D, H, W)``.
            fixed: the same shape.
            affine: Γ that affine-opt begins with, ``(B, 3, 4)``; None for the identity.
            mask: see `PyramidOptimiser.objective`.
            moving_mask: see `PyramidOptimiser.objective`.

        Raises:
            ValueError: when the images' shapes differ or are not ``(B, 1, D, H, W)``.
        """
        if moving.shape != fixed.shape or moving.dim() != 5 or moving.shape[1] != 1:
            raise ValueError(
                f"VSVFOptimiser: moving and fixed must both be (B, 1, D, H, W) on one grid, "
                f"got {tuple(moving.shape)} and {tuple(fixed.shape)}."
            )
        found = self.affine_optimiser(moving, fixed, affine, mask, moving_mask)
        volumes = (moving, fixed, mask, moving_mask)
        pairs = zip(*([None] * len(fixed) if one is None else one.split(1) for one in volumes), strict=True)
        rows = [self._optimise(network, *both) for both in zip(found.affine.split(1), pairs, strict=True)]
        momenta, before, after, evaluations = zip(*rows, strict=True)
        with torch.no_grad():
            joined = [torch.cat(step) for step in zip(*momenta, strict=True)]
            registration = network.integrate(moving, found.affine, joined)
            folds = count_folds(registration.map)[0]
        most = [max(counts) for counts in zip(*evaluations, strict=True)]
        return VSVFResult(registration, found, torch.cat(before), torch.cat(after), folds, most)

    def _optimise(
        self, network: AVSM, affine: Tensor, volumes: Sequence[Tensor | None]
    ) -> tuple[Sequence[Tensor], Tensor, Tensor, list[int]]:
        """Momenta of one pair, the objective without and with them, and the evaluations at each scale."""
        found, evaluations = Parameters(affine, []), []
        for level, iterations in self.levels(network, *volumes):
            low = half_shape(list(level.fixed.shape[2:]))
            zero = torch.zeros(1, 3, *low, device=affine.device)
            momenta = [resize_volume(momentum, low) for momentum in found.momenta] or [zero] * self.steps
            # On a finer grid the same momenta may make folds.
            start = _unfolded(level, Parameters(affine, momenta), 0.5, tries=10)
            best = Best(start, torch.full((1,), math.inf, device=affine.device))
            history = self.search(level, best, iterations, lambda _, flows: _smooth(flows[0]) & _smooth(flows[1]))
            found = best.parameters
            evaluations.append(len(history))
        with torch.no_grad():
            found = _unfolded(level, found, 0.95, tries=80, finer=_FINER)
            none = found.shortened(0.0)
            before = self.value(level, level.integrate(none))
            best = Best(none, before)
            best.offer(found, self.value(level, level.integrate(found)))
        return best.parameters.momenta, before, best.value, evaluations


@torch.no_grad()
def _unfolded(level: Level, parameters: Parameters, factor: float, tries: int, finer: int | None = None) -> Parameters:
    """Parameters, shortened by a factor until their flow and its inverse are free of folds; in the end to nothing.

    Where a number of times is given, flows are integrated on a grid so much finer (`integrate`).
    """
    vsvf = level.network.vsvf
    for _ in range(tries):
        found = level.integrate(parameters)
        flows = integrate(vsvf, found.velocities, finer) if finer else both_flows(vsvf, found)
        if all(map(_smooth, flows)):
            return parameters
        parameters = parameters.shortened(factor)
    return parameters.shortened(0.0)


def _smooth(displacement: Tensor) -> Tensor:
    """Which of the deformations id + u are free of folds, ``(B,)``; those near a fold, or with NaN, are not."""
    identity = identity_map(list(displacement.shape[2:]), displacement.device, displacement.dtype)
    return smallest_jacobian_determinant(identity + displacement).flatten(1).amin(dim=1) >= _FLOOR
