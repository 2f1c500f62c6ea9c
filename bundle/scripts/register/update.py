"""One registration: the network, then instance optimisation where asked for, both timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from ignite.engine import Engine
from monai.engines.utils import IterationEvents
from torch import Tensor

from ..geometry import identity_affine
from ..losses import MultiKernelLNCC
from ..networks import Registration
from ..optimize import InstanceOptimiser, Refinement

__all__ = ["PairUpdate", "Registered"]


@dataclass
class Registered:
    """What the network and the optimiser made of one pair, on the network grids.

    Attributes:
        registration: the final one, with its inverse map.
        refinement: instance optimisation's report; None where it was not asked for.
        similarity: mk-LNCC loss (0 is best) of ``before``, ``affine`` and ``final``, within the weights.
        affine_steps: affine steps that were kept; fewer than asked for when more made the similarity worse.
        seconds: of ``network`` and ``optimise``.
        notes: lines for the user.
    """

    registration: Registration
    refinement: Refinement | None
    similarity: dict[str, float]
    affine_steps: int
    seconds: dict[str, float]
    notes: list[str]


class PairUpdate:
    """``iteration_update`` of MONAI's ``SupervisedEvaluator`` for one pair of any two images.

    The affine network is asked first. Of the affines of its steps, and of the initialisation alone, the one with the
    best similarity goes on: a network can be lost on anatomy that it has never seen, and then says so in ``notes``.

    Args:
        optimiser: instance optimisation after the network; None for the network alone.
        similarity: loss of (moved, fixed, mask) with ``reduction`` ``"none"``, to compare affines and report;
            mk-LNCC by default.
        keep_best_affine: False takes the last step's affine as it comes, as the paper does.

    Raises:
        ValueError: when the similarity reduces over the batch.
    """

    def __init__(
        self,
        optimiser: InstanceOptimiser | None = None,
        similarity: Callable | None = None,
        keep_best_affine: bool = True,
    ) -> None:
        if getattr(similarity, "reduction", "none") != "none":
            raise ValueError("PairUpdate: the similarity must be built with reduction='none'.")
        self.optimiser = optimiser if optimiser is None or optimiser.steps > 0 else None
        self.similarity = MultiKernelLNCC(reduction="none") if similarity is None else similarity
        self.keep_best_affine = keep_best_affine

    def __call__(self, engine: Engine, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Register.

        Args:
            engine: a ``SupervisedEvaluator`` with an `AVSM` and a `RegistrationInferer`.
            batch: one pair as `SampleOnNetworkGridd` leaves it, without a batch axis.

        Returns:
            ``{"registered": Registered}``; MONAI's post-processing adds to it.
        """
        device = engine.state.device
        moving, fixed, moving_weight, weight = (
            batch[key].unsqueeze(0).to(device) for key in ("moving", "fixed", "moving_weight", "fixed_weight")
        )
        # A field of view that fills the grid limits nothing; a moving one limits only where a mask was given.
        weight = None if bool((weight == 1).all()) else weight
        moving_weight = moving_weight if "moving_mask" in batch["images"] else None
        engine.network.eval()
        pair = torch.cat([moving, fixed], dim=1)
        notes: list[str] = []
        with torch.no_grad():
            start = _now(device)
            affine, kept = self._affine(engine, pair, weight, notes)
            registration = engine.inferer(pair, engine.network, affine=affine, inverse=True)
            seconds = {"network": _now(device) - start}
        refinement = None
        if self.optimiser is not None:
            start = _now(device)
            refinement = self.optimiser(
                _module(engine.network), moving, fixed, registration, weight, inverse=True, moving_mask=moving_weight
            )
            registration = refinement.registration
            seconds["optimise"] = _now(device) - start
        with torch.no_grad():
            images = {"before": moving, "affine": None, "final": registration.moved}
            images["affine"] = _module(engine.network).integrate(moving, registration.affine, []).moved
            similarity = {stage: self.similarity(image, fixed, weight).item() for stage, image in images.items()}
        engine.state.output = {
            "registered": Registered(registration, refinement, similarity, kept, seconds, notes),
        }
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

    def _affine(self, engine: Engine, pair: Tensor, weight: Tensor | None, notes: list[str]) -> tuple[Tensor, int]:
        """The affine to go on with, ``(1, 3, 4)``, and the number of steps behind it."""
        found = engine.inferer(pair, engine.network, vsvf_steps=0)
        affines = [identity_affine(1, pair.device), *found.affines]
        if not self.keep_best_affine or len(affines) == 1:
            return affines[-1], len(affines) - 1
        network = _module(engine.network)
        scores = [
            self.similarity(network.integrate(pair[:, :1], affine, []).moved, pair[:, 1:], weight).item()
            for affine in affines
        ]
        best = min(range(len(scores)), key=scores.__getitem__)
        if best == 0:
            notes.append(
                "the affine network found nothing better than the initialisation, which was kept; "
                "its weights may not know this anatomy (optimise longer, or give other weights)"
            )
        return affines[best], best


def _module(network: Any) -> Any:
    """The network behind a wrapper for many processes."""
    return network if hasattr(network, "register") else network.module


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
