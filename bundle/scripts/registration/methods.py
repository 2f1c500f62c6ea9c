"""The methods of registration: a network, perhaps with instance optimisation after it, or optimisation alone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..geometry import count_folds, identity_affine
from ..losses import MultiKernelLNCC
from ..networks import AVSM, Registration, load_weights
from ..optimize import (
    AffineEngine,
    AffineOptimiser,
    AffineResult,
    InstanceOptimiser,
    RegistrationEngine,
    VSVFOptimiser,
)
from ..settings import METHODS
from .accept import SAME, best_length, shortened
from .sampling import SampledPair

__all__ = ["EngineMethod", "Found", "NetworkMethod", "OptimiserMethod", "chosen_method", "chosen_network"]

_NEWTON_STEPS = 5
_LENGTHS = (0.5, 0.25, 0.1, 0.0)


@dataclass
class Found:
    """What a method found for one pair, on the network's grids.

    Attributes:
        registration: the result.
        affine_steps: steps behind its affine; fewer than asked for where more made the similarity worse.
        seconds: wall time, of ``network`` and ``optimise``.
        notes: lines for the user.
        facts: what an optimiser reports, by the key that it has in ``metrics.json``; empty without one.
        objective: what the optimiser minimises, of a registration; None without one.
    """

    registration: Registration
    affine_steps: int
    seconds: dict[str, float]
    notes: list[str] = field(default_factory=list)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    objective: Callable[[Registration], Tensor] | None = None

    @torch.no_grad()
    def facts_of(self, registration: Registration, length: float) -> dict[str, dict[str, Any]]:
        """`facts` with the objective and the folds of a registration whose flow has ``length`` times the length."""
        if self.objective is None or length == 1:
            return self.facts
        after: dict[str, Any] = {"after": self.objective(registration).item(), "length": length}
        facts = {key: {**values, **after} for key, values in self.facts.items()}
        for values in facts.values():
            if "folds_after" in values:
                values["folds_after"] = int(count_folds(registration.map)[0].item())
        return facts


class NetworkMethod:
    """The affine network, the vSVF steps of the momentum network, and perhaps instance optimisation.

    Of the affines of all steps, and of the initialisation alone, the one with the best similarity goes on, and from
    there through Newton steps (`AffineNet.newton`) while they make it better. A deformation that is less similar than
    its affine is shortened. A network can be lost on anatomy that it has never seen; the notes then say so.

    Args:
        network: an `AVSM` with its weights.
        inferer: a `RegistrationInferer`.
        optimiser: instance optimisation after the network; None for the network alone.
        similarity: loss of (moved, fixed, mask) with ``reduction`` ``"none"``; mk-LNCC by default.
        keep_best_affine: False takes the last step's affine as it comes, as the paper does.
        keep_better_deformation: False takes the deformation as it comes, however similar.
    """

    def __init__(
        self,
        network: AVSM,
        inferer: Callable,
        optimiser: InstanceOptimiser | None = None,
        similarity: Callable | None = None,
        keep_best_affine: bool = True,
        keep_better_deformation: bool = True,
    ) -> None:
        self.network, self.inferer, self.optimiser = network, inferer, optimiser
        self.similarity = MultiKernelLNCC(reduction="none") if similarity is None else similarity
        self.keep_best_affine, self.keep_better_deformation = keep_best_affine, keep_better_deformation

    @property
    def facts(self) -> dict[str, Any] | None:
        """The optimiser's settings, for ``metrics.json``."""
        return None if self.optimiser is None else _settings(self.optimiser)

    def __call__(self, pair: SampledPair) -> Found:
        """Register a pair that is on the network's device."""
        self.network.eval()
        notes: list[str] = []
        start = _now(pair.fixed)
        with torch.no_grad():
            affine, steps = self._affine(pair, notes)
            registration = self.inferer(torch.cat([pair.moving, pair.fixed], dim=1), self.network, affine=affine)
            if self.keep_better_deformation and registration.velocities:
                registration = self._better(registration, pair, notes)
        found = Found(registration, steps, {"network": _now(pair.fixed) - start}, notes)
        if self.optimiser is not None:
            start = _now(pair.fixed)
            moving, fixed, mask, moving_mask = pair.volumes
            refined = self.optimiser(self.network, moving, fixed, registration, mask, moving_mask=moving_mask)
            found.registration = refined.registration
            found.seconds["optimise"] = _now(pair.fixed) - start
            found.facts["instance_optimisation"] = {
                "steps": refined.steps,
                "before": refined.before.item(),
                "after": refined.after.item(),
                "folds_before": int(refined.folds_before.item()),
                "folds_after": int(refined.folds_after.item()),
            }
            found.objective = lambda less: self.optimiser.objective(less, fixed, mask, moving_mask)
        return found

    def _affine(self, pair: SampledPair, notes: list[str]) -> tuple[Tensor, int]:
        """The affine to go on with, ``(1, 3, 4)``, and the number of steps behind it."""
        found = self.inferer(torch.cat([pair.moving, pair.fixed], dim=1), self.network, vsvf_steps=0)
        affines = [identity_affine(1, pair.fixed.device), *found.affines]
        if not self.keep_best_affine or len(affines) == 1:
            return affines[-1], len(affines) - 1
        losses = [self._affine_loss(affine, pair) for affine in affines]
        steps = min(range(len(losses)), key=losses.__getitem__)
        best, lowest, first = affines[steps], losses[steps], steps
        newton = self.network.affine_net.newton(pair.moving, pair.fixed, _NEWTON_STEPS, best)
        for count, affine in enumerate(newton, start=1):
            loss = self._affine_loss(affine, pair)
            if loss < lowest:
                best, lowest, steps = affine, loss, first + count
        if steps == 0:
            notes.append(
                "the affine network found nothing better than the initialisation, which was kept; "
                "its weights may not know this anatomy (optimise longer, or give other weights)"
            )
        return best, steps

    def _affine_loss(self, affine: Tensor, pair: SampledPair) -> float:
        moved = self.network.integrate(pair.moving, affine, []).moved
        return self.similarity(moved, pair.fixed, pair.mask).item()

    def _better(self, found: Registration, pair: SampledPair, notes: list[str]) -> Registration:
        """The deformation as it comes where it is no worse than its affine, else the best of the shorter ones."""

        def loss(registration: Registration) -> float:
            return self.similarity(registration.moved, pair.fixed, pair.mask).item()

        if loss(found) <= self._affine_loss(found.affine, pair) + SAME:
            return found
        shorter = {length: shortened(self.network, found, length, pair.moving) for length in _LENGTHS}
        length = best_length({length: loss(registration) for length, registration in shorter.items()})
        notes.append(
            "the deformation that the network found is less similar than the affine alone; "
            f"{length:g} of it was kept; its weights may not know this anatomy (optimise, or give other weights)"
        )
        return shorter[length]


class OptimiserMethod:
    """affine-opt or vSVF-opt: no network, no weights.

    Args:
        network: whose vSVF unit integrates (`bare_network`).
        optimiser: what optimises.
    """

    def __init__(self, network: AVSM, optimiser: AffineOptimiser | VSVFOptimiser) -> None:
        self.network, self.optimiser = network, optimiser

    @property
    def facts(self) -> dict[str, Any]:
        """The optimiser's settings and the smoother's, for ``metrics.json``."""
        smoother = self.network.vsvf.smoother
        stds, weights = (torch.round(v.double(), decimals=6).tolist() for v in (smoother.stds, smoother.weights))
        return {**_settings(self.optimiser), "kernel": {"stds": stds, "weights": weights}}

    def __call__(self, pair: SampledPair) -> Found:
        """Register a pair that is on the network's device."""
        moving, fixed, mask, moving_mask = pair.volumes
        start, objective = _now(fixed), None
        if isinstance(self.optimiser, VSVFOptimiser):
            result = self.optimiser(self.network, moving, fixed, None, mask, moving_mask)
            registration, affine = result.registration, result.affine
            facts = {"evaluations": result.evaluations, "before": result.before.item(), "after": result.after.item()}

            def objective(less: Registration) -> Tensor:
                return self.optimiser.objective(less, fixed, mask, moving_mask)
        else:
            affine, facts = self.optimiser(moving, fixed, None, mask, moving_mask), {}
            with torch.no_grad():
                registration = self.network.integrate(moving, affine.affine, [])
        seconds = {"optimise": _now(fixed) - start}
        return Found(
            registration,
            sum(affine.steps),
            seconds,
            facts={"optimisation": {**_affine_facts(affine), **facts}},
            objective=objective,
        )


class EngineMethod:
    """The engine: its own affine, then one vSVF step a level from coarse to fine; no network, no weights.

    Args:
        network: whose maps carry the result (`bare_network`).
        affine: what finds the affine.
        engine: what finds the deformation.
        affine_only: no deformable stage.
    """

    def __init__(
        self, network: AVSM, affine: AffineEngine, engine: RegistrationEngine, affine_only: bool = False
    ) -> None:
        self.network, self.affine, self.engine, self.affine_only = network, affine, engine, affine_only

    @property
    def facts(self) -> dict[str, Any]:
        """The engine's settings, for ``metrics.json``."""
        return {"name": "RegistrationEngine", **_settings(vars(self.engine.settings))}

    def __call__(self, pair: SampledPair) -> Found:
        """Register a pair that is on the network's device."""
        moving, fixed, mask, moving_mask = pair.volumes
        start = _now(fixed)
        affine = self.affine(moving, fixed, None, mask, moving_mask)
        facts = _affine_facts(affine)
        with torch.no_grad():
            if self.affine_only:
                registration = self.network.integrate(moving, affine.affine, [])
            else:
                found = self.engine(moving, fixed, affine.affine, mask, moving_mask)
                registration = self.network.composed(
                    moving, affine.affine, found.displacement, found.momenta, found.velocities
                )
                facts |= {
                    "evaluations": found.evaluations,
                    "before": found.before.item(),
                    "after": found.after.item(),
                }
        seconds = {"optimise": _now(fixed) - start}
        return Found(registration, sum(affine.steps), seconds, facts={"optimisation": facts})


def chosen_network(method: str, network: AVSM, ckpt_path: str | os.PathLike | None, bare: AVSM) -> AVSM:
    """The network that a method works with: with its weights, or, for the optimisers, nothing but the vSVF unit.

    Args:
        method: one of `METHODS`.
        network: the network of ``avsm``.
        ckpt_path: its weights; not looked at for the optimisers.
        bare: see `bare_network`.

    Raises:
        InputError: for another method, or when the weights of ``avsm`` cannot be loaded (`load_weights`).
    """
    if method not in METHODS:
        raise InputError(f"method={method}: must be one of {', '.join(METHODS)}; correct the option")
    if method != "avsm":
        return bare
    if ckpt_path is None:
        raise InputError("ckpt_path: this network comes without weights; train it, and give the weights that result")
    return load_weights(network, ckpt_path)


def chosen_method(
    method: str,
    network: AVSM,
    inferer: Callable,
    affine_opt: AffineOptimiser,
    vsvf_opt: VSVFOptimiser,
    instance_opt: InstanceOptimiser,
    affine_engine: AffineEngine,
    engine: RegistrationEngine,
    affine_only: bool,
    keep_best_affine: bool,
) -> NetworkMethod | OptimiserMethod | EngineMethod:
    """The method of a name.

    Args:
        method: one of `METHODS`.
        network: of `chosen_network`, on its device.
        inferer: a `RegistrationInferer`.
        affine_opt: what ``affine-opt`` stands for.
        vsvf_opt: what ``vsvf-opt`` stands for.
        instance_opt: after the network, where it takes any steps.
        affine_engine: the affine stage of ``engine``.
        engine: the deformable stage of ``engine``.
        affine_only: refused with ``vsvf-opt``.
        keep_best_affine: see `NetworkMethod`.

    Raises:
        InputError: for a setting that contradicts the method.
    """
    if method == "avsm":
        optimiser = instance_opt if instance_opt.steps > 0 else None
        return NetworkMethod(network, inferer, optimiser, keep_best_affine=keep_best_affine)
    if instance_opt.steps > 0:
        raise InputError(
            f"optimisation_steps={instance_opt.steps}: goes on from a network, which {method} does without; "
            "set it to 0, or give method avsm"
        )
    if method == "engine":
        return EngineMethod(network, affine_engine, engine, affine_only)
    if affine_only and method == "vsvf-opt":
        raise InputError("affine_only: vsvf-opt is deformable; give method affine-opt")
    return OptimiserMethod(network, affine_opt if method == "affine-opt" else vsvf_opt)


def _affine_facts(affine: AffineResult) -> dict[str, Any]:
    """What an affine stage without a network reports, for ``metrics.json``."""
    return {
        "affine_steps": affine.steps,
        "affine_before": affine.before.item(),
        "affine_after": affine.after.item(),
    }


def _settings(value: Any) -> Any:
    """The arguments that an object of ours was built with, as JSON can hold them."""
    if isinstance(value, list | tuple):
        return [_settings(entry) for entry in value]
    if isinstance(value, dict):
        return {name: _settings(entry) for name, entry in value.items()}
    if value is None or isinstance(value, str | int | float):
        return value
    if hasattr(value, "__name__"):  # a function or a class
        return value.__name__
    names = (name for name in vars(value) if not name.startswith("_") and name not in ("training", "reduction"))
    return {"name": type(value).__name__, **{name: _settings(vars(value)[name]) for name in names}}


def _now(tensor: Tensor) -> float:
    if tensor.device.type == "cuda":
        torch.cuda.synchronize(tensor.device)
    return time.perf_counter()
