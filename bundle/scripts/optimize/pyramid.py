"""The engine of all optimisation: affine and momenta of a batch of pairs, from coarse to fine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..geometry import warp
from ..layers import VSVF
from ..losses import MultiKernelLNCC, folding, vsvf_regularisation
from ..networks import AVSM, Registration

__all__ = ["Best", "Level", "Parameters", "PyramidOptimiser", "bare_network", "both_flows"]

_LEAST_VOXELS = 8  # along each axis of the coarsest grid


class Parameters(NamedTuple):
    """What determines a registration of B pairs, in two groups: ``(B, 3, 4)`` and T times ``(B, 3, d, h, w)``."""

    affine: Tensor
    momenta: Sequence[Tensor]

    def shortened(self, factor: float) -> Parameters:
        """The same affine, with momenta ``factor`` times as long."""
        return Parameters(self.affine, [factor * momentum for momentum in self.momenta])

    def flat(self) -> list[Tensor]:
        """All of them."""
        return [self.affine, *self.momenta]


class Best:
    """The best parameters of each pair so far, and their values ``(B,)``."""

    def __init__(self, parameters: Parameters, value: Tensor) -> None:
        self.parameters, self.value = parameters, value

    def offer(self, candidate: Parameters, value: Tensor, allowed: Tensor | bool = True) -> None:
        """Take the candidate for those pairs that it is allowed for and of lower value."""
        better = (value < self.value) & allowed

        def chosen(new: Tensor, old: Tensor) -> Tensor:
            return torch.where(better.view(-1, *[1] * (new.dim() - 1)), new.detach(), old)

        affine, *momenta = map(chosen, candidate.flat(), self.parameters.flat())
        self.parameters = Parameters(affine, momenta)
        self.value = chosen(value, self.value)


class Level(NamedTuple):
    """Pairs on the grid of one scale, ``(B, 1, D, H, W)`` each, with what integrates and compares them there."""

    network: AVSM
    similarity: Callable
    moving: Tensor
    fixed: Tensor
    mask: Tensor | None
    moving_mask: Tensor | None

    def integrate(self, parameters: Parameters) -> Registration:
        """The registration that parameters determine."""
        return self.network.integrate(self.moving, *parameters)


class PyramidOptimiser:
    """Minimises the objective of Equation 11 over the affine and the momenta of each pair, from coarse to fine.

    The two groups of parameters have a learning rate each; a group without one stays as it is. Pairs of a batch do not
    influence each other, save that a search ends for all of them at once; each keeps its own best parameters.
    `AffineOptimiser`, `VSVFOptimiser` and `InstanceOptimiser` are presets of this class.

    Args:
        scales: sizes of the grids relative to the images', each in (0, 1], in rising order.
        counts: steps or iterations at each scale.
        similarity: loss of (moved, fixed, mask), or one for each scale; mk-LNCC by default, whose windows follow the
            grid of each scale. It gives ``(B,)``; a mean over the batch would be shared by its pairs.
        regularisation: λvr of Equation 11.
        rates: learning rates of ``affine`` and ``momenta``; 0 keeps a group fixed.
        optimiser: one of `optimisers`; L-BFGS (strong Wolfe line search) takes the momenta of one pair.
        patience: a search is stuck after this many evaluations without a fall of the mean value by ``tolerance`` of
            itself; None for never.
        tolerance: see ``patience``.

    Attributes:
        optimisers: what the preset can search with.
        positive: settings that must not be 0.
        sgd_momentum: part of the last step that SGD repeats.
        fold_weight: weight of the penalty on folds of the deformation and of its inverse (`folding`), which keeps the
            search away from them.
        fold_margin: determinant below which a voxel is penalised.
        penalty_counts: whether the penalty also counts in the comparison of values, or in the gradient alone.
        restarts: how often a search that is stuck goes back to its best, at a quarter of the rates, before it ends.

    Raises:
        ValueError: when a number is out of range or the lists differ in length.
    """

    optimisers: tuple[str, ...] = ("adam", "sgd", "lbfgs")
    positive: tuple[str, ...] = ("rate", "momentum_rate", "patience")
    sgd_momentum, fold_weight, fold_margin = 0.9, 0.0, 0.0
    penalty_counts, restarts = False, 0

    def __init__(
        self,
        scales: Sequence[float],
        counts: Sequence[int],
        similarity: Callable | Sequence[Callable] | None,
        regularisation: float,
        rates: Parameters,
        optimiser: str = "adam",
        patience: int | None = None,
        tolerance: float = 1e-4,
    ) -> None:
        owner = type(self).__name__
        if not isinstance(similarity, Sequence):
            similarity = [MultiKernelLNCC(reduction="none") if similarity is None else similarity] * len(scales)
        self.scales, self.similarities, self.regularisation = tuple(scales), tuple(similarity), regularisation
        self.optimiser, self.patience, self.tolerance = optimiser, patience, tolerance
        self._counts, self._rates = counts, rates
        for name, number in vars(self).items():
            if isinstance(number, int | float) and (number < 0 or (number == 0 and name in self.positive)):
                mend = "above 0" if name in self.positive else "from 0 on"
                raise ValueError(f"{owner}: {name}={number}; give a number {mend}.")
        if len(scales) != len(counts) or not scales or min(counts) < 0 or not all(0 < scale <= 1 for scale in scales):
            name = "iterations" if "iterations" in vars(self) else "steps"
            raise ValueError(
                f"{owner}: scales={scales}, {name}={counts}; give as many of each, in (0, 1] and from 0 on."
            )
        if list(scales) != sorted(scales):
            raise ValueError(f"{owner}: scales={scales}; give them in rising order.")
        if len(similarity) != len(scales):
            raise ValueError(
                f"{owner}: {len(similarity)} similarities for {len(scales)} scales; give one, or one for each."
            )
        if optimiser not in self.optimisers:
            raise ValueError(f"{owner}: optimiser={optimiser!r}; give one of {', '.join(self.optimisers)}.")
        if self.sgd_momentum >= 1:
            raise ValueError(f"{owner}: sgd_momentum={self.sgd_momentum}; give a number below 1.")

    def objective(
        self,
        registration: Registration,
        fixed: Tensor,
        mask: Tensor | None = None,
        moving_mask: Tensor | None = None,
        similarity: Callable | None = None,
    ) -> Tensor:
        """ℓv of Equation 11: Sim(I0 ∘ Φ⁻¹, I1) + λvr Σ_τ ⟨m₀, v₀⟩.

        Args:
            registration: of B pairs.
            fixed: ``(B, 1, D, H, W)``.
            mask: weights in [0, 1] of the fixed voxels in the similarity, as ``fixed``.
            moving_mask: the same on the moving grid. It moves with the map but carries no gradient: moving the mask
                away must not pay.
            similarity: that of a scale; None for the last.

        Returns:
            ``(B,)``.
        """
        if moving_mask is not None:
            moved_mask = warp(moving_mask, registration.map.detach())
            mask = moved_mask if mask is None else mask * moved_mask
        similarity = self.similarities[-1] if similarity is None else similarity
        value = similarity(registration.moved, fixed, mask).reshape(-1).expand(len(fixed))
        for momentum, velocity in zip(registration.momenta, registration.velocities, strict=True):
            value = value + self.regularisation * vsvf_regularisation(momentum, velocity, reduction="none")
        return value

    def levels(self, network: AVSM, *volumes: Tensor | None) -> Iterator[tuple[Level, int]]:
        """Each scale's `Level` and its count, of moving, fixed, mask and moving mask ``(B, 1, D, H, W)``."""
        for scale, count, similarity in zip(self.scales, self._counts, self.similarities, strict=True):
            scaled = [None if volume is None else _at_scale(volume, scale) for volume in volumes]
            yield Level(network, similarity, *scaled), count

    def value(self, level: Level, registration: Registration) -> Tensor:
        """The objective at one scale, ``(B,)``."""
        return self.objective(registration, level.fixed, level.mask, level.moving_mask, level.similarity)

    def search(
        self, level: Level, best: Best, count: int, allowed: Callable[..., Tensor | bool] = lambda *_: True
    ) -> list[float]:
        """Improve ``best`` at one scale.

        Args:
            level: the scale.
            best: where the search begins; takes what is better.
            count: of evaluations; L-BFGS: of iterations.
            allowed: of a registration and its `both_flows`, which pairs ``(B,)`` may become the best.

        Returns:
            The value, mean over the batch, of each evaluation.
        """
        affine = best.parameters.affine.clone().requires_grad_(self._rates.affine > 0)
        momenta = [one.clone().requires_grad_(self._rates.momenta > 0) for one in best.parameters.momenta]
        current, history = Parameters(affine, momenta), []

        def evaluate() -> Tensor:
            found = level.integrate(current)
            value, flows = self.value(level, found), both_flows(level.network.vsvf, found)
            loss = value
            if flows is not None and self.fold_weight > 0:
                loss = value + self.fold_weight * sum(folding(flow, self.fold_margin, "none") for flow in flows)
            value = (loss if self.penalty_counts else value).detach()
            with torch.no_grad():
                best.offer(current, value, allowed(found, flows))
            history.append(value.mean().item())
            # Pairs do not touch each other: the gradient of the sum is each pair's own.
            return loss.sum()

        groups = [(momenta, self._rates.momenta), ([affine], self._rates.affine)]
        groups = [{"params": params, "lr": rate} for params, rate in groups if params and rate > 0]
        optimiser = self._optimiser(groups, count)
        lowest, since, restarts = math.inf, 0, self.restarts
        with torch.enable_grad():
            if self.optimiser == "lbfgs" and count > 0:
                optimiser.step(lambda: _with_gradient(optimiser, evaluate()))
                count = 0
            for step in range(count):
                loss = evaluate()
                since = 0 if history[-1] < lowest * (1 - self.tolerance) else since + 1
                lowest = min(lowest, history[-1])
                stuck = self.patience is not None and since >= self.patience
                if step == count - 1 or not math.isfinite(history[-1]) or (stuck and restarts == 0):
                    break
                if not stuck:
                    _with_gradient(optimiser, loss)
                    optimiser.step()
                    continue
                # Adam's first steps have the length of its rate, too much next to a good start: back, and slower.
                since, restarts = 0, restarts - 1
                for parameter, value in zip([affine, *momenta], best.parameters.flat(), strict=True):
                    parameter.data.copy_(value)
                groups = [{"params": group["params"], "lr": group["lr"] / 4} for group in optimiser.param_groups]
                optimiser = self._optimiser(groups, count)
        return history

    def _optimiser(self, groups: list[dict], count: int) -> torch.optim.Optimizer:
        if self.optimiser == "adam":
            return torch.optim.Adam(groups)
        if self.optimiser == "sgd":
            return torch.optim.SGD(groups, momentum=self.sgd_momentum)
        # It ends where objective or parameters change next to nothing.
        options = {"history_size": 10, "tolerance_grad": 0.0, "tolerance_change": 1e-7}
        return torch.optim.LBFGS(groups, max_iter=count, line_search_fn="strong_wolfe", **options)


def bare_network(
    stds: Sequence[float | Sequence[float]] = (0.03, 0.06, 0.12, 0.2),
    weights: Sequence[float] = (0.25, 0.25, 0.25, 0.25),
    integrator: str = "scaling_squaring",
) -> AVSM:
    """An `AVSM` without networks and weights, of which only the vSVF unit works: what affine-opt and vSVF-opt need.

    Args:
        stds: the smoother's standard deviations, see `MultiGaussianSmoother`; the default is finer than the paper's.
        weights: the smoother's weights.
        integrator: see `VSVF`.
    """
    return AVSM(nn.Identity(), nn.Identity(), VSVF(stds, weights, integrator=integrator), 0, 0)


def both_flows(vsvf: VSVF, registration: Registration) -> tuple[Tensor, Tensor] | None:
    """ψ_T - id and ψ_T⁻¹ - id of a registration, each ``(B, 3, d, h, w)`` normalised; None without a vSVF step."""
    back: Tensor | None = None
    for velocity in registration.velocities:
        back = vsvf.retreat(back, velocity)
    return None if back is None else (registration.displacement, back)


def _with_gradient(optimiser: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    """The loss, its gradient in the parameters' ``grad``."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    return loss.detach()


def _at_scale(volume: Tensor, scale: float) -> Tensor:
    """A volume on the grid of a scale, by averages of what each coarse voxel covers."""
    if scale == 1:
        return volume
    shape = [min(n, max(_LEAST_VOXELS, round(n * scale))) for n in volume.shape[2:]]
    return F.adaptive_avg_pool3d(volume, shape)
