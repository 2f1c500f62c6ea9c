"""The label losses: exact overlaps, sub-voxel shifts, memberships, gradients."""

import pytest
import torch
from monai.losses import DiceLoss
from monai.networks.utils import one_hot

from scripts.geometry import identity_map, warp
from scripts.losses import LabelDice, MembershipLoss
from tensor_cases import noise

SHAPE = (10, 8, 9)


def box(*starts, side=3, dtype=torch.int64):
    """Labels 1, 2, ... in cubes that begin at each of starts."""
    label = torch.zeros(1, 1, *SHAPE, dtype=dtype)
    for value, start in enumerate(starts, 1):
        label[(..., *(slice(s, s + side) for s in start))] = value
    return label


def shifted(voxels, axis=0):
    coordinates = identity_map(SHAPE).clone()
    coordinates[:, axis] += voxels * 2 / (SHAPE[axis] - 1)
    return coordinates


@pytest.mark.parametrize(("voxels", "expected"), [(0, 0.0), (1, 1 / 3), (0.5, 1 / 6), (2, 2 / 3), (3, 1.0)])
def test_a_shift_of_a_cube(voxels, expected):
    label = box((3, 2, 3))
    # A cube of side 3, moved by t, overlaps itself by 3 - t of 3.
    assert LabelDice(1)(shifted(voxels), label, label).item() == pytest.approx(expected, abs=1e-4)


def test_the_map_says_where_to_look():
    moving, fixed = box((4, 2, 3)), box((2, 2, 3))
    assert LabelDice(1)(shifted(2), moving, fixed).item() == pytest.approx(0, abs=1e-4)
    assert LabelDice(1)(shifted(-2), moving, fixed).item() == pytest.approx(1, abs=1e-4)


def test_classes_do_not_mix():
    moving, fixed = box((1, 1, 1), (5, 4, 4)), box((5, 4, 4), (1, 1, 1))
    assert LabelDice(2)(identity_map(SHAPE), moving, fixed).item() == pytest.approx(1, abs=1e-4)


def test_label_values_need_not_be_consecutive():
    label = 7 * (box((1, 1, 1)) > 0) + 40 * (box((5, 4, 4)) > 0)
    other = 7 * (box((2, 1, 1)) > 0) + 40 * (box((5, 4, 4)) > 0)
    identity = identity_map(SHAPE)
    assert LabelDice([7, 40])(identity, label, other).item() == pytest.approx(1 / 6, abs=1e-4)
    assert LabelDice([40])(identity, label, other).item() == pytest.approx(0, abs=1e-4)


def test_equals_monai_with_a_background_left_out():
    moving, fixed = box((1, 1, 1), (5, 4, 4)), box((2, 1, 2), (4, 4, 4))
    coordinates = identity_map(SHAPE) + 0.1 * torch.randn(1, 3, *SHAPE, generator=torch.Generator().manual_seed(0))
    oracle = DiceLoss(include_background=False)
    expected = oracle(warp(one_hot(moving, 3), coordinates), one_hot(fixed, 3))
    torch.testing.assert_close(LabelDice(2)(coordinates, moving, fixed), expected[None])


def test_gradcheck():
    # A third of a voxel away from the grid, where linear interpolation has a derivative.
    coordinates = (shifted(0.3).double() + 0.02).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: LabelDice(2)(m, box((1, 1, 1), (5, 4, 4)), box((2, 1, 2))), coordinates)


@pytest.mark.parametrize("loss", [LabelDice, MembershipLoss])
@pytest.mark.parametrize("classes", [0, -1, [], [0, 1], [2, 2]])
def test_refuses_ill_classes(loss, classes):
    with pytest.raises(ValueError, match="classes must be"):
        loss(classes)


def test_refuses_another_number_of_memberships():
    with pytest.raises(ValueError, match=r"memberships of 3 classes for labels \[2, 5\]"):
        MembershipLoss((2, 5))(torch.zeros(1, 3, *SHAPE), torch.zeros(1, 1, *SHAPE))


# Memberships.

VALUES = torch.tensor([0.0, 2, 5])


def memberships(label, sure=1.0):
    """Of labels 2 and 5: ``sure`` for what a voxel is, the rest for the background."""
    return torch.cat([(label == value).double() for value in (2, 5)], dim=1) * sure


def random_label(batch=2, seed=0):
    numbers = torch.randint(0, 3, (batch, 1, *SHAPE), generator=torch.Generator().manual_seed(seed))
    return VALUES[numbers].double()


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
