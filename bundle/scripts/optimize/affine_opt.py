"""affine-opt: the affine by direct optimisation over scales, the paper's optimisation twin of the affine network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..geometry import affine_map, identity_affine, warp
from ..losses import MultiKernelLNCC, affine_regularisation
from .pyramid import at_scale, check_scales, one_each

__all__ = ["AffineOptimiser", "AffineResult"]


@dataclass
class AffineResult:
    """What affine-opt found.

    Attributes:
        affine: the best affine seen, ``(B, 3, 4)``; by the objective at the last scale never worse than the first.
        before: objective of the affine that it began with, at the last scale, ``(B,)``.
        after: that of ``affine``, ``(B,)``.
        steps: steps taken at each scale.
    """

    affine: Tensor
    before: Tensor
    after: Tensor
    steps: list[int]


class AffineOptimiser:
    """Minimises the similarity of Equation 3, and λar times Equation 4, over the affine Γ of each pair, coarse to fine.

    Args:
        scales: sizes of the grid relative to the images', each in (0, 1], in rising order.
        steps: steps at each scale.
        similarity: loss of (moved, fixed[, mask]) with ``reduction`` ``"none"``, or one for each scale; mk-LNCC by
            default, whose windows follow the grid of each scale.
        regularisation: λar, the weight of ‖A - I‖² + ‖b‖²: what keeps images of which one shows more than the other
            from being stretched onto each other.
        rate: rate of the optimiser, normalised units (the paper: 1e-4, by SGD).
        optimiser: ``"adam"`` or ``"sgd"``.
        sgd_momentum: part of the last step that SGD repeats.
        patience: go on to the next scale after this many steps without a fall by ``tolerance`` of the loss; None takes
            all steps.
        tolerance: see ``patience``.

    Raises:
        ValueError: when a number is out of range, the lists differ in length, or a similarity reduces over the batch.
    """

    def __init__(
        self,
        scales: Sequence[float] = (0.25, 0.5, 1.0),
        steps: Sequence[int] = (200, 200, 50),
        similarity: Callable | Sequence[Callable] | None = None,
        regularisation: float = 0.0,
        rate: float = 0.01,
        optimiser: str = "adam",
        sgd_momentum: float = 0.9,
        patience: int | None = 20,
        tolerance: float = 1e-4,
    ) -> None:
        check_scales("AffineOptimiser", scales, steps, "steps")
        if optimiser not in ("adam", "sgd"):
            raise ValueError(f"AffineOptimiser: optimiser={optimiser!r}; give 'adam' or 'sgd'.")
        if regularisation < 0:
            raise ValueError(f"AffineOptimiser: regularisation={regularisation}; give 0 or more.")
        if rate <= 0 or (patience is not None and patience < 1) or tolerance < 0 or not 0 <= sgd_momentum < 1:
            raise ValueError(
                "AffineOptimiser: rate and patience must be positive, tolerance not negative, sgd_momentum in [0, 1)."
            )
        self.scales, self.steps = tuple(scales), tuple(steps)
        similarity = MultiKernelLNCC(reduction="none") if similarity is None else similarity
        self.similarities = one_each("AffineOptimiser", similarity, len(self.scales))
        self.regularisation = regularisation
        self.rate, self.optimiser, self.sgd_momentum = rate, optimiser, sgd_momentum
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
            for scale, steps, similarity in zip(self.scales, self.steps, self.similarities, strict=True):
                volumes = [None if v is None else at_scale(v, scale) for v in (moving, fixed, mask, moving_mask)]
                current, count = self._descend(current, steps, similarity, *volumes)
                taken.append(count)
        with torch.no_grad():
            before, after = (self._loss(candidate, self.similarities[-1], *volumes) for candidate in (start, current))
            better = after < before
            best = torch.where(better.view(-1, 1, 1), current, start)
        return AffineResult(best, before, torch.where(better, after, before), taken)

    def _descend(
        self,
        start: Tensor,
        steps: int,
        similarity: Callable,
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
            else torch.optim.SGD([affine], lr=self.rate, momentum=self.sgd_momentum)
        )
        best, lowest = start, torch.full((len(fixed),), float("inf"), device=fixed.device)
        reference, since, taken = float("inf"), 0, 0
        for step in range(steps + 1):
            loss = self._loss(affine, similarity, moving, fixed, mask, moving_mask)
            value = loss.detach()
            better = value < lowest
            best = torch.where(better.view(-1, 1, 1), affine.detach(), best)
            lowest = torch.where(better, value, lowest)
            mean = value.mean().item()
            since = 0 if mean < reference * (1 - self.tolerance) else since + 1
            reference = min(reference, mean)
            taken = step
            tired = self.patience is not None and since >= self.patience
            if step == steps or tired or not torch.isfinite(loss).all():
                break
            optimiser.zero_grad(set_to_none=True)
            # Pairs do not touch each other: the gradient of the sum is each pair's own.
            loss.sum().backward()
            optimiser.step()
        return best, taken

    def _loss(
        self,
        affine: Tensor,
        similarity: Callable,
        moving: Tensor,
        fixed: Tensor,
        mask: Tensor | None,
        moving_mask: Tensor | None,
    ) -> Tensor:
        """The objective of each pair, ``(B,)``."""
        where = affine_map(affine, list(fixed.shape[2:]))
        if moving_mask is not None:
            seen = warp(moving_mask, where.detach())
            mask = seen if mask is None else mask * seen
        value = similarity(warp(moving, where), fixed, mask)
        return value + self.regularisation * affine_regularisation(affine, reduction="none")
