"""What the objectives know beside the images: fields of view, the true affine, memberships in labels."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.geometry import affine_map, apply_affine, identity_affine, identity_map, resize_map, warp
from scripts.losses import (
    AffineObjective,
    FeatureObjective,
    LocalNormalizedCrossCorrelation,
    MeanSquaredError,
    MembershipLoss,
    MultiKernelLNCC,
    NormalizedCrossCorrelation,
    VSVFObjective,
    affine_distance,
    common_view,
)

SHAPE, LOW = (12, 10, 14), (6, 5, 7)
OBJECTIVES = {"affine": AffineObjective, "vsvf": VSVFObjective}
SIMILARITIES = {
    "mse": MeanSquaredError,
    "ncc": NormalizedCrossCorrelation,
    "lncc": lambda: LocalNormalizedCrossCorrelation(5, stride=1),
    "mk-lncc": lambda: MultiKernelLNCC(windows=(3, 7), dilation=1),
}


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def affines(batch, seed=0, scale=0.1):
    return identity_affine(batch, dtype=torch.float64) + scale * noise(batch, 3, 4, seed=seed)


def box(start, stop, batch=2):
    """Ones between two corners, ``(batch, 1, *SHAPE)``."""
    mask = torch.zeros(batch, 1, *SHAPE, dtype=torch.float64)
    mask[(..., *(slice(a, b) for a, b in zip(start, stop, strict=True)))] = 1
    return mask


def registration(moving, affine=None, low_maps=None):
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
@given(seed=st.integers(0, 2**31), scale=st.floats(0.01, 2.0), batch=st.integers(1, 3))
def test_affine_distance_is_the_mean_over_a_fine_grid(seed, scale, batch):
    first, second = affines(batch, seed, scale), affines(batch, seed + 1, scale)
    # The midpoints of cells, not the corners: their mean is that of the volume as cells get small.
    count = 24
    middles = (torch.arange(count, dtype=torch.float64) + 0.5) * (2 / count) - 1
    points = torch.stack(torch.meshgrid(middles, middles, middles, indexing="ij"))[None]
    expected = (apply_affine(first, points) - apply_affine(second, points)).square().sum(1).mean()
    assert affine_distance(first, second).item() == pytest.approx(expected.item(), rel=1.01 / count**2)


def test_affine_distance_in_numbers():
    affine, target = identity_affine(1), identity_affine(1)
    affine[0, :, 3] = torch.tensor([0.3, 0.0, -0.4])
    assert affine_distance(affine, target).item() == pytest.approx(0.25)
    # A stretch by 1.3 along one axis: 0.3² E x² = 0.09 / 3.
    affine = identity_affine(1)
    affine[0, 1, 1] = 1.3
    assert affine_distance(affine, target).item() == pytest.approx(0.03)
    assert affine_distance(target, target).item() == 0


@pytest.mark.parametrize("hidden", ["row", "entry"])
def test_rows_of_nan_count_nothing(hidden):
    affine, target = affines(4).requires_grad_(), affines(4, seed=1)
    target[1, *((slice(None),) if hidden == "row" else (2, 3))] = torch.nan
    target[3] = torch.nan
    distance = affine_distance(affine, target)
    torch.testing.assert_close(distance, affine_distance(affine[[0, 2]], target[[0, 2]]))
    distance.backward()
    assert affine.grad.isfinite().all()
    assert affine.grad[[1, 3]].abs().max() == 0 and affine.grad[[0, 2]].abs().min() > 0


def test_nothing_known_costs_nothing():
    affine = affines(2).requires_grad_()
    distance = affine_distance(affine, torch.full((2, 3, 4), torch.nan))
    assert distance.shape == () and distance.item() == 0


def test_gradcheck_of_the_affine_distance():
    target = affines(3, seed=1)
    target[1] = torch.nan
    assert torch.autograd.gradcheck(lambda a: affine_distance(a, target), affines(3).requires_grad_())


@pytest.mark.parametrize("weight", [0.0, 5.0])
def test_target_is_averaged_over_steps_and_known_rows(weight):
    moving = noise(4, 1, *SHAPE).sigmoid()
    result = registration(moving, affines(4), [])
    result.affines = [affines(4, seed=2), affines(4, seed=3), result.affines[0]]
    target = affines(4, seed=5)
    target[[1, 3]] = torch.nan
    objective = AffineObjective(MeanSquaredError(), target_weight=weight)
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


def test_true_affines_cost_nothing_in_the_target_and_gradients_lead_to_them():
    target = affines(2, seed=4)
    affine = identity_affine(2, dtype=torch.float64).requires_grad_()
    moving = noise(2, 1, *SHAPE).sigmoid()
    objective = AffineObjective(lambda *_: affine.new_zeros(()), 0.0, 0.0, target_weight=1.0)
    optimiser = torch.optim.SGD([affine], lr=0.5)
    for _ in range(25):
        optimiser.zero_grad()
        result = SimpleNamespace(affines=[affine], moved=moving)
        objective(result, moving, 0, target=target)["loss"].backward()
        optimiser.step()
    torch.testing.assert_close(affine, target, atol=1e-4, rtol=0)


def test_vsvf_objective_takes_no_target():
    moving = noise(2, 1, *SHAPE).sigmoid()
    objective, result = VSVFObjective(MeanSquaredError()), registration(moving)
    assert objective(result, moving, 0, target=affines(2)) == objective(result, moving, 0)


# Fields of view.


@pytest.mark.parametrize("given", [(True, False), (False, True), (False, False)])
def test_no_view_without_both_masks(given):
    masks = [torch.ones(2, 1, *SHAPE) if there else None for there in given]
    assert common_view(identity_map(SHAPE).expand(2, -1, -1, -1, -1), *masks) is None


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
    result = registration(moving, affine)
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
        parts = objective(registration(changed[0]), changed[1], 0, **known)
        assert parts["loss"] == pytest.approx(sum(v for name, v in parts.items() if name != "loss").item())
        return parts["similarity"].item()

    seen = loss(0 * view, **masks)
    assert loss(1 - view, **masks) == pytest.approx(seen, rel=1e-6)
    assert abs(loss(view, **masks) - seen) > 1e-3
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
    result = registration(moving, affine, [low] * 2)
    parts = OBJECTIVES[stage](MeanSquaredError())(result, fixed, 0, moving_mask=moving_mask, fixed_mask=fixed_mask)
    # Fixed voxels 2 to 7 look at moving voxels 4 to 9; along H the first six have been seen.
    difference = moving[:, :, 4:10, :6] - fixed[:, :, 2:8, :6]
    steps = 1 if stage == "affine" else 2
    assert parts["similarity"].item() == pytest.approx(2 * steps * difference.square().mean().item(), rel=1e-6)


def test_masks_leave_the_other_parts_alone():
    moving, fixed = noise(2, 2, 1, *SHAPE).sigmoid()
    low = identity_map(LOW, dtype=torch.float64) + 0.05 * noise(2, 3, *LOW)
    result = registration(moving, affines(2), [low])
    masks = {"moving_mask": box((1, 2, 3), (11, 9, 13)), "fixed_mask": box((0, 1, 2), (9, 8, 12))}
    for objective in OBJECTIVES.values():
        plain, masked = objective()(result, fixed, 1), objective()(result, fixed, 1, **masks)
        assert plain.keys() == masked.keys()
        for name in ("regularisation", "symmetry"):
            assert plain[name] == masked[name]
        assert plain["similarity"] != masked["similarity"]


def test_negative_target_weight_is_refused():
    with pytest.raises(ValueError, match="target_weight must not be negative"):
        AffineObjective(target_weight=-1.0)


# Memberships.

VALUES = torch.tensor([0.0, 2, 5])


def memberships(label, sure=1.0):
    """Of labels 2 and 5: ``sure`` for what a voxel is, the rest for the background."""
    return torch.cat([(label == value).double() for value in (2, 5)], dim=1) * sure


def random_label(batch=2, seed=0):
    numbers = torch.randint(0, 3, (batch, 1, *SHAPE), generator=torch.Generator().manual_seed(seed))
    return VALUES[numbers].double()


def test_true_memberships_cost_nothing():
    label = random_label()
    dice, cross_entropy = MembershipLoss((2, 5))(memberships(label), label)
    assert dice.item() == pytest.approx(0, abs=1e-4) and cross_entropy.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("sure", [0.9, 0.5, 0.1])
def test_membership_losses_in_numbers(sure):
    label = random_label()
    dice, cross_entropy = MembershipLoss((2, 5))(memberships(label, sure), label)
    # 2 s n / (s n + n) for each class; only the foreground is unsure.
    assert dice.item() == pytest.approx(1 - 2 * sure / (1 + sure), abs=1e-4)
    foreground = (label > 0).double().mean().item()
    assert cross_entropy.item() == pytest.approx(-foreground * torch.tensor(sure).log().item(), rel=1e-5)


def test_membership_losses_are_those_of_torch_over_all_classes():
    logits, numbers = noise(2, 3, *SHAPE), (random_label() > 0).long() + (random_label() > 2).long()
    chances = torch.softmax(logits, dim=1)
    dice, cross_entropy = MembershipLoss(2)(chances[:, 1:], numbers)
    torch.testing.assert_close(cross_entropy, torch.nn.functional.cross_entropy(logits, numbers[:, 0]))
    overlaps = [
        2 * (chances[row, c] * (numbers[row, 0] == c)).sum() / (chances[row, c].sum() + (numbers[row, 0] == c).sum())
        for row in range(2)
        for c in (1, 2)
    ]
    torch.testing.assert_close(dice, 1 - sum(overlaps) / 4, atol=1e-5, rtol=0)


def test_wrong_for_certain_stays_finite_with_a_gradient_elsewhere():
    label, wrong = random_label(), memberships(VALUES[[1, 2, 0]][random_label().long().clamp(max=2)].double())
    wrong = wrong.requires_grad_()
    dice, cross_entropy = MembershipLoss((2, 5))(wrong, label)
    (dice + cross_entropy).backward()
    assert cross_entropy.isfinite() and wrong.grad.isfinite().all() and wrong.grad.abs().max() > 0


def test_gradcheck_of_the_membership_losses():
    label = random_label(1)[:, :, :3, :2, :4]
    chances = torch.softmax(noise(1, 3, 3, 2, 4), 1)[:, 1:].requires_grad_()
    assert torch.autograd.gradcheck(lambda m: sum(MembershipLoss((2, 5))(m, label)), chances)


@pytest.mark.parametrize("classes", [0, [], [0, 1], [2, 2]])
def test_membership_loss_refuses_ill_classes(classes):
    with pytest.raises(ValueError, match="classes must be"):
        MembershipLoss(classes)


def test_membership_loss_refuses_another_number_of_classes():
    with pytest.raises(ValueError, match=r"memberships of 3 classes for labels \[2, 5\]"):
        MembershipLoss((2, 5))(torch.zeros(1, 3, *SHAPE), torch.zeros(1, 1, *SHAPE))


def test_feature_objective_is_the_sum_of_both_losses():
    label, chances = random_label(), torch.softmax(noise(2, 3, *SHAPE), 1)[:, 1:]
    seen = SimpleNamespace(fixed_seen=torch.cat([noise(2, 1, *SHAPE), chances], 1))
    parts = FeatureObjective((2, 5))(seen, None, 3, None, label, moving_mask=None, target=affines(2))
    dice, cross_entropy = MembershipLoss((2, 5))(chances, label)
    assert set(parts) == {"loss", "label_dice", "label_cross_entropy"}
    torch.testing.assert_close(parts["label_dice"], dice)
    torch.testing.assert_close(parts["label_cross_entropy"], cross_entropy)
    torch.testing.assert_close(parts["loss"], dice + cross_entropy)


@pytest.mark.parametrize(
    ("seen", "label", "message"),
    [
        (torch.zeros(2, 3, *SHAPE), None, "the pair has no labels"),
        (None, torch.zeros(2, 1, *SHAPE), "the network has no features"),
        (torch.zeros(2, 1, *SHAPE), torch.zeros(2, 1, *SHAPE), "the network has no features"),
        (torch.zeros(2, 4, *SHAPE), torch.zeros(2, 1, *SHAPE), "memberships of 3 classes"),
    ],
)
def test_feature_objective_refuses_what_it_cannot_judge(seen, label, message):
    with pytest.raises(ValueError, match=message):
        FeatureObjective(2)(SimpleNamespace(fixed_seen=seen), None, 0, None, label)
