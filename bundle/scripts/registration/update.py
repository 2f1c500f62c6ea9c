"""One registration: the network and perhaps instance optimisation, or an optimisation twin in their place; timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from ignite.engine import Engine
from monai.engines.utils import IterationEvents
from torch import Tensor

from ..geometry import identity_affine
from ..losses import MultiKernelLNCC
from ..networks import AVSM, Registration
from ..optimize import AffineOptimiser, InstanceOptimiser, Refinement, VSVFOptimiser

__all__ = ["PairUpdate", "Registered"]

_NEWTON_STEPS = 5
# Parts of a deformation that are tried where the whole is worse than none.
_LENGTHS = (0.5, 0.25, 0.1)
# Losses that differ by less than this are equal: a deformation of next to nothing is no failure.
SAME = 1e-4


@dataclass
class Registered:
    """What the network and the optimiser, or an optimisation twin, made of one pair, on the network grids.

    Attributes:
        registration: the final one, with its inverse map.
        refinement: instance optimisation's report; None where it was not asked for.
        similarity: mk-LNCC loss (0 is best) of ``before``, ``affine`` and ``final``, within the weights.
        affine_steps: affine steps that were kept; fewer than asked for when more made the similarity worse. Of a twin,
            the steps that it took at all scales.
        seconds: of ``network`` and ``optimise``.
        notes: lines for the user.
        twin: what a twin says of its search; empty for the network.
        shorter: the same pair by a flow that is ``factor`` times as long as first found (0: the affine alone), and a
            note that says why, for whoever finds folds or less likeness on an image's own grid; None where there is no
            flow.
    """

    registration: Registration
    refinement: Refinement | None
    similarity: dict[str, float]
    affine_steps: int
    seconds: dict[str, float]
    notes: list[str]
    twin: dict[str, Any] = field(default_factory=dict)
    shorter: Callable[[float, str], Registered] | None = None


class PairUpdate:
    """``iteration_update`` of MONAI's ``SupervisedEvaluator`` for one pair of any two images.

    An optimisation twin, where there is one, does it all. Else the affine network is asked first. Of the affines of its
    steps, and of the initialisation alone, the one with the best similarity goes on, from there through Newton steps
    alone (`AffineNet.newton`) while they make it better. A deformation that is worse than its affine is shortened, if
    need be to nothing. A network can be lost on anatomy that it has never seen, and then says so in ``notes``.

    Args:
        optimiser: instance optimisation after the network; None for the network alone.
        similarity: loss of (moved, fixed, mask) with ``reduction`` ``"none"``, to compare affines and report;
            mk-LNCC by default.
        keep_best_affine: False takes the last step's affine as it comes, as the paper does.
        twin: optimises in the network's place, of which it uses the vSVF unit alone; None for the network.
        keep_better_deformation: False takes the deformation as it comes, however similar.

    Raises:
        ValueError: when the similarity reduces over the batch, or a twin is to be followed by instance optimisation.
    """

    def __init__(
        self,
        optimiser: InstanceOptimiser | None = None,
        similarity: Callable | None = None,
        keep_best_affine: bool = True,
        twin: AffineOptimiser | VSVFOptimiser | None = None,
        keep_better_deformation: bool = True,
    ) -> None:
        if getattr(similarity, "reduction", "none") != "none":
            raise ValueError("PairUpdate: the similarity must be built with reduction='none'.")
        self.optimiser = optimiser if optimiser is None or optimiser.steps > 0 else None
        if twin is not None and self.optimiser is not None:
            raise ValueError("PairUpdate: instance optimisation goes on from the network; give it or a twin.")
        self.similarity = MultiKernelLNCC(reduction="none") if similarity is None else similarity
        self.keep_best_affine = keep_best_affine
        self.twin = twin
        self.keep_better_deformation = keep_better_deformation

    def __call__(self, engine: Engine, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Register.

        Args:
            engine: a ``SupervisedEvaluator`` with an `AVSM` and a `RegistrationInferer`.
            batch: one pair as `SampleOnNetworkGridd` leaves it, without a batch axis.

        Returns:
            ``{"registered": Registered}``; MONAI's post-processing adds to it.
        """
        registered = self.register(engine.network, engine.inferer, batch, engine.state.device)
        engine.state.output = {"registered": registered}
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

    def register(
        self, network: Any, inferer: Callable | None, batch: Mapping[str, Any], device: torch.device | str = "cpu"
    ) -> Registered:
        """Register without an engine.

        Args:
            network: an `AVSM`, or a wrapper of one; for a twin it may be a `bare_network`.
            inferer: a `RegistrationInferer`; not asked where there is a twin.
            batch: one pair as `SampleOnNetworkGridd` leaves it, without a batch axis.
            device: where the network is.
        """
        device = torch.device(device)
        moving, fixed, moving_weight, weight = (
            batch[key].unsqueeze(0).to(device) for key in ("moving", "fixed", "moving_weight", "fixed_weight")
        )
        # A field of view that fills the grid limits nothing; a moving one limits only where a mask was given.
        weight = None if bool((weight == 1).all()) else weight
        moving_weight = moving_weight if "moving_mask" in batch["images"] else None
        network.eval()
        module = _module(network)
        if self.twin is None:
            result = self._by_network(network, inferer, moving, fixed, weight, moving_weight)
        else:
            result = self._by_twin(module, moving, fixed, weight, moving_weight)
        result.similarity = self._similarities(module, result.registration, moving, fixed, weight)
        return result

    @torch.no_grad()
    def _similarities(
        self, network: AVSM, found: Registration, moving: Tensor, fixed: Tensor, weight: Tensor | None
    ) -> dict[str, float]:
        """Loss of each stage."""
        return {
            "before": self.similarity(moving, fixed, weight).item(),
            "affine": self._affine_loss(network, found.affine, moving, fixed, weight),
            "final": self.similarity(found.moved, fixed, weight).item(),
        }

    def _by_network(
        self,
        network: Any,
        inferer: Callable,
        moving: Tensor,
        fixed: Tensor,
        weight: Tensor | None,
        moving_weight: Tensor | None,
    ) -> Registered:
        """By the network, then instance optimisation where asked for."""
        pair = torch.cat([moving, fixed], dim=1)
        notes: list[str] = []
        with torch.no_grad():
            start = _now(moving.device)
            affine, kept = self._affine(network, inferer, pair, weight, notes)
            registration = inferer(pair, network, affine=affine, inverse=True)
            if self.keep_better_deformation and registration.velocities:
                registration = self._better(_module(network), registration, moving, fixed, weight, notes)
            seconds = {"network": _now(moving.device) - start}
        refinement = None
        if self.optimiser is not None:
            start = _now(moving.device)
            refinement = self.optimiser(
                _module(network), moving, fixed, registration, weight, inverse=True, moving_mask=moving_weight
            )
            registration = refinement.registration
            seconds["optimise"] = _now(moving.device) - start
        result = Registered(registration, refinement, {}, kept, seconds, notes)

        def shortened(factor: float) -> tuple[Registration, dict[str, Any]]:
            volumes = moving, fixed, weight, moving_weight
            if refinement is None:
                return _shortened(_module(network), registration, factor, moving), {}
            less = self.optimiser.shortened(_module(network), refinement, factor, *volumes, inverse=True)
            return less.registration, {"refinement": less}

        return self._with_shorter(result, _module(network), shortened, moving, fixed, weight)

    def _by_twin(
        self, network: AVSM, moving: Tensor, fixed: Tensor, weight: Tensor | None, moving_weight: Tensor | None
    ) -> Registered:
        """By the optimisation twin."""
        start = _now(moving.device)
        if isinstance(self.twin, VSVFOptimiser):
            found = self.twin(network, moving, fixed, None, weight, moving_weight, inverse=True)
            registration, affine = found.registration, found.affine
            facts = {
                "evaluations": found.evaluations,
                "before": found.before.item(),
                "after": found.after.item(),
            }
        else:
            affine, facts = self.twin(moving, fixed, None, weight, moving_weight), {}
            with torch.no_grad():
                registration = network.integrate(moving, affine.affine, [], inverse=True)
        seconds = {"optimise": _now(moving.device) - start}
        facts = {
            "affine_steps": affine.steps,
            "affine_before": affine.before.item(),
            "affine_after": affine.after.item(),
            **facts,
        }
        result = Registered(registration, None, {}, sum(affine.steps), seconds, [], facts)

        def shortened(factor: float) -> tuple[Registration, dict[str, Any]]:
            volumes = moving, fixed, weight, moving_weight
            less = self.twin.shortened(network, found, factor, *volumes, inverse=True)
            return less.registration, {"twin": {**facts, "after": less.after.item(), "length": factor}}

        return self._with_shorter(result, network, shortened, moving, fixed, weight)

    def _with_shorter(
        self,
        result: Registered,
        network: AVSM,
        shortened: Callable[[float], tuple[Registration, dict[str, Any]]],
        moving: Tensor,
        fixed: Tensor,
        weight: Tensor | None,
    ) -> Registered:
        """The result with its ``shorter``, where there is a flow that can be shortened.

        Args:
            result: to complete.
            network: whose unit integrates.
            shortened: gives the registration by a flow of ``factor`` times the length, and what else of the result
                changes with it.
            moving: ``(1, 1, D, H, W)``.
            fixed: as ``moving``.
            weight: as ``moving``, or None.
        """
        if not result.registration.velocities:
            return result

        def shorter(factor: float, why: str) -> Registered:
            registration, facts = shortened(factor)
            note = f"the deformation was shortened to {factor:.3g} of its length, {why}"
            return replace(
                result,
                registration=registration,
                similarity=self._similarities(network, registration, moving, fixed, weight),
                notes=[*result.notes, note],
                **facts,
            )

        result.shorter = shorter
        return result

    def _affine(
        self, network: Any, inferer: Callable, pair: Tensor, weight: Tensor | None, notes: list[str]
    ) -> tuple[Tensor, int]:
        """The affine to go on with, ``(1, 3, 4)``, and the number of steps behind it."""
        found = inferer(pair, network, vsvf_steps=0)
        affines = [identity_affine(1, pair.device), *found.affines]
        if not self.keep_best_affine or len(affines) == 1:
            return affines[-1], len(affines) - 1
        module = _module(network)
        moving, fixed = pair[:, :1], pair[:, 1:]
        scores = [self._affine_loss(module, affine, moving, fixed, weight) for affine in affines]
        best = min(range(len(scores)), key=scores.__getitem__)
        kept, lowest, steps = affines[best], scores[best], best
        for count, affine in enumerate(module.affine_net.newton(moving, fixed, _NEWTON_STEPS, kept), start=1):
            loss = self._affine_loss(module, affine, moving, fixed, weight)
            if loss < lowest:
                kept, lowest, steps = affine, loss, best + count
        if steps == 0:
            notes.append(
                "the affine network found nothing better than the initialisation, which was kept; "
                "its weights may not know this anatomy (optimise longer, or give other weights)"
            )
        return kept, steps

    def _affine_loss(
        self, network: AVSM, affine: Tensor, moving: Tensor, fixed: Tensor, weight: Tensor | None
    ) -> float:
        """Loss of an affine alone."""
        return self.similarity(network.integrate(moving, affine, []).moved, fixed, weight).item()

    def _better(
        self,
        network: AVSM,
        found: Registration,
        moving: Tensor,
        fixed: Tensor,
        weight: Tensor | None,
        notes: list[str],
    ) -> Registration:
        """The deformation as it comes where it is no worse than its affine, else the best of its shorter ones."""
        alone = self._affine_loss(network, found.affine, moving, fixed, weight)
        if self.similarity(found.moved, fixed, weight).item() <= alone + SAME:
            return found
        shorter = {factor: _shortened(network, found, factor, moving) for factor in (*_LENGTHS, 0.0)}
        scores = {factor: self.similarity(less.moved, fixed, weight).item() for factor, less in shorter.items()}
        factor = min(scores, key=scores.__getitem__)
        notes.append(
            f"the deformation that the network found is less similar than the affine alone; {factor:g} of it was kept; "
            "its weights may not know this anatomy (optimise, or give other weights)"
        )
        return shorter[factor]


@torch.no_grad()
def _shortened(network: AVSM, found: Registration, factor: float, moving: Tensor) -> Registration:
    """A network's registration with all its momenta ``factor`` times as long."""
    momenta = [factor * momentum for momentum in found.momenta]
    less = network.integrate(moving, found.affine, momenta, inverse=True)
    less.affines = found.affines
    return less


def _module(network: Any) -> Any:
    """The network behind a wrapper for many processes."""
    return network if hasattr(network, "register") else network.module


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
