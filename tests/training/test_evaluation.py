"""Measures of an evaluation against direct calls, and the files that it leaves."""

import csv
import json
import math

import pytest
import torch
from ignite.engine import Engine
from monai.data import DataLoader
from monai.engines.utils import IterationEvents
from monai.metrics import compute_dice

import tiny_bundle as tiny
from scripts.geometry import count_folds, std_log_jacobian, warp
from scripts.losses import AffineObjective, VSVFObjective, inverse_consistency, inverse_consistency_error
from scripts.metrics.maps import feature_measures
from scripts.networks.inferer import RegistrationInferer
from scripts.synthetic import GeneratedPairs, KneePhantom, generated_pairs
from scripts.training.curriculum import Curriculum
from scripts.training.handlers import PairTable
from scripts.training.updates import EvaluationUpdate

LABELS = [1, 2, 3, 4]
SHAPE = (20, 16, 24)


def make_batch(*absent):
    (batch,) = DataLoader(GeneratedPairs(generated_pairs(2), KneePhantom(SHAPE)), batch_size=2)
    return {key: value for key, value in batch.items() if key not in absent}


def evaluated(batch, epoch=1, network=None, **options):
    """An engine that has just evaluated a batch."""
    update = EvaluationUpdate(LABELS, **options)
    engine = Engine(update)
    engine.register_events(*IterationEvents)
    engine.network = tiny.tiny_network() if network is None else network
    engine.inferer = RegistrationInferer()
    engine.state.device, engine.state.epoch, engine.state.batch = torch.device("cpu"), epoch, batch
    update(engine, batch)
    return engine


@pytest.fixture(scope="module")
def engine():
    return evaluated(make_batch())


def test_measures_are_those_of_direct_calls(engine):
    batch, output = engine.state.batch, engine.state.output
    measures, registration = output["measures"], output["registration"]
    fixed, moving = batch["fixed"].as_tensor(), batch["moving"].as_tensor()
    with torch.no_grad():
        forward, backward = engine.network.register(moving, fixed), engine.network.register(fixed, moving)
    assert output["names"] == list(batch["name"]) and registration.map.equal(forward.map)
    for stage, coordinates in (("before", None), ("affine", forward.affine_map), ("final", forward.map)):
        label = batch["moving_label"].as_tensor()
        moved = label if coordinates is None else warp(label, coordinates, mode="nearest")
        for value in LABELS:
            expected = compute_dice(moved == value, batch["fixed_label"].as_tensor() == value)[:, 0]
            torch.testing.assert_close(measures[f"dice_{stage}_{value}"].float(), expected, equal_nan=True)
        means = torch.stack([measures[f"dice_{stage}_{value}"] for value in LABELS]).nanmean(0)
        torch.testing.assert_close(measures[f"dice_{stage}"], means)
    count, amount = count_folds(forward.map)
    expected = {
        "folds": count,
        "folds_sum": amount,
        "std_log_jacobian": std_log_jacobian(forward.map),
        # At most a quarter of an axis is left out.
        "inverse_consistency": inverse_consistency(forward.map, backward.map, 4),
        "inverse_consistency_voxels": inverse_consistency_error(forward.map, backward.map, margin=4),
    }
    for name, value in expected.items():
        torch.testing.assert_close(measures[name].float(), value.float(), msg=name)
    assert (measures["seconds"] > 0).all()
    assert (measures["std_log_jacobian"] > 0).all(), "the network of the test must deform"


@pytest.mark.parametrize(("epoch", "steps"), [(1, (5, 0)), (2, (2, 3))])
def test_steps_and_loss_of_the_phase(epoch, steps):
    phases = [
        {**tiny.PHASES[0], "epochs": 1, "validation_affine_steps": 5},
        {**tiny.PHASES[2], "epochs": 1, "validation_vsvf_steps": 3},
    ]
    objectives = {"affine_objective": AffineObjective(), "vsvf_objective": VSVFObjective()}
    engine = evaluated(make_batch(), epoch, curriculum=Curriculum(phases), **objectives)
    registration, measures = engine.state.output["registration"], engine.state.output["measures"]
    assert (len(registration.affines), len(registration.maps)) == steps
    batch = engine.state.batch
    fixed, moving = batch["fixed"].as_tensor(), batch["moving"].as_tensor()
    with torch.no_grad():
        both = engine.network.register(torch.cat([moving, fixed]), torch.cat([fixed, moving]), *steps)
        parts = objectives["affine_objective" if epoch == 1 else "vsvf_objective"](both, torch.cat([fixed, moving]), 0)
    for name, part in parts.items():
        measured = measures["loss" if name == "loss" else f"loss_{name}"]
        torch.testing.assert_close(measured.float(), part.expand(2), rtol=1e-4, atol=1e-6)


def test_dice_of_features_is_that_of_their_largest_membership():
    network, batch = tiny.tiny_network(features=4), make_batch()
    measured = evaluated(batch, network=network).state.output["measures"]["dice_features"]
    fixed, label = batch["fixed"].as_tensor(), batch["fixed_label"].as_tensor()
    with torch.no_grad():
        found = network.features.logits(fixed).argmax(1, keepdim=True)
    expected = torch.stack([compute_dice(found == value, label == value)[:, 0] for value in LABELS]).nanmean(0)
    torch.testing.assert_close(measured.float(), expected)
    # Of features that know the truth it is 1, whatever the order and the values of the labels.
    for labels in (LABELS, [4, 2, 1, 3], [2, 9, 1, 3]):
        truth = torch.cat([(label == value).float() for value in labels], 1)
        assert feature_measures(truth, label, labels)["dice_features"].tolist() == pytest.approx([1, 1])
    nothing = torch.full_like(truth, 0.1)
    assert feature_measures(nothing, label, LABELS)["dice_features"].tolist() == [0, 0]


def test_pair_table(tmp_path):
    table = PairTable(tmp_path / "new" / "folder", {"weights": "abc"})
    engine = Engine(lambda *_: None)
    outputs = [{"names": ["a", "b"],
        "measures": {"dice_final": torch.tensor([0.5, math.nan]), "folds": torch.tensor([0.0, 2])}}, {"names": ["c,d"],
        "measures": {"folds": torch.tensor([1.0])}}]  # fmt: skip
    for _run in range(2):
        table.start(engine)
        for engine.state.output in outputs:
            table.collect(engine)
        table.write(engine)
    table.claim.close()
    rows = list(csv.DictReader((tmp_path / "new" / "folder" / "pairs.csv").open(newline="")))
    assert [row["name"] for row in rows] == ["a", "b", "c,d"]
    assert [row["dice_final"] for row in rows] == ["0.5", "nan", "nan"]
    assert [float(row["folds"]) for row in rows] == [0, 2, 1]
    summary = json.loads((tmp_path / "new" / "folder" / "summary.json").read_text())
    assert summary["pairs"] == 3 and summary["weights"] == "abc"
    assert summary["dice_final"] == 0.5 and summary["folds"] == 1.0
    assert len(list((tmp_path / "new" / "folder").iterdir())) == 2
