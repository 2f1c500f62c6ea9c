"""vSVF-opt: affine, then momenta by direct optimisation over scales, the paper's optimisation twin of the AVSM."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..geometry import count_folds, identity_map, resize_volume, smallest_jacobian_determinant
from ..layers import VSVF, flow_displacements
from ..losses import MultiKernelLNCC
from ..networks import AVSM, Registration
from ..networks.momentum_net import half_shape
from .affine_opt import AffineOptimiser, AffineResult
from .objective import both_flows, fold_penalty, pair_objective
from .pyramid import at_scale, check_scales, one_each

__all__ = ["VSVFOptimiser", "VSVFResult", "bare_network"]

OPTIMISERS = ("adam", "lbfgs")
_FLOOR = 0.05  # least corner determinant of a flow that counts as free of folds, on whatever grid it is looked at
_FINER = 2  # how much finer the grid is on which the result must be free of folds, too
_SHORTER = 0.95
_HISTORY = 10  # steps whose curvature L-BFGS remembers
_STANDSTILL = 1e-7  # change of objective or momentum at which L-BFGS ends
_HALVINGS = 10


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


def bare_network(
    stds: Sequence[float | Sequence[float]] = (0.03, 0.06, 0.12, 0.2),
    weights: Sequence[float] = (0.25, 0.25, 0.25, 0.25),
    integrator: str = "scaling_squaring",
) -> AVSM:
    """An `AVSM` without networks and weights, of which only the vSVF unit works: what the optimisation twins ask.

    Args:
        stds: the smoother's standard deviations, see `MultiGaussianSmoother`; the default is finer than the paper's.
        weights: the smoother's weights.
        integrator: see `VSVF`.
    """
    return AVSM(nn.Identity(), nn.Identity(), VSVF(stds, weights, integrator=integrator), 0, 0)


class VSVFOptimiser:
    """Minimises ℓv of Equation 11, Sim(I0 ∘ Φ⁻¹, I1) + λvr Σ_τ ⟨m₀, v₀⟩, over a pair's momenta, from coarse to fine.

    The affine comes from affine-opt and stays. The momenta begin at 0 on half the grid of the first scale and are
    up-sampled between scales. Every pair is optimised on its own and keeps its own best: the momenta of lowest
    objective among those whose map has no folds, or none at all where they are no better than the affine alone. As the
    flow is integrated anew on finer grids when transforms are written, the result is shortened until neither it nor its
    inverse folds on a grid twice as fine; `shortened` is for folds that only show on an image's own grid.

    Args:
        affine_optimiser: finds the affine; `AffineOptimiser` by default.
        scales: sizes of the grid relative to the images', each in (0, 1], in rising order.
        iterations: of the optimiser at each scale.
        similarity: loss of (moved, fixed[, mask]) with ``reduction`` ``"none"``, or one for each scale; by default
            correlation in windows of 9 and 21 voxels of each scale's grid.
        regularisation: λvr.
        fold_weight: weight of the penalty on determinants below ``fold_margin`` of the deformation and of its inverse
            (`folding`), which keeps the search away from folds; 0 leaves it to the choice among what was seen.
        fold_margin: see ``fold_weight``.
        steps: number T of vSVF steps, each with its momentum.
        optimiser: ``"adam"``, or ``"lbfgs"`` (the paper's) with a line search for the strong Wolfe conditions.
        rate: rate of the optimiser: normalised units for Adam, the first step length to try for L-BFGS; None for 0.02
            and 1.
        patience: go on to the next scale after this many evaluations by Adam without a fall by ``tolerance`` of the
            objective; None takes all iterations. L-BFGS ends a scale where an iteration changes next to nothing.
        tolerance: see ``patience``.

    Raises:
        ValueError: when a number is out of range, the lists differ in length, or a similarity reduces over the batch.
    """

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
        check_scales("VSVFOptimiser", scales, iterations, "iterations")
        if optimiser not in OPTIMISERS:
            raise ValueError(f"VSVFOptimiser: optimiser={optimiser!r}; give one of {', '.join(OPTIMISERS)}.")
        if steps < 1 or (patience is not None and patience < 1):
            raise ValueError(f"VSVFOptimiser: steps={steps}, patience={patience}; give at least 1 of each.")
        if (rate is not None and rate <= 0) or min(regularisation, fold_weight, fold_margin, tolerance) < 0:
            raise ValueError("VSVFOptimiser: rate must be positive, the other factors not negative.")
        if similarity is None:
            similarity = MultiKernelLNCC((0.5, 0.5), (9, 21), dilation=1, reduction="none")
        self.affine_optimiser = AffineOptimiser() if affine_optimiser is None else affine_optimiser
        self.scales, self.iterations = tuple(scales), tuple(iterations)
        self.similarities = one_each("VSVFOptimiser", similarity, len(self.scales))
        self.regularisation = regularisation
        self.fold_weight, self.fold_margin = fold_weight, fold_margin
        self.steps = steps
        self.optimiser = optimiser
        self.rate = {"adam": 0.02, "lbfgs": 1.0}[optimiser] if rate is None else rate
        self.patience, self.tolerance = patience, tolerance

    def __call__(
        self,
        network: AVSM,
        moving: Tensor,
        fixed: Tensor,
        affine: Tensor | None = None,
        mask: Tensor | None = None,
        moving_mask: Tensor | None = None,
        inverse: bool = False,
    ) -> VSVFResult:
        """Optimise.

        Args:
            network: whose vSVF unit integrates (`bare_network`); weights are neither read nor changed.
            moving: ``(B, 1, D, H, W)``.
            fixed: the same shape.
            affine: Γ that affine-opt begins with, ``(B, 3, 4)``; None for the identity.
            mask: see `pair_objective`.
            moving_mask: see `pair_objective`.
            inverse: also compute the inverse map of the result.

        Returns:
            The `VSVFResult`.

        Raises:
            ValueError: when the images' shapes differ or are not ``(B, 1, D, H, W)``.
        """
        if moving.shape != fixed.shape or moving.dim() != 5 or moving.shape[1] != 1:
            raise ValueError(
                f"VSVFOptimiser: moving and fixed must both be (B, 1, D, H, W) on one grid, "
                f"got {tuple(moving.shape)} and {tuple(fixed.shape)}."
            )
        found = self.affine_optimiser(moving, fixed, affine, mask, moving_mask)
        rows = []
        for row, volumes in enumerate(_pairs(moving, fixed, mask, moving_mask)):
            rows.append(self._optimise(network, found.affine[row : row + 1], *volumes))
        momenta, before, after, evaluations = zip(*rows, strict=True)
        with torch.no_grad():
            joined = [torch.cat(step) for step in zip(*momenta, strict=True)]
            registration = network.integrate(moving, found.affine, joined, inverse=inverse)
            folds = count_folds(registration.map)[0]
        most = [max(counts) for counts in zip(*evaluations, strict=True)]
        return VSVFResult(registration, found, torch.cat(before), torch.cat(after), folds, most)

    @torch.no_grad()
    def shortened(
        self,
        network: AVSM,
        found: VSVFResult,
        factor: float,
        moving: Tensor,
        fixed: Tensor,
        mask: Tensor | None = None,
        moving_mask: Tensor | None = None,
        inverse: bool = False,
    ) -> VSVFResult:
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
            The `VSVFResult`, with its own objective and folds.
        """
        momenta = [factor * momentum for momentum in found.registration.momenta]
        affine = found.affine.affine
        registration = network.integrate(moving, affine, momenta, inverse=inverse)
        after = []
        for row, volumes in enumerate(_pairs(moving, fixed, mask, moving_mask)):
            search = _Search(self, network, affine[row : row + 1], self.similarities[-1], *volumes)
            after.append(search.objective(search.integrate([momentum[row : row + 1] for momentum in momenta])))
        folds = count_folds(registration.map)[0]
        return replace(found, registration=registration, after=torch.cat(after), folds=folds)

    def _optimise(
        self, network: AVSM, affine: Tensor, *volumes: Tensor | None
    ) -> tuple[list[Tensor], Tensor, Tensor, list[int]]:
        """Momenta of one pair, the objective without and with them, and the evaluations at each scale."""
        momenta: list[Tensor] | None = None
        evaluations = []
        for scale, iterations, similarity in zip(self.scales, self.iterations, self.similarities, strict=True):
            level = [None if v is None else at_scale(v, scale) for v in volumes]
            low = half_shape(list(level[1].shape[2:]))
            if momenta is None:
                momenta = [torch.zeros(1, 3, *low, device=affine.device)] * self.steps
            search = _Search(self, network, affine, similarity, *level)
            start = search.unfolded([resize_volume(momentum, low) for momentum in momenta])
            momenta = search.run(start, iterations)
            evaluations.append(search.evaluations)
        with torch.no_grad():
            momenta = _settled(network, momenta)
            none = [torch.zeros_like(momentum) for momentum in momenta]
            before, after = (search.objective(search.integrate(candidate)) for candidate in (none, momenta))
        better = bool(after < before)
        return momenta if better else none, before, after if better else before, evaluations


class _Search:
    """The search for the momenta of one pair at one scale; remembers the best that it has seen."""

    def __init__(
        self,
        settings: VSVFOptimiser,
        network: AVSM,
        affine: Tensor,
        similarity: Callable,
        moving: Tensor,
        fixed: Tensor,
        mask: Tensor | None,
        moving_mask: Tensor | None,
    ) -> None:
        self.settings, self.network, self.affine, self.similarity = settings, network, affine, similarity
        self.moving, self.fixed, self.masks = moving, fixed, (mask, moving_mask)
        self.best: list[Tensor] = []
        self.lowest, self.evaluations = float("inf"), 0

    def integrate(self, momenta: Sequence[Tensor]) -> Registration:
        """The registration of some momenta."""
        return self.network.integrate(self.moving, self.affine, momenta)

    def objective(self, found: Registration) -> Tensor:
        """ℓv of a registration, ``(1,)``."""
        return pair_objective(found, self.fixed, self.similarity, self.settings.regularisation, *self.masks)

    def unfolded(self, momenta: list[Tensor]) -> list[Tensor]:
        """Momenta, halved until their map has no folds: on a finer grid they may make some."""
        with torch.no_grad():
            for _ in range(_HALVINGS):
                if not any(map(_folded, both_flows(self.network, self.integrate(momenta)))):
                    return momenta
                momenta = [0.5 * momentum for momentum in momenta]
        return [torch.zeros_like(momentum) for momentum in momenta]

    def run(self, start: list[Tensor], iterations: int) -> list[Tensor]:
        """The best momenta seen from some on, themselves included."""
        momenta = [momentum.clone().requires_grad_(True) for momentum in start]
        self.best = start
        with torch.enable_grad():
            if self.settings.optimiser == "adam":
                self._adam(momenta, iterations)
            else:
                self._lbfgs(momenta, iterations)
        return self.best

    def _adam(self, momenta: list[Tensor], iterations: int) -> None:
        optimiser = torch.optim.Adam(momenta, lr=self.settings.rate)
        patience, lowest, since = self.settings.patience, float("inf"), 0
        for _ in range(iterations):
            value = self._evaluate(momenta).item()
            since = 0 if value < lowest * (1 - self.settings.tolerance) else since + 1
            lowest = min(lowest, value)
            if not value < float("inf") or (patience is not None and since >= patience):
                return
            optimiser.step()

    def _lbfgs(self, momenta: list[Tensor], iterations: int) -> None:
        if iterations == 0:
            return
        optimiser = torch.optim.LBFGS(
            momenta,
            lr=self.settings.rate,
            max_iter=iterations,
            history_size=_HISTORY,
            tolerance_grad=0.0,
            tolerance_change=_STANDSTILL,
            line_search_fn="strong_wolfe",
        )
        optimiser.step(lambda: self._evaluate(momenta))

    def _evaluate(self, momenta: list[Tensor]) -> Tensor:
        """What is minimised, with its gradient in the momenta; they are kept if they are the best so far."""
        self.evaluations += 1
        for momentum in momenta:
            momentum.grad = None
        found, settings = self.integrate(momenta), self.settings
        value, flows = self.objective(found), both_flows(self.network, found)
        if settings.fold_weight > 0:
            value = value + settings.fold_weight * fold_penalty(flows, settings.fold_margin)
        value.sum().backward()
        if value.item() < self.lowest and not any(_folded(flow.detach()) for flow in flows):
            self.lowest = value.item()
            self.best = [momentum.detach().clone() for momentum in momenta]
        return value.detach().sum()


def _pairs(*volumes: Tensor | None) -> Iterator[list[Tensor | None]]:
    """The volumes of each pair of a batch."""
    for row in range(len(volumes[0])):
        yield [None if volume is None else volume[row : row + 1] for volume in volumes]


def _settled(network: AVSM, momenta: list[Tensor]) -> list[Tensor]:
    """Momenta, shortened by a twentieth at a time until their flow and its inverse have no folds on a finer grid."""
    for _ in range(round(1 / (1 - _SHORTER)) * 4):
        flows = flow_displacements(network.vsvf, [network.vsvf.velocity(m)[0] for m in momenta], _FINER)
        if not any(map(_folded, flows)):
            return momenta
        momenta = [_SHORTER * momentum for momentum in momenta]
    return [torch.zeros_like(momentum) for momentum in momenta]


def _folded(displacement: Tensor) -> bool:
    """Whether id + u has folds, or nearly."""
    identity = identity_map(list(displacement.shape[2:]), displacement.device, displacement.dtype)
    # Not `< _FLOOR`: what holds NaN would then count as free of folds.
    return not bool(smallest_jacobian_determinant(identity + displacement).min() >= _FLOOR)
