"""What drives a registration beside the images: labels that are to overlap, landmarks that are to meet."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..geometry import apply_affine, voxels_per_unit, warp
from ..losses import MembershipDice
from .engine import shrunk

if TYPE_CHECKING:
    from .engine import _Level

__all__ = ["Guides", "Landmarks"]

_FREE = 0.5  # of the tolerance: a landmark that is nearer pulls no more


class Landmarks:
    """Pairs of points and what their distances cost.

    A landmark that the map φ⁻¹ carries d mm from its partner costs max(0, d - t / 2)² / t², t the tolerance; the loss
    is the mean times the weight. So the landmarks come within the tolerance, and errors of placing them below half of
    it bend nothing.

    Args:
        fixed: ``(N, 3)``, normalised coordinates of the fixed grid.
        moving: ``(N, 3)``, where they belong, of the moving grid.
        extent: mm of a normalised unit along each axis of the moving grid, ``(3,)``.
        weight: of the mean cost in the objective.
        tolerance: t, mm.
    """

    def __init__(self, fixed: Tensor, moving: Tensor, extent: Tensor, weight: float, tolerance: float) -> None:
        self.fixed, self.moving, self.extent = fixed, moving, extent
        self.weight, self.tolerance = weight, tolerance

    def to(self, device: torch.device | str) -> Landmarks:
        """The same on a device."""
        return Landmarks(
            self.fixed.to(device), self.moving.to(device), self.extent.to(device), self.weight, self.tolerance
        )

    def costs(self, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of carried points, its derivative by them, and its curvature along each axis (Gauss-Newton).

        Args:
            places: ``(..., N, 3)``, normalised coordinates of the moving grid.

        Returns:
            ``(...,)``, and twice as ``places``.
        """
        away = (places - self.moving) * self.extent
        distance = away.norm(dim=-1, keepdim=True)
        beyond = (distance - _FREE * self.tolerance).clamp(min=0) / self.tolerance
        share = self.weight / len(self.fixed)
        pull = 2 * share / self.tolerance
        derivative = pull * beyond * away / distance.clamp(min=1e-9) * self.extent
        curvature = (pull / self.tolerance) * (beyond > 0) * self.extent.square().expand_as(away)
        return share * beyond.square().squeeze(-1).sum(-1), derivative, curvature

    def loss(self, coordinates: Tensor) -> float:
        """That of a map ``(1, 3, d, h, w)`` of any grid, linear between its nodes."""
        return self.on(list(coordinates.shape[2:])).loss(coordinates)

    def under(self, affines: Tensor) -> Tensor:
        """The points under affines ``(S, 3, 4)``: ``(S, N, 3)``."""
        return self.fixed @ affines[:, :, :3].transpose(1, 2) + affines[:, None, :, 3]

    def equations(self, affines: Tensor) -> tuple[Tensor, Tensor]:
        """Derivative ``(S, 12)`` and Gauss-Newton matrix ``(S, 12, 12)`` of the loss by affines ``(S, 3, 4)``."""
        _, derivative, curvature = self.costs(self.under(affines))
        points = torch.cat([self.fixed, torch.ones_like(self.fixed[:, :1])], dim=1)
        slope = torch.einsum("sni,nj->sij", derivative, points).flatten(1)
        blocks = torch.einsum("sni,nj,nk->sijk", curvature, points, points)
        return slope, torch.stack([torch.block_diag(*one) for one in blocks])

    def on(self, shape: list[int]) -> LandmarksOnGrid:
        """The same for maps that are given at the nodes of a grid."""
        return LandmarksOnGrid(self, shape)


class LandmarksOnGrid:
    """`Landmarks` under maps ``(1, 3, d, h, w)`` that are linear between the nodes of a grid.

    Args:
        landmarks: the points.
        shape: the grid, at least two nodes along each axis.
    """

    def __init__(self, landmarks: Landmarks, shape: list[int]) -> None:
        self.landmarks, self.shape = landmarks, shape
        points = landmarks.fixed
        steps = voxels_per_unit(shape, points.device, points.dtype)
        counts = torch.tensor(shape, device=points.device)
        places = ((points + 1) * steps).clamp(min=0).minimum((counts - 1).to(points))
        first = places.floor().long().minimum(counts - 2)
        part = places - first
        strides = torch.tensor([shape[1] * shape[2], shape[2], 1], device=points.device)
        nodes, weights, slopes = [], [], []
        for corner in range(8):
            bits = torch.tensor([corner >> 2 & 1, corner >> 1 & 1, corner & 1], device=points.device)
            along = torch.where(bits == 1, part, 1 - part)
            nodes.append(((first + bits) * strides).sum(1))
            weights.append(along.prod(1))
            others = torch.stack([along[:, [1, 2]].prod(1), along[:, [0, 2]].prod(1), along[:, [0, 1]].prod(1)], 1)
            slopes.append(others * (2 * bits - 1) * steps)
        self.nodes, self.weights = torch.stack(nodes, 1), torch.stack(weights, 1)  # (N, 8)
        self.slopes = torch.stack(slopes, 1)  # (N, 8, 3)

    def loss(self, coordinates: Tensor) -> float:
        """That of a map ``(1, 3, d, h, w)``, normalised."""
        return self.landmarks.costs(self._carried(coordinates)[1])[0].item()

    def slope(self, coordinates: Tensor) -> tuple[Tensor, Tensor]:
        """Derivative of the loss by a displacement inside the map, and its curvature, gathered at the nodes.

        Returns:
            ``(1, 3, d, h, w)`` and ``(1, 6, d, h, w)``: the symmetric matrices of the nodes, entries 00, 11, 22, 01,
            02, 12.
        """
        around, places = self._carried(coordinates)
        _, derivative, curvature = self.landmarks.costs(places)
        jacobian = torch.einsum("cnk,nka->nca", around, self.slopes)
        inner = torch.einsum("nca,nc->na", jacobian, derivative)
        matrix = torch.einsum("nca,nc,ncb->nab", jacobian, curvature, jacobian)
        entries = torch.stack([matrix[:, a, b] for a, b in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))], 1)
        return self._gathered(inner), self._gathered(entries)

    def _carried(self, coordinates: Tensor) -> tuple[Tensor, Tensor]:
        """The map at the nodes around each point ``(3, N, 8)``, and at the point ``(N, 3)``."""
        around = coordinates[0].flatten(1)[:, self.nodes]
        return around, (around * self.weights).sum(2).t()

    def _gathered(self, values: Tensor) -> Tensor:
        """Values ``(N, C)`` of points shared among their nodes, ``(1, C, d, h, w)``."""
        shares = (self.weights.unsqueeze(2) * values.unsqueeze(1)).flatten(0, 1)
        total = values.new_zeros(self.shape[0] * self.shape[1] * self.shape[2], values.shape[1])
        total.index_add_(0, self.nodes.flatten(), shares)
        return total.t().reshape(1, -1, *self.shape)


@dataclass(frozen=True, eq=False)
class Guides:
    """Labels and landmarks, and how much they count in the objective.

    Attributes:
        labels: memberships of the moving and the fixed image's labels, ``(1, L, D, H, W)`` in [0, 1] each, or None.
        label_weight: of 1 - the mean over labels of their soft Dice (`MembershipDice`).
        landmarks: the points, with their own weight, or None.
        meet: whether the labels' borders are to meet, at the cost of more steps, or only to guide.
        nearest: whether the moving labels count nearly as their nearest voxels have them: what is measured after all.
    """

    labels: tuple[Tensor, Tensor] | None = None
    label_weight: float = 0.0
    landmarks: Landmarks | None = None
    meet: bool = False
    nearest: bool = False

    def by_nearest(self) -> Guides:
        """The same with the moving labels by their nearest voxels, where these are on the grid as they are."""
        whole = self.labels is not None and bool((self.labels[0] == self.labels[0].round()).all())
        return replace(self, nearest=whole)

    def to(self, device: torch.device | str) -> Guides:
        """The same on a device."""
        labels = None if self.labels is None else tuple(one.to(device) for one in self.labels)
        return replace(self, labels=labels, landmarks=self.landmarks and self.landmarks.to(device))

    def loss(self, coordinates: Tensor) -> float:
        """Their part of the objective under a map ``(1, 3, D, H, W)`` of the fixed grid, normalised."""
        found = 0.0 if self.landmarks is None else self.landmarks.loss(coordinates)
        for moving, similarity in self.overlaps(list(coordinates.shape[2:])):
            moved = warp(moving, coordinates)
            found += self.share * similarity.loss(similarity.moments(moved)).item()
        return found

    def on(self, level: _Level, scale: float) -> LevelGuides:
        """The same on one level's grid, see `LevelGuides`."""
        return LevelGuides(self, level, scale)

    @property
    def share(self) -> float:
        """The weight of one label."""
        return 0.0 if self.labels is None else self.label_weight / self.labels[0].shape[1]

    def overlaps(self, shape: list[int]) -> list[tuple[Tensor, MembershipDice]]:
        """Each label on a coarser grid: the moving membership ``(1, 1, D, H, W)`` and the overlap with the fixed."""
        if self.labels is None:
            return []
        moving, fixed = (shrunk(one, shape).split(1, dim=1) for one in self.labels)
        return [(one, MembershipDice(other)) for one, other in zip(moving, fixed, strict=True)]


class Guided(NamedTuple):
    """What `LevelGuides` know of a map: the loss, and what its derivative is made of."""

    loss: float
    moved: list[tuple[Tensor, tuple[Tensor, Tensor]]]


class LevelGuides:
    """`Guides` on one level's grid.

    Args:
        guides: what there is.
        level: of the engine.
        scale: of all losses, that of the comparison of images (`Comparison`).
    """

    def __init__(self, guides: Guides, level: _Level, scale: float) -> None:
        self.level, self.scale, self.share, self.nearest = level, scale, scale * guides.share, guides.nearest
        self.labels = guides.overlaps(level.shape)
        self.landmarks = None if guides.landmarks is None else guides.landmarks.on(level.low)

    def see(self, low: Tensor) -> Guided:
        """The loss of a map of half the level's grid, ``(1, 3, d, h, w)``."""
        loss = 0.0 if self.landmarks is None else self.scale * self.landmarks.loss(low)
        seen = []
        for moving, similarity in self.labels:
            moved = self.level.pulled(moving, low, self.nearest)
            moments = similarity.moments(moved)
            loss += self.share * similarity.loss(moments).item()
            seen.append((moved, moments))
        return Guided(loss, seen)

    def slope(self, displacement: Tensor, guided: Guided) -> tuple[Tensor, Tensor]:
        """Derivative by a displacement inside the map, and curvature, as `LandmarksOnGrid.slope`."""
        level = self.level
        slope = torch.zeros_like(level.identity)
        curvature = torch.zeros_like(slope).repeat(1, 2, 1, 1, 1)
        parts, low = [], apply_affine(level.affine, level.identity + displacement)
        if self.landmarks is not None:
            parts.append(tuple(self.scale * one for one in self.landmarks.slope(low)))
        for (moving, similarity), (moved, moments) in zip(self.labels, guided.moved, strict=True):
            derivative, weight = (self.share * one for one in similarity.derivative(moved, moments))
            # By nearest voxels a border has no width to take a gradient in.
            smooth = level.pulled(moving, low) if self.nearest else moved
            parts.append(level.gathered(smooth, derivative, weight))
        for part in parts:
            slope, curvature = slope + part[0], curvature + part[1]
        return slope, curvature
