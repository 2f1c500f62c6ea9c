"""The affine of one pair, or a transform of a narrower kind, by Gauss-Newton steps from several starts.

Derivatives are analytic. A rigid transform has its own parameters: a turn as a rotation vector and a shift, both in
millimetres of the moving grid, and a similarity one more, the logarithm of its scale. A step is a motion after the
transform, the exponential of its parameters, so that every step stays within the kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import InputError
from ..geometry import affine_map, compose_affines, identity_affine, identity_map, voxels_per_unit, warp
from ..losses import Comparison, Correlation, central_differences, comparison_of
from .engine import OPTIMISERS, level_shape, one_by_one, shrunk

if TYPE_CHECKING:
    from .guides import Guides

__all__ = ["AffineEngine", "AffineResult"]

_VOXELS, _LAST_VOXELS = 1_000_000, 200_000
_STRONGEST = 1e6  # damping at which a search gives up


@dataclass
class AffineResult:
    """What was found for B pairs.

    Attributes:
        affine: the best affine, ``(B, 3, 4)``; by the objective at the last level never worse than the first.
        before: objective of the affine that it began with, at the last level, ``(B,)``.
        after: that of ``affine``, ``(B,)``.
        steps: steps taken at each level, the most of any pair.
    """

    affine: Tensor
    before: Tensor
    after: Tensor
    steps: list[int]


class AffineEngine:
    """Minimises correlation, for an affine plus λar times its strain (`strain`), over the affine Γ of each pair.

    Several turns about each axis are tried together on the coarsest grid, for another kind than rigid beside the best
    rigid motions from them; the best of all go on. A step solves the damped normal equations (Levenberg and Marquardt)
    and is taken where the objective falls. Equation 4, the distance from the identity, would hold back turns and shifts
    as well.

    Args:
        halvings: how often the images' grid is halved for each level, from coarse to fine; that of images of more than
            a million voxels more often, as an affine is no closer on more of them.
        iterations: the most steps of each level.
        starts: how many of the best go on to each level; the first level's number is not limited.
        angles: degrees of the turns about each axis that are tried, both ways.
        windows: radius of each level's correlation windows, part of the smallest axis: wide ones find the way, narrow
            ones see thin structures.
        regularisation: λar.
        tolerance: a level ends when a step lowers no start's objective by more.
        last: the most steps on the images' own grid, for an affine of large images on a coarser one, from the better of
            what was found and the best rigid motion: few parameters are known to a small part of a voxel. 0 before a
            deformation, which makes up for it.
        last_tolerance: as ``tolerance``, there.
        last_similarity: there, see ``similarity``; None: the same. Mutual information, of all voxels at once, is the
            closest with one contrast or two, once it is near.
        eps: regulariser of the correlation, squared intensity.
        optimiser: one of `OPTIMISERS`: Levenberg-Marquardt steps, or the paper's L-BFGS or SGD with momentum.
        edges: weight of the correlation of the gradients' magnitudes, the rest being that of the images.
        rate: SGD's learning rate, normalised units.
        sgd_momentum: part of the last step that SGD repeats.
        similarity: see `RegistrationEngine`.

    Raises:
        ValueError: when the lists differ in length, or for another optimiser or similarity.
    """

    def __init__(
        self,
        halvings: Sequence[int] = (2, 1),
        iterations: Sequence[int] = (25, 25),
        starts: int = 2,
        angles: Sequence[float] = (15.0,),
        windows: Sequence[float] = (0.15, 0.06),
        regularisation: float = 0.3,
        tolerance: float = 1e-5,
        last: int = 12,
        last_tolerance: float = 1e-7,
        last_similarity: str | Callable | Comparison | None = "nmi",
        eps: float = 1e-3,
        optimiser: str = "newton",
        edges: float = 0.5,
        rate: float = 0.1,
        sgd_momentum: float = 0.9,
        similarity: str | Callable | Comparison = "lncc",
    ) -> None:
        if not 0 < len(halvings) == len(iterations) == len(windows) or starts < 1:
            raise ValueError(
                f"AffineEngine: halvings={tuple(halvings)}, iterations={tuple(iterations)}, windows={tuple(windows)}, "
                f"starts={starts}; give as many of each, at least one, and a start"
            )
        if optimiser not in OPTIMISERS:
            raise ValueError(f"AffineEngine: optimiser={optimiser!r}; give one of {', '.join(OPTIMISERS)}.")
        self.halvings, self.iterations, self.starts = tuple(halvings), tuple(iterations), starts
        self.angles, self.windows, self.regularisation = tuple(angles), tuple(windows), regularisation
        self.tolerance, self.last, self.last_tolerance, self.eps = tolerance, last, last_tolerance, eps
        if not 0 <= edges < 1:
            raise ValueError(f"AffineEngine: edges={edges}; give a number from 0 on and below 1.")
        self.edges = edges
        self.optimiser, self.rate, self.sgd_momentum = optimiser, rate, sgd_momentum
        self.last_similarity = last_similarity
        self._compare(similarity)

    def _compare(self, similarity: str | Callable | Comparison) -> None:
        correlations = [Correlation(self.edges, window=window, eps=self.eps) for window in self.windows]
        self._comparisons = [comparison_of(similarity, correlation, "scale") for correlation in correlations]
        last = self.last_similarity
        if last is not None and isinstance(similarity, list):
            last = [(last, weight) for _, weight in similarity]
        self._last = self._comparisons[-1] if last is None else comparison_of(last, correlations[-1], "scale")

    def by(self, similarity: str | Callable | Comparison) -> AffineEngine:
        """The same by another similarity."""
        other = copy(self)
        other._compare(similarity)
        return other

    @torch.no_grad()
    def __call__(
        self,
        moving: Tensor,
        fixed: Tensor,
        affine: Tensor | None = None,
        mask: Tensor | None = None,
        moving_mask: Tensor | None = None,
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
        kind: str = "affine",
        guides: Guides | None = None,
    ) -> AffineResult:
        """Register; the start itself is among the starts, so the result is never worse.

        Args:
            moving: ``(B, 1, D, H, W)``, intensities of about [0, 1].
            fixed: the same shape.
            affine: Γ to begin with, ``(B, 3, 4)``; None for the identity.
            mask: weights in [0, 1] of the fixed voxels in the similarity, as ``fixed``.
            moving_mask: the same on the moving grid; it moves with the map, without a derivative of its own.
            spacing: of the moving grid's voxels, mm, in which turns are turns.
            kind: one of `KINDS`; ``affine`` must be of it, as both grids lie in space.
            guides: labels and landmarks that drive as well; of a batch of one.

        Raises:
            InputError: for a kind with one of the paper's optimisers, which have an affine's parameters.
        """
        if kind != "affine" and self.optimiser != "newton":
            raise InputError(f"affine_engine#optimiser={self.optimiser}: finds affines alone; give newton for {kind}")
        affine = identity_affine(len(fixed), fixed.device) if affine is None else affine
        pairs = one_by_one(moving, fixed, affine, mask, moving_mask)
        extent = voxels_per_unit(list(fixed.shape[2:]), fixed.device) * torch.tensor(spacing).to(fixed)
        found = [self._register(*pair, extent, kind, guides) for pair in pairs]
        affines, before, after = (torch.cat(part) for part in list(zip(*found, strict=True))[:3])
        return AffineResult(
            affines, before, after, [max(steps) for steps in zip(*(one[3] for one in found), strict=True)]
        )

    def _register(
        self,
        moving: Tensor,
        fixed: Tensor,
        affine: Tensor,
        mask: Tensor | None,
        moving_mask: Tensor | None,
        extent: Tensor,
        kind: str,
        guides: Guides | None,
    ) -> tuple[Tensor, Tensor, Tensor, list[int]]:
        start, taken = affine, []
        images = moving, fixed
        candidates = torch.cat([affine, *(compose_affines(turn, affine) for turn in self._turns(extent))])
        each = zip(self.halvings, self.iterations, self._comparisons, strict=True)
        coarser = _excess(fixed, _VOXELS)
        levels = [(halvings + coarser, *level, self.tolerance) for halvings, *level in each]
        if finer := bool(self.last and self.halvings[-1] and self.optimiser == "newton"):
            levels.append((self._finest(fixed, kind), self.last, self._last, self.last_tolerance))
        rigid = candidates if kind != "rigid" and self.optimiser == "newton" else None
        for number, (halvings, iterations, comparison, tolerance) in enumerate(levels, start=1):
            shape = level_shape(list(fixed.shape[2:]), halvings)
            seen = [*(comparison.channels(one) for one in images), mask, moving_mask]
            seen = [None if one is None else shrunk(one, shape) for one in seen]
            level = _AffineLevel(self, comparison, *seen, extent, kind, guides)
            search = level.search if self.optimiser == "newton" else level.descend
            if number > len(self.halvings):
                values = level.evaluate(candidates)[0]
                candidates = candidates[values.argsort(stable=True)[:1]]
            elif rigid is not None and (finer or number == 1):
                motions = _AffineLevel(self, comparison, *seen, extent, "rigid", guides)
                rigid, values, _ = motions.search(rigid, iterations, tolerance)
                best = values.argsort(stable=True)
                candidates = torch.cat([candidates, rigid[best[: self.starts]]]) if number == 1 else candidates
                rigid = rigid[best[:1]]
            candidates, values, steps = search(candidates, iterations, tolerance)
            taken.append(steps)
            candidates = candidates[values.argsort(stable=True)[: self.starts if number < len(self.halvings) else 1]]
            if finer and number == len(self.halvings) and rigid is not None:
                candidates = torch.cat([candidates, rigid])
        both = torch.cat([start, candidates[:1]])
        before, after = level.evaluate(both)[0]
        best = both[1:] if after < before else both[:1]
        return best, before[None], torch.minimum(before, after)[None], taken

    def _finest(self, fixed: Tensor, kind: str) -> float:
        """The halvings of the last level: an affine of large images is no closer on the whole grid, and late."""
        fewer = _excess(fixed, _LAST_VOXELS) if kind == "affine" else 0.0
        return min(fewer, self.halvings[-1] + _excess(fixed, _VOXELS))

    def _turns(self, extent: Tensor) -> list[Tensor]:
        """Turns about each axis, both ways, of a grid with so many mm a unit."""
        turns = []
        for degrees in (sign * angle for angle in self.angles for sign in (1, -1)):
            cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
            for axis in range(3):
                a, b = (axis + 1) % 3, (axis + 2) % 3
                turn = identity_affine(1, extent.device)
                turn[0, a, a] = turn[0, b, b] = cosine
                turn[0, a, b], turn[0, b, a] = -sine * extent[b] / extent[a], sine * extent[a] / extent[b]
                turns.append(turn)
        return turns


class _AffineLevel:
    """One pair on one level's grid, ``(1, C, D, H, W)``, compared under several affines at once."""

    def __init__(
        self,
        engine: AffineEngine,
        comparison: Comparison,
        moving: Tensor,
        fixed: Tensor,
        mask: Tensor | None,
        moving_mask: Tensor | None,
        extent: Tensor,
        kind: str,
        guides: Guides | None = None,
    ) -> None:
        self.engine, self.mask, self.moving_mask = engine, mask, moving_mask
        self.motions, self.extent = _motions(extent, kind), extent
        self.shape = list(fixed.shape[2:])
        self.moving, self.similarity = comparison.on(moving, fixed, mask)
        self.scale = comparison.scale
        self.pull = self.scale * engine.regularisation if kind == "affine" else 0.0
        self.guides = guides
        self.landmarks = None if guides is None else guides.landmarks
        self.labels = [] if guides is None else guides.overlaps(self.shape)
        self.voxels = voxels_per_unit(self.shape, fixed.device, fixed.dtype).view(1, 3, 1, 1, 1)
        places = identity_map(self.shape, fixed.device, fixed.dtype)
        self.places = torch.cat([places, torch.ones_like(places[:, :1])], dim=1)

    def evaluate(self, affines: Tensor) -> tuple[Tensor, tuple]:
        """The objective ``(S,)`` of affines ``(S, 3, 4)``, and what its derivative is made of."""
        count, maps, mask = len(affines), affine_map(affines, self.shape), None
        if self.moving_mask is not None:
            mask = warp(self.moving_mask.expand(count, -1, -1, -1, -1), maps)
            mask = mask if self.mask is None else mask * self.mask
        similarity = self.similarity if mask is None else self.similarity.within(mask)
        value, seen = self.pull * strain(affines, self.extent)[0], []
        compared = [(1.0, self.moving, similarity)]
        if self.guides is not None:
            compared += [(self.scale * self.guides.share, *label) for label in self.labels]
        for share, moving, of in compared:
            moved = warp(moving.expand(count, -1, -1, -1, -1), maps)
            moments = of.moments(moved)
            value = value + share * of.loss(moments)
            seen.append((share, of, moved, moments))
        if self.landmarks is not None:
            value = value + self.scale * self.landmarks.costs(self.landmarks.under(affines))[0]
        return value, seen

    def equations(self, affines: Tensor, seen: list) -> tuple[Tensor, Tensor]:
        """Derivative ``(S, P)`` and Gauss-Newton matrix ``(S, P, P)`` of the objective by the kind's parameters.

        An affine that changes by δ moves the moving image's gradient over the map, A⁻ᵀ ∇moved, by δ (x, 1).
        """
        slope, matrix = (self.pull * one for one in strain(affines, self.extent)[1:])
        matrix = matrix + 1e-9 * torch.eye(12).to(matrix)  # constant images leave everything open
        back = torch.linalg.inv(affines[:, :, :3]).transpose(1, 2)
        for share, similarity, moved, moments in seen:
            derivative, weight = (share * one for one in similarity.derivative(moved, moments))
            parts = (moved, derivative, weight.expand_as(derivative))
            for channel, slopes, bends in zip(*(one.split(1, dim=1) for one in parts), strict=True):
                gradient = torch.einsum("sij,sjdhw->sidhw", back, central_differences(channel) * self.voxels)
                rows = (gradient.unsqueeze(2) * self.places.unsqueeze(1)).flatten(1, 2).flatten(2)
                slope = slope + (rows @ slopes.flatten(2).transpose(1, 2)).squeeze(2)
                matrix = matrix + (rows * bends.flatten(2)) @ rows.transpose(1, 2)
        if self.landmarks is not None:
            pull, bend = (self.scale * one for one in self.landmarks.equations(affines))
            slope, matrix = slope + pull, matrix + bend
        if self.motions is None:
            return slope, matrix
        # Of Γ by small motions after it.
        by = (self.motions[:, :3, :3] @ affines.unsqueeze(1)).flatten(2)
        by[:, :, 3::4] += self.motions[:, :3, 3]
        return (by @ slope.unsqueeze(2)).squeeze(2), by @ matrix @ by.transpose(1, 2)

    def stepped(self, affines: Tensor, step: Tensor) -> Tensor:
        """Affines ``(S, 3, 4)`` after a step ``(S, P)`` of the kind's parameters."""
        if self.motions is None:
            return affines + step.view(-1, 3, 4)
        motion = torch.linalg.matrix_exp((step.double() @ self.motions.double().flatten(1)).view(-1, 4, 4))
        return compose_affines(motion[:, :3], affines.double()).to(affines)

    def search(self, affines: Tensor, iterations: int, tolerance: float) -> tuple[Tensor, Tensor, int]:
        """Better affines, their objective, and the steps taken until none lowers its objective by more."""
        value, seen = self.evaluate(affines)
        damping, steps = torch.full_like(value, 1e-2), 0
        slope, matrix = self.equations(affines, seen)
        for _ in range(iterations):
            diagonal = torch.diag_embed(torch.diagonal(matrix, dim1=1, dim2=2))
            step = torch.linalg.solve(matrix + damping.view(-1, 1, 1) * diagonal, -slope)
            trial = self.stepped(affines, step)
            new, new_seen = self.evaluate(trial)
            better = (new < value) & (torch.linalg.det(trial[:, :, :3]) > 0)
            gain = torch.where(better, value - new, 0.0)
            steps += 1
            affines, value = torch.where(better.view(-1, 1, 1), trial, affines), torch.where(better, new, value)
            damping = torch.where(better, damping / 5, damping * 5)
            if better.any():
                new_slope, new_matrix = self.equations(trial, new_seen)
                slope = torch.where(better.view(-1, 1), new_slope, slope)
                matrix = torch.where(better.view(-1, 1, 1), new_matrix, matrix)
            if (better & (gain < self.scale * tolerance) | (damping > _STRONGEST)).all():
                break
        return affines, value, steps

    def descend(self, affines: Tensor, iterations: int, tolerance: float) -> tuple[Tensor, Tensor, int]:
        """As `search`, by the paper's optimisers."""
        values, best = self.evaluate(affines)[0], affines.clone()
        for row, start in enumerate(affines.split(1)):
            parameter = start.clone().requires_grad_()

            def closure(row: int = row, parameter: Tensor = parameter) -> Tensor:
                value, seen = self.evaluate(parameter.detach())
                parameter.grad = self.equations(parameter.detach(), seen)[0].view_as(parameter)
                if value < values[row] and torch.linalg.det(parameter[0, :, :3]) > 0:
                    values[row], best[row] = value[0], parameter[0].detach()
                return value[0]

            if self.engine.optimiser == "lbfgs":
                torch.optim.LBFGS([parameter], max_iter=iterations, line_search_fn="strong_wolfe").step(closure)
            else:
                sgd = torch.optim.SGD([parameter], lr=self.engine.rate, momentum=self.engine.sgd_momentum)
                for _ in range(iterations):
                    sgd.step(closure)
                closure()
        return best, values, iterations


def _excess(image: Tensor, voxels: int) -> float:
    """How often the grid of an image would be halved to have so many voxels; 0 for one that has no more."""
    return max(0.0, math.log2(image.numel() / voxels) / 3)


def strain(affines: Tensor, extent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How much affines stretch and shear: |(LᵀL - 1) / 2|², L the matrix in mm; 0 for every turn, shift and mirroring.

    Args:
        affines: ``(S, 3, 4)``.
        extent: mm of a normalised unit along each axis, ``(3,)``.

    Returns:
        ``(S,)``; by the affines' numbers its derivative ``(S, 12)`` and its Gauss-Newton matrix ``(S, 12, 12)``.
    """
    units = extent[:, None] / extent
    linear = affines[:, :, :3] * units
    one = torch.eye(3).to(linear)
    excess = (linear.transpose(1, 2) @ linear - one) / 2
    by = torch.einsum("ac,sib->sabic", one, linear) + torch.einsum("bc,sia->sabic", one, linear)
    by = torch.nn.functional.pad(by / 2 * units, (0, 1)).flatten(3).flatten(1, 2)
    slope = 2 * (excess.flatten(1).unsqueeze(1) @ by).squeeze(1)
    return excess.square().sum((1, 2)), slope, 2 * by.transpose(1, 2) @ by


def _motions(extent: Tensor, kind: str) -> Tensor | None:
    """What generates the motions of a kind about a grid's middle, ``(P, 4, 4)`` normalised to it; None for all affines.

    Args:
        extent: mm of a normalised unit along each axis, ``(3,)``.
        kind: one of `KINDS`.
    """
    if kind == "affine":
        return None
    motions = torch.zeros(6 if kind == "rigid" else 7, 4, 4).to(extent)
    for axis in range(3):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        motions[axis, a, b], motions[axis, b, a] = -extent[b] / extent[a], extent[a] / extent[b]
        motions[3 + axis, axis, 3] = 1 / extent[axis]
    if kind == "similarity":
        motions[6, range(3), range(3)] = 1.0
    return motions
