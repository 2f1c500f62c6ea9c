"""The stage objectives: Equations 6, 11 and 12 pair by pair; fields of view, the true affine, features."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings, strategies

from scripts.geometry import affine_map, apply_affine, identity_affine, identity_map, resize_map, warp
from scripts.layers import MultiGaussianSmoother
from scripts.losses import (
    AffineObjective,
    FeatureObjective,
    LabelDice,
    MembershipLoss,
    MultiKernelLNCC,
    NormalizedCrossCorrelation,
    VSVFObjective,
    affine_distance,
    affine_factor,
    affine_regularisation,
    affine_symmetry,
    common_view,
    folding,
    map_symmetry,
    vsvf_regularisation,
)
from tensor_cases import noise, squared_error

SHAPE, LOW, PAIRS = (12, 10, 14), (6, 5, 7), 2


def mse(moved, fixed, mask=None):
    return (moved - fixed).square().mean()


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


def labels(seed=5):
    first, second = torch.randint(0, 3, (2, PAIRS, 1, *SHAPE), generator=torch.Generator().manual_seed(seed))
    return torch.cat([first, second]), torch.cat([second, first])


def rows(value, index):
    return value[index : index + 1]


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
            expected += single(rows(result.moved, i), rows(fixed, i)).sum()
            expected += affine_factor(epoch, 10.0, 4.0) * affine_regularisation(rows(affine, i)).sum()
        # Equation 5 is not symmetric in its arguments; of both directions' mean the paper's is one.
        symmetry = affine_symmetry(rows(affine, st), rows(affine, ts)) + affine_symmetry(
            rows(affine, ts), rows(affine, st)
        )
        expected += 10.0 * symmetry.sum() / 2
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
            expected += single(rows(result.moved_steps[0], i), rows(fixed, i)).sum()
            expected += 10.0 * vsvf_regularisation(rows(momentum, i), rows(velocity, i)).sum()
        symmetry = map_symmetry(rows(map, st), rows(map, ts)) + map_symmetry(rows(map, ts), rows(map, st))
        expected += 295.0 * symmetry.sum() / 2
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


def test_equation_12_is_the_sum_over_steps():
    result, (_, fixed) = registration(steps=3), images()
    objective = VSVFObjective(mse, regularisation=3.0, symmetry=5.0)
    total = objective(result, fixed, 0)
    names = ("low_maps", "moved_steps", "momenta", "velocities")
    steps = [
        objective(SimpleNamespace(**{name: [getattr(result, name)[step]] for name in names}), fixed, 0)
        for step in range(3)
    ]
    assert set(total) == {"loss", "similarity", "regularisation", "symmetry"}
    for name in total:
        torch.testing.assert_close(total[name], sum(step[name] for step in steps))


@pytest.mark.parametrize("objective", [AffineObjective, VSVFObjective])
def test_label_term(objective):
    result, (_, fixed) = registration(steps=2), images()
    moving_label, fixed_label = labels()
    plain = objective(mse)(result, fixed, 0)
    loss = objective(mse, label_weight=0.5, label_classes=(2,))(result, fixed, 0, moving_label, fixed_label)
    maps = [affine_map(result.affines[-1], SHAPE)] if objective is AffineObjective else result.low_maps
    single = LabelDice((2,))
    dice = [single(rows(map, i), rows(moving_label, i), rows(fixed_label, i)) for map in maps for i in range(2 * PAIRS)]
    torch.testing.assert_close(loss["label_dice"], 0.5 * sum(dice)[0] / PAIRS)
    torch.testing.assert_close(loss["loss"], plain["loss"] + loss["label_dice"])


def test_refuses_negative_factors():
    for objective, factor in ((AffineObjective, "symmetry"), (VSVFObjective, "label_weight")):
        with pytest.raises(ValueError, match=f"{factor} must not be negative, got -1.0"):
            objective(**{factor: -1.0})
    with pytest.raises(ValueError, match="decay must be positive"):
        AffineObjective(decay=0.0)


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
    assert parts["folding"].item() == pytest.approx(7.0 * folding(displacement).sum().item())
    assert "folding" not in VSVFObjective(mse)(result, fixed, 0)


# What else is known of the pairs.

OBJECTIVES = {"affine": AffineObjective, "vsvf": VSVFObjective}
SIMILARITIES = {
    "mse": lambda: squared_error,
    "ncc": NormalizedCrossCorrelation,
    "lncc": lambda: MultiKernelLNCC((1.0,), (5,), 1 / 5, dilation=1),
    "mk-lncc": lambda: MultiKernelLNCC(windows=(3, 7), dilation=1),
}


def affines(batch, seed=0, scale=0.1):
    return identity_affine(batch, dtype=torch.float64) + scale * noise(batch, 3, 4, seed=seed)


def box(start, stop, batch=2):
    """Ones between two corners, ``(batch, 1, *SHAPE)``."""
    mask = torch.zeros(batch, 1, *SHAPE, dtype=torch.float64)
    mask[(..., *(slice(a, b) for a, b in zip(start, stop, strict=True)))] = 1
    return mask


def registered(moving, affine=None, low_maps=None):
    """A both-direction registration whose moved images are those of its maps."""
    affine = identity_affine(len(moving), dtype=torch.float64) if affine is None else affine
    low_maps = [identity_map(LOW, dtype=torch.float64).expand(2, -1, -1, -1, -1)] if low_maps is None else low_maps
    zero = torch.zeros(len(moving), 3, *LOW, dtype=torch.float64)
    return SimpleNamespace(
        affines=[affine],
        moved=warp(moving, affine_map(affine, list(SHAPE))),
        low_maps=low_maps,
        moved_steps=[warp(moving, resize_map(low, list(SHAPE))) for low in low_maps],
        momenta=[zero] * len(low_maps),
        velocities=[zero] * len(low_maps),
    )


# The distance of affines.


@settings(max_examples=25, deadline=None)
@given(seed=strategies.integers(0, 2**31), scale=strategies.floats(0.01, 2.0), batch=strategies.integers(1, 3))
def test_affine_distance_is_the_mean_over_a_fine_grid(seed, scale, batch):
    first, second = affines(batch, seed, scale), affines(batch, seed + 1, scale)
    # The midpoints of cells, not the corners: their mean is that of the volume as cells get small.
    count = 24
    middles = (torch.arange(count, dtype=torch.float64) + 0.5) * (2 / count) - 1
    points = torch.stack(torch.meshgrid(middles, middles, middles, indexing="ij"))[None]
    expected = (apply_affine(first, points) - apply_affine(second, points)).square().sum(1).mean()
    assert affine_distance(first, second).item() == pytest.approx(expected.item(), rel=1.01 / count**2)


@pytest.mark.parametrize("hidden", ["row", "entry"])
def test_rows_of_nan_count_nothing(hidden):
    affine, target = affines(4).requires_grad_(), affines(4, seed=1)
    target[1, *((slice(None),) if hidden == "row" else (2, 3))] = torch.nan
    target[3] = torch.nan
    distance = affine_distance(affine, target)
    torch.testing.assert_close(distance, affine_distance(affine[[0, 2]], target[[0, 2]]))
    distance.backward()
    assert affine.grad.isfinite().all() and affine.grad[[1, 3]].abs().max() == 0 and affine.grad[[0, 2]].abs().min() > 0


@pytest.mark.parametrize("weight", [0.0, 5.0])
def test_target_is_averaged_over_steps_and_known_rows(weight):
    moving = noise(4, 1, *SHAPE).sigmoid()
    result = registered(moving, affines(4), [])
    result.affines = [affines(4, seed=2), affines(4, seed=3), result.affines[0]]
    target = affines(4, seed=5)
    target[[1, 3]] = torch.nan
    objective = AffineObjective(squared_error, target_weight=weight)
    plain, loss = objective(result, moving, 0), objective(result, moving, 0, target=target)
    if weight == 0:
        assert loss.keys() == plain.keys() and loss["loss"] == plain["loss"]
        return
    steps = [affine_distance(step[[row]], target[[row]]) for step in result.affines for row in (0, 2)]
    torch.testing.assert_close(loss["target"], 2 * weight * sum(steps) / len(steps))
    torch.testing.assert_close(loss["loss"], plain["loss"] + loss["target"])
    assert "target" not in plain
    unknown = objective(result, moving, 0, target=torch.full((4, 3, 4), torch.nan))
    assert unknown["target"] == 0 and unknown["loss"] == plain["loss"]


# Fields of view.


@pytest.mark.parametrize("low", [False, True])
def test_common_view_of_shifted_boxes(low):
    moving, fixed = box((2, 3, 1), (9, 8, 12)), box((0, 4, 2), (7, 9, 14))
    shift = torch.tensor([2, -1, 3.0]).double()
    coordinates = identity_map(LOW if low else SHAPE, dtype=torch.float64).repeat(2, 1, 1, 1, 1)
    # Voxel i of the fixed grid looks at voxel i + shift of the moving one; the second row looks straight on.
    coordinates[0] += (shift * 2 / (torch.tensor(SHAPE) - 1)).view(3, 1, 1, 1)
    view = common_view(coordinates, moving, fixed)
    first = box((0, 4, 0), (7, 9, 9)) * fixed
    torch.testing.assert_close(view[:1], first[:1], atol=1e-6, rtol=0)
    torch.testing.assert_close(view[1:], (moving * fixed)[1:], atol=1e-6, rtol=0)
    assert view.flatten(1).sum(1).min() > 100


def test_common_view_has_no_gradient():
    coordinates = (0.9 * identity_map(SHAPE, dtype=torch.float64)).repeat(2, 1, 1, 1, 1).requires_grad_()
    assert not common_view(coordinates, box((2, 3, 1), (9, 8, 12)), box((1, 1, 1), (9, 9, 9))).requires_grad


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_pair_out_of_sight_is_a_bad_one_and_no_error(similarity):
    masks = [box((2, 3, 1), (9, 8, 12)), box((0, 4, 2), (7, 9, 14))]
    affine = identity_affine(2, dtype=torch.float64)
    affine[0, 0, 3] = 3.0
    affine.requires_grad_()
    view = common_view(affine_map(affine, list(SHAPE)), *masks)
    assert view[0].equal(masks[1][0])
    torch.testing.assert_close(view[1], (masks[0] * masks[1])[1], atol=1e-6, rtol=0)
    moving, fixed = noise(2, 2, 1, *SHAPE).sigmoid()
    objective = AffineObjective(SIMILARITIES[similarity](), symmetry=0.0)
    result = registered(moving, affine)
    loss = objective(result, fixed, 0, moving_mask=masks[0], fixed_mask=masks[1])
    loss["loss"].backward()
    assert loss["loss"].isfinite() and affine.grad.isfinite().all()
    # Regularity still asks it back.
    assert affine.grad[0, 0, 3] > 0


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("stage", OBJECTIVES)
def test_what_no_image_has_seen_has_no_influence(stage, similarity):
    """Whatever stands outside of the common field of view, the loss is the same; inside, it is not."""
    masks = {"moving_mask": box((1, 2, 3), (11, 9, 13)), "fixed_mask": box((0, 1, 2), (9, 8, 12))}
    view = masks["moving_mask"] * masks["fixed_mask"]
    objective = OBJECTIVES[stage](SIMILARITIES[similarity]())
    moving, fixed = noise(2, 2, 1, *SHAPE).sigmoid()

    def loss(mask, **known):
        changed = [image + mask * noise(2, 1, *SHAPE, seed=9 + i) for i, image in enumerate((moving, fixed))]
        parts = objective(registered(changed[0]), changed[1], 0, **known)
        assert parts["loss"] == pytest.approx(sum(v for name, v in parts.items() if name != "loss").item())
        return parts["similarity"].item()

    seen = loss(0 * view, **masks)
    assert loss(1 - view, **masks) == pytest.approx(seen, rel=1e-6) and abs(loss(view, **masks) - seen) > 1e-3
    assert abs(loss(1 - view) - loss(0 * view)) > 1e-3
    assert loss(0 * view, moving_mask=0 * view + 1, fixed_mask=0 * view + 1) == pytest.approx(loss(0 * view), rel=1e-6)


@pytest.mark.parametrize("stage", OBJECTIVES)
def test_view_is_that_of_the_map(stage):
    """Mean squares by hand, under a shift of two voxels along D: over the voxels that both have seen."""
    moving_mask, fixed_mask = box((4, 0, 0), (12, 10, 14)), box((0, 0, 0), (8, 6, 14))
    affine = identity_affine(2, dtype=torch.float64)
    affine[:, 0, 3] = 2 * 2 / (SHAPE[0] - 1)
    low = affine_map(affine, list(LOW))
    moving, fixed = noise(2, 2, 1, *SHAPE).sigmoid()
    result = registered(moving, affine, [low] * 2)
    parts = OBJECTIVES[stage](squared_error)(result, fixed, 0, moving_mask=moving_mask, fixed_mask=fixed_mask)
    # Fixed voxels 2 to 7 look at moving voxels 4 to 9; along H the first six have been seen.
    difference = moving[:, :, 4:10, :6] - fixed[:, :, 2:8, :6]
    steps = 1 if stage == "affine" else 2
    assert parts["similarity"].item() == pytest.approx(2 * steps * difference.square().mean().item(), rel=1e-6)


# Features.


def test_feature_objective_is_the_sum_of_both_losses():
    label = torch.randint(0, 3, (2, 1, *SHAPE), generator=torch.Generator().manual_seed(0))
    label, chances = torch.tensor([0, 2, 5])[label], torch.softmax(noise(2, 3, *SHAPE), 1)[:, 1:]
    seen = SimpleNamespace(classes=chances)
    parts = FeatureObjective((2, 5))(seen, None, 3, None, label, moving_mask=None, target=affines(2))
    dice, cross_entropy = MembershipLoss((2, 5))(chances, label)
    assert set(parts) == {"loss", "label_dice", "label_cross_entropy"}
    torch.testing.assert_close(parts["label_dice"], dice)
    torch.testing.assert_close(parts["label_cross_entropy"], cross_entropy)
    torch.testing.assert_close(parts["loss"], dice + cross_entropy)
