"""Instance optimisation: go on from the network's affine and momenta, for this pair alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..geometry import count_folds
from ..networks import AVSM, Registration
from .affine_opt import AffineOptimiser
from .pyramid import Best, Parameters, PyramidOptimiser

__all__ = ["InstanceOptimiser", "Refinement"]


@dataclass
class Refinement:
    """What instance optimisation found.

    Attributes:
        registration: the best registration seen, never worse than the first.
        before: objective of the registration that it began with, each pair ``(B,)``.
        after: objective of ``registration``, ``(B,)``.
        folds_before: folds that it began with, ``(B,)``.
        folds_after: folds of ``registration``, ``(B,)``.
        steps: steps taken before it stopped.
        history: objective (mean over the batch) at every step, the first included.
    """

    registration: Registration
    before: Tensor
    after: Tensor
    folds_before: Tensor
    folds_after: Tensor
    steps: int
    history: list[float]


class InstanceOptimiser(PyramidOptimiser):
    """Minimises ℓv of Equation 11, Sim(I0 ∘ Φ⁻¹, I1) + λvr Σ_τ ⟨m₀, v₀⟩, over a pair's affine and momenta by Adam.

    It works on the images' own grid and never changes the network's weights. Every pair of a batch keeps the parameters
    of lowest objective among those with no more folds than it began with. A search that is stuck goes back to its best
    twice before it ends. What is not named here is as in `PyramidOptimiser`.

    Args:
        steps: largest number of steps.
        fold_weight: weight of the penalty on folds, which is no part of the objective that is reported.
        momentum_rate: learning rate of the momenta (normalised units).
        affine_rate: learning rate of the affine; 0 keeps it fixed.
        affine_optimiser: optimises the affine first, and the network then predicts momenta anew from there; a pair goes
            on from that only if it is better so. None starts from what the network gave.
    """

    restarts = 2

    def __init__(
        self,
        steps: int = 50,
        similarity: Callable | None = None,
        regularisation: float = 30.0,
        fold_weight: float = 2000.0,
        fold_margin: float = 0.2,
        momentum_rate: float = 0.02,
        affine_rate: float = 1e-3,
        patience: int = 10,
        tolerance: float = 1e-4,
        affine_optimiser: AffineOptimiser | None = None,
    ) -> None:
        self.steps, self.momentum_rate, self.affine_rate = steps, momentum_rate, affine_rate
        self.affine_optimiser = affine_optimiser
        self.fold_weight, self.fold_margin = fold_weight, fold_margin
        rates = Parameters(affine_rate, momentum_rate)
        super().__init__([1.0], [steps], similarity, regularisation, rates, "adam", patience, tolerance)

    def __call__(
        self,
        network: AVSM,
        moving: Tensor,
        fixed: Tensor,
        registration: Registration,
        mask: Tensor | None = None,
        moving_mask: Tensor | None = None,
    ) -> Refinement:
        """Optimise; a registration without a vSVF step has its affine optimised alone.

        Args:
            network: whose vSVF unit integrates; its weights are neither read nor changed.
            moving: ``(B, 1, D, H, W)``.
            fixed: ``(B, 1, D, H, W)``.
            registration: the network's registration of the pairs.
            mask: see `PyramidOptimiser.objective`.
            moving_mask: see `PyramidOptimiser.objective`.

        Raises:
            ValueError: when there is nothing to optimise: no vSVF step, and an affine that is kept fixed.
        """
        if not registration.momenta and self.affine_rate == 0:
            raise ValueError(
                "InstanceOptimiser: no vSVF step and affine_rate=0 leave nothing to optimise; "
                "register with vsvf_steps >= 1, or give affine_rate > 0."
            )
        ((level, steps),) = self.levels(network, moving, fixed, mask, moving_mask)
        with torch.no_grad():
            before, folds = self.value(level, registration), count_folds(registration.map)[0]
            momenta = [momentum.detach() for momentum in registration.momenta]
            best = Best(Parameters(registration.affine.detach(), momenta), before)
            if self.affine_optimiser is not None and steps > 0:
                affine = self.affine_optimiser(moving, fixed, registration.affine, mask, moving_mask).affine
                again = network.register(moving, fixed, vsvf_steps=len(momenta), affine=affine)
                value, allowed = self.value(level, again), count_folds(again.map)[0] <= folds
                best.offer(Parameters(again.affine, again.momenta), value, allowed)
        history = self.search(level, best, steps + 1, lambda found, _: count_folds(found.map)[0] <= folds)
        with torch.no_grad():
            result = network.integrate(moving, *best.parameters)
            result.affines = [*registration.affines, result.affine]
            folds_after = count_folds(result.map)[0]
        return Refinement(result, before, best.value, folds, folds_after, len(history) - 1, history)
