"""Augmented pairs: the affine of twins is the true one, labels and masks go with their images, draws repeat."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import RandGaussianNoised

from scripts.data.augmented import AugmentedPairs, field_of_view
from scripts.errors import InputError
from scripts.geometry import affine_map, identity_affine, identity_map, warp
from scripts.losses import common_view

SHAPE = (11, 14, 9)
STILL = {"degrees": 0.0, "shift": 0.0, "scale": 0.0, "shear": 0.0}
SHAPES = st.tuples(*[st.integers(8, 20)] * 3)
EXTENTS = st.none() | st.tuples(*[st.floats(60.0, 200.0)] * 3)


class Given(torch.utils.data.Dataset):
    """Pairs as they come: a ramp or noise, a box of zeros around it, labels 0, 2 and 5; remembers its epoch."""

    def __init__(self, shape=SHAPE, length=4, ramp=False, labels=True, margin=0):
        self.shape, self.length, self.ramp = shape, length, ramp
        self.labels, self.margin, self.epoch = labels, margin, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return self.length

    def volume(self, number):
        generator = torch.Generator().manual_seed(number)
        if self.ramp:
            # What linear interpolation reproduces exactly.
            slopes = torch.tensor([0.15, -0.12, 0.1]).view(3, 1, 1, 1)
            return 0.5 + (slopes * identity_map(self.shape)[0]).sum(0, keepdim=True)
        image = 0.1 + 0.9 * torch.rand(1, *self.shape, generator=generator)
        inside = torch.zeros(1, *self.shape)
        inside[(slice(None), *(slice(self.margin, n - self.margin) for n in self.shape))] = 1
        return image * inside

    def __getitem__(self, index):
        affine = torch.diag(torch.tensor([2.0, 1.0, 0.5, 1.0], dtype=torch.float64))
        item = {"name": f"pair {index}"}
        for number, role in enumerate(("fixed", "moving")):
            image = self.volume(2 * index + number)
            item[role] = MetaTensor(image, affine=affine)
            if self.labels:
                item[f"{role}_label"] = MetaTensor(torch.tensor([0.0, 2, 5])[(image * 7).long() % 3], affine=affine)
        return item


def equal(first, second):
    """Whether two items are equal in every bit, NaN equal to NaN."""
    return first.keys() == second.keys() and all(
        first[key] == second[key]
        if key == "name"
        else torch.equal(torch.nan_to_num(first[key]), torch.nan_to_num(value))
        for key, value in second.items()
    )


@pytest.mark.parametrize(("boxes", "expected"), [
    ([(2, 3, 1)], [(2, 3), (3, 4), (1, 2)]),
    ([(0, 0, 0), (5, 6, 4)], [(0, 6), (0, 7), (0, 5)]),
    ([(1, 5, 2), (4, 2, 3)], [(1, 5), (2, 6), (2, 4)]),
    ([], [(0, 6), (0, 7), (0, 5)]),
])  # fmt: skip
@pytest.mark.parametrize("value", [0.5, -0.5])
def test_field_of_view_is_the_box_around_what_is_not_zero(boxes, expected, value):
    image, inside = torch.zeros(1, 6, 7, 5), torch.zeros(1, 6, 7, 5)
    for point in boxes:
        image[(0, *point)] = value
    inside[(slice(None), *(slice(*ends) for ends in expected))] = 1
    for given_image in (image, MetaTensor(image)):
        found = field_of_view(given_image)
        assert type(found) is torch.Tensor and found.dtype == torch.float32 and found.equal(inside)


@settings(max_examples=25, deadline=None)
@given(shape=SHAPES, extent=EXTENTS, seed=st.integers(0, 2**32 - 1), flow=st.sampled_from([0.0, 1.0]))
def test_affine_of_twins_is_the_true_one(shape, extent, seed, flow):
    """Where both images have been seen, moving(Γ x) = fixed(x): exactly, as the images are ramps."""
    bounds = {"degrees": 8.0, "shift": 0.04, "scale": 0.08, "shear": 0.05}
    item = AugmentedPairs(Given(shape, ramp=True), bounds, extent, twins=1.0, flow=flow, seed=seed)[0]
    affine = item["affine"][None]
    assert item["affine"].shape == (3, 4) and (affine - identity_affine(1)).abs().max() > 1e-3
    masks = [item[f"{role}_mask"].as_tensor()[None] for role in ("moving", "fixed")]
    fixed, moving = (item[role].as_tensor()[None] for role in ("fixed", "moving"))
    coordinates = affine_map(affine, list(shape))
    inside = common_view(coordinates, *masks) > 1 - 1e-4
    # The centre, at least, stays in view.
    assert inside.any() and (warp(moving, coordinates) - fixed)[inside].abs().max() < 1e-3


@settings(max_examples=15, deadline=None)
@given(shape=SHAPES, extent=st.tuples(*[st.floats(20.0, 200.0)] * 3), seed=st.integers(0, 2**32 - 1))
def test_twins_turn_rigidly_in_millimetres(shape, extent, seed):
    bounds = {**STILL, "degrees": 20.0}
    affine = AugmentedPairs(Given(shape), bounds, extent, twins=1.0, seed=seed)[0]["affine"].double()
    half = torch.tensor(extent, dtype=torch.float64) / 2
    turn = half[:, None] * affine[:, :3] / half
    torch.testing.assert_close(turn @ turn.T, torch.eye(3).double(), atol=1e-5, rtol=0)
    assert affine[:, 3].abs().max() < 1e-6 and (turn - torch.eye(3)).abs().max() > 1e-3


@settings(max_examples=20, deadline=None)
@given(
    shape=SHAPES,
    seed=st.integers(0, 2**32 - 1),
    flow=st.sampled_from([0.0, 0.5, 1.0]),
    twins=st.sampled_from([0.0, 0.5]),
    margin=st.integers(0, 2),
)
def test_values_are_those_of_the_source(shape, seed, flow, twins, margin):
    source = Given(shape, margin=margin)
    posed = AugmentedPairs(source, flow=flow, twins=twins, still=0.2, seed=seed)
    for index in range(2):
        item, original = posed[index], source[index]
        assert item["name"] == original["name"]
        for role in ("fixed", "moving"):
            image, mask, label = (item[f"{role}{suffix}"] for suffix in ("", "_mask", "_label"))
            assert image.shape == mask.shape == label.shape == (1, *shape)
            assert image.dtype == mask.dtype == label.dtype == torch.float32
            assert set(label.unique().tolist()) <= {0.0, 2.0, 5.0}
            assert image.min() >= 0 and image.max() <= 1 and mask.min() >= 0 and mask.max() <= 1 + 1e-6
            # An image is nothing where its field of view is not.
            assert (image[mask == 0] == 0).all()
            for volume in (image, mask, label):
                assert torch.equal(volume.affine, original[role].affine)


def test_labels_and_masks_go_with_their_image():
    """An image that is its own label and its own field of view tells where both should be."""

    class Boxes(Given):
        def __getitem__(self, index):
            box = torch.zeros(1, *self.shape)
            box[:, 3:9, 4:11, 2:7] = 1
            return {"fixed": box, "moving": box.clone(), "fixed_label": 3 * box, "moving_label": 3 * box, "name": "box"}

    for flow in (0.0, 1.0):
        item = AugmentedPairs(Boxes((12, 15, 10)), flow=flow, seed=2)[0]
        for role in ("fixed", "moving"):
            image, label = item[role], item[f"{role}_label"]
            torch.testing.assert_close(image, item[f"{role}_mask"])
            # The nearest of the eight voxels that are mixed is not decided by the mixture, but by its corners it is.
            assert (label[image > 0.9] == 3).all() and (label[image < 0.1] == 0).all()
            assert (image - Boxes((12, 15, 10))[0][role]).abs().max() > 0.5


@pytest.mark.parametrize(
    ("still", "twins", "parts"), [(0.3, 0.2, (0.24, 0.2)), (1.0, 0.3, (0.7, 0.3)), (0.0, 0.0, (0, 0))]
)
def test_how_often_pairs_are_still_and_twins(still, twins, parts):
    source = Given((4, 4, 4), length=120, labels=False)
    posed = AugmentedPairs(source, still=still, twins=twins, seed=1)
    found = np.zeros(2)
    for index in range(120):
        item, original = posed[index], source[index]
        same = [torch.equal(item[role].as_tensor(), original[role].as_tensor()) for role in ("fixed", "moving")]
        assert same[0] == same[1]
        found += (same[0], not item["affine"].isnan().any())
        assert item["affine"].isnan().all() or item["affine"].isfinite().all()
    np.testing.assert_allclose(found / 120, parts, atol=0.1)


def test_still_pairs_are_left_as_they_are_but_for_their_masks():
    source = Given(margin=2)
    item, original = AugmentedPairs(source, still=1.0, flow=1.0)[1], source[1]
    for key in ("fixed", "moving", "fixed_label", "moving_label"):
        assert torch.equal(item[key].as_tensor(), original[key].as_tensor()), key
    for role in ("fixed", "moving"):
        assert item[f"{role}_mask"].as_tensor().equal(field_of_view(original[role]))
        assert 0 < item[f"{role}_mask"].mean() < 1


def test_twins_are_of_the_fixed_image():
    class Bright(Given):
        def __getitem__(self, index):
            return {**super().__getitem__(index), "moving": torch.full((1, *self.shape), 9.0)}

    assert AugmentedPairs(Bright(), twins=1.0)[0]["moving"].max() <= 1
    assert AugmentedPairs(Bright())[0]["moving"].max() > 8


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 2**31), index=st.integers(0, 3))
def test_draws_depend_on_seed_epoch_and_index_alone(seed, epoch, index):
    def posed(seed):
        noise = RandGaussianNoised(("fixed", "moving"), prob=0.5, std=0.1)
        found = AugmentedPairs(Given((6, 7, 5)), still=0.2, twins=0.3, flow=0.3, augment=noise, seed=seed)
        found.set_epoch(epoch)
        return found

    first, second = posed(seed), posed(seed)
    second[(index + 1) % 4]  # the order of access does not matter
    start = first[index]
    assert equal(start, second[index]) and equal(start, first[index - 4]) and first.source.epoch == epoch
    if start["affine"].isfinite().all():
        # Only what is posed in both can be told apart.
        for other in (posed(seed + 1)[index], (first.set_epoch(epoch + 1), first[index])[1]):
            assert not torch.equal(other["affine"], start["affine"])
        first.set_epoch(epoch)
        assert equal(start, first[index])


@pytest.mark.parametrize(("arguments", "words"), [
    ({"still": -0.1}, "still=-0.1; give a probability"),
    ({"twins": 1.5}, "twins=1.5; give a probability"),
    ({"flow": float("nan")}, "flow=nan; give a probability"),
    ({"bounds": {"angle": 3}}, "unexpected keyword argument 'angle'; see the fields of WarpRange"),
])  # fmt: skip
def test_bad_arguments(arguments, words):
    with pytest.raises(InputError, match=words):
        AugmentedPairs(Given(), **arguments)
