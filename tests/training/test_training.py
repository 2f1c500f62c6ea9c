"""One training iteration, and what is kept of the network: both directions, objective, clipping, best and last."""

import math

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from torch.utils.data import default_collate

import tiny_bundle as tiny
from scripts.data import AugmentedPairs
from scripts.geometry import compose_affines, identity_affine
from scripts.losses import AffineObjective, FeatureObjective, VSVFObjective
from scripts.networks.inferer import RegistrationInferer
from scripts.synthetic import GeneratedPairs, KneePhantom, generated_pairs
from scripts.training.checkpoints import Checkpoints
from scripts.training.curriculum import Curriculum
from scripts.training.updates import TrainingUpdate, both_directions, known_of_pairs

CURRICULUM = Curriculum([{**phase, "epochs": 1} for phase in tiny.PHASES])
CPU = torch.device("cpu")


def make_batch(count=2):
    items = GeneratedPairs(generated_pairs(count), KneePhantom(tiny.GRID))
    keys = ("fixed", "moving", "fixed_label", "moving_label")
    return default_collate([{key: items[index][key].as_tensor() for key in keys} for index in range(count)])


def make_engine(epoch):
    engine = Engine(lambda *_: None)
    engine.network = tiny.tiny_network()
    engine.network.affine_net.requires_grad_(epoch < 3)
    engine.network.momentum_net.requires_grad_(epoch == 3)
    engine.optimizer = torch.optim.SGD([p for p in engine.network.parameters() if p.requires_grad], lr=1.0)
    engine.inferer = RegistrationInferer()
    engine.state.epoch, engine.state.iteration, engine.state.device = epoch, 1, CPU
    engine.register_events(*IterationEvents)
    return engine


def test_both_directions():
    batch = make_batch()
    moving, fixed, moving_label, fixed_label = both_directions(batch, CPU)
    for joint, first, second in (
        (moving, "moving", "fixed"),
        (fixed, "fixed", "moving"),
        (moving_label, "moving_label", "fixed_label"),
        (fixed_label, "fixed_label", "moving_label"),
    ):
        assert joint[:2].equal(batch[first]) and joint[2:].equal(batch[second])
    for absent in ("fixed_label", "moving_label"):
        without = {key: value for key, value in batch.items() if key != absent}
        assert both_directions(without, CPU)[2:] == (None, None)


def test_clipping():
    engine = make_engine(3)
    before = {name: value.detach().clone() for name, value in engine.network.named_parameters()}
    TrainingUpdate(CURRICULUM, AffineObjective(), VSVFObjective(), max_gradient_norm=1e-3)(engine, make_batch())
    steps = [(value - before[name]).norm() for name, value in engine.network.named_parameters()]
    assert torch.stack(steps).norm().item() == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_loss_that_is_not_finite_stops_before_the_step(value):
    engine = make_engine(1)
    before = {name: weight.clone() for name, weight in engine.network.state_dict().items()}
    update = TrainingUpdate(CURRICULUM, lambda *_: {"loss": torch.tensor(value)}, VSVFObjective())
    with pytest.raises(FloatingPointError, match=r"epoch 1, iteration 1 \(phase affine_single_step\)"):
        update(engine, make_batch())
    assert tiny.equal_weights(before, engine.network.state_dict())


def run_with_scores(output_dir, scores, phases, folds=None, **options):
    """A trainer without a network's work: in epoch n every weight becomes n, validation gives scores[n - 1]."""
    network = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    trainer, evaluator = Engine(lambda *_: None), Engine(lambda *_: None)
    evaluator.state.key_metric_name, evaluator.state.metrics = "dice", {}
    curriculum = Curriculum(phases)

    @trainer.on(Events.EPOCH_COMPLETED)
    def validate():
        torch.nn.init.constant_(network.weight, trainer.state.epoch)
        if scores[trainer.state.epoch - 1] is not None:
            evaluator.state.epoch = trainer.state.epoch
            evaluator.state.metrics["dice"] = scores[trainer.state.epoch - 1]
            evaluator.state.metrics["folds"] = folds[trainer.state.epoch - 1] if folds else 0.0

    Checkpoints(network, optimizer, curriculum, output_dir, evaluator, **options).attach(trainer)
    trainer.run([0], max_epochs=curriculum.total_epochs)


SCORES = [
    ([0.5, 0.7, 0.6], [3], 2, 0.7), ([0.5, None, 0.4], [3], 1, 0.5), ([None, None, 0.4], [3], 3, 0.4),
    ([0.9, 0.8, 0.2, 0.3], [2, 2], 4, 0.3), ([0.9, 0.8, None, None], [2, 2], 1, 0.9),
    ([math.nan, 0.1, 0.05], [3], 2, 0.1), ([0.1, math.nan], [2], 1, 0.1), ([0.4, 0.4], [2], 1, 0.4),
]  # fmt: skip


@pytest.mark.parametrize(("scores", "lengths", "best", "metric"), SCORES)
def test_best_and_last(tmp_path, scores, lengths, best, metric):
    phases = [{**tiny.PHASES[0], "name": f"phase {n}", "epochs": length} for n, length in enumerate(lengths)]
    run_with_scores(tmp_path, scores, phases)
    assert torch.load(tmp_path / "model.pt", weights_only=True)["weight"].item() == best
    last = tiny.last(tmp_path)
    assert last["network"]["weight"].item() == last["epoch"] == len(scores)
    assert last["best"]["epoch"] == best and last["best"]["metric"] == metric
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint_last.pt", "model.pt"]


@pytest.mark.parametrize(("scores", "folds", "best"), [
    ([0.5, 0.7, 0.6], [0.0, 3.0, 0.5], 3),
    ([0.7, 0.5, 0.6], [3.0, 2.0, 4.0], 1),
    ([0.9, 0.5, 0.95], [3.0, 0.0, 2.0], 2),
    ([0.5, 0.7], [math.nan, 0.0], 2),
])  # fmt: skip
def test_best_has_few_folds_where_any_has(tmp_path, scores, folds, best):
    run_with_scores(tmp_path, scores, [{**tiny.PHASES[0], "epochs": len(scores)}], folds, max_folds=0.5)
    assert torch.load(tmp_path / "model.pt", weights_only=True)["weight"].item() == best


def known_batch(labels=True):
    """Posed pairs, the first a twin and the second not."""
    source = GeneratedPairs(generated_pairs(4), KneePhantom(tiny.GRID))
    posed = AugmentedPairs(source, twins=0.5, still=0.0, seed=2)
    items = sorted((posed[index] for index in range(4)), key=lambda item: bool(item["affine"].isnan().any()))
    assert items[0]["affine"].isfinite().all() and items[-1]["affine"].isnan().all()
    names = [key for key in items[0] if key != "name" and (labels or "label" not in key)]
    return default_collate([{key: torch.as_tensor(item[key]) for key in names} for item in (items[0], items[-1])])


def test_what_is_known_of_pairs_in_both_directions():
    batch = known_batch()
    known = known_of_pairs(batch, CPU)
    assert known.keys() == {"moving_mask", "fixed_mask", "target"}
    for joint, first, second in (("moving_mask", "moving", "fixed"), ("fixed_mask", "fixed", "moving")):
        assert known[joint][:2].equal(batch[f"{first}_mask"]) and known[joint][2:].equal(batch[f"{second}_mask"])
    target = known["target"]
    assert target.shape == (4, 3, 4) and target.dtype == torch.float32
    assert target[0].equal(batch["affine"][0]) and target[[1, 3]].isnan().all()
    # The inverse: back from moving to fixed.
    torch.testing.assert_close(compose_affines(target[2:3], target[:1]), identity_affine(1), atol=1e-5, rtol=0)
    assert (target[2] - target[0]).abs().max() > 1e-3


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_update_with_features_masks_and_targets(epoch):
    """One step down the gradient of the objective of the stage, which gets all that the batch knows."""
    stages = [("features", (0, 0)), ("affine", (2, 0)), ("vsvf", (1, 2))]
    phases = [
        {"name": name, "stage": name, "epochs": 1, "affine_steps": steps[0], "vsvf_steps": steps[1]}
        for name, steps in stages
    ]
    objectives = {
        "affine": AffineObjective(label_weight=1.0, label_classes=4, target_weight=3.0),
        "vsvf": VSVFObjective(label_weight=1.0, label_classes=4),
        "features": FeatureObjective(4),
    }
    stage, steps = stages[epoch - 1]
    engine, twin, batch = make_engine(1), tiny.tiny_network(features=4), known_batch()
    engine.network, engine.state.epoch = tiny.tiny_network(features=4), epoch
    for network in (engine.network, twin):
        for name, part in (("features", "features"), ("affine", "affine_net"), ("vsvf", "momentum_net")):
            getattr(network, part).requires_grad_(name == stage)
        network.train()
    engine.optimizer = torch.optim.SGD(engine.network.parameters(), lr=1.0)
    moving, fixed, *both_labels = both_directions(batch, CPU)
    registration = twin.register(moving, fixed, *steps)
    parts = objectives[stage](registration, fixed, 0, *both_labels, **known_of_pairs(batch, CPU))
    parts["loss"].backward()
    if stage == "affine":
        assert parts["target"] > 0
    if stage != "features":
        plain = objectives[stage](registration, fixed, 0, *both_labels)
        assert plain["similarity"] != parts["similarity"]

    update = TrainingUpdate(
        Curriculum(phases), objectives["affine"], objectives["vsvf"], feature_objective=objectives["features"]
    )
    output = update(engine, batch)
    assert output.keys() == parts.keys()
    assert all(output[name] == pytest.approx(part.item(), rel=1e-5) for name, part in parts.items())
    before = tiny.tiny_network(features=4).state_dict()
    gradients = {name: value.grad for name, value in twin.named_parameters()}
    moved = False
    for name, value in engine.network.named_parameters():
        expected = before[name] if gradients[name] is None else before[name] - gradients[name]
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
        moved |= not value.equal(before[name])
    assert moved
