"""What CONTRIBUTING.md promises: a new similarity is one file and one config line, in training and registration."""

import json
import sys

import pytest

import tiny_bundle as tiny
from register_cases import write_pair
from scripts.registration import Pair, Registrar

TOY = """
class AbsoluteDifference:
    seen = []

    def __call__(self, moved, fixed, mask=None):
        difference = (moved - fixed).abs()
        self.seen.append(float(difference.detach().mean()))
        return difference.flatten(1).mean(1)
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The module of the new similarity, in a folder on the path."""
    (tmp_path / "toy_similarity.py").write_text(TOY)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield {"_target_": "toy_similarity.AbsoluteDifference"}
    sys.modules.pop("toy_similarity", None)


def test_training_by_a_new_similarity(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    tiny.run("train", tmp_path, tmp_path / "run", vsvf_similarity=toy)
    seen = sys.modules["toy_similarity"].AbsoluteDifference.seen
    assert len(seen) >= 2 and all(value > 0 for value in seen)


def test_registration_by_a_new_similarity(toy, tmp_path):
    override = tmp_path / "override.json"
    override.write_text(json.dumps({"similarity": toy}))
    files = write_pair(tmp_path, "alike")
    pair = Pair.read({role: files[role] for role in ("fixed", "moving")})
    result = Registrar(config_files=[override], grid=[24, 32, 24], initialisation="geometry")(pair)
    seen = sys.modules["toy_similarity"].AbsoluteDifference.seen
    assert min(seen) < 0.7 * seen[0]
    optimisation = result.metrics["optimisation"]
    assert optimisation["affine_after"] < optimisation["affine_before"]
    assert optimisation["after"] < 0.9 * optimisation["before"]
    assert result.metrics["settings"]["method"]["similarity"]["name"] == "AbsoluteDifference"
