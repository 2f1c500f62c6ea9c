"""The affine of one pair by Gauss-Newton steps from several starts, on coarse grids, with analytic derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..geometry import affine_map, compose_affines, identity_affine, identity_map, voxels_per_unit, warp
from ..losses import AnySimilarity, BoxCorrelation, affine_regularisation
from .engine import OPTIMISERS, central_differences, channels, level_shape, one_by_one, shrunk

__all__ = ["AffineEngine", "AffineResult"]

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
    """Minimises correlation in large windows plus λar times Equation 4 over the affine Γ of each pair.

    Several turns about each axis are tried together on the coarsest grid; the best of them go on. A step solves the
    damped normal equations (Levenberg and Marquardt) and is taken where the objective falls.

    Args:
        halvings: how often the images' grid is halved for each level, from coarse to fine.
        iterations: the most steps of each level.
        starts: how many of the best go on to each level; the first level's number is not limited.
        angles: degrees of the turns about each axis that are tried, both ways.
        window: radius of the correlation's windows, part of the smallest axis.
        regularisation: λar.
        tolerance: a level ends when a step lowers no start's objective by more.
        eps: regulariser of the correlation, squared intensity.
        optimiser: one of `OPTIMISERS`: Levenberg-Marquardt steps, or the paper's L-BFGS or SGD with momentum.
        edges: weight of the correlation of the gradients' magnitudes, the rest being that of the images.
        rate: SGD's learning rate, normalised units.
        sgd_momentum: part of the last step that SGD repeats.
        similarity: loss of (moved, fixed, mask), ``(B,)``, in place of the correlation; without edges
            (`AnySimilarity`).

    Raises:
        ValueError: when the lists differ in length, or for another optimiser.
    """

    def __init__(
        self,
        halvings: Sequence[int] = (2, 1),
        iterations: Sequence[int] = (25, 10),
        starts: int = 2,
        angles: Sequence[float] = (15.0,),
        window: float = 0.25,
        regularisation: float = 0.3,
        tolerance: float = 1e-4,
        eps: float = 1e-3,
        optimiser: str = "newton",
        edges: float = 0.5,
        rate: float = 0.1,
        sgd_momentum: float = 0.9,
        similarity: Callable | None = None,
    ) -> None:
        if len(halvings) != len(iterations) or not halvings or starts < 1:
            raise ValueError(
                f"AffineEngine: halvings={tuple(halvings)}, iterations={tuple(iterations)}, starts={starts}; give as "
                "many of each, at least one, and a start"
            )
        if optimiser not in OPTIMISERS:
            raise ValueError(f"AffineEngine: optimiser={optimiser!r}; give one of {', '.join(OPTIMISERS)}.")
        self.halvings, self.iterations, self.starts = tuple(halvings), tuple(iterations), starts
        self.angles, self.window, self.regularisation = tuple(angles), window, regularisation
        self.tolerance, self.eps = tolerance, eps
        if not 0 <= edges < 1:
            raise ValueError(f"AffineEngine: edges={edges}; give a number from 0 on and below 1.")
        self.edges = edges if similarity is None else 0.0
        self.optimiser, self.rate, self.sgd_momentum, self.similarity = optimiser, rate, sgd_momentum, similarity

    @torch.no_grad()
    def __call__(
        self,
        moving: Tensor,
        fixed: Tensor,
        affine: Tensor | None = None,
        mask: Tensor | None = None,
        moving_mask: Tensor | None = None,
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> AffineResult:
        """Register; the start itself is among the starts, so the result is never worse.

        Args:
            moving: ``(B, 1, D, H, W)``, intensities of about [0, 1].
            fixed: the same shape.
            affine: Γ to begin with, ``(B, 3, 4)``; None for the identity.
            mask: weights in [0, 1] of the fixed voxels in the similarity, as ``fixed``.
            moving_mask: the same on the moving grid; it moves with the map, without a derivative of its own.
            spacing: of both grids' voxels, mm; the turns that are tried are turns in space.
        """
        affine = identity_affine(len(fixed), fixed.device) if affine is None else affine
        pairs = one_by_one(moving, fixed, affine, mask, moving_mask)
        found = [self._register(*pair, spacing) for pair in pairs]
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
        spacing: Sequence[float],
    ) -> tuple[Tensor, Tensor, Tensor, list[int]]:
        start, taken = affine, []
        moving, fixed = (channels(one, self.edges) for one in (moving, fixed))
        candidates = torch.cat([affine, *(compose_affines(turn, affine) for turn in self._turns(fixed, spacing))])
        for halvings, iterations in zip(self.halvings, self.iterations, strict=True):
            shape = level_shape(list(fixed.shape[2:]), halvings)
            images = [None if one is None else shrunk(one, shape) for one in (moving, fixed, mask, moving_mask)]
            level = _AffineLevel(self, *images)
            search = level.search if self.optimiser == "newton" else level.descend
            candidates, values, steps = search(candidates, iterations)
            taken.append(steps)
            candidates = candidates[values.argsort(stable=True)[: self.starts]]
        both = torch.cat([start, candidates[:1]])
        before, after = level.evaluate(both)[0]
        best = both[1:] if after < before else both[:1]
        return best, before[None], torch.minimum(before, after)[None], taken

    def _turns(self, like: Tensor, spacing: Sequence[float]) -> list[Tensor]:
        """Turns about each axis, both ways."""
        extent = voxels_per_unit(list(like.shape[2:]), like.device, like.dtype) * like.new_tensor(spacing)
        turns = []
        for degrees in (sign * angle for angle in self.angles for sign in (1, -1)):
            cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
            for axis in range(3):
                a, b = (axis + 1) % 3, (axis + 2) % 3
                turn = identity_affine(1, like.device, like.dtype)
                turn[0, a, a] = turn[0, b, b] = cosine
                turn[0, a, b], turn[0, b, a] = -sine * extent[b] / extent[a], sine * extent[a] / extent[b]
                turns.append(turn)
        return turns


class _AffineLevel:
    """One pair on one level's grid, ``(1, C, D, H, W)`` by `channels`, compared under several affines at once."""

    def __init__(
        self, engine: AffineEngine, moving: Tensor, fixed: Tensor, mask: Tensor | None, moving_mask: Tensor | None
    ) -> None:
        self.engine, self.mask, self.moving_mask = engine, mask, moving_mask
        self.shape = list(fixed.shape[2:])
        radius = max(1, round(engine.window * min(self.shape)))
        shares = (1 - engine.edges, engine.edges)[: fixed.shape[1]]
        similarities = [
            BoxCorrelation(one, mask, (radius,), engine.eps)
            if engine.similarity is None
            else AnySimilarity(engine.similarity, one, mask)
            for one in fixed.split(1, dim=1)
        ]
        self.compared = list(zip(shares, moving.split(1, dim=1), similarities, strict=True))
        self.voxels = voxels_per_unit(self.shape, fixed.device, fixed.dtype).view(1, 3, 1, 1, 1)
        places = identity_map(self.shape, fixed.device, fixed.dtype)
        self.places = torch.cat([places, torch.ones_like(places[:, :1])], dim=1)

    def evaluate(self, affines: Tensor) -> tuple[Tensor, list]:
        """The objective ``(S,)`` of affines ``(S, 3, 4)``, and what its derivative is made of, of each channel."""
        count, maps, mask = len(affines), affine_map(affines, self.shape), None
        if self.moving_mask is not None:
            mask = warp(self.moving_mask.expand(count, -1, -1, -1, -1), maps)
            mask = mask if self.mask is None else mask * self.mask
        value, seen = self.engine.regularisation * affine_regularisation(affines), []
        for share, moving, of in self.compared:
            similarity = of if mask is None else of.within(mask)
            moved = warp(moving.expand(count, -1, -1, -1, -1), maps)
            moments = similarity.moments(moved)
            value = value + share * similarity.loss(moments)
            seen.append((share, similarity, moved, moments))
        return value, seen

    def equations(self, affines: Tensor, seen: list) -> tuple[Tensor, Tensor]:
        """Derivative ``(S, 12)`` and Gauss-Newton matrix ``(S, 12, 12)`` of the objective by Γ.

        An affine that changes by δ moves the moving image's gradient over the map, A⁻ᵀ ∇moved, by δ (x, 1).
        """
        pull = 2 * self.engine.regularisation
        slope = pull * (affines - identity_affine(1, affines.device, affines.dtype)).flatten(1)
        matrix = pull * torch.eye(12, device=affines.device, dtype=affines.dtype)
        back = torch.linalg.inv(affines[:, :, :3]).transpose(1, 2)
        for share, similarity, moved, moments in seen:
            derivative, weight = (share * one for one in similarity.derivative(moved, moments))
            gradient = torch.einsum("sij,sjdhw->sidhw", back, central_differences(moved) * self.voxels)
            rows = (gradient.unsqueeze(2) * self.places.unsqueeze(1)).flatten(1, 2).flatten(2)
            slope = slope + (rows @ derivative.flatten(2).transpose(1, 2)).squeeze(2)
            matrix = matrix + (rows * weight.flatten(2)) @ rows.transpose(1, 2)
        return slope, matrix

    def search(self, affines: Tensor, iterations: int) -> tuple[Tensor, Tensor, int]:
        """Better affines, their objective, and the steps taken."""
        value, seen = self.evaluate(affines)
        damping, steps = torch.full_like(value, 1e-2), 0
        slope, matrix = self.equations(affines, seen)
        for _ in range(iterations):
            diagonal = torch.diag_embed(torch.diagonal(matrix, dim1=1, dim2=2))
            step = torch.linalg.solve(matrix + damping.view(-1, 1, 1) * diagonal, -slope)
            trial = affines + step.view(-1, 3, 4)
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
            if (better & (gain < self.engine.tolerance) | (damping > _STRONGEST)).all():
                break
        return affines, value, steps

    def descend(self, affines: Tensor, iterations: int) -> tuple[Tensor, Tensor, int]:
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
