"""The verdict on a registration: PASS, CHECK or FAIL, why in words, where not to trust it, and what to do.

It rests on measures that need no labels (`metrics.doubt`). How they are weighed, and from where on they doubt, was
calibrated on pairs whose truth is known: benchmarks/verdict.py, benchmarks/results/verdict.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from .numbers import find, number, worse_labels

PASS, CHECK, FAIL = OUTCOMES = ("PASS", "CHECK", "FAIL")


class Limit(NamedTuple):
    """From where on a measure speaks against a registration.

    Attributes:
        check: a failure is as likely as not.
        fail: nine of ten are failures.
        most: doubt that it casts at most: there are good results of which it says the worst.
        what: it says, with the ``value``, the ``rest`` to 1, the ``limit`` of good results, and any measure.
        advice: what to do about it.
    """

    check: float
    fail: float
    most: float
    what: str
    advice: str

    def doubt(self, value: float) -> float:
        """The chance of a failure."""
        odds = _NINE_OF_TEN * (value - self.check) / (self.fail - self.check)
        return min(1 / (1 + math.exp(-max(min(odds, 50), -50))), self.most)


_NINE_OF_TEN = math.log(9)
_UNSURE = 0.8
_LOOK = "See in the pictures whether both images show the same region the same way up"
# Calibrated by benchmarks/verdict.py. Each measure can doubt a result alone: what is wrong in one way is wrong.
LIMITS = {
    "settled": Limit(
        0.64,
        0.45,
        1.0,
        "In {rest:.0%} of the content a shift by a few voxels matches better (good results: {limit:.0%} or less): "
        "structures are not aligned there",
        f"{_LOOK}; if so, blend fixed and moved image and try preset best; if not, try initialisation search.",
    ),
    "rival": Limit(
        0.94,
        1.25,
        1.0,
        "In another orientation the images match {value:.2f} times as well as under the affine: the orientation that "
        "was found is probably wrong (good results: {limit:.2f} or less)",
        f"{_LOOK}; see that landmarks, if given, are in one order; mend the header, or use initialisation search.",
    ),
    "mirror": Limit(
        0.985,
        1.005,
        _UNSURE,
        "The moving image mirrored left for right fits as well ({value:.2f} times): sides may be swapped, and each "
        "side matched to the other's",
        "Make sure that left is left in both images; what differs between the sides is lost where it is not.",
    ),
    "missed": Limit(
        0.36,
        0.6,
        _UNSURE,
        "At its own size the moving image would miss {value:.0%} of the fixed image's content (good results: "
        "{limit:.0%} or less): {outside:.0%} lies outside of it, and the affine stretches {stretch:.2f}-fold",
        "See the spacing in both headers, and whether both images show the same region; do not use the result outside "
        "the moving image (a fixed mask keeps it out).",
    ),
}
"""Measure → its limits, in the order in which reasons are told."""
# Two contrasts are left less alike than one, and by networks, above all those that learnt from labels, any images:
# there structures that agree well speak for a result in which few places are settled.
_TWO, _LEARNT = (
    {name: LIMITS["settled"]._replace(check=check, fail=fail) for name, (check, fail) in limits.items()}
    for limits in (
        {"settled": (0.56, 0.25), "agreement": (0.41, 0.3)},
        {"settled": (0.22, 0.1), "agreement": (0.28, 0.15)},
    )
)
_CHECK, _FAIL = 0.5, 0.9
_NAMED = 6  # labels named in a line
_FALL = 0.01  # of the mean Dice


class Reason(NamedTuple):
    """Something that speaks against a registration: what, and what to do about it."""

    what: str
    advice: str


@dataclass(frozen=True)
class Verdict:
    """What a registration is worth, as far as can be told without labels.

    Attributes:
        outcome: ``"PASS"``, ``"CHECK"`` (look at it before it is used) or ``"FAIL"`` (do not use it).
        doubt: the probability of a failure among registrations like those of the calibration, 0 to 1.
        reasons: the worst first; empty for nothing against it.
        measures: what it rests on.
        least_sure: where the result is least sure, in words; empty where nothing stands out.
    """

    outcome: str
    doubt: float
    reasons: tuple[Reason, ...]
    measures: Mapping[str, float]
    least_sure: str = ""

    def __str__(self) -> str:
        return self.outcome

    @property
    def headline(self) -> str:
        """The outcome and what it means, in a few words."""
        return {
            PASS: "PASS: the structures of both images are aligned",
            CHECK: "CHECK: look at it before it is used",
            FAIL: "FAIL: do not use this result",
        }[self.outcome]

    @property
    def answer(self) -> str:
        """Whether it worked, in a sentence."""
        return {
            PASS: "Yes, as far as the images alone can tell.",
            CHECK: "That is not sure.",
            FAIL: "Most likely not.",
        }[self.outcome]

    @property
    def advice(self) -> list[str]:
        """What to do now, each once."""
        if self.outcome == PASS:
            return ["Nothing is needed. Where precision matters, look at the least sure region by blending."]
        found = list(dict.fromkeys(reason.advice for reason in self.reasons))
        # Where all is wrong, one thing at a time.
        return found[:1] if self.outcome == FAIL else found

    @property
    def where(self) -> str:
        """Where not to trust the result, in words; empty where nothing stands out."""
        return "Trust it nowhere" if self.outcome == FAIL else self.least_sure

    @property
    def facts(self) -> dict[str, Any]:
        """The content of ``verdict`` in ``metrics.json``."""
        return {**asdict(self), "reasons": [reason._asdict() for reason in self.reasons], "advice": self.advice}

    @classmethod
    def of(cls, metrics: Mapping[str, Any]) -> Verdict | None:
        """The verdict in the content of ``metrics.json``; None without one."""
        facts = metrics.get("verdict")
        if facts is None:
            return None
        reasons = tuple(Reason(**reason) for reason in facts["reasons"])
        return cls(facts["outcome"], facts["doubt"], reasons, facts["measures"], facts["least_sure"])


def judge(
    measures: Mapping[str, float], metrics: Mapping[str, Any], least_sure: str = "", optimised: Any = "lncc"
) -> Verdict:
    """Weigh the measures of a registration.

    Args:
        measures: ``settled``, ``agreement`` and ``outside`` (see `metrics.Doubt`), ``rival`` (how alike the images are
            in the best of other orientations, as a part of what the affine reaches), ``mirror`` (the agreement of the
            mirrored image, as such a part), ``stretch`` (the largest factor by which the affine stretches or shrinks
            along a direction), ``missed`` (what would be outside without that), and others, for the record.
        metrics: content of ``metrics.json``, of which folds and labels count.
        least_sure: see `Verdict`.
        optimised: the similarity (a name, or a loss of one's own) by which the deformation was optimised for the pair;
            None where it was not. What a network found need not leave the images as alike as can be, an affine alone
            (whose ``agreement`` is ``affine_agreement``) need not at all.
    """
    doubts = {name: limit.doubt(measures[name]) for name, limit in LIMITS.items()}
    alike = _LEARNT if optimised is None else {} if optimised == "lncc" else _TWO
    if alike:
        doubts["settled"] = min(limit.doubt(measures[name]) for name, limit in alike.items())
    if optimised is None and measures["agreement"] == measures["affine_agreement"]:
        del doubts["settled"]
    doubt = max(doubts.values())
    against = sorted((name for name in doubts if doubts[name] >= _CHECK), key=doubts.__getitem__, reverse=True)
    limits = LIMITS | alike
    reasons = [*(_reason(name, measures, limits[name]) for name in against), *_folds(metrics), *_labels(metrics)]
    doubt = max(doubt, _CHECK) if reasons else doubt
    outcome = FAIL if doubt >= _FAIL else CHECK if reasons else PASS
    return Verdict(outcome, round(doubt, 4), tuple(reasons), dict(measures), least_sure)


def _reason(name: str, measures: Mapping[str, float], limit: Limit) -> Reason:
    """The words for a measure beyond its limit."""
    value = measures[name]
    bound = 1 - limit.check if name == "settled" else limit.check
    return Reason(limit.what.format(value=value, rest=1 - value, limit=bound, **measures), limit.advice)


def _folds(metrics: Mapping[str, Any]) -> Iterator[Reason]:
    folds = metrics.get("folds") or 0
    if folds > 0:
        yield Reason(
            f"Space is folded in {folds} voxel{'s' * (folds > 1)} of the fixed image: labels are wrong there",
            "Do not trust the transform there (red in the pictures).",
        )


def _labels(metrics: Mapping[str, Any]) -> Iterator[Reason]:
    before, final = (find(metrics, "labels", "mean", "dice", stage) for stage in ("before", "final"))
    if before is None or final is None or not before - final > _FALL:
        return
    labels = worse_labels(metrics)
    changes = [
        f"{label} ({' → '.join(number(find(metrics, 'labels', label, 'dice', s)) for s in ('before', 'final'))})"
        for label in labels[:_NAMED]
    ]
    more = f" and {len(labels) - _NAMED} more" if len(labels) > _NAMED else ""
    yield Reason(
        f"Labels overlap less than before the registration: {', '.join(changes)}{more}",
        "Compare the outlines in the moving and the moved image; see that a value means the same in both label maps.",
    )


def least_sure(
    uncertainty: np.ndarray, weight: np.ndarray, points: np.ndarray, fixed: Any
) -> tuple[str, dict[str, float]]:
    """Where a result is least sure, in words, and how unsure it is, mm.

    Of an ``uncertainty`` in mm and a ``weight``, how much structure there is, both ``(N,)``, at points ``(N, 3)``, RAS
    mm. Returns the words, and ``mean`` and ``p90`` over the content, ``largest`` at the place that is told.
    """
    order = np.argsort(uncertainty)
    share = np.cumsum(weight[order]) / max(weight.sum(), 1e-12)
    tenth = float(uncertainty[order][min(np.searchsorted(share, 0.9), len(order) - 1)])
    # A place of little structure says little, however unsure.
    worst = int(np.argmax(weight * uncertainty))
    voxel = np.clip(np.round(fixed.world_to_voxel(points[worst])), 0, np.array(fixed.shape) - 1).astype(int)
    facts = {
        "mean": float((uncertainty * weight).sum() / max(weight.sum(), 1e-12)),
        "p90": tenth,
        "largest": float(uncertainty[worst]),
    }
    words = (
        f"Structures may be off by {facts['largest']:.1f} mm around voxel ({', '.join(map(str, voxel))})"
        f"{_side(points[worst], fixed)}; in nine tenths of the content by at most {tenth:.1f} mm"
    )
    return words, {name: round(value, 3) for name, value in facts.items()}


def _side(point: Sequence[float], fixed: Any) -> str:
    """On which sides of the middle of an image a point lies, in the patient's words."""
    reach = np.abs(fixed.corners - fixed.centre).max(axis=0)
    part = (np.asarray(point) - fixed.centre) / np.maximum(reach, 1e-9)
    names = (("left", "right"), ("back", "front"), ("bottom", "top"))
    said = [low if where < 0 else high for where, (low, high) in zip(part, names, strict=True) if abs(where) > 0.15]
    return f", {' '.join(said)} of the middle" if said else ", near the middle"
