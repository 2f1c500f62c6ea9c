"""Instance optimisation: never worse, never more folds, weights untouched, pairs apart."""

import pytest
import torch

from scripts.geometry import count_folds, warp
from scripts.layers import VSVF
from scripts.losses import MeanSquaredError, MultiKernelLNCC, folding
from scripts.networks import AVSM, AffineNet, MomentumNet
from scripts.optimize import AffineOptimiser, AffineResult, InstanceOptimiser
from scripts.synthetic.phantom import KneePhantom

SHAPE = (24, 24, 24)


@pytest.fixture(scope="module")
def pairs():
    items = [KneePhantom(SHAPE, noise=0.01).pair(seed, "longitudinal") for seed in (1, 2)]
    return [torch.stack([item[key].float() for item in items]).unsqueeze(1) for key in ("moving", "fixed")]


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return AVSM(AffineNet((4, 8), hidden=8), MomentumNet((4, 4, 4, 4, 4)), affine_steps=1, vsvf_steps=2).eval()


def start(network, moving, fixed):
    with torch.no_grad():
        return network.register(moving, fixed)


def test_improves_and_leaves_the_weights(network, pairs):
    moving, fixed = pairs
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    first = start(network, moving, fixed)
    found = InstanceOptimiser(steps=30, regularisation=1.0)(network, moving, fixed, first)
    assert (found.after < 0.7 * found.before).all()
    assert (found.folds_after <= found.folds_before).all()
    torch.testing.assert_close(found.registration.moved, warp(moving, found.registration.map))
    assert torch.equal(count_folds(found.registration.map)[0], found.folds_after)
    for name, value in network.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert all(parameter.grad is None for parameter in network.parameters())
    # The registration that it began with is still what it was.
    torch.testing.assert_close(start(network, moving, fixed).map, first.map)


def test_reported_objective_is_that_of_the_result(network, pairs):
    moving, fixed = pairs
    optimiser = InstanceOptimiser(steps=5)
    found = optimiser(network, moving, fixed, start(network, moving, fixed))
    torch.testing.assert_close(optimiser.objective(found.registration, fixed), found.after)


def test_zero_steps_change_nothing(network, pairs):
    moving, fixed = pairs
    first = start(network, moving, fixed)
    found = InstanceOptimiser(steps=0)(network, moving, fixed, first)
    torch.testing.assert_close(found.registration.map, first.map)
    assert torch.equal(found.before, found.after) and found.steps == 0


@pytest.mark.parametrize("rate", [50.0, 1e4])
def test_never_worse_with_an_absurd_rate(network, pairs, rate):
    moving, fixed = pairs
    first = start(network, moving, fixed)
    found = InstanceOptimiser(steps=4, momentum_rate=rate, affine_rate=1.0)(network, moving, fixed, first)
    assert (found.after <= found.before).all() and (found.folds_after <= found.folds_before).all()


def test_pairs_of_a_batch_do_not_touch(network, pairs):
    moving, fixed = pairs
    optimiser = InstanceOptimiser(steps=6)
    both = optimiser(network, moving, fixed, start(network, moving, fixed))
    for index in range(2):
        one = slice(index, index + 1)
        alone = optimiser(network, moving[one], fixed[one], start(network, moving[one], fixed[one]))
        torch.testing.assert_close(both.registration.map[one], alone.registration.map, atol=1e-4, rtol=1e-4)


def test_stops_early_on_a_flat_objective(network):
    flat = torch.zeros(1, 1, *SHAPE)
    optimiser = InstanceOptimiser(steps=50, similarity=MeanSquaredError(reduction="none"), patience=3)
    assert optimiser(network, flat, flat, start(network, flat, flat)).steps < 50


def test_goes_back_and_on_more_slowly_from_a_good_start(network, pairs, monkeypatch):
    """A rate that leads away from a start that is good: without going back nothing would be found."""
    moving, fixed = (images[:1] for images in pairs)
    good = InstanceOptimiser(steps=8, regularisation=1.0)(network, moving, fixed, start(network, moving, fixed))
    fast = InstanceOptimiser(steps=40, regularisation=1.0, momentum_rate=0.2, affine_rate=0.0, patience=3)
    found = fast(network, moving, fixed, good.registration)
    assert found.after < found.before
    assert max(found.history[:4]) > found.before
    monkeypatch.setattr(InstanceOptimiser, "restarts", 0)
    stopped = fast(network, moving, fixed, good.registration)
    assert stopped.after == stopped.before and stopped.steps == 3


def test_fixed_affine(network, pairs):
    moving, fixed = pairs
    first = start(network, moving, fixed)
    found = InstanceOptimiser(steps=3, affine_rate=0.0)(network, moving, fixed, first)
    assert torch.equal(found.registration.affine, first.affine)


def test_refuses_when_there_is_nothing_to_optimise(network, pairs):
    moving, fixed = pairs
    with torch.no_grad(), pytest.raises(ValueError, match="leave nothing to optimise"):
        InstanceOptimiser(steps=1, affine_rate=0)(network, moving, fixed, network.register(moving, fixed, 1, 0))


def test_affine_alone(network, pairs):
    moving, fixed = pairs
    with torch.no_grad():
        first = network.register(moving, fixed, 1, 0)
    found = InstanceOptimiser(steps=20)(network, moving, fixed, first)
    assert (found.after < found.before).all() and found.registration.momenta == []
    assert (found.folds_after == 0).all()


def test_affine_optimiser_comes_first_and_is_taken_only_if_better(network, pairs):
    moving, fixed = pairs
    first = start(network, moving, fixed)
    plain = InstanceOptimiser(steps=1)(network, moving, fixed, first)
    helped = InstanceOptimiser(steps=1, affine_optimiser=AffineOptimiser())(network, moving, fixed, first)
    torch.testing.assert_close(helped.before, plain.before)
    assert (helped.after < plain.after).all()

    class Worse:
        def __call__(self, moving, fixed, affine, mask=None, moving_mask=None):
            return AffineResult(affine * 3, None, None, [])

    same = InstanceOptimiser(steps=1, affine_optimiser=Worse())(network, moving, fixed, first)
    torch.testing.assert_close(same.after, plain.after)


def noise(seed):
    return torch.rand(1, 1, *SHAPE, generator=torch.Generator().manual_seed(seed))


def test_penalty_keeps_determinants_up():
    """Without regularisation noise asks for any deformation, and a fine kernel lets it."""
    torch.manual_seed(0)
    unit = VSVF((0.03, 0.06, 0.12, 0.2), (0.25,) * 4)
    network = AVSM(AffineNet((4, 8), hidden=8), MomentumNet((4, 4, 4, 4, 4)), unit, affine_steps=1, vsvf_steps=1)
    moving, fixed = noise(1), noise(2)
    first = start(network.eval(), moving, fixed)
    similarity = MultiKernelLNCC((0.5, 0.5), (9, 21), dilation=1, reduction="none")
    options = {"steps": 30, "similarity": similarity, "regularisation": 0.0, "affine_rate": 0.0}
    lack = []
    for weight in (0.0, 2000.0):
        found = InstanceOptimiser(**options, fold_weight=weight)(network, moving, fixed, first)
        assert found.after < 0.9 * found.before and found.folds_after == 0
        lack.append(folding(found.registration.displacement, 0.2).item())
    assert lack[1] < 0.1 * lack[0]


def test_moving_mask_limits_the_similarity(network, pairs):
    moving, fixed = pairs
    optimiser = InstanceOptimiser(steps=0, similarity=MeanSquaredError(reduction="none"), regularisation=0)
    first = start(network, moving, fixed)
    mask = torch.zeros_like(moving)
    mask[:, :, :12] = 1
    seen = warp(mask, first.map)
    expected = ((first.moved - fixed).square() * seen).sum((1, 2, 3, 4)) / seen.sum((1, 2, 3, 4))
    torch.testing.assert_close(optimiser.objective(first, fixed, moving_mask=mask), expected)
    half = torch.zeros_like(fixed)
    half[..., :10] = 1
    both = seen * half
    expected = ((first.moved - fixed).square() * both).sum((1, 2, 3, 4)) / both.sum((1, 2, 3, 4))
    torch.testing.assert_close(optimiser.objective(first, fixed, half, mask), expected)
