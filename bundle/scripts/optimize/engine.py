"""The engine: one pair from coarse to fine, by Gauss-Newton steps with analytic derivatives.

All levels share one vSVF step, or each has its own.

The model is the paper's. The map is φ⁻¹ = Γ ∘ exp(-v(1)) ∘ ... ∘ exp(-v(T)) with v(τ) = (L†L)⁻¹ m(τ), and
the objective Equation 11, Sim(I0 ∘ φ⁻¹, I1) + λvr Σ_τ ⟨m(τ), v(τ)⟩, with a penalty on all but folded voxels.
Of that objective each level minimises what its own step can change. A step's flow is short, so its derivative is that
of a displacement inside the map, which costs one gradient of the moved image and no automatic differentiation. The
step solves (H + λ (L†L)) δv = -gradient by conjugate gradients with the smoother as their preconditioner; H is the
curvature of the correlation along the moved image's gradient. What is compared are the images and the magnitudes of
their gradients, which show edges where the images show contrast. A line search takes a step only where the objective
falls and no corner determinant of the map falls to the floor. The paper's optimisers, L-BFGS and SGD with momentum,
walk the same levels by the same derivative.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry import (
    UNIT_CUBE,
    apply_affine,
    compose_displacements,
    corner_jacobian_determinants,
    identity_affine,
    identity_map,
    smallest_jacobian_determinant,
    voxels_per_unit,
    warp,
)
from ..layers import MultiGaussianSmoother
from ..layers.gaussian import cosine_basis, multi_gaussian_transfer
from ..layers.scaling_squaring import exponential
from ..losses import (
    Compared,
    Comparison,
    Correlation,
    central_differences,
    comparison_of,
    reach,
    row_blocks,
    volume_sums,
)
from ..networks.momentum_net import half_shape

if TYPE_CHECKING:
    from .guides import Guided, Guides

__all__ = ["OPTIMISERS", "PRESETS", "EngineResult", "EngineSettings", "RegistrationEngine", "Start"]

OPTIMISERS = ("newton", "lbfgs", "sgd")

_LEAST = 8  # voxels along each axis of the coarsest grid
_COARSEST = 20  # voxels along the smallest axis from which on another level is added
_HALVINGS = 5
_BRAKINGS = 3  # of them with the step held back where it folds, in place of half of it
_ALONG = 45  # voxels along an axis for which the weight of regularity is given
# Where labels drive, factors: of the penalty on folds and its margin, else the first voxel at the floor ends a search;
# of the last level's iterations and of the tolerance, for borders go on falling into place where images have long
# stopped. What one velocity cannot reach, further vSVF steps of the last level can.
_LABELLED_PENALTY, _LABELLED_MARGIN, _LABELLED_STEPS, _LABELLED_TOLERANCE = 10, 1.5, 2, 0.05
_FURTHER = 3
_HISTORY = 10  # steps that L-BFGS remembers


@dataclass(frozen=True)
class EngineSettings:
    """What decides how the engine searches.

    Attributes:
        optimiser: one of `OPTIMISERS`: Gauss-Newton, or the paper's L-BFGS or SGD with momentum.
        iterations: the most steps of each level, from coarse to fine; a level's grid is half as fine as the next one's,
            that of the last the images' own. Large images get further coarse levels with the first number. Without a
            level the affine is all.
        one_step: one vSVF step, whose momentum each level takes over from the one before; else a step a level.
        radii: of the correlation's windows, voxels of each level's grid (`BoxCorrelation`).
        eps: regulariser of the correlation, squared intensity.
        edges: weight of the correlation of the gradients' magnitudes, the rest being that of the images.
        stds: the smoother's standard deviations, parts of the image's extent (`MultiGaussianSmoother`).
        weights: the smoother's weights.
        regularisation: λvr of Equation 11 for images of 45 voxels along an axis. It grows with that number
            (`RegistrationEngine.scaled`).
        fold_weight: weight of the mean over voxels of max(0, margin - J)² / margin, J the smallest corner determinant.
        fold_margin: see ``fold_weight``.
        fold_floor: smallest corner determinant that the line search accepts.
        krylov: conjugate gradient iterations behind each Gauss-Newton step. Few of them give its smooth part first.
        rate: longest way of SGD's first step, voxels of the level's grid; its learning rate follows from it.
        sgd_momentum: part of the last step that SGD repeats.
        reach: the longest step, voxels of the level's grid.
        tolerance: a level ends when a step lowers the objective by less.
        squarings: of the exponential (`exponential`).
    """

    optimiser: str = "newton"
    iterations: tuple[int, ...] = (25, 20, 10)
    one_step: bool = True
    radii: tuple[int, ...] = (2,)
    eps: float = 1e-3
    edges: float = 0.5
    stds: tuple[float, ...] = (0.04, 0.08, 0.16)
    weights: tuple[float, ...] = (1 / 3, 1 / 3, 1 / 3)
    regularisation: float = 5.0
    fold_weight: float = 5.0
    fold_margin: float = 0.2
    fold_floor: float = 0.05
    krylov: int = 3
    rate: float = 0.5
    sgd_momentum: float = 0.9
    reach: float = 3.0
    tolerance: float = 2e-5
    squarings: int = 2

    def __post_init__(self) -> None:
        above = ("regularisation", "fold_margin", "krylov", "rate", "reach", "squarings", "eps")
        for name, number in vars(self).items():
            if isinstance(number, int | float) and (number < 0 or (name in above and not number)):
                mend = "above 0" if name in above else "from 0 on"
                raise ValueError(f"EngineSettings: {name}={number}; give a number {mend}.")
        if self.optimiser not in OPTIMISERS:
            raise ValueError(f"EngineSettings: optimiser={self.optimiser!r}; give one of {', '.join(OPTIMISERS)}.")
        for name in ("sgd_momentum", "edges"):
            if getattr(self, name) >= 1:
                raise ValueError(f"EngineSettings: {name}={getattr(self, name)}; give a number below 1.")
        if self.iterations and min(self.iterations) < 0:
            raise ValueError(f"EngineSettings: iterations={self.iterations}; give a number from 0 on for each level.")


PRESETS: dict[str, EngineSettings] = {
    "fast": EngineSettings(iterations=(10, 6, 3), tolerance=2e-4),
    "default": EngineSettings(),
    "best": EngineSettings(iterations=(40, 40, 20), tolerance=5e-6),
    "affine-opt": EngineSettings(iterations=()),
    "vsvf-opt": EngineSettings(optimiser="lbfgs", iterations=(60, 60, 30), edges=0.0),
    "instance": EngineSettings(),
}
"""The engine's settings: three by how much time they spend, the paper's two optimisations, and what follows a network.
"""


class Start(Protocol):
    """A registration to go on from, as a network gives it (`Registration`).

    Attributes:
        affine: Γ, ``(B, 3, 4)``.
        displacement: ψ - id, ``(B, 3, d, h, w)`` normalised, on half the images' grid.
        momenta: behind it, ``(B, 3, ., ., .)`` each, of grids over the same extent; none for an affine alone.
        velocities: as the momenta.
    """

    affine: Tensor
    displacement: Tensor
    momenta: list[Tensor]
    velocities: list[Tensor]


@dataclass
class EngineResult:
    """What the engine found for B pairs.

    Attributes:
        affine: Γ, that of the start where the start was gone on from, ``(B, 3, 4)``.
        displacement: ψ - id, ``(B, 3, d, h, w)`` normalised, on half the images' grid; φ⁻¹ = Γ ∘ ψ.
        momenta: m(1) ... m(T), ``(B, 3, ., ., .)``: the start's, zero where it was not gone on from, then the levels',
            each on half its level's grid; where labels drive, those of further steps of the last level come after.
        velocities: v(1) ... v(T), as the momenta.
        before: objective of what it went on from, the lower one of affine and start, at the last level, ``(B,)``.
        after: objective at the last level, ``(B,)``; never above ``before``.
        evaluations: of the objective at each level and further step, the most of any pair.
        history: the objective after each step that was taken, by level, of the last pair.
    """

    affine: Tensor
    displacement: Tensor
    momenta: list[Tensor]
    velocities: list[Tensor]
    before: Tensor
    after: Tensor
    evaluations: list[int]
    history: list[list[float]] = field(default_factory=list)


class _Seen(NamedTuple):
    """What is seen under a map: what the derivative is made of."""

    moved: Tensor
    similarity: Compared
    moments: Any
    guided: Guided | None


class _State(NamedTuple):
    """A step's parameters on a level and what they give; the objective is a number, and its part without regularity."""

    momentum: Tensor
    velocity: Tensor
    displacement: Tensor
    objective: float
    loss: float
    smallest: float
    seen: _Seen | None


class _Begin(NamedTuple):
    """What the levels of one pair go on from: an affine alone, or a start."""

    affine: Tensor
    displacement: Tensor | None
    momenta: list[Tensor]
    velocities: list[Tensor]

    def regularity(self, settings: EngineSettings) -> float:
        return sum(_regularity(m, v, settings) for m, v in zip(self.momenta, self.velocities, strict=True))


class RegistrationEngine:
    """Registers pairs whose affine is known.

    Args:
        preset: one of `PRESETS`, or settings.
        similarity: what images are compared by: ``lncc`` or one of `COMPARISONS`, a `Comparison`, or a loss of (moved,
            fixed, mask), ``(B,)``; for K pairs of images, the channels of the tensors, K of (similarity, weight).
        changes: of the preset's settings, by name.

    Raises:
        ValueError: for an unknown preset or similarity, or settings out of range.
    """

    def __init__(
        self,
        preset: str | EngineSettings = "default",
        similarity: str | Callable | Comparison = "lncc",
        **changes: object,
    ) -> None:
        if isinstance(preset, str) and preset not in PRESETS:
            raise ValueError(f"RegistrationEngine: preset={preset!r}; give one of {', '.join(PRESETS)}.")
        settings = PRESETS[preset] if isinstance(preset, str) else preset
        self.settings = replace(settings, **changes)
        self.smoother = MultiGaussianSmoother(self.settings.stds, self.settings.weights)
        correlation = Correlation(self.settings.edges, self.settings.radii, eps=self.settings.eps)
        self.comparison = comparison_of(similarity, correlation)
        self.further = 0  # steps of the last level, each with a momentum of its own

    def by(self, similarity: str | Callable | Comparison) -> RegistrationEngine:
        """The same by another similarity."""
        return RegistrationEngine(self.settings, similarity)

    @torch.no_grad()
    def __call__(
        self,
        moving: Tensor,
        fixed: Tensor,
        affine: Tensor | None = None,
        mask: Tensor | None = None,
        moving_mask: Tensor | None = None,
        start: Start | None = None,
        progress: Callable[[int, int, float], None] | None = None,
        guides: Guides | None = None,
    ) -> EngineResult:
        """Register.

        Args:
            moving: ``(B, 1, D, H, W)``, intensities of about [0, 1].
            fixed: the same shape.
            affine: Γ, ``(B, 3, 4)``; None for the start's, or the identity.
            mask: weights in [0, 1] of the fixed voxels in the similarity, as ``fixed``.
            moving_mask: the same on the moving grid; it moves with the map, without a derivative of its own.
            start: gone on from for those pairs where its objective is lower than that of the affine alone and its map
                is free of folds.
            progress: told of each step: the level, from 1 on, how many there are, and the part of all work that is
                done.
            guides: labels and landmarks that drive as well; of a batch of one.

        Raises:
            ValueError: when the images' shapes differ or are not ``(B, 1, D, H, W)``, or for guides of several pairs.
        """
        count = getattr(self.comparison, "count", 1)
        if moving.shape != fixed.shape or moving.dim() != 5 or moving.shape[1] != count:
            raise ValueError(
                f"RegistrationEngine: moving and fixed must both be (B, {count}, D, H, W) on one grid, "
                f"got {tuple(moving.shape)} and {tuple(fixed.shape)}."
            )
        if guides is not None and len(fixed) != 1:
            raise ValueError(f"RegistrationEngine: guides are those of one pair, got {len(fixed)}.")
        if affine is None:
            affine = identity_affine(len(fixed), fixed.device) if start is None else start.affine
        found, engine = [], self.scaled(list(fixed.shape[2:]), guides)
        for index, pair in enumerate(one_by_one(moving, fixed, affine, mask, moving_mask)):
            row = None
            if start is not None:
                momenta, velocities = ([m[index : index + 1] for m in of] for of in (start.momenta, start.velocities))
                row = _Begin(
                    start.affine[index : index + 1], start.displacement[index : index + 1], momenta, velocities
                )
            tell = _told(progress, index, len(fixed))
            found.append(engine._register(*pair, row, tell, guides))
        first = [torch.cat([getattr(one, name) for one in found]) for name in ("affine", "displacement")]
        steps = [
            [torch.cat(step) for step in zip(*(getattr(one, name) for one in found), strict=True)]
            for name in ("momenta", "velocities")
        ]
        values = [torch.cat([getattr(one, name) for one in found]) for name in ("before", "after")]
        most = [max(counts) for counts in zip(*(one.evaluations for one in found), strict=True)]
        return EngineResult(*first, *steps, *values, most, found[-1].history)

    def scaled(self, shape: list[int], guides: Guides | None = None) -> RegistrationEngine:
        """The same with the weight of regularity that images of a shape, and the similarity, take, and guides ask."""
        engine, settings = copy(self), self.settings
        voxels = math.prod(shape) ** (1 / len(shape))
        weight = settings.regularisation * self.comparison.stiffness * voxels / _ALONG
        engine.settings = replace(settings, regularisation=weight)
        if settings.iterations and guides is not None and guides.meet:
            engine.further = _FURTHER
            engine.settings = replace(
                engine.settings,
                fold_weight=_LABELLED_PENALTY * settings.fold_weight,
                fold_margin=_LABELLED_MARGIN * settings.fold_margin,
                iterations=(*settings.iterations[:-1], _LABELLED_STEPS * settings.iterations[-1]),
                tolerance=_LABELLED_TOLERANCE * settings.tolerance,
            )
        return engine

    def shapes(self, shape: list[int]) -> list[list[int]]:
        """The grids of the levels for images of a shape, from coarse to fine."""
        count = len(self.settings.iterations)
        while count and min(shape) > _COARSEST * 2 ** (count - 1):
            count += 1
        return [level_shape(shape, halvings) for halvings in reversed(range(count))]

    def _register(
        self,
        moving: Tensor,
        fixed: Tensor,
        affine: Tensor,
        mask: Tensor | None,
        moving_mask: Tensor | None,
        start: _Begin | None,
        tell: Callable[[int, int, float], None],
        guides: Guides | None,
    ) -> EngineResult:
        settings = self.settings
        moving, fixed = (self.comparison.channels(one) for one in (moving, fixed))
        finest = _Level(self, moving, fixed, mask, moving_mask, guides)
        begin, before, unused = self._begin(finest, affine, start)
        shapes = self.shapes(list(fixed.shape[2:]))
        iterations = [*settings.iterations[:1] * (len(shapes) - len(settings.iterations)), *settings.iterations]
        levels = len(shapes)
        goes_on = range(1, levels if settings.one_step else 0)  # with the momentum of the level before
        shapes, iterations = (some + self.further * some[-1:] for some in (shapes, iterations))
        work = [math.prod(shape) * (count + 1) for shape, count in zip(shapes, iterations, strict=True)]
        steps, momenta, velocities, counts, history = None, [], [], [], []
        state = finest.begin(begin.affine, begin.displacement)._replace(seen=None)
        for number, shape in enumerate(shapes):
            images = [None if one is None else shrunk(one, shape) for one in (moving, fixed, mask, moving_mask)]
            level = _Level(self, *images, guides) if number + 1 < levels else finest

            def told(part: float, number: int = number) -> None:
                done = (sum(work[:number]) + part * work[number]) / sum(work)
                tell(min(number + 1, levels), levels, done)

            if number == levels:
                finest.guides = guides.by_nearest().on(finest, self.comparison.scale)
                before = finest.begin(begin.affine, begin.displacement).loss + begin.regularity(settings)
            first = momenta.pop() if number in goes_on else None
            state, values, evaluations = level.search(
                iterations[number], level.begin(begin.affine, begin.displacement, steps, momentum=first), told
            )
            momenta.append(state.momentum)
            velocities = [state.velocity] if number in goes_on else [*velocities, state.velocity]
            if number + 1 < len(shapes) and number + 1 not in goes_on:
                steps = level.beyond(steps, state)
            counts.append(evaluations)
            history.append(values)
        after = state.loss + begin.regularity(settings)
        after += sum(_regularity(m, v, settings) for m, v in zip(momenta, velocities, strict=True))
        displacement = state.displacement
        if shapes and not (after < before and state.smallest > 0):
            momenta, velocities = ([torch.zeros_like(one) for one in of] for of in (momenta, velocities))
            displacement, after = finest.begin(begin.affine, begin.displacement).displacement, before
        momenta, velocities = [*begin.momenta, *unused, *momenta], [*begin.velocities, *unused, *velocities]
        values = (torch.tensor([value], device=fixed.device) for value in (before, after))
        return EngineResult(begin.affine, displacement, momenta, velocities, *values, counts, history)

    def _begin(self, finest: _Level, affine: Tensor, start: _Begin | None) -> tuple[_Begin, float, list[Tensor]]:
        """What to go on from, its objective at the last level, and zeros in place of the steps of an unused start."""
        alone = _Begin(affine, None, [], [])
        value = finest.begin(affine).loss
        if start is None:
            return alone, value, []
        state = finest.begin(start.affine, start.displacement)._replace(seen=None)
        other = state.loss + start.regularity(self.settings)
        if other < value and state.smallest > 0:
            return start, other, []
        return alone, value, [torch.zeros_like(one) for one in start.momenta]


class _Level:
    """One pair on one level's grid: the step that is sought there, after the map of the levels before.

    Args:
        engine: whose settings hold.
        moving: its channels, ``(1, C, D, H, W)``.
        fixed: as ``moving``.
        mask: ``(1, 1, D, H, W)``.
        moving_mask: as ``mask``.
        guides: labels and landmarks that drive as well.
    """

    def __init__(
        self,
        engine: RegistrationEngine,
        moving: Tensor,
        fixed: Tensor,
        mask: Tensor | None = None,
        moving_mask: Tensor | None = None,
        guides: Guides | None = None,
    ) -> None:
        self.settings, self.mask, self.moving_mask = engine.settings, mask, moving_mask
        self.moving, self.similarity = engine.comparison.on(moving, fixed, mask)
        self.shape = list(fixed.shape[2:])
        self.low = half_shape(self.shape)
        self.smooth = _Smoother(engine.smoother, self.low, fixed)
        self.rise = [_linear_matrix(n, m, fixed) for n, m in zip(self.shape, self.low, strict=True)]
        self.fall = [matrix.t().contiguous() for matrix in self.rise]
        self.voxels = voxels_per_unit(self.shape, fixed.device, fixed.dtype).view(1, 3, 1, 1, 1)
        self.blocks = [(rows, _nodes(self.rise[0][rows])) for rows in row_blocks(self.shape)]
        self.low_voxels = voxels_per_unit(self.low, fixed.device, fixed.dtype).tolist()
        self.identity = identity_map(self.low, fixed.device, fixed.dtype)
        self.stiffness = _stiffness(self.settings, self.low)
        self.guides = None if guides is None else guides.on(self, engine.comparison.scale)

    def begin(self, affine: Tensor, *displacements: Tensor | None, momentum: Tensor | None = None) -> _State:
        """Go on from an affine and displacements inside of it, outer first, all of any grids.

        Returns:
            The state of a coarser level's momentum, shortened until it does not fold here; else that without a step.
        """
        self.affine, self.before = affine, None
        for one in displacements:
            if one is not None:
                one = self.resized(one)
                self.before = one if self.before is None else compose_displacements(self.before, one)
        if momentum is not None:
            momentum = self.resized(momentum)
            for _ in range(_HALVINGS):
                state, _ = self.evaluate(momentum, self.smooth(momentum), self.settings.fold_floor)
                if state is not None:
                    return state
                momentum = 0.9 * momentum
        return self.evaluate(*[torch.zeros_like(self.identity)] * 2)[0]

    def resized(self, volume: Tensor) -> Tensor:
        """A volume ``(1, 3, ., ., .)`` on half the level's grid."""
        matrices = [_linear_matrix(n, m, volume) for n, m in zip(self.low, volume.shape[2:], strict=True)]
        return _along(volume, matrices)

    def beyond(self, steps: Tensor | None, state: _State) -> Tensor:
        """The displacement of steps before, with the state's inside."""
        flow = exponential(-state.velocity, self.settings.squarings, midpoint=True)
        return flow if steps is None else compose_displacements(self.resized(steps), flow)

    def search(
        self, iterations: int, state: _State, tell: Callable[[float], None] = lambda part: None
    ) -> tuple[_State, list[float], int]:
        """The best state from one of them on, the objective's values, and the evaluations."""
        floor = min(self.settings.fold_floor, max(state.smallest, 0.0))
        descent = {"newton": _Newton, "lbfgs": _LBFGS, "sgd": _SGD}[self.settings.optimiser](self)
        values, count, best = [state.objective], 1, state
        for iteration in range(iterations):
            momentum, velocity = descent(state)
            if best is state:
                best = state._replace(seen=None)
            state = state._replace(seen=None)  # much memory, of which the trial takes as much
            length, next_state = self.longest(velocity), None
            for attempt in range(_HALVINGS):
                trial, folded = self.evaluate(
                    state.momentum + length * momentum, state.velocity + length * velocity, floor
                )
                count += folded is None
                if trial is not None and (trial.objective < state.objective or self.settings.optimiser == "sgd"):
                    next_state = trial
                    break
                length /= 2
                if folded is not None and attempt < _BRAKINGS and isinstance(descent, _Newton):
                    momentum, velocity = descent.held(folded)
                    length = self.longest(velocity)
            tell((iteration + 1) / iterations)
            if next_state is None:
                break
            gain, state = state.objective - next_state.objective, next_state
            values.append(state.objective)
            best = min(best, state, key=lambda one: one.objective)
            if abs(gain) < self.settings.tolerance:
                break
        return best, values, count

    def longest(self, velocity: Tensor) -> float:
        """How much of a step, at most all of it, keeps within the reach."""
        longest = (velocity * self.voxels).square().sum(1).max().sqrt().item()
        return min(1.0, self.settings.reach / max(longest, 1e-9))

    def evaluate(
        self, momentum: Tensor, velocity: Tensor, floor: float | None = None
    ) -> tuple[_State | None, Tensor | None]:
        """The state of a momentum; or None and the smallest corner determinants, where one is not above the floor."""
        displacement = exponential(-velocity, self.settings.squarings, midpoint=True)
        if self.before is not None:
            displacement = compose_displacements(self.before, displacement)
        smallest = smallest_jacobian_determinant(self.identity + displacement)
        least = smallest.min().item()
        if floor is not None and not least > floor:
            return None, smallest
        low = apply_affine(self.affine, self.identity + displacement)
        similarity, moved = self._compared(low), self.pulled(self.moving, low)
        moments = similarity.moments(moved)
        guided = None if self.guides is None else self.guides.see(low)
        loss = similarity.loss(moments).item() + (0.0 if guided is None else guided.loss)
        lack = (self.settings.fold_margin - smallest).clamp_(min=0).square_().mean().item()
        objective = (
            loss
            + _regularity(momentum, velocity, self.settings)
            + self.settings.fold_weight / self.settings.fold_margin * lack
        )
        seen = _Seen(moved, similarity, moments, guided)
        return _State(momentum, velocity, displacement, objective, loss, least, seen), None

    def pulled(self, image: Tensor, low: Tensor, nearest: bool = False) -> Tensor:
        """An image ``(1, C, D, H, W)`` under a map of half the level's grid, at all of the level's voxels.

        Args:
            image: see above.
            low: the map ``(1, 3, d, h, w)``, normalised.
            nearest: nearly as the nearest voxel has it, in place of linearly: from one voxel's value to the next one's
                in the third of the way that lies between them.
        """
        moved = image.new_empty(1, image.shape[1], *self.shape)
        for rows, nodes in self.blocks:
            coordinates = _along(low[:, :, nodes], [self.rise[0][rows, nodes], *self.rise[1:]])
            if nearest:
                places = (coordinates + 1) * self.voxels
                first = places.floor()
                coordinates = (first + (3 * (places - first) - 1).clamp_(0, 1)) / self.voxels - 1
            moved[:, :, rows] = warp(image, coordinates)
        return moved

    def _compared(self, low: Tensor) -> Compared:
        """The similarity within both masks, the moving image's moved along."""
        if self.moving_mask is None:
            return self.similarity
        moved = self.pulled(self.moving_mask, low)
        return self.similarity.within(moved if self.mask is None else moved * self.mask)

    def slope(self, state: _State) -> tuple[Tensor, Tensor]:
        """Derivative of similarity and penalty by the velocity, and the curvature of the similarity.

        A flow exp(-v - δv) is exp(-v) ∘ exp(-δv) up to terms of the order of |v| |∇δv|, and a displacement inside the
        map changes the moved image by its gradient.

        Returns:
            ``(1, 3, d, h, w)`` normalised, and ``(1, 6, d, h, w)``: the symmetric 3 × 3 matrix of each voxel, entries
            00, 11, 22, 01, 02, 12.
        """
        moved, similarity, moments, guided = state.seen
        slope, curvature = self.gathered(moved, *similarity.derivative(moved, moments))
        if self.guides is not None:
            pull, bend = self.guides.slope(state.displacement, guided)
            slope, curvature = slope + pull, curvature + bend
        return -slope - self._against_folds(state.displacement), curvature

    def gathered(self, moved: Tensor, derivative: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Derivative by a displacement inside the map and curvature, of those by the voxels ``(1, C, D, H, W)``.

        Returns:
            ``(1, 3, d, h, w)`` and ``(1, 6, d, h, w)``, see `slope`.
        """
        slope, curvature = torch.zeros_like(self.identity), []
        for rows, nodes in self.blocks:
            near, within = reach(rows, 1, self.shape[0])
            force, bend = 0, torch.zeros(1, 6, *moved[0, 0, rows].shape).to(moved)
            for channel, by in enumerate(weight[0].expand_as(moved[0])):
                image = central_differences(moved[:, channel : channel + 1, near])[:, :, within] * self.voxels
                force = force + image * derivative[:, channel : channel + 1, rows]
                weighted = image * by[rows]
                bend[:, :3].addcmul_(weighted, image)
                bend[:, 3:5].addcmul_(weighted[:, :1], image[:, 1:])
                bend[:, 5:].addcmul_(weighted[:, 1:2], image[:, 2:])
            slope[:, :, nodes] += _along(force, [self.fall[0][nodes, rows], *self.fall[1:]])
            curvature.append(_halved(bend))
        return slope, torch.cat(curvature, dim=2)

    def _against_folds(self, displacement: Tensor) -> Tensor:
        """Derivative of the penalty on folds by a displacement inside the map ``(1, 3, d, h, w)``."""
        outer = fold_penalty_derivative(self.identity + displacement, self.settings.fold_margin)
        outer *= self.settings.fold_weight / self.settings.fold_margin
        # (I + ∇u)ᵀ carries a derivative by the map to one by what is inside of it.
        inner = [
            outer[:, axis] + (torch.gradient(displacement, dim=axis + 2)[0] * outer).sum(1) * self.low_voxels[axis]
            for axis in range(3)
        ]
        return torch.stack(inner, dim=1)

    def gradient(self, state: _State) -> tuple[Tensor, Tensor]:
        """Derivative of the objective by the velocity, and, smoothed, by the momentum."""
        slope = self.slope(state)[0] + self.stiffness * state.momentum
        return slope, self.smooth(slope)


class _Newton:
    """Gauss-Newton steps, by a few conjugate gradient iterations; where space would fold they hold back."""

    def __init__(self, level: _Level) -> None:
        self.level, self.brake = level, None

    def __call__(self, state: _State) -> tuple[Tensor, Tensor]:
        """The step of momentum and velocity from a state."""
        self.momentum, self.equations = state.momentum, self.level.slope(state)
        self.brake = None if self.brake is None else self.brake / 2
        return self._solved()

    def held(self, smallest: Tensor) -> tuple[Tensor, Tensor]:
        """The step anew, held back at what would come near folding.

        A few voxels would otherwise shorten the step everywhere. The curvature there, and next to it, grows.

        Args:
            smallest: corner determinants ``(1, D, H, W)`` after the step, on half the level's grid.
        """
        near = F.max_pool3d((smallest < self.level.settings.fold_margin).to(smallest), 3, stride=1, padding=1)
        self.brake = near if self.brake is None else 2 * self.brake + near
        return self._solved()

    def _solved(self) -> tuple[Tensor, Tensor]:
        """The equations' solution in momentum and velocity."""
        (slope, curvature), level = self.equations, self.level
        if self.brake is not None:
            diagonal = curvature[:, :3]
            held = diagonal + self.brake * diagonal.sum(1).amax()
            curvature = torch.cat([held, curvature[:, 3:]], dim=1)
        stiffness = level.stiffness
        left = -(slope + stiffness * self.momentum)
        momentum, velocity = torch.zeros_like(left), torch.zeros_like(left)
        # The smoother over the stiffness is the preconditioner, so that no inverse of it is ever needed: of every
        # velocity its momentum is known.
        along_momentum = left / stiffness
        along = level.smooth(along_momentum)
        size = _product(left, along)
        for iteration in range(level.settings.krylov):
            image = _times(curvature, along) + stiffness * along_momentum
            bend = _product(along, image)
            if not bend > 0:
                break
            length = size / bend
            momentum, velocity = momentum + length * along_momentum, velocity + length * along
            if iteration == level.settings.krylov - 1:
                break
            left = left - length * image
            rest_momentum = left / stiffness
            rest = level.smooth(rest_momentum)
            new = _product(left, rest)
            along_momentum = rest_momentum + (new / size) * along_momentum
            along, size = rest + (new / size) * along, new
        return momentum, velocity


class _LBFGS:
    """Directions of limited-memory BFGS in the smoother's inner product, ⟨m, v⟩: of each vector both forms are kept."""

    def __init__(self, level: _Level) -> None:
        self.level, self.pairs, self.last = level, [], None

    def __call__(self, state: _State) -> tuple[Tensor, Tensor]:
        """The direction of momentum and velocity from a state, by what the states before have shown."""
        gradient = self.level.gradient(state)
        if self.last is not None:
            step, change = (
                _plus(new, -1, old)
                for new, old in zip(((state.momentum, state.velocity), gradient), self.last, strict=True)
            )
            bend = _product(step[0], change[1])
            if bend > 0:
                self.pairs = [*self.pairs, (step, change, bend)][-_HISTORY:]
        self.last = ((state.momentum, state.velocity), gradient)
        direction, shares = tuple(-part for part in gradient), []
        for step, change, bend in reversed(self.pairs):
            shares.append(_product(step[0], direction[1]) / bend)
            direction = _plus(direction, -shares[-1], change)
        scale = 1 / self.level.stiffness
        if self.pairs:
            _, change, bend = self.pairs[-1]
            scale = bend / _product(*change)
        direction = tuple(scale * part for part in direction)
        for (step, change, bend), share in zip(self.pairs, reversed(shares), strict=True):
            direction = _plus(direction, share - _product(change[0], direction[1]) / bend, step)
        return direction


class _SGD:
    """Steps of gradient descent with momentum, the derivative being that by the momentum."""

    def __init__(self, level: _Level) -> None:
        self.level, self.rate, self.step = level, None, None

    def __call__(self, state: _State) -> tuple[Tensor, Tensor]:
        """The next step of momentum and velocity."""
        gradient = self.level.gradient(state)[1]
        down = (-gradient, -self.level.smooth(gradient))
        if self.rate is None:
            longest = (down[1] * self.level.voxels).square().sum(1).max().sqrt().item()
            self.rate = self.level.settings.rate / max(longest, 1e-9)
        step = tuple(self.rate * part for part in down)
        self.step = step if self.step is None else _plus(step, self.level.settings.sgd_momentum, self.step)
        return self.step


class _Smoother:
    """A `MultiGaussianSmoother` on one grid, whose bases are made once."""

    def __init__(self, smoother: MultiGaussianSmoother, shape: list[int], like: Tensor) -> None:
        self.bases = [cosine_basis(n, like.device, like.dtype) for n in shape]
        self.back = [basis.t().contiguous() for basis in self.bases]
        self.transfer = multi_gaussian_transfer(shape, smoother.stds.to(like), smoother.weights.to(like))

    def __call__(self, momentum: Tensor) -> Tensor:
        return _along(_along(momentum, self.bases) * self.transfer, self.back)


def fold_penalty_derivative(coordinates: Tensor, margin: float) -> Tensor:
    """Derivative of the mean over voxels of max(0, margin - J)² by a map, J its smallest corner determinant.

    Few voxels are below the margin; only they are looked at.

    Args:
        coordinates: ``(1, 3, D, H, W)`` normalised.
        margin: see above.

    Returns:
        As ``coordinates``.
    """
    smallest, corner = corner_jacobian_determinants(coordinates).min(dim=1)
    where = (smallest < margin).nonzero()[:, 1:]
    result = torch.zeros_like(coordinates)
    if not len(where):
        return result
    shape = torch.tensor(coordinates.shape[2:], device=where.device)
    strides = torch.tensor([shape[1] * shape[2], shape[2], 1], device=where.device)
    place = (where * strides).sum(1)
    corner, smallest = corner[0].flatten()[place], smallest[0].flatten()[place]
    flat = coordinates[0].flatten(1)
    voxels = voxels_per_unit(list(coordinates.shape[2:]), coordinates.device, coordinates.dtype)
    columns, ends = [], []
    for axis, bit in enumerate((4, 2, 1)):
        backward = (corner & bit) > 0
        # At a face the only difference there stands for both.
        backward = (backward & (where[:, axis] > 0)) | (where[:, axis] == shape[axis] - 1)
        start = place - backward * strides[axis]
        stop = start + strides[axis]
        columns.append((flat[:, stop] - flat[:, start]).t() * voxels[axis])
        ends.append((start, stop))
    slope = -2 * (margin - smallest) / smallest.new_tensor(math.prod(coordinates.shape[2:]))
    rows = result[0].flatten(1)
    for axis, (start, stop) in enumerate(ends):
        cofactor = torch.linalg.cross(columns[(axis + 1) % 3], columns[(axis + 2) % 3], dim=1)
        change = (cofactor * (slope * voxels[axis])[:, None]).t()
        rows.index_add_(1, stop, change)
        rows.index_add_(1, start, -change)
    return rows.view_as(coordinates)


def _times(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Symmetric matrices ``(B, 6, ...)``, as `_Level.slope` has them, times vectors ``(B, 3, ...)``."""
    a, b, c, ab, ac, bc = matrices.split(1, dim=1)
    x, y, z = vectors.split(1, dim=1)
    return torch.cat([a * x + ab * y + ac * z, ab * x + b * y + bc * z, ac * x + bc * y + c * z], dim=1)


def _product(one: Tensor, other: Tensor) -> float:
    return volume_sums(one * other).item()


def _plus(one: tuple[Tensor, Tensor], factor: float, other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The sum of one vector and so many times another, momenta and velocities each."""
    return one[0] + factor * other[0], one[1] + factor * other[1]


def _told(
    progress: Callable[[int, int, float], None] | None, pair: int, pairs: int
) -> Callable[[int, int, float], None]:
    """What one pair of a batch tells of its progress."""
    return lambda level, levels, part: progress and progress(level, levels, (pair + part) / pairs)


def _stiffness(settings: EngineSettings, shape: list[int]) -> float:
    """What the momentum is times in the derivative of λvr ⟨m, v⟩ by the velocity of one voxel."""
    return 2 * settings.regularisation * UNIT_CUBE**2 / math.prod(shape)


def _regularity(momentum: Tensor, velocity: Tensor, settings: EngineSettings) -> float:
    """λvr ⟨m, v⟩ of one pair, as `vsvf_regularisation`, the same for any number of threads."""
    return _product(momentum, velocity) * _stiffness(settings, list(momentum.shape[2:])) / 2


def one_by_one(*volumes: Tensor | None) -> Iterator[tuple[Tensor | None, ...]]:
    """The pairs of a batch, each as a batch of one; what is None is None for each."""
    count = next(len(one) for one in volumes if one is not None)
    return zip(*([None] * count if one is None else one.split(1) for one in volumes), strict=True)


def level_shape(shape: list[int], halvings: int) -> list[int]:
    """The grid of a level, with the same corners and steps twice as long for each halving."""
    return [min(n, max(_LEAST, round((n - 1) / 2**halvings) + 1)) for n in shape]


def _along(volume: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Each matrix ``(n, size)`` applied along its axis of ``(B, C, D, H, W)``."""
    volume = torch.matmul(matrices[1], torch.matmul(volume, matrices[2].t()))
    return torch.matmul(matrices[0], volume.flatten(3)).unflatten(3, volume.shape[3:])


def _linear_matrix(size: int, count: int, like: Tensor) -> Tensor:
    """Linear interpolation ``(size, count)`` from ``count`` nodes to ``size`` between the same corners."""
    place = torch.linspace(0, count - 1, size, dtype=torch.float64)
    nodes = torch.arange(count, dtype=torch.float64)
    return (1 - (place[:, None] - nodes).abs()).clamp(min=0).to(like)


def _nodes(matrix: Tensor) -> slice:
    """The nodes that rows of a `_linear_matrix` lie between."""
    nodes = matrix.any(0).nonzero()
    return slice(int(nodes[0]), int(nodes[-1]) + 1)


def shrunk(volume: Tensor, shape: list[int]) -> Tensor:
    """A volume on a coarser grid with the same corners, smoothed by Gaussians of 0.4 of its steps."""
    if list(volume.shape[2:]) == shape:
        return volume
    matrices = []
    for size, count in zip(volume.shape[2:], shape, strict=True):
        step = (size - 1) / (count - 1)
        away = torch.arange(size, dtype=torch.float64) - step * torch.arange(count, dtype=torch.float64)[:, None]
        weights = torch.exp(-0.5 * (away / (0.4 * step)).square())
        matrices.append((weights / weights.sum(1, keepdim=True)).to(volume))
    return _along(volume, matrices)


def _halved(volumes: Tensor) -> Tensor:
    """Sums over pairs of voxels along each axis: ``(B, C, ⌈D/2⌉, ⌈H/2⌉, ⌈W/2⌉)``."""
    for axis in (2, 3, 4):
        size = volumes.shape[axis]
        pairs = volumes.narrow(axis, 0, size - size % 2).unflatten(axis, (-1, 2))
        summed = pairs.select(axis + 1, 0) + pairs.select(axis + 1, 1)
        volumes = torch.cat([summed, volumes.narrow(axis, size - 1, 1)], dim=axis) if size % 2 else summed
    return volumes
