"""The curriculum: tables of phases, learning rates, and what an epoch's start sets up."""

import pytest
import torch
from ignite.engine import Engine

import tiny_bundle as tiny
from scripts.errors import InputError
from scripts.training.curriculum import Curriculum, CurriculumHandler, Phase

AFFINE = {"name": "a", "stage": "affine", "epochs": 3, "affine_steps": 1}
VSVF = {"name": "v", "stage": "vsvf", "epochs": 2, "affine_steps": 7, "vsvf_steps": 2}
FEATURES = {"name": "f", "stage": "features", "epochs": 2, "affine_steps": 0}

BAD_PHASES = [
    ({"stage": "rigid"}, "stage must be one of features, affine, vsvf, got 'rigid'"),
    ({"epochs": 2.5}, "epochs=2.5; give a whole number"),
    ({"affine_steps": 0}, "needs affine_steps of at least 1"),
    ({"stage": "vsvf"}, "a vsvf phase needs vsvf_steps of at least 1"),
    ({"stage": "features"}, "a features phase needs affine_steps 0 and vsvf_steps 0"),
    ({"learning_rate": 0}, "must be positive"),
    ({"validation_affine_steps": -7}, "validation_affine_steps=-7 must not be negative"),
    ({"pears": 1}, "unexpected keyword argument 'pears'"),
]


@pytest.mark.parametrize(("fields", "message"), BAD_PHASES)
def test_bad_phase(fields, message):
    with pytest.raises(InputError) as caught:
        Curriculum([{**AFFINE, **fields}])
    assert message in str(caught.value) and "a" in str(caught.value) and "\n" not in str(caught.value)


def test_at_counts_through_the_phases():
    curriculum = Curriculum([AFFINE, {**AFFINE, "name": "none", "epochs": 0}, Phase(**VSVF)])
    assert curriculum.total_epochs == 5
    found = [(phase.name, within) for phase, within in map(curriculum.at, range(1, 6))]
    assert found == [("a", 0), ("a", 1), ("a", 2), ("v", 0), ("v", 1)]
    for epoch in (0, 6, -1):
        with pytest.raises(ValueError, match="outside the curriculum of 5 epochs"):
            curriculum.at(epoch)


RATES = [
    ({}, [1.0] * 60 + [0.5] * 60 + [0.25]),
    ({"decay_every": 2, "decay_factor": 0.1}, [1.0, 1.0, 0.1, 0.1, 0.01]),
    ({"warmup_epochs": 2}, [0.1, 0.1, 1.0, 1.0]),
    ({"warmup_epochs": 3, "warmup_factor": 0.5, "decay_every": 2}, [0.5, 0.5, 0.25, 0.5, 0.25]),
    ({"decay_every": 0}, [1.0] * 200),
]


@pytest.mark.parametrize(("fields", "expected"), RATES)
def test_rate(fields, expected):
    phase = Phase(**{**AFFINE, "learning_rate": 1.0, **fields})
    assert [phase.rate(epoch) for epoch in range(len(expected))] == pytest.approx(expected)


@pytest.fixture
def handled():
    network = tiny.tiny_network()
    optimizer = torch.optim.Adam(network.parameters(), lr=99.0)
    curriculum = Curriculum(
        [{**AFFINE, "learning_rate": 0.1}, {**VSVF, "learning_rate": 0.2, "warmup_epochs": 1, "warmup_factor": 0.5}]
    )
    return network, optimizer, CurriculumHandler(curriculum, network, optimizer)


def engine_at(epoch):
    engine = Engine(lambda *_: None)
    engine.state.epoch = epoch
    return engine


@pytest.mark.parametrize(("epoch", "kept"), [(2, True), (3, True), (4, False), (5, True)])
def test_handler_resets_the_optimiser_at_a_new_phase_only(handled, epoch, kept):
    network, optimizer, handler = handled
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert optimizer.state
    handler(engine_at(epoch))
    assert bool(optimizer.state) is kept
    assert any(parameter.grad is not None for parameter in network.parameters()) is kept


PARTS = {"features": "features.", "affine": "affine_net.", "vsvf": "momentum_net."}


@pytest.mark.parametrize(("epoch", "stage"), [(1, "features"), (2, "features"), (3, "affine"), (6, "vsvf")])
def test_a_stage_trains_its_part_of_the_network_alone(epoch, stage):
    network = tiny.tiny_network(features=4)
    optimizer = torch.optim.SGD(network.parameters(), lr=99.0)
    handler = CurriculumHandler(Curriculum([FEATURES, AFFINE, VSVF]), network, optimizer)
    # Whatever stage came before.
    for before in (1, 3, 6, epoch):
        handler(engine_at(before))
    for name, parameter in network.named_parameters():
        assert parameter.requires_grad is name.startswith(PARTS[stage]), name
