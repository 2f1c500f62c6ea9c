"""affine-opt: the affine by direct optimisation over scales, the paper's optimisation twin of the affine network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry import affine_map, identity_affine, warp
from ..losses import MultiKernelLNCC

__all__ = ["AffineOptimiser", "AffineResult"]

_LEAST = 8


@dataclass
class AffineResult:
    """What affine-opt found.

    Attributes:
        affine: the best affine seen, ``(B, 3, 4)``; by the similarity at the last scale never worse than the first.
        before: similarity loss of the affine that it began with, at the last scale, ``(B,)``.
        after: that of ``affine``, ``(B,)``.
        steps: steps taken at each scale.
    """

    affine: Tensor
    before: Tensor
    after: Tensor
    steps: list[int]


class AffineOptimiser:
    """Minimises the similarity of Equation 3 over the affine Γ of each pair, from coarse to fine.

    Args:
        scales: sizes of the grid relative to the images', each in (0, 1], in rising order.
        steps: steps at each scale.
        similarity: loss of (moved, fixed[, mask]) with ``reduction`` ``"none"``; mk-LNCC by default, whose windows
            follow the grid of each scale.
        rate: rate of the optimiser, normalised units.
        optimiser: ``"adam"`` or ``"sgd"`` (with momentum 0.9).
        patience: go on to the next scale after this many steps without a fall by ``tolerance`` of the loss.
        tolerance: see ``patience``.

    Raises:
        ValueError: when a number is out of range, the two lists differ in length, or the similarity reduces over the
            batch.
    """

    def __init__(
        self,
        scales: Sequence[float] = (0.25, 0.5, 1.0),
        steps: Sequence[int] = (200, 200, 50),
        similarity: Callable | None = None,
        rate: float = 0.01,
        optimiser: str = "adam",
        patience: int = 20,
        tolerance: float = 1e-4,
    ) -> None:
        if len(scales) != len(steps) or not scales or any(not 0 < s <= 1 for s in scales) or any(n < 0 for n in steps):
            raise ValueError(f"AffineOptimiser: scales={scales}, steps={steps}; give as many of each, in (0, 1].")
        if list(scales) != sorted(scales):
            raise ValueError(f"AffineOptimiser: scales={scales}; give them in rising order.")
        if optimiser not in ("adam", "sgd"):
            raise ValueError(f"AffineOptimiser: optimiser={optimiser!r}; give 'adam' or 'sgd'.")
        if rate <= 0 or patience < 1 or tolerance < 0:
            raise ValueError("AffineOptimiser: rate and patience must be positive, tolerance not negative.")
        if getattr(similarity, "reduction", "none") != "none":
            raise ValueError("AffineOptimiser: the similarity must be built with reduction='none'.")
        self.scales, self.steps = tuple(scales), tuple(steps)
        self.similarity = MultiKernelLNCC(reduction="none") if similarity is None else similarity
        self.rate, self.optimiser = rate, optimiser
        self.patience, self.tolerance = patience, tolerance

    def __call__(
        self,
        moving: Tensor,
        fixed: Tensor,
        affine: Tensor | None = None,
        mask: Tensor | None = None,
        moving_mask: Tensor | None = None,
    ) -> AffineResult:
        """Optimise.

        Args:
            moving: ``(B, 1, D, H, W)``.
            fixed: the same shape.
            affine: Γ to begin with, ``(B, 3, 4)``; None for the identity.
            mask: weights in [0, 1] on the fixed grid that limit the similarity, as ``fixed``.
            moving_mask: the same on the moving grid; it follows the map without gradient.

        Returns:
            The `AffineResult`.
        """
        start = identity_affine(len(fixed), fixed.device) if affine is None else affine.detach()
        current, taken = start, []
        with torch.enable_grad():
            for scale, steps in zip(self.scales, self.steps, strict=True):
                volumes = [None if v is None else _at_scale(v, scale) for v in (moving, fixed, mask, moving_mask)]
                current, count = self._descend(current, steps, *volumes)
                taken.append(count)
        with torch.no_grad():
            volumes = [None if v is None else _at_scale(v, self.scales[-1]) for v in (moving, fixed, mask, moving_mask)]
            before, after = (self._loss(candidate, *volumes) for candidate in (start, current))
            better = after < before
            best = torch.where(better.view(-1, 1, 1), current, start)
        return AffineResult(best, before, torch.where(better, after, before), taken)

    def _loss(
        self, affine: Tensor, moving: Tensor, fixed: Tensor, mask: Tensor | None, moving_mask: Tensor | None
    ) -> Tensor:
        """Similarity loss of each pair, ``(B,)``."""
        where = affine_map(affine, list(fixed.shape[2:]))
        if moving_mask is not None:
            seen = warp(moving_mask, where.detach())
            mask = seen if mask is None else mask * seen
        return self.similarity(warp(moving, where), fixed, mask)

    def _descend(
        self,
        start: Tensor,
        steps: int,
        moving: Tensor,
        fixed: Tensor,
        mask: Tensor | None,
        moving_mask: Tensor | None,
    ) -> tuple[Tensor, int]:
        """Best affine of each pair at one scale, and the steps taken."""
        affine = start.clone().requires_grad_(True)
        optimiser = (
            torch.optim.Adam([affine], lr=self.rate)
            if self.optimiser == "adam"
            else torch.optim.SGD([affine], lr=self.rate, momentum=0.9)
        )
        best, lowest = start, torch.full((len(fixed),), float("inf"), device=fixed.device)
        reference, since, taken = float("inf"), 0, 0
        for step in range(steps + 1):
            loss = self._loss(affine, moving, fixed, mask, moving_mask)
            value = loss.detach()
            better = value < lowest
            best = torch.where(better.view(-1, 1, 1), affine.detach(), best)
            lowest = torch.where(better, value, lowest)
            mean = value.mean().item()
            since = 0 if mean < reference * (1 - self.tolerance) else since + 1
            reference = min(reference, mean)
            taken = step
            if step == steps or since >= self.patience or not torch.isfinite(loss).all():
                break
            optimiser.zero_grad(set_to_none=True)
            # Pairs do not touch each other: the gradient of the sum is each pair's own.
            loss.sum().backward()
            optimiser.step()
        return best, taken


def _at_scale(volume: Tensor, scale: float) -> Tensor:
    """A volume on the grid of a scale, by averages of what each coarse voxel covers; at least 8 voxels an axis."""
    if scale == 1:
        return volume
    shape = [min(n, max(_LEAST, round(n * scale))) for n in volume.shape[2:]]
    return F.adaptive_avg_pool3d(volume, shape)
