"""The stage objectives, Equations 6, 11 and 12, against sums worked out pair by pair from the single equations."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from scripts.geometry import affine_map, identity_map, resize_map, warp
from scripts.layers import MultiGaussianSmoother
from scripts.losses import (
    AffineObjective,
    LabelDice,
    MultiKernelLNCC,
    VSVFObjective,
    affine_factor,
    affine_regularisation,
    affine_symmetry,
    folding,
    map_symmetry,
    opposite,
    vsvf_regularisation,
)

SHAPE, LOW, PAIRS = (8, 9, 7), (4, 5, 4), 2


def mse(moved, fixed):
    return (moved - fixed).square().mean()


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def images(seed=0):
    """I0 and I1 of `PAIRS` pairs in both directions: targets of the batch are [I1, I0]."""
    first, second = noise(2, PAIRS, 1, *SHAPE, seed=seed).sigmoid()
    return torch.cat([first, second]), torch.cat([second, first])


def registration(steps=1, seed=0):
    """A both-direction registration of arbitrary affines and maps; nothing in it is consistent by chance."""
    moving, _ = images(seed)
    affines = [torch.eye(3, 4).double() + 0.1 * noise(2 * PAIRS, 3, 4, seed=seed + i) for i in range(2)]
    smoother = MultiGaussianSmoother()
    momenta = [noise(2 * PAIRS, 3, *LOW, seed=seed + 10 + i) for i in range(steps)]
    maps = [
        identity_map(SHAPE, dtype=torch.float64) + 0.1 * noise(2 * PAIRS, 3, *SHAPE, seed=seed + 20 + i)
        for i in range(steps)
    ]
    return SimpleNamespace(
        affines=affines,
        moved=warp(moving, affine_map(affines[-1], SHAPE)),
        low_maps=maps,
        moved_steps=[warp(moving, map) for map in maps],
        momenta=momenta,
        velocities=[smoother(m) for m in momenta],
    )


def exchanged(registration):
    """The registration of the same pairs with moving and fixed exchanged."""
    flip = {
        name: opposite(value) if isinstance(value, torch.Tensor) else [opposite(item) for item in value]
        for name, value in vars(registration).items()
    }
    return SimpleNamespace(**flip)


def labels(seed=5):
    first, second = torch.randint(0, 3, (2, PAIRS, 1, *SHAPE), generator=torch.Generator().manual_seed(seed))
    return torch.cat([first, second]), torch.cat([second, first])


def rows(value, index):
    return value[index : index + 1]


def test_opposite_exchanges_the_halves():
    assert opposite(torch.tensor([1, 2, 3, 4, 5, 6])).tolist() == [4, 5, 6, 1, 2, 3]
    with pytest.raises(ValueError, match="even length, got 3"):
        opposite(torch.zeros(3, 1))


@pytest.mark.parametrize("epoch", [0, 3, 50])
@pytest.mark.parametrize(("similarity", "seed"), [(mse, 0), (None, 1)])
def test_equation_6_pair_by_pair(epoch, similarity, seed):
    result, (_, fixed) = registration(seed=seed), images(seed)
    loss = AffineObjective(similarity)(result, fixed, epoch)
    single = MultiKernelLNCC() if similarity is None else similarity
    affine = result.affines[-1]
    expected = 0.0
    for st in range(PAIRS):
        ts = st + PAIRS
        for i in (st, ts):
            expected += single(rows(result.moved, i), rows(fixed, i))
            expected += affine_factor(epoch, 10.0, 4.0) * affine_regularisation(rows(affine, i))
        # Equation 5 is not symmetric in its arguments; of both directions' mean the paper's is one.
        symmetry = affine_symmetry(rows(affine, st), rows(affine, ts)) + affine_symmetry(
            rows(affine, ts), rows(affine, st)
        )
        expected += 10.0 * symmetry / 2
    assert loss["loss"].item() == pytest.approx(expected.item() / PAIRS)


def test_equation_6_in_numbers():
    """A pair of translations, by hand: b = 0.2 along D there, -0.1 back; images differ by 0.5 and 0.1."""
    affine = torch.eye(3, 4).double().repeat(2, 1, 1)
    affine[0, 0, 3], affine[1, 0, 3] = 0.2, -0.1
    fixed = torch.zeros(2, 1, *SHAPE, dtype=torch.float64)
    moved = fixed + torch.tensor([0.5, 0.1]).view(2, 1, 1, 1, 1)
    objective = AffineObjective(mse, symmetry=7.0, regularisation=3.0, decay=2.0)
    loss = objective(SimpleNamespace(affines=[affine], moved=moved), fixed, epoch=0)
    assert loss["similarity"].item() == pytest.approx(0.25 + 0.01)
    # C K / (K + e^0) = 3 * 2 / 3.
    assert loss["regularisation"].item() == pytest.approx(2.0 * (0.04 + 0.01))
    assert loss["symmetry"].item() == pytest.approx(7.0 * 0.1**2)
    assert loss["loss"].item() == pytest.approx(0.26 + 0.1 + 0.07)


def test_affine_objective_looks_at_the_last_step_only():
    result, (_, fixed) = registration(), images()
    before = AffineObjective(mse)(result, fixed, 0)["loss"]
    result.affines[0] = result.affines[0] + 1
    assert AffineObjective(mse)(result, fixed, 0)["loss"] == before
    result.affines[-1] = result.affines[-1] + 1
    assert AffineObjective(mse)(result, fixed, 0)["loss"] > before


@pytest.mark.parametrize("similarity", [mse, None])
def test_equation_11_pair_by_pair(similarity):
    result, (_, fixed) = registration(), images()
    loss = VSVFObjective(similarity)(result, fixed, 0)
    single = MultiKernelLNCC() if similarity is None else similarity
    map, momentum, velocity = result.low_maps[0], result.momenta[0], result.velocities[0]
    expected = 0.0
    for st in range(PAIRS):
        ts = st + PAIRS
        for i in (st, ts):
            expected += single(rows(result.moved_steps[0], i), rows(fixed, i))
            expected += 10.0 * vsvf_regularisation(rows(momentum, i), rows(velocity, i))
        symmetry = map_symmetry(rows(map, st), rows(map, ts)) + map_symmetry(rows(map, ts), rows(map, st))
        expected += 295.0 * symmetry / 2
    assert loss["loss"].item() == pytest.approx(expected.item() / PAIRS)


def test_equation_11_in_numbers():
    x = identity_map(SHAPE, dtype=torch.float64).repeat(2, 1, 1, 1, 1)
    x[0, 1] += 0.2
    x[1, 1] -= 0.1
    fixed = torch.zeros(2, 1, *SHAPE, dtype=torch.float64)
    moved = fixed + torch.tensor([0.5, 0.1]).view(2, 1, 1, 1, 1)
    momentum = torch.full((2, 3, *LOW), 0.4, dtype=torch.float64)
    velocity = torch.tensor([1.0, 0.5], dtype=torch.float64).view(2, 1, 1, 1, 1) * momentum
    result = SimpleNamespace(low_maps=[x], moved_steps=[moved], momenta=[momentum], velocities=[velocity])
    loss = VSVFObjective(mse, regularisation=2.0, symmetry=100.0)(result, fixed, 0)
    assert loss["similarity"].item() == pytest.approx(0.26)
    # <m, v> in units of the unit cube: (0.4 / 2)^2 for each of three components, halved in the other direction.
    assert loss["regularisation"].item() == pytest.approx(2.0 * 3 * 0.04 * 1.5)
    assert loss["symmetry"].item() == pytest.approx(100.0 * (0.1 / 2) ** 2)
    assert loss["loss"].item() == pytest.approx(0.26 + 0.36 + 0.25)


def test_the_default_symmetry_factor_is_the_papers_sum_over_voxels():
    assert VSVFObjective().symmetry == pytest.approx(1e-4 * 192 * 192 * 80, rel=1e-3)


def test_symmetry_on_the_low_resolution_grid_says_what_full_resolution_says():
    low, full = (20, 16, 24), [40, 32, 48]
    smooth = MultiGaussianSmoother()(noise(2, 3, *low)) * 3
    maps = identity_map(low, dtype=torch.float64) + smooth
    coarse = map_symmetry(maps, opposite(maps))
    large = resize_map(maps, full)
    assert coarse.item() > 1e-4
    assert coarse.item() == pytest.approx(map_symmetry(large, opposite(large)).item(), rel=0.1)


def test_equation_12_is_the_sum_over_steps():
    result, (_, fixed) = registration(steps=3), images()
    objective = VSVFObjective(mse, regularisation=3.0, symmetry=5.0)
    total = objective(result, fixed, 0)
    steps = [
        objective.step(*parts)
        for parts in zip(
            result.moved_steps, [fixed] * 3, result.low_maps, result.momenta, result.velocities, strict=True
        )
    ]
    assert set(total) == {"loss", "similarity", "regularisation", "symmetry"}
    for name in ("similarity", "regularisation", "symmetry"):
        torch.testing.assert_close(total[name], sum(step[name] for step in steps))
    torch.testing.assert_close(total["loss"], sum(sum(step.values()) for step in steps))


@pytest.mark.parametrize("objective", [AffineObjective, VSVFObjective])
@pytest.mark.parametrize("label_weight", [0.0, 2.0])
def test_exchanging_moving_and_fixed_changes_nothing(objective, label_weight):
    result, (moving, fixed) = registration(steps=2), images()
    moving_label, fixed_label = labels() if label_weight else (None, None)
    loss = objective(mse, label_weight=label_weight)
    there = loss(result, fixed, 1, moving_label, fixed_label)
    back = loss(exchanged(result), moving, 1, fixed_label, moving_label)
    for name in there:
        torch.testing.assert_close(there[name], back[name])


@pytest.mark.parametrize("objective", [AffineObjective, VSVFObjective])
def test_perfect_registration_costs_nothing(objective):
    map = identity_map(SHAPE, dtype=torch.float64).repeat(2, 1, 1, 1, 1)
    image = noise(1, 1, *SHAPE).sigmoid().repeat(2, 1, 1, 1, 1)
    zero = torch.zeros(2, 3, *LOW, dtype=torch.float64)
    result = SimpleNamespace(
        affines=[torch.eye(3, 4).double().repeat(2, 1, 1)],
        moved=image,
        low_maps=[map],
        moved_steps=[image],
        momenta=[zero],
        velocities=[zero],
    )
    label = torch.ones(2, 1, *SHAPE)
    loss = objective(label_weight=1.0)(result, image, 0, label, label)
    assert {name: value.item() for name, value in loss.items()} == pytest.approx(dict.fromkeys(loss, 0.0), abs=1e-6)


def test_label_term_of_the_affine_stage():
    result, (_, fixed) = registration(), images()
    moving_label, fixed_label = labels()
    plain = AffineObjective(mse)(result, fixed, 0)
    loss = AffineObjective(mse, label_weight=3.0)(result, fixed, 0, moving_label, fixed_label)
    map, single = affine_map(result.affines[-1], SHAPE), LabelDice(2)
    dice = [single(rows(map, i), rows(moving_label, i), rows(fixed_label, i)) for i in range(2 * PAIRS)]
    torch.testing.assert_close(loss["label_dice"], 3.0 * sum(dice) / PAIRS)
    torch.testing.assert_close(loss["loss"], plain["loss"] + loss["label_dice"])


def test_label_term_of_the_vsvf_stage():
    result, (_, fixed) = registration(steps=2), images()
    moving_label, fixed_label = labels()
    plain = VSVFObjective(mse)(result, fixed, 0)
    loss = VSVFObjective(mse, label_weight=0.5, label_classes=(2,))(result, fixed, 0, moving_label, fixed_label)
    single = LabelDice((2,))
    dice = [
        single(rows(map, i), rows(moving_label, i), rows(fixed_label, i))
        for map in result.low_maps
        for i in range(2 * PAIRS)
    ]
    torch.testing.assert_close(loss["label_dice"], 0.5 * sum(dice) / PAIRS)
    torch.testing.assert_close(loss["loss"], plain["loss"] + loss["label_dice"])


def test_gradcheck_of_the_affine_objective():
    moving, fixed = images()
    moving, fixed = moving[::PAIRS], fixed[::PAIRS]
    # Smooth images: the derivative of an interpolated one jumps where a sample crosses a voxel.
    moving = identity_map(SHAPE, dtype=torch.float64)[:, :1].repeat(2, 1, 1, 1, 1)
    start = torch.eye(3, 4).double().repeat(2, 1, 1) * 0.8 + 0.05 * noise(2, 3, 4)

    def loss(affine):
        result = SimpleNamespace(affines=[affine], moved=warp(moving, affine_map(affine, SHAPE), padding="border"))
        return AffineObjective(mse)(result, fixed, 2)["loss"]

    assert torch.autograd.gradcheck(loss, (start.requires_grad_(),))


def test_gradcheck_of_the_vsvf_objective():
    shape, low = (4, 3, 5), (2, 2, 3)
    smoother = MultiGaussianSmoother()
    fixed, moved = noise(2, 1, *shape, seed=1), noise(2, 1, *shape, seed=2)
    maps = 0.7 * identity_map(shape, dtype=torch.float64) + 0.02 * noise(2, 3, *shape)
    momentum = noise(2, 3, *low, seed=3)

    def loss(moved, coordinates, momentum):
        result = SimpleNamespace(
            moved_steps=[moved] * 2,
            low_maps=[coordinates] * 2,
            momenta=[momentum] * 2,
            velocities=[smoother(momentum)] * 2,
        )
        return VSVFObjective(mse, symmetry=3.0)(result, fixed, 0)["loss"]

    leaves = (moved.requires_grad_(), maps.requires_grad_(), momentum.requires_grad_())
    assert torch.autograd.gradcheck(loss, leaves)


def test_gradient_flows_through_all_affine_steps():
    first = torch.eye(3, 4).double().repeat(2, 1, 1).requires_grad_()
    last = first * 1.1
    fixed = torch.zeros(2, 1, *SHAPE, dtype=torch.float64)
    AffineObjective(mse)(SimpleNamespace(affines=[first, last], moved=fixed), fixed, 0)["loss"].backward()
    assert first.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AffineObjective(symmetry=-1.0), "must not be negative"),
        (lambda: AffineObjective(regularisation=-1.0), "must not be negative"),
        (lambda: AffineObjective(decay=0.0), "decay must be positive"),
        (lambda: VSVFObjective(symmetry=-1.0), "must not be negative"),
        (lambda: VSVFObjective(regularisation=-1.0), "must not be negative"),
        (lambda: VSVFObjective(label_weight=-1.0), "label_weight must not be negative, got -1.0"),
        (lambda: AffineObjective(label_weight=1.0, label_classes=0), "classes must be"),
    ],
)
def test_refuses_factors_without_sense(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("objective", "missing", "message"),
    [(AffineObjective, "affines", "no affine step"), (VSVFObjective, "low_maps", "no vSVF step")],
)
def test_refuses_a_registration_without_its_stage(objective, missing, message):
    result, (_, fixed) = registration(), images()
    setattr(result, missing, [])
    with pytest.raises(ValueError, match=message):
        objective(mse)(result, fixed, 0)


@pytest.mark.parametrize("objective", [AffineObjective, VSVFObjective])
@pytest.mark.parametrize("given", [(True, False), (False, True), (False, False)])
def test_refuses_a_label_term_without_labels(objective, given):
    result, (_, fixed) = registration(), images()
    pair = [label if use else None for label, use in zip(labels(), given, strict=True)]
    with pytest.raises(ValueError, match="no labels; give labels or set label_weight to 0"):
        objective(mse, label_weight=1.0)(result, fixed, 0, *pair)


def test_fold_term_is_that_of_both_directions():
    displacement = 0.3 * noise(2, 3, 6, 6, 6)
    result, (_, fixed) = registration(), images()
    result.displacement = displacement
    parts = VSVFObjective(mse, fold_weight=7.0)(result, fixed, 0)
    assert parts["folding"].item() > 0
    assert parts["folding"].item() == pytest.approx(7.0 * folding(displacement, reduction="none").sum().item())
    assert "folding" not in VSVFObjective(mse)(result, fixed, 0)
