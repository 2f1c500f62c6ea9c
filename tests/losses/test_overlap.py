"""The label loss: exact overlaps, sub-voxel shifts, gradients through the map."""

from __future__ import annotations

import pytest
import torch
from monai.losses import DiceLoss
from monai.networks.utils import one_hot

from scripts.geometry import identity_map, warp
from scripts.losses import LabelDice

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


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float32])
def test_identical_labels_cost_nothing(dtype):
    label = box((1, 1, 1), (5, 4, 4), dtype=dtype)
    assert LabelDice(2)(identity_map(SHAPE), label, label).item() == pytest.approx(0, abs=1e-5)


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


def test_a_class_in_neither_image_costs_nothing():
    label, other = box((1, 1, 1)), box((2, 1, 1))
    # Of three classes only the first is there, and overlaps by 2 of 3.
    assert LabelDice(3)(identity_map(SHAPE), label, other).item() == pytest.approx(1 / 9, abs=1e-4)


@pytest.mark.parametrize("squared_pred", [False, True])
def test_equals_monai_with_a_background_left_out(squared_pred):
    moving, fixed = box((1, 1, 1), (5, 4, 4)), box((2, 1, 2), (4, 4, 4))
    coordinates = identity_map(SHAPE) + 0.1 * torch.randn(1, 3, *SHAPE, generator=torch.Generator().manual_seed(0))
    oracle = DiceLoss(include_background=False, squared_pred=squared_pred)
    expected = oracle(warp(one_hot(moving, 3), coordinates), one_hot(fixed, 3))
    torch.testing.assert_close(LabelDice(2, squared_pred)(coordinates, moving, fixed), expected)


def test_batch_and_reduction():
    label = box((3, 2, 3)).expand(2, -1, -1, -1, -1)
    coordinates = torch.cat([shifted(0), shifted(1)])
    each = LabelDice(1, reduction="none")(coordinates, label, label)
    torch.testing.assert_close(each, torch.tensor([0.0, 1 / 3]), atol=1e-4, rtol=0)
    torch.testing.assert_close(LabelDice(1)(coordinates, label, label), each.mean())


def test_gradcheck():
    # A third of a voxel away from the grid, where linear interpolation has a derivative.
    coordinates = (shifted(0.3).double() + 0.02).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: LabelDice(2)(m, box((1, 1, 1), (5, 4, 4)), box((2, 1, 2))), coordinates)


def test_gradient_pulls_the_label_back():
    label, offset = box((3, 2, 3)), torch.tensor(1.4, requires_grad=True)
    direction = torch.zeros(1, 3, 1, 1, 1)
    direction[:, 0] = 2 / (SHAPE[0] - 1)
    LabelDice(1)(identity_map(SHAPE) + offset * direction, label, label).backward()
    assert offset.grad.item() > 0.1


@pytest.mark.parametrize("classes", [0, -1, [], [0, 1], [2, 2]])
def test_ill_classes(classes):
    with pytest.raises(ValueError, match="classes"):
        LabelDice(classes)


@pytest.mark.parametrize(
    ("shape", "moving", "fixed"),
    [
        ((1, 3, 10, 8, 8), (1, 1, 10, 8, 9), (1, 1, 10, 8, 9)),
        ((1, 2, 10, 8, 9), (1, 1, 10, 8, 9), (1, 1, 10, 8, 9)),
        ((1, 3, 10, 8, 9), (1, 2, 10, 8, 9), (1, 1, 10, 8, 9)),
        ((1, 3, 10, 8, 9), (1, 1, 10, 8, 9), (1, 4, 10, 8, 9)),
    ],
)
def test_ill_shapes(shape, moving, fixed):
    with pytest.raises(ValueError, match=r"map|label"):
        LabelDice(1)(torch.zeros(shape), torch.zeros(moving), torch.zeros(fixed))


def test_ill_reduction():
    with pytest.raises(ValueError, match="reduction"):
        LabelDice(1, reduction="sum")
