"""affine-opt: the affine of each pair by direct optimisation, the paper's counterpart of the affine network."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..geometry import identity_affine
from ..losses import affine_regularisation
from ..networks import Registration
from .affine_engine import AffineResult
from .pyramid import Best, Parameters, PyramidOptimiser, bare_network

__all__ = ["AffineOptimiser"]


class AffineOptimiser(PyramidOptimiser):
    """Minimises the similarity of Equation 3 plus λar times Equation 4 over the affine Γ of each pair.

    What is not named here is as in `PyramidOptimiser`.

    Args:
        steps: steps at each scale.
        regularisation: λar, the weight of ‖A - I‖² + ‖b‖², which keeps images of which one shows more than the other
            from being stretched onto each other.
        rate: learning rate, normalised units (the paper: 1e-4, by SGD).
        optimiser: ``"adam"`` or ``"sgd"``.
    """

    optimisers = ("adam", "sgd")

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
        self.steps, self.rate, self.sgd_momentum = tuple(steps), rate, sgd_momentum
        self._network = bare_network()
        rates = Parameters(rate, 0.0)
        super().__init__(scales, steps, similarity, regularisation, rates, optimiser, patience, tolerance)

    def objective(self, registration: Registration, *compared: object) -> Tensor:
        """Similarity and λar times Equation 4, ``(B,)``; arguments as `PyramidOptimiser.objective`."""
        regularisation = self.regularisation * affine_regularisation(registration.affine, reduction="none")
        return super().objective(registration, *compared) + regularisation

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
            mask: see `PyramidOptimiser.objective`.
            moving_mask: see `PyramidOptimiser.objective`.
        """
        start = Parameters(identity_affine(len(fixed), fixed.device) if affine is None else affine.detach(), [])
        found, taken = start, []
        for level, steps in self.levels(self._network, moving, fixed, mask, moving_mask):
            best = Best(found, torch.full((len(fixed),), math.inf, device=fixed.device))
            taken.append(len(self.search(level, best, steps + 1)) - 1)
            found = best.parameters
        with torch.no_grad():
            before = self.value(level, level.integrate(start))
            best = Best(start, before)
            best.offer(found, self.value(level, level.integrate(found)))
        return AffineResult(best.parameters.affine, before, best.value, taken)
