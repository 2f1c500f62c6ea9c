"""The verdict: what measures lead to which outcome, the words for it, and where a result is least sure."""

import json

import numpy as np
import pytest

from report_cases import stages
from scripts.report import Verdict, judge
from scripts.report.verdict import CHECK, FAIL, LIMITS, least_sure
from scripts.spatial import Frame

GOOD = {"settled": 0.9, "rival": 0.4, "mirror": 0.7, "outside": 0.0, "stretch": 1.1, "agreement": 0.7, "missed": 0.1}
APART = {"settled": 0.05, "agreement": 0.1}
WORSE = {"labels": {"2": {"dice": stages(0.5, 0.6, 0.4)}, "mean": {"dice": stages(0.5, 0.6, 0.4)}}}
MANY = {str(label): {"dice": stages(0.5, 0.6, 0.4)} for label in range(9)}


@pytest.mark.parametrize(("measures", "metrics", "outcome", "words"), [
    ({}, {"folds": 0}, "PASS", []),
    (APART, {}, "FAIL", ["In 95% of the content"]),
    ({"settled": 0.5, "agreement": 0.4}, {}, "CHECK", ["In 50% of the content"]),
    ({"agreement": 0.1}, {}, "PASS", []),
    ({"rival": 1.0}, {}, "CHECK", ["1.00 times as well"]),
    (APART | {"rival": 2.0}, {}, "FAIL", ["2.00 times as well", "In 95% of the content"]),
    ({"mirror": 1.0}, {}, "CHECK", ["fits as well (1.00 times)"]),
    ({"missed": 0.5, "outside": 0.4}, {}, "CHECK", ["miss 50% of the fixed image's content"]),
    ({"missed": 0.5, "stretch": 2.0}, {}, "CHECK", ["2.00-fold"]),
    ({}, {"folds": 1}, "CHECK", ["folded in 1 voxel of"]),
    ({}, WORSE, "CHECK", ["2 (0.500 → 0.400)"]),
    ({}, {"labels": WORSE["labels"] | MANY}, "CHECK", ["and 3 more"]),
    ({}, {"labels": {"mean": {"dice": stages(0.5, 0.6, 0.495)}}}, "PASS", []),
    (APART, {"folds": 3}, "FAIL", ["In 95% of the content", "folded in 3 voxels"]),
])  # fmt: skip
def test_outcomes_and_their_reasons(measures, metrics, outcome, words):
    verdict = judge(GOOD | measures, metrics)
    assert str(verdict) == verdict.outcome == outcome and verdict.headline.startswith(outcome)
    assert len(verdict.reasons) == len(words)
    assert all(said in reason.what and reason.advice for said, reason in zip(words, verdict.reasons, strict=True))
    assert verdict.advice and (len(verdict.advice) == 1 or outcome == CHECK)
    assert verdict.where == ("Trust it nowhere" if outcome == FAIL else "")
    assert Verdict.of(json.loads(json.dumps({"verdict": verdict.facts}))) == verdict


@pytest.mark.parametrize(("measures", "outcome"), [
    (APART | {"affine_agreement": 0.1}, "PASS"),
    (APART | {"affine_agreement": 0.05}, "FAIL"),
    ({"settled": 0.3, "agreement": 0.2, "affine_agreement": 0.1}, "PASS"),
    ({"settled": 0.15, "agreement": 0.2, "affine_agreement": 0.1}, "CHECK"),
    (APART | {"affine_agreement": 0.1, "rival": 1.3}, "FAIL"),
], ids=str)  # fmt: skip
def test_what_was_not_optimised_need_not_be_settled(measures, outcome):
    """A network's result less than one that was optimised, an affine alone not at all."""
    assert judge(GOOD | measures, {}, optimised=None).outcome == outcome


def test_two_contrasts_are_left_less_alike_than_one():
    """Of two, one of both measures may speak for a result."""
    for measures, one, two in (
        ({"settled": 0.6, "agreement": 0.43}, "CHECK", "PASS"),
        ({"settled": 0.05}, "FAIL", "PASS"),
        ({"settled": 0.5, "agreement": 0.38}, "CHECK", "CHECK"),
    ):
        assert [judge(GOOD | measures, {}, optimised=name).outcome for name in ("lncc", "mind")] == [one, two]


def test_doubt_falls_with_every_measure_that_speaks_for_a_result():
    for name, limit in LIMITS.items():
        values = np.linspace(2 * limit.fail - limit.check, 3 * limit.check - 2 * limit.fail, 9)
        doubts = [judge(GOOD | {"agreement": 0.1, name: value}, {}).doubt for value in values]
        assert doubts == sorted(doubts, reverse=True) and doubts[0] >= 0.8 and doubts[-1] < 0.1, name
    assert Verdict.of({}) is None


def test_where_a_result_is_least_sure():
    """Of places with structure the most unsure; RAS: right, front and top are positive."""
    frame = Frame((11, 11, 11), np.diag([2.0, 2, 2, 1]))
    points = np.array([[2.0, 18, 18], [18, 2, 10], [10, 10, 10], [0, 0, 0]])
    words, facts = least_sure(np.array([1.0, 3.0, 0.5, 9.0]), np.array([0.4, 0.35, 0.2, 0.0]), points, frame)
    assert "3.0 mm around voxel (9, 1, 5), right back of the middle" in words
    assert facts == {"mean": pytest.approx(1.632, abs=1e-3), "p90": 3.0, "largest": 3.0}
    words, _ = least_sure(np.array([1.0]), np.array([1.0]), np.array([[10.0, 10, 10]]), frame)
    assert "near the middle" in words
