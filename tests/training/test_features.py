"""A whole training with features, poses, fields of view and true affines on labelled files, three phases, resumed."""

import json

import pytest

import tiny_bundle as tiny
from scripts.data import AugmentedPairs
from scripts.synthetic.phantom import write_phantom_pair

AUGMENT = {"_target_": "RandAdjustContrastd", "keys": ["fixed", "moving"], "prob": 0.5, "gamma": [0.7, 1.5]}


@pytest.fixture(scope="module")
def overrides(tmp_path_factory):
    """Settings of a training on four labelled images as files, two of them held out for validation."""
    root = tmp_path_factory.mktemp("knees")
    images = []
    for seed in (1, 2):
        listing = json.loads(write_phantom_pair(root, shape=(18, 16, 20), seed=seed).read_text())
        images += [{**item, "subject": f"{item['subject']} {seed}"} for item in listing["training"]]
    (root / "dataset.json").write_text(json.dumps({"training": images}))
    return {
        **tiny.WITH_FEATURES, "dataset_dir": str(root), "pair_mode": "cross_subject", "train_holdout": 0.5,
        "train_pairs": 2, "batch_size": 2, "val_section": "training", "val_part": "holdout", "augment": AUGMENT,
    }  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, overrides):
    """A finished training and its output folder."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    return tiny.run("train", folder, folder / "out", **overrides), folder / "out"


def changed(first, second):
    """The parts of the network whose weights differ."""
    return {name.split(".")[0] for name in first if not first[name].equal(second[name])}


def test_pairs_are_posed_and_those_of_validation_are_others(uninterrupted):
    parser = uninterrupted[0].parser
    train, validate = (parser.get_parsed_content(f"{part}#dataset") for part in ("train", "validate"))
    assert isinstance(train, AugmentedPairs) and (train.twins, train.flow, train.still) == (0.4, 0.5, 0.2)
    assert not isinstance(validate, AugmentedPairs) and "affine" not in validate[0]
    files = [
        {item[role] for item in data for role in ("fixed", "moving")} for data in (train.source.data, validate.data)
    ]
    assert [len(found) for found in files] == [2, 2] and not files[0] & files[1]


def test_run_goes_through_all_phases(uninterrupted):
    run, output_dir = uninterrupted
    last = tiny.last(output_dir)
    assert last["epoch"] == 4 and last["best"]["phase"] == "vsvf"
    metrics = run.parser.get_parsed_content("validate#evaluator").state.metrics
    for name in ("dice_features", "dice_affine", "dice_final", "loss", "loss_similarity"):
        assert 0 < metrics[name] < 100, name
    settings = json.loads(last["settings"])
    assert settings["pose"] == tiny.WITH_FEATURES["pose"] and settings["affine_target"] == 1.0
    assert [phase["stage"] for phase in settings["phases"]] == ["features", "affine", "vsvf"]


def test_stopped_in_the_second_phase_and_resumed_ends_with_the_same_weights(uninterrupted, overrides, tmp_path):
    begin = tiny.workflow("train", tmp_path, tmp_path / "begin", **overrides).network_def.state_dict()
    fail = {"+train#handlers": [{"_target_": "tiny_bundle.FailAt", "epoch": 3}]}
    with pytest.raises(RuntimeError) as caught:
        tiny.run("train", tmp_path, tmp_path / "out", **overrides, **fail)
    assert "the test's own failure" in f"{caught.value} {caught.value.__cause__}"
    featured = tiny.weights(tmp_path / "out")
    assert tiny.last(tmp_path / "out")["epoch"] == 2 and changed(begin, featured) == {"features"}
    tiny.run("train", tmp_path, tmp_path / "out", **overrides)
    first, second = tiny.last(uninterrupted[1]), tiny.last(tmp_path / "out")
    assert tiny.equal_weights(first["network"], second["network"]) and first["best"] == second["best"]
    # What was trained first stays as it was.
    assert changed(featured, second["network"]) == {"affine_net", "momentum_net"}
