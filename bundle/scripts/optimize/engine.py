"""The engine: one pair from coarse to fine, each level a vSVF step, by Gauss-Newton steps with analytic derivatives.

The model is the paper's. The map is φ⁻¹ = Γ ∘ exp(-v(1)) ∘ ... ∘ exp(-v(T)) with v(τ) = (L†L)⁻¹ m(τ), one step τ a
level, and the objective Equation 11, Sim(I0 ∘ φ⁻¹, I1) + λvr Σ_τ ⟨m(τ), v(τ)⟩, with a penalty on all but folded voxels.
Of that objective each level minimises what its own step can change. A step's flow is short, so its derivative is that
of a displacement inside the map, which costs one gradient of the moved image and no automatic differentiation. The
step solves (H + λ (L†L)) δv = -gradient by conjugate gradients with the smoother as their preconditioner; H is the
curvature of the correlation along the moved image's gradient. A line search takes a step only where the objective
falls and no corner determinant of the map falls to the floor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
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
from ..losses import BoxCorrelation, volume_sums
from ..networks.momentum_net import half_shape

__all__ = ["PRESETS", "EngineResult", "EngineSettings", "RegistrationEngine"]

_LEAST = 8  # voxels along each axis of the coarsest grid
_COARSEST = 20  # voxels along the smallest axis from which on another level is added
_HALVINGS = 5


@dataclass(frozen=True)
class EngineSettings:
    """What decides how the engine searches.

    Attributes:
        iterations: the most Gauss-Newton steps of each level, from coarse to fine; a level's grid is half as fine as
            the next one's, that of the last the images' own. Large images get further coarse levels with the first
            number.
        radii: of the correlation's windows, voxels of each level's grid (`BoxCorrelation`).
        eps: regulariser of the correlation, squared intensity.
        stds: the smoother's standard deviations, parts of the image's extent (`MultiGaussianSmoother`).
        weights: the smoother's weights.
        regularisation: λvr of Equation 11.
        fold_weight: weight of the mean over voxels of max(0, margin - J)² / margin, J the smallest corner determinant.
        fold_margin: see ``fold_weight``.
        fold_floor: smallest corner determinant that the line search accepts.
        krylov: conjugate gradient iterations behind each step. Few of them give the smooth part of a step first.
        reach: the longest step, voxels of the level's grid.
        tolerance: a level ends when a step lowers the objective by less.
        squarings: of the exponential (`exponential`).
    """

    iterations: tuple[int, ...] = (25, 20, 20)
    radii: tuple[int, ...] = (2,)
    eps: float = 1e-4
    stds: tuple[float, ...] = (0.04, 0.08, 0.16)
    weights: tuple[float, ...] = (1 / 3, 1 / 3, 1 / 3)
    regularisation: float = 10.0
    fold_weight: float = 5.0
    fold_margin: float = 0.2
    fold_floor: float = 0.05
    krylov: int = 1
    reach: float = 3.0
    tolerance: float = 2e-5
    squarings: int = 2

    def __post_init__(self) -> None:
        above = ("regularisation", "fold_margin", "krylov", "reach", "squarings", "eps")
        for name, number in vars(self).items():
            if isinstance(number, int | float) and (number < 0 or (number == 0 and name in above)):
                mend = "above 0" if name in above else "from 0 on"
                raise ValueError(f"EngineSettings: {name}={number}; give a number {mend}.")
        if not self.iterations or min(self.iterations) < 0:
            raise ValueError(f"EngineSettings: iterations={self.iterations}; give a number from 0 on for each level.")


PRESETS: dict[str, EngineSettings] = {
    "fast": EngineSettings(iterations=(10, 6, 3), krylov=3, tolerance=2e-4),
    "default": EngineSettings(),
    "best": EngineSettings(iterations=(40, 40, 40), tolerance=5e-6),
}
"""The engine's settings by how much time they spend."""


@dataclass
class EngineResult:
    """What the engine found for B pairs.

    Attributes:
        affine: Γ that it was given, ``(B, 3, 4)``.
        displacement: ψ - id, ``(B, 3, d, h, w)`` normalised, on half the images' grid; φ⁻¹ = Γ ∘ ψ.
        momenta: m(1) ... m(T), ``(B, 3, ., ., .)``, each on half its level's grid.
        velocities: v(1) ... v(T), as the momenta.
        before: objective of the affine alone, at the last level, ``(B,)``.
        after: objective at the last level, ``(B,)``; never above ``before``.
        evaluations: of the objective at each level, the most of any pair.
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


class _State(NamedTuple):
    """A step's parameters on a level and what they give; the objective's terms are numbers."""

    momentum: Tensor
    velocity: Tensor
    displacement: Tensor
    moved: Tensor
    similarity: BoxCorrelation
    moments: list
    objective: float


class RegistrationEngine:
    """Registers pairs whose affine is known.

    Args:
        preset: one of `PRESETS`, or settings.
        changes: of the preset's settings, by name.

    Raises:
        ValueError: for an unknown preset, or settings out of range.
    """

    def __init__(self, preset: str | EngineSettings = "default", **changes: object) -> None:
        if isinstance(preset, str) and preset not in PRESETS:
            raise ValueError(f"RegistrationEngine: preset={preset!r}; give one of {', '.join(PRESETS)}.")
        settings = PRESETS[preset] if isinstance(preset, str) else preset
        self.settings = replace(settings, **changes)
        self.smoother = MultiGaussianSmoother(self.settings.stds, self.settings.weights)

    @torch.no_grad()
    def __call__(
        self,
        moving: Tensor,
        fixed: Tensor,
        affine: Tensor | None = None,
        mask: Tensor | None = None,
        moving_mask: Tensor | None = None,
    ) -> EngineResult:
        """Register.

        Args:
            moving: ``(B, 1, D, H, W)``, intensities of about [0, 1].
            fixed: the same shape.
            affine: Γ, ``(B, 3, 4)``; None for the identity.
            mask: weights in [0, 1] of the fixed voxels in the similarity, as ``fixed``.
            moving_mask: the same on the moving grid; it moves with the map, without a derivative of its own.

        Raises:
            ValueError: when the images' shapes differ or are not ``(B, 1, D, H, W)``.
        """
        if moving.shape != fixed.shape or moving.dim() != 5 or moving.shape[1] != 1:
            raise ValueError(
                f"RegistrationEngine: moving and fixed must both be (B, 1, D, H, W) on one grid, "
                f"got {tuple(moving.shape)} and {tuple(fixed.shape)}."
            )
        affine = identity_affine(len(fixed), fixed.device) if affine is None else affine
        found = [self._register(*pair) for pair in one_by_one(moving, fixed, affine, mask, moving_mask)]
        joined = [torch.cat([getattr(one, name) for one in found]) for name in ("displacement", "before", "after")]
        steps = [
            [torch.cat(step) for step in zip(*(getattr(one, name) for one in found), strict=True)]
            for name in ("momenta", "velocities")
        ]
        most = [max(counts) for counts in zip(*(one.evaluations for one in found), strict=True)]
        return EngineResult(affine, joined[0], *steps, *joined[1:], most, found[-1].history)

    def shapes(self, shape: list[int]) -> list[list[int]]:
        """The grids of the levels for images of a shape, from coarse to fine."""
        count = len(self.settings.iterations)
        while min(shape) > _COARSEST * 2 ** (count - 1):
            count += 1
        return [level_shape(shape, halvings) for halvings in reversed(range(count))]

    def _register(
        self, moving: Tensor, fixed: Tensor, affine: Tensor, mask: Tensor | None, moving_mask: Tensor | None
    ) -> EngineResult:
        displacement, momenta, velocities, counts, history = None, [], [], [], []
        shapes = self.shapes(list(fixed.shape[2:]))
        first = [self.settings.iterations[0]] * (len(shapes) - len(self.settings.iterations))
        for shape, iterations in zip(shapes, [*first, *self.settings.iterations], strict=True):
            images = [None if one is None else shrunk(one, shape) for one in (moving, fixed, mask, moving_mask)]
            level = _Level(self, affine, displacement, *images)
            state, values, evaluations = level.search(iterations)
            displacement = state.displacement
            momenta.append(state.momentum)
            velocities.append(state.velocity)
            counts.append(evaluations)
            history.append(values)
        regularity = [_regularity(m, v, self.settings) for m, v in zip(momenta[:-1], velocities[:-1], strict=True)]
        after = level.objective(state) + sum(regularity)
        before = level.alone()
        if after >= before:
            momenta, velocities = ([torch.zeros_like(one) for one in steps] for steps in (momenta, velocities))
            displacement, after = torch.zeros_like(displacement), before
        values = (torch.tensor([value], device=fixed.device) for value in (before, after))
        return EngineResult(affine, displacement, momenta, velocities, *values, counts, history)


class _Level:
    """One pair on one level's grid: the step that is sought there, after the map of the levels before."""

    def __init__(
        self,
        engine: RegistrationEngine,
        affine: Tensor,
        before: Tensor | None,
        moving: Tensor,
        fixed: Tensor,
        mask: Tensor | None,
        moving_mask: Tensor | None,
    ) -> None:
        self.settings, self.affine, self.moving = engine.settings, affine, moving
        self.mask, self.moving_mask = mask, moving_mask
        self.shape = list(fixed.shape[2:])
        self.low = half_shape(self.shape)
        self.similarity = BoxCorrelation(fixed, mask, self.settings.radii, self.settings.eps)
        self.smooth = _Smoother(engine.smoother, self.low, fixed)
        self.rise = [_linear_matrix(n, m, fixed) for n, m in zip(self.shape, self.low, strict=True)]
        self.fall = [matrix.t().contiguous() for matrix in self.rise]
        self.voxels = voxels_per_unit(self.shape, fixed.device, fixed.dtype).view(1, 3, 1, 1, 1)
        self.low_voxels = voxels_per_unit(self.low, fixed.device, fixed.dtype).tolist()
        self.identity = identity_map(self.low, fixed.device, fixed.dtype)
        self.stiffness = _stiffness(self.settings, self.low)
        self.before = None
        if before is not None:
            self.before = _along(
                before, [_linear_matrix(n, m, fixed) for n, m in zip(self.low, before.shape[2:], strict=True)]
            )

    def search(self, iterations: int) -> tuple[_State, list[float], int]:
        """The step of lowest objective, the objective's values, and the evaluations."""
        zero = torch.zeros(1, 3, *self.low, device=self.moving.device)
        state, _ = self.evaluate(zero, zero)
        values, count = [state.objective], 1
        for _ in range(iterations):
            momentum, velocity = self.direction(state)
            longest = (velocity * self.voxels).square().sum(1).max().sqrt().item()
            length, better = min(1.0, self.settings.reach / max(longest, 1e-9)), None
            for _ in range(_HALVINGS):
                limit = state.objective
                trial, folded = self.evaluate(
                    state.momentum + length * momentum, state.velocity + length * velocity, self.settings.fold_floor
                )
                count += not folded
                if trial is not None and trial.objective < limit:
                    better = trial
                    break
                length /= 2
            if better is None:
                break
            gain, state = state.objective - better.objective, better
            values.append(state.objective)
            if gain < self.settings.tolerance:
                break
        return state, values, count

    def evaluate(self, momentum: Tensor, velocity: Tensor, floor: float | None = None) -> tuple[_State | None, bool]:
        """The state of a momentum, or None and True where a corner determinant does not exceed the floor."""
        displacement = exponential(-velocity, self.settings.squarings, midpoint=True)
        if self.before is not None:
            displacement = compose_displacements(self.before, displacement)
        smallest = smallest_jacobian_determinant(self.identity + displacement)
        if floor is not None and not smallest.min() > floor:
            return None, True
        low = apply_affine(self.affine, self.identity + displacement)
        coordinates = _along(low, self.rise)
        similarity, moved = self._seen(coordinates), warp(self.moving, coordinates)
        moments = similarity.moments(moved)
        lack = (self.settings.fold_margin - smallest).clamp_(min=0).square_().mean().item()
        objective = (
            similarity.loss(moments).item()
            + _regularity(momentum, velocity, self.settings)
            + self.settings.fold_weight / self.settings.fold_margin * lack
        )
        return _State(momentum, velocity, displacement, moved, similarity, moments, objective), False

    def objective(self, state: _State) -> float:
        """Similarity and regularity of the level's own step, without the penalty on folds."""
        return state.similarity.loss(state.moments).item() + _regularity(state.momentum, state.velocity, self.settings)

    def alone(self) -> float:
        """The objective of the affine alone."""
        coordinates = _along(apply_affine(self.affine, self.identity), self.rise)
        similarity = self._seen(coordinates)
        return similarity.loss(similarity.moments(warp(self.moving, coordinates))).item()

    def _seen(self, coordinates: Tensor) -> BoxCorrelation:
        """The similarity within both masks, the moving image's moved along."""
        if self.moving_mask is None:
            return self.similarity
        moved = warp(self.moving_mask, coordinates)
        return self.similarity.within(moved if self.mask is None else moved * self.mask)

    def slope(self, state: _State) -> tuple[Tensor, Tensor]:
        """Derivative of similarity and penalty by the velocity, and the curvature of the similarity.

        A flow exp(-v - δv) is exp(-v) ∘ exp(-δv) up to terms of the order of |v| |∇δv|, and a displacement inside the
        map changes the moved image by its gradient.

        Returns:
            ``(1, 3, d, h, w)`` normalised, and ``(1, 6, d, h, w)``: the symmetric 3 × 3 matrix of each voxel, entries
            00, 11, 22, 01, 02, 12.
        """
        derivative, weight = state.similarity.derivative(state.moved, state.moments)
        image = central_differences(state.moved) * self.voxels
        slope = -_along(image * derivative, self.fall)
        weighted = image * weight
        products = [weighted * image, weighted[:, :1] * image[:, 1:2], weighted[:, :1] * image[:, 2:]]
        curvature = _halved(torch.cat([*products, weighted[:, 1:2] * image[:, 2:]], dim=1))
        return slope - self._against_folds(state.displacement), curvature

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

    def direction(self, state: _State) -> tuple[Tensor, Tensor]:
        """The Gauss-Newton step of momentum and velocity, by a few conjugate gradient iterations."""
        slope, curvature = self.slope(state)
        stiffness = self.stiffness
        left = -(slope + stiffness * state.momentum)
        momentum, velocity = torch.zeros_like(left), torch.zeros_like(left)
        # The smoother over the stiffness is the preconditioner, so that no inverse of it is ever needed: of every
        # velocity its momentum is known.
        along_momentum = left / stiffness
        along = self.smooth(along_momentum)
        size = _product(left, along)
        for iteration in range(self.settings.krylov):
            image = _times(curvature, along) + stiffness * along_momentum
            bend = _product(along, image)
            if not bend > 0:
                break
            length = size / bend
            momentum, velocity = momentum + length * along_momentum, velocity + length * along
            if iteration == self.settings.krylov - 1:
                break
            left = left - length * image
            rest_momentum = left / stiffness
            rest = self.smooth(rest_momentum)
            new = _product(left, rest)
            along_momentum = rest_momentum + (new / size) * along_momentum
            along, size = rest + (new / size) * along, new
        return momentum, velocity


class _Smoother:
    """A `MultiGaussianSmoother` on one grid, whose bases are made once."""

    def __init__(self, smoother: MultiGaussianSmoother, shape: list[int], like: Tensor) -> None:
        self.bases = [cosine_basis(n, like.device, like.dtype) for n in shape]
        self.back = [basis.t().contiguous() for basis in self.bases]
        self.transfer = multi_gaussian_transfer(shape, smoother.stds.to(like), smoother.weights.to(like))

    def __call__(self, momentum: Tensor) -> Tensor:
        return _along(_along(momentum, self.bases) * self.transfer, self.back)


def central_differences(volume: Tensor) -> Tensor:
    """Of ``(B, 1, D, H, W)`` along each axis, voxel to voxel, one-sided at the faces: ``(B, 3, D, H, W)``."""
    result = volume.expand(-1, 3, -1, -1, -1).clone()
    for axis, part in enumerate(result.split(1, dim=1), start=2):
        last = volume.shape[axis] - 1
        torch.sub(
            volume.narrow(axis, 2, last - 1), volume.narrow(axis, 0, last - 1), out=part.narrow(axis, 1, last - 1)
        )
        part.narrow(axis, 1, last - 1).mul_(0.5)
        torch.sub(volume.narrow(axis, 1, 1), volume.narrow(axis, 0, 1), out=part.narrow(axis, 0, 1))
        torch.sub(volume.narrow(axis, last, 1), volume.narrow(axis, last - 1, 1), out=part.narrow(axis, last, 1))
    return result


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
