"""How a pair is registered: affines from several sources, the best of them, then deformable stages one by one.

A source of affines and deformations is a `Stage`: the network with its weights (`NetworkStage`), or optimisation of
this pair alone (`EngineStage`). Which of them a preset has stands in `settings.PRESETS`.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..geometry import identity_affine, warp
from ..losses import MultiKernelLNCC, MutualInformation, alikeness
from ..metrics import settled
from ..networks import AVSM, Registration, bare_network, load_weights
from ..optimize import AffineEngine, Guides, RegistrationEngine
from ..settings import WITH_NETWORK, checked, preset_of
from .accept import SAME, best_length, shortened
from .progress import Tell, nothing
from .sampling import OF_ANY_CONTRAST, SampledPair, landed

__all__ = ["EngineStage", "Found", "Method", "NetworkStage", "Stage", "chosen_method", "chosen_network"]

_NEWTON_STEPS = 5
_LENGTHS = (0.5, 0.25, 0.1, 0.0)
ONE_CONTRAST = 0.06  # the most that local correlation gains by other greys
_MET = 20_000  # voxels of the grid on which greys meet
_REASONS = {
    False: "one contrast: no other scale of grey makes the moving image more like the fixed one",
    True: "two contrasts: the moving image is more like the fixed one with its greys replaced by those that they meet",
}


@dataclass
class Found:
    """What was found for one pair, on its grids.

    Attributes:
        registration: the result.
        affine_steps: steps behind its affine.
        affine_from: what found it: ``network``, ``engine``, or ``initialisation`` where that is the best.
        seconds: wall time of each stage: ``network``, ``optimise``.
        notes: lines for the user.
        facts: what the engine reports, for ``optimisation`` in ``metrics.json``; empty without it.
        optimised: whether the deformation was optimised for this pair, by its images alone.
        guided: whether more than the images' likeness was optimised.
        similarity: what the images are compared by: a name (`settings.SIMILARITIES`), or a loss of one's own.
        others: the same of each of the further pairs of images.
    """

    registration: Registration
    affine_steps: int = 0
    affine_from: str = "initialisation"
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    optimised: bool = False
    guided: bool = False
    similarity: str | Callable = "lncc"
    others: tuple[str | Callable, ...] = ()

    @property
    def similarities(self) -> tuple[str | Callable, ...]:
        """Of all pairs of images."""
        return (self.similarity, *self.others)


class Stage(Protocol):
    """A source of affines and deformations.

    Attributes:
        name: as in `Preset.affines` and `Preset.stages`.
        clock: its name in ``metrics.json``'s ``seconds``.
    """

    name: str
    clock: str

    def affines(self, pair: SampledPair, found: Found) -> list[tuple[Tensor, int]]:
        """Candidates ``(1, 3, 4)``, each with the steps behind it; what was found before may help."""

    def deform(self, pair: SampledPair, found: Found, tell: Tell) -> Registration:
        """A registration that goes on from what was found, with its affine."""

    def settings(self, affine: bool, deform: bool) -> dict[str, Any]:
        """Its settings for ``metrics.json``, of the parts that are used."""


class Method:
    """Registers a pair.

    Args:
        network: whose maps carry the result, with weights, or `bare_network`.
        affines: what is asked for an affine. Of all candidates and the initialisation the most similar goes on.
        stages: the deformable stages.
        similarity: one of `settings.SIMILARITIES`, or a loss ``(B,)`` of (moved, fixed, mask); ``auto`` looks at each
            pair by `alikeness`, where a stage can compare by another one.
        keep_best_affine: False takes the last candidate as it comes, as the paper does.
        guide_weight: of the overlap of the classes that the network's features see in both images; 0 for none.
        settled: see `Preset`.
    """

    def __init__(
        self,
        network: AVSM,
        affines: Sequence[Stage],
        stages: Sequence[Stage],
        similarity: str | Callable = "auto",
        keep_best_affine: bool = True,
        guide_weight: float = 0.0,
        settled: float = 0.0,
    ) -> None:
        self.network, self.affines, self.stages, self.settled = network, list(affines), list(stages), settled
        self.similarity, self.keep_best_affine, self.guide_weight = similarity, keep_best_affine, guide_weight
        self._correlation = MultiKernelLNCC()

    @property
    def facts(self) -> dict[str, Any]:
        """The settings of its stages, for ``metrics.json``."""
        facts = {
            "affines": [stage.name for stage in self.affines],
            "stages": [stage.name for stage in self.stages],
            "similarity": _settings(self.similarity),
            "guide_weight": self.guide_weight,
        }
        for stage in (*self.affines, *self.stages):
            facts |= stage.settings(stage in self.affines, stage in self.stages)
        return facts

    @torch.no_grad()
    def __call__(self, pair: SampledPair, tell: Tell = nothing) -> Found:
        """Register a pair that is on the network's device; ``tell`` gets how far it has come."""
        self.network.eval()
        if self.guide_weight:
            pair = self._guided(pair)
        count = len(pair.each)
        found = self._chosen(pair) if self.similarity == "auto" else self._affine(pair, [self.similarity] * count)
        found.guided = pair.guides is not None or bool(pair.channels)
        if found.facts:
            found.facts["similarity"] = _settings(found.similarity)
            if pair.channels:
                parts = zip(found.others, pair.channels, strict=True)
                found.facts["channels"] = [{"similarity": _settings(one), "weight": of.weight} for one, of in parts]
        for stage in self.stages:
            with _timed(found, stage, pair):
                found.registration = stage.deform(pair, found, tell)
        if self.settled and self.stages and not found.guided:
            with _timed(found, self.stages[-1], pair):
                self._begun_again(pair, found, tell)
        return found

    def _begun_again(self, pair: SampledPair, found: Found, tell: Tell) -> None:
        """From the best rigid motion as well, where little is settled: an affine can lose its way on another shape.

        What settles more is kept, unless its objective is above that of the affine: under an affine that is lost
        correlation is often the higher one. Of two contrasts little is ever settled, and the better objective is kept.
        """
        if (first := _settled(pair, found.registration)) >= self.settled:
            return
        other = self._affine(replace(pair, grids=replace(pair.grids, kind="rigid")), found.similarities)
        other.registration = self.stages[-1].deform(pair, other, lambda part, what: tell(1.0, f"once more, {what}"))
        second = _settled(pair, other.registration)
        if found.similarity in OF_ANY_CONTRAST:
            better = other.facts["after"] < found.facts["after"]
        else:
            better = second > first and other.facts["after"] < found.facts["before"]
        found.facts["begun_again"] = {"settled": [round(first, 4), round(second, 4)], "kept": better}
        if better:
            found.registration, found.affine_from = other.registration, other.affine_from
            found.affine_steps, found.facts = other.affine_steps, found.facts | other.facts

    def _guided(self, pair: SampledPair) -> SampledPair:
        """The pair with the classes that the features see as its labels, unless labels that were given drive it."""
        guides = pair.guides or Guides()
        if guides.labels is not None:
            return pair
        classes = tuple(self.network.features(image) for image in (pair.moving, pair.fixed))
        return replace(pair, guides=replace(guides, labels=classes, label_weight=self.guide_weight))

    def _chosen(self, pair: SampledPair) -> Found:
        """The affine by the similarity that the pair asks for.

        Greys that meet say at the start or under the affine by correlation whether there may be two contrasts, and have
        to say it again under the affine by mutual information; one by correlation makes any images as alike as can be.
        """
        found = self._affine(pair, ["lncc"] * len(pair.each))
        here = self.network.integrate(pair.moving, identity_affine(1, pair.fixed.device), [])
        gains = [max(_gain(one, at) for at in (here, found.registration)) for one in pair.each]
        two, learnt = [gain > ONE_CONTRAST for gain in gains], bool(self.stages) and self.stages[-1].name == "network"
        if any(two):
            other = found if learnt else self._affine(pair, ["mind" if one else "lncc" for one in two])
            gains = [_gain(one, other.registration) for one in pair.each]
            two = [one and gain > ONE_CONTRAST for one, gain in zip(two, gains, strict=True)]
            found = other if any(two) else found
            if not learnt:
                found.similarity, *others = ("mind" if one else "lncc" for one in two)
                found.others = tuple(others)
        if two[0] and learnt:
            found.notes.append("two contrasts, it seems, for which the network was not trained; take preset default")
        found.facts |= {"contrast_gain": round(gains[0], 4), "similarity_reason": _REASONS[two[0]]}
        return found

    def _affine(self, pair: SampledPair, similarities: Sequence[str | Callable]) -> Found:
        """The best affine as a registration of its own; for another kind, the nearest of that kind to each."""

        def seen(affine: Tensor) -> tuple[float, Registration]:
            registration = self.network.integrate(pair.moving, pair.grids.nearest(affine), [])
            loss = 0.0 if pair.guides is None else pair.guides.loss(registration.map)
            for one, similarity in zip(pair.each, similarities, strict=True):
                moved = warp(one.moving, registration.map) if one is not pair else registration.moved
                if similarity in OF_ANY_CONTRAST or not self.stages:  # an affine alone ends by mutual information
                    comparison = MutualInformation()
                    _, compared = comparison.on(one.moving, one.fixed, _common(one, registration))
                    loss += one.weight * compared.loss(compared.moments(moved)).item() / comparison.scale
                else:
                    loss += one.weight * self._correlation(moved, one.fixed, one.mask).item()
            return loss, registration

        best, registration = seen(identity_affine(1, pair.fixed.device))
        found = Found(registration, similarity=similarities[0], others=tuple(similarities[1:]))
        for stage in self.affines:
            with _timed(found, stage, pair):
                candidates = stage.affines(pair, found)
                for affine, steps in candidates if self.keep_best_affine else candidates[-1:]:
                    loss, registration = seen(affine)
                    if loss < best or not self.keep_best_affine:
                        best, found.registration = loss, registration
                        found.affine_steps, found.affine_from = steps, stage.name
        return found


class NetworkStage:
    """The affine network, with Newton steps after it, and the vSVF steps of the momentum network.

    A deformation that is less similar than its affine is shortened: a network can be lost on anatomy that it has never
    seen; the notes then say so.

    Args:
        network: an `AVSM` with its weights.
        inferer: a `RegistrationInferer`.
        similarity: see `Method`.
        newton: False leaves the affine to the network alone, as the paper does.
    """

    name, clock = "network", "network"

    def __init__(
        self, network: AVSM, inferer: Callable, similarity: Callable | None = None, newton: bool = True
    ) -> None:
        self.network, self.inferer, self.newton = network, inferer, newton
        self.similarity = MultiKernelLNCC() if similarity is None else similarity

    def settings(self, affine: bool, deform: bool) -> dict[str, Any]:
        """None: ``settings.network`` of ``metrics.json`` has them."""
        return {}

    def affines(self, pair: SampledPair, found: Found) -> list[tuple[Tensor, int]]:
        """Those of all steps, and Newton steps (`AffineNet.newton`) from the best of them."""
        images = torch.cat([pair.moving, pair.fixed], dim=1)
        affines = self.inferer(images, self.network, vsvf_steps=0).affines
        if not self.newton or not affines:
            return [(affine, steps) for steps, affine in enumerate(affines, start=1)]
        affines = [identity_affine(1, pair.fixed.device), *affines]
        losses = [self._loss(self.network.integrate(pair.moving, affine, []), pair) for affine in affines]
        best = min(range(len(losses)), key=losses.__getitem__)
        more = self.network.affine_net.newton(pair.moving, pair.fixed, _NEWTON_STEPS, affines[best])
        return [(affines[best], best), *((affine, best + count) for count, affine in enumerate(more, start=1))]

    def deform(self, pair: SampledPair, found: Found, tell: Tell) -> Registration:
        """The network's deformation after an affine."""
        before = found.registration
        images = torch.cat([pair.moving, pair.fixed], dim=1)
        registration = self.inferer(images, self.network, affine=before.affine)
        if not registration.velocities or self._loss(registration, pair) <= self._loss(before, pair) + SAME:
            return registration
        shorter = {length: shortened(self.network, registration, length, pair.moving) for length in _LENGTHS}
        length = best_length({length: self._loss(one, pair) for length, one in shorter.items()})
        found.notes.append(
            "the deformation that the network found is less similar than the affine alone; "
            f"{length:g} of it was kept; its weights may not know this anatomy (take preset default, or other weights)"
        )
        return shorter[length]

    def _loss(self, registration: Registration, pair: SampledPair) -> float:
        return self.similarity(registration.moved, pair.fixed, pair.mask).item()


class EngineStage:
    """Optimisation of this pair from coarse to fine; no weights.

    Args:
        network: whose maps carry the result.
        affine: what finds an affine.
        engine: what finds the deformation.
    """

    name, clock = "engine", "optimise"

    def __init__(self, network: AVSM, affine: AffineEngine, engine: RegistrationEngine) -> None:
        self.network, self.affine, self.engine = network, affine, engine

    def settings(self, affine: bool, deform: bool) -> dict[str, Any]:
        """Those of the engines."""
        found = {"affine_engine": _settings(self.affine)} if affine else {}
        return found | ({"engine": _settings(vars(self.engine.settings))} if deform else {})

    def affines(self, pair: SampledPair, found: Found) -> list[tuple[Tensor, int]]:
        """The one that the affine engine finds, of another kind than affine from the best one before."""
        names = ["nmi" if one == "mind" else one for one in found.similarities]
        kind, facts = pair.grids.kind, found.facts
        moving, fixed, mask, moving_mask = pair.seen_by(*(["nmi"] * len(names) if self.affine.last else names))
        start = None if kind == "affine" else found.registration.affine
        engine = self.affine.by(pair.compared_by(*names))
        result = engine(moving, fixed, start, mask, moving_mask, pair.grids.moving.spacing, kind, pair.guides)
        facts["affine_steps"] = result.steps
        facts["affine_before"], facts["affine_after"] = result.before.item(), result.after.item()
        return [(result.affine, sum(result.steps))]

    def deform(self, pair: SampledPair, found: Found, tell: Tell) -> Registration:
        """The best deformation from what was found, or from its affine alone where that is the better start."""
        moving, fixed, mask, moving_mask = pair.seen_by(*found.similarities)
        affine = found.registration.affine
        start = found.registration if found.registration.velocities else None

        def progress(level: int, levels: int, part: float) -> None:
            tell(part, f"level {level} of {levels}")

        engine = self.engine.by(pair.compared_by(*found.similarities))
        better = engine(moving, fixed, affine, mask, moving_mask, start, progress, pair.guides)
        # Labels, landmarks and further images need not leave these as alike as can be.
        found.optimised = pair.guides is None and not pair.channels
        found.facts["evaluations"] = better.evaluations
        found.facts["before"], found.facts["after"] = better.before.item(), better.after.item()
        return self.network.composed(pair.moving, affine, better.displacement, better.momenta, better.velocities)


def chosen_network(
    preset: str,
    network: AVSM | None,
    ckpt_path: str | os.PathLike | None,
    affine_steps: int | None = None,
    vsvf_steps: int | None = None,
    guide_weight: float | None = None,
) -> AVSM:
    """The network of a preset: with its weights, or, where a preset has none, nothing but the vSVF unit.

    Args:
        preset: one of `PRESETS`.
        network: the network; not looked at for a preset without one.
        ckpt_path: its weights; None for a preset without a network.
        affine_steps: of the network; None for its own number, or where there is none.
        vsvf_steps: likewise.
        guide_weight: of a network that guides the engine and has no steps; else None.

    Raises:
        InputError: for another preset, for a network's setting with a preset that has none, for steps of a network
            that guides, or when weights cannot be loaded (`load_weights`).
    """
    if not preset_of(preset).network:
        given = {"ckpt_path": ckpt_path, "affine_steps": affine_steps, "vsvf_steps": vsvf_steps}
        for name, value in given.items():
            if value is not None:
                raise InputError(f"{name}: belongs to a network, and preset {preset} uses none; {WITH_NETWORK}")
        return bare_network()
    if guide_weight and (affine_steps or vsvf_steps):
        raise InputError("affine_steps, vsvf_steps: this network guides the engine, and has no steps; leave them away")
    if ckpt_path is None:
        raise InputError("ckpt_path: this network comes without weights; train it, and give the weights that result")
    return load_weights(network, ckpt_path)


def chosen_method(
    preset: str,
    network: AVSM,
    inferer: Callable,
    affine_engine: AffineEngine,
    engine: RegistrationEngine,
    transform: str,
    keep_best_affine: bool,
    similarity: str | Callable = "auto",
    guide_weight: float | None = None,
    settled: float = 0.0,
) -> Method:
    """The method of a preset.

    Args:
        preset: one of `PRESETS`.
        network: of `chosen_network`, on its device.
        inferer: a `RegistrationInferer`.
        affine_engine: the engine's affine stage.
        engine: its deformable stage.
        transform: one of `TRANSFORMS`; without a deformable stage but for ``deformable``.
        keep_best_affine: False takes the affine of the network's last step as it comes, as the paper does.
        similarity: see `Method`.
        guide_weight: of a network that guides the engine (`Method`), which then stands for the network's stages, too.
        settled: see `Preset`.

    Raises:
        InputError: for another preset or transform.
    """
    found, transform = preset_of(preset), checked("transform", transform)
    deforms = transform == "deformable" and bool(guide_weight or found.stages)
    if deforms:
        affine_engine = copy(affine_engine)
        affine_engine.last = 0
    optimising = EngineStage(network, affine_engine, engine)
    if guide_weight:
        deformable = [optimising] if deforms else []
        return Method(network, [optimising], deformable, similarity, keep_best_affine, guide_weight)
    stages = {"network": NetworkStage(network, inferer, newton=keep_best_affine), "engine": optimising}
    deformable = found.stages if deforms else ()
    affines = found.affines if keep_best_affine or not found.network else ("network",)
    affines, deformable = ([stages[n] for n in names] for names in (affines, deformable))
    return Method(network, affines, deformable, similarity, keep_best_affine, settled=settled)


def _common(pair: SampledPair, registration: Registration) -> Tensor:
    """Where both images can be compared, on the fixed grid."""
    view = warp(pair.view, registration.map)
    return view if pair.mask is None else view * pair.mask


def _settled(pair: SampledPair, registration: Registration) -> float:
    """`settled` of a registration on the pair's grids."""
    return settled(pair.fixed, registration.moved, pair.mask, landed(pair.view, registration.map))


def _gain(pair: SampledPair, registration: Registration) -> float:
    """What `alikeness` gains by other greys on a coarse grid, where what is not yet aligned still meets.

    The greys of either image are replaced: a scale that is folded has forgotten how to go back.
    """
    images = (warp(pair.moving, registration.map), pair.fixed, _common(pair, registration))
    every = max(2, math.ceil((pair.fixed.numel() / _MET) ** (1 / 3)))
    moved, fixed, mask = (F.avg_pool3d(one, every, ceil_mode=True) for one in images)
    found = alikeness(moved, fixed, mask), alikeness(fixed, moved, mask)
    return max(met - plain for plain, met in found)


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
    names = (name for name in vars(value) if not name.startswith("_") and name != "training")
    return {"name": type(value).__name__, **{name: _settings(vars(value)[name]) for name in names}}


@contextmanager
def _timed(found: Found, stage: Stage, pair: SampledPair) -> Iterator[None]:
    """Adds the time that a stage takes."""

    def now() -> float:
        if pair.fixed.device.type == "cuda":
            torch.cuda.synchronize(pair.fixed.device)
        return time.perf_counter()

    start = now()
    yield
    found.seconds[stage.clock] = found.seconds.get(stage.clock, 0.0) + now() - start
