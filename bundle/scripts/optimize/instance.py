"""Instance optimisation: go on from the network's affine and momenta, for this pair alone.

The parameters are the pair's affine and momenta, never the network's weights, which stay as they are for the next pair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..geometry import count_folds
from ..losses import MultiKernelLNCC
from ..networks import AVSM, Registration
from .affine_opt import AffineOptimiser
from .objective import both_flows, fold_penalty, pair_objective

__all__ = ["InstanceOptimiser", "Refinement"]

# How often the search goes back to its best, at a quarter of the rates, before it stops.
_SLOWER = 2


@dataclass
class Refinement:
    """What instance optimisation found.

    Attributes:
        registration: the best registration seen, never worse than the first (unless `InstanceOptimiser.shortened`).
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


class InstanceOptimiser:
    """Minimises ℓv of Equation 11, Sim(I0 ∘ Φ⁻¹, I1) + λvr Σ_τ ⟨m₀, v₀⟩, over a pair's affine and momenta by Adam.

    Every pair of a batch keeps its own best: the parameters of lowest objective among those with no more folds than it
    began with. `shortened` is for folds that only show on an image's own grid.

    Args:
        steps: largest number of steps.
        similarity: loss of (moved, fixed[, mask]) with ``reduction`` ``"none"``, giving ``(B,)``; mk-LNCC by default.
        regularisation: λvr.
        fold_weight: weight of the penalty on determinants below ``fold_margin`` of the deformation and of its inverse
            (`fold_penalty`), which keeps the search away from folds; no part of the objective that is reported.
        fold_margin: see ``fold_weight``.
        momentum_rate: Adam's rate for momenta (normalised units).
        affine_rate: Adam's rate for the affine; 0 keeps it fixed.
        patience: after this many steps without a fall of the mean objective by ``tolerance`` of itself, go back to the
            best and on at a quarter of the rates; the third time, stop.
        tolerance: see ``patience``.
        affine_optimiser: takes the affine over scales first, and the network then predicts momenta anew from there; a
            pair goes on from that only if it is better so. None starts from what the network gave.

    Raises:
        ValueError: when a number is out of range, or the similarity reduces over the batch.
    """

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
        if steps < 0 or patience < 1:
            raise ValueError(
                f"InstanceOptimiser: steps={steps}, patience={patience}; give steps >= 0 and patience >= 1."
            )
        if momentum_rate <= 0 or min(affine_rate, regularisation, fold_weight, fold_margin, tolerance) < 0:
            raise ValueError("InstanceOptimiser: momentum_rate must be positive, the other factors not negative.")
        if getattr(similarity, "reduction", "none") != "none":
            raise ValueError("InstanceOptimiser: the similarity must be built with reduction='none'.")
        self.steps = steps
        self.similarity = MultiKernelLNCC(reduction="none") if similarity is None else similarity
        self.regularisation = regularisation
        self.fold_weight, self.fold_margin = fold_weight, fold_margin
        self.momentum_rate = momentum_rate
        self.affine_rate = affine_rate
        self.patience = patience
        self.tolerance = tolerance
        self.affine_optimiser = affine_optimiser

    def objective(
        self,
        registration: Registration,
        fixed: Tensor,
        mask: Tensor | None = None,
        moving_mask: Tensor | None = None,
    ) -> Tensor:
        """ℓv of a registration, each pair, ``(B,)``.

        Args:
            registration: of the pairs.
            fixed: ``(B, 1, D, H, W)``.
            mask: weights in [0, 1] on the fixed grid that limit the similarity, as ``fixed``.
            moving_mask: the same on the moving grid. It follows the map, but what it leaves out has no gradient: moving
                the mask away must not pay.
        """
        return pair_objective(registration, fixed, self.similarity, self.regularisation, mask, moving_mask)

    def __call__(
        self,
        network: AVSM,
        moving: Tensor,
        fixed: Tensor,
        registration: Registration,
        mask: Tensor | None = None,
        inverse: bool = False,
        moving_mask: Tensor | None = None,
    ) -> Refinement:
        """Optimise; a registration without a vSVF step has its affine optimised alone.

        Args:
            network: whose vSVF unit integrates; its weights are neither read nor changed.
            moving: ``(B, 1, D, H, W)``.
            fixed: ``(B, 1, D, H, W)``.
            registration: the network's registration of the pairs.
            mask: see `objective`.
            inverse: also compute the inverse map of the result.
            moving_mask: see `objective`.

        Returns:
            The `Refinement`.

        Raises:
            ValueError: when there is nothing to optimise: no vSVF step, and an affine that is kept fixed.
        """
        if not registration.momenta and self.affine_rate == 0:
            raise ValueError(
                "InstanceOptimiser: no vSVF step and affine_rate=0 leave nothing to optimise; "
                "register with vsvf_steps >= 1, or give affine_rate > 0."
            )
        with torch.no_grad():
            best = _Best(
                registration.affine,
                registration.momenta,
                self.objective(registration, fixed, mask, moving_mask),
                count_folds(registration.map)[0],
            )
            if self.affine_optimiser is not None and self.steps > 0:
                found = self.affine_optimiser(moving, fixed, registration.affine, mask, moving_mask)
                again = network.register(moving, fixed, vsvf_steps=len(registration.momenta), affine=found.affine)
                value = self.objective(again, fixed, mask, moving_mask)
                best.offer(again.affine, again.momenta, value, count_folds(again.map)[0])
        affine = best.affine.clone().requires_grad_(self.affine_rate > 0)
        momenta = [momentum.clone().requires_grad_(True) for momentum in best.momenta]
        groups = [{"params": momenta, "lr": self.momentum_rate}] if momenta else []
        if self.affine_rate > 0:
            groups.append({"params": [affine], "lr": self.affine_rate})
        optimiser = torch.optim.Adam(groups)
        history: list[float] = []
        lowest, since, taken, slower = float("inf"), 0, 0, 0
        with torch.enable_grad():
            for step in range(self.steps + 1):
                current = network.integrate(moving, affine, momenta)
                value = self.objective(current, fixed, mask, moving_mask)
                folds = count_folds(current.map.detach())[0]
                best.offer(affine, momenta, value.detach(), folds)
                mean = value.detach().mean().item()
                history.append(mean)
                since = 0 if mean < lowest * (1 - self.tolerance) else since + 1
                lowest = min(lowest, mean)
                taken = step
                if step == self.steps or not torch.isfinite(value).all():
                    break
                if since >= self.patience:
                    if slower == _SLOWER:
                        break
                    # Adam's first steps have the length of its rate, too much next to a good start: back, and slower.
                    since, slower = 0, slower + 1
                    optimiser = _again(optimiser, [affine, *momenta], [best.affine, *best.momenta])
                    continue
                optimiser.zero_grad(set_to_none=True)
                if momenta and self.fold_weight > 0:
                    value = value + self.fold_weight * fold_penalty(both_flows(network, current), self.fold_margin)
                # Pairs do not touch each other: the gradient of the sum is each pair's own.
                value.sum().backward()
                optimiser.step()
        with torch.no_grad():
            result = network.integrate(moving, best.affine, best.momenta, inverse=inverse)
        result.affines = [*registration.affines, best.affine]
        return Refinement(result, best.first, best.value, best.first_folds, best.folds, taken, history)

    @torch.no_grad()
    def shortened(
        self,
        network: AVSM,
        found: Refinement,
        factor: float,
        moving: Tensor,
        fixed: Tensor,
        mask: Tensor | None = None,
        moving_mask: Tensor | None = None,
        inverse: bool = False,
    ) -> Refinement:
        """A result whose momenta are ``factor`` times as long, for whoever finds folds where this search did not look.

        Args:
            network: as before.
            found: the result to shorten.
            factor: from 0, the affine alone, to 1.
            moving: as before, as all that follows.
            fixed: see ``moving``.
            mask: see ``moving``.
            moving_mask: see ``moving``.
            inverse: also compute the inverse map.

        Returns:
            The `Refinement`, with its own objective, which may be worse than the first, and folds.
        """
        momenta = [factor * momentum for momentum in found.registration.momenta]
        registration = network.integrate(moving, found.registration.affine, momenta, inverse=inverse)
        registration.affines = found.registration.affines
        after = self.objective(registration, fixed, mask, moving_mask)
        return replace(found, registration=registration, after=after, folds_after=count_folds(registration.map)[0])


@torch.no_grad()
def _again(optimiser: torch.optim.Adam, parameters: Sequence[Tensor], values: Sequence[Tensor]) -> torch.optim.Adam:
    """Parameters set back to values, and a new optimiser of them at a quarter of the rates."""
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
    return torch.optim.Adam([{"params": g["params"], "lr": g["lr"] / 4} for g in optimiser.param_groups])


class _Best:
    """The best parameters of each pair so far."""

    def __init__(self, affine: Tensor, momenta: Sequence[Tensor], value: Tensor, folds: Tensor) -> None:
        self.affine = affine.detach().clone()
        self.momenta = [momentum.detach().clone() for momentum in momenta]
        self.value = self.first = value
        self.folds = self.first_folds = folds

    def offer(self, affine: Tensor, momenta: Sequence[Tensor], value: Tensor, folds: Tensor) -> None:
        better = (value < self.value) & (folds <= self.first_folds)
        self.affine = torch.where(better.view(-1, 1, 1), affine.detach(), self.affine)
        rows = better.view(-1, 1, 1, 1, 1)
        self.momenta = [torch.where(rows, new.detach(), old) for new, old in zip(momenta, self.momenta, strict=True)]
        self.value = torch.where(better, value, self.value)
        self.folds = torch.where(better, folds, self.folds)
