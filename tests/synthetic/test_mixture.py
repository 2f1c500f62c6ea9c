import numpy as np
import pytest
import torch
from monai.data import DataLoader, MetaTensor

from scripts.data import AugmentedPairs
from scripts.errors import InputError
from scripts.synthetic import MixtureDataset

SHAPE = (2, 3, 4)


KEYS = {*("fixed", "moving", "fixed_label", "moving_label", "fixed_mask", "moving_mask"), "affine", "name"}


class Constant(torch.utils.data.Dataset):
    """Pairs filled with one value, with or without labels; remembers its epoch."""

    def __init__(self, value, length=5, labels=True):
        self.value, self.length, self.labels, self.epoch = value, length, labels, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        image = MetaTensor(torch.full((1, *SHAPE), float(self.value)), meta={"from": self.value})
        item = {"fixed": image, "moving": image + 0.5, "name": f"{self.value}_{index}", "extra": 1}
        if self.labels:
            item.update(fixed_label=image * 0 + 2, moving_label=image * 0 + 3)
        return item


def test_frequencies_follow_the_weights():
    mixture = MixtureDataset([Constant(0), Constant(1, 3), Constant(2, 7)], [1, 3, 6], length=2000, seed=4)
    drawn = [mixture.drawn(i) for i in range(len(mixture))]
    parts = np.bincount([n for n, _ in drawn]) / len(drawn)
    assert np.allclose(parts, [0.1, 0.3, 0.6], atol=0.04)
    places = np.bincount([p for n, p in drawn if n == 2])
    assert len(places) == 7 and places.min() > 0.8 * places.mean()
    assert [int(mixture[i]["fixed"].max()) for i in range(20)] == [n for n, _ in drawn[:20]]


def test_draws_depend_on_seed_epoch_and_index_alone():
    def mixture(seed=1):
        return MixtureDataset([Constant(0), Constant(1)], length=50, seed=seed)

    first, second = mixture(), mixture()
    forwards = [first.drawn(i) for i in range(50)]
    assert [second.drawn(i) for i in reversed(range(50))] == forwards[::-1]
    assert [mixture(2).drawn(i) for i in range(50)] != forwards
    first.set_epoch(3)
    assert [first.drawn(i) for i in range(50)] != forwards and [source.epoch for source in first.sources] == [3, 3]
    first.set_epoch(0)
    assert [first.drawn(i) for i in range(50)] == forwards and first.drawn(-1) == forwards[-1]
    with pytest.raises(IndexError):
        first[50]


def test_items_of_all_sources_have_the_same_keys():
    sources = [Constant(0), Constant(1, labels=False), Constant(2)]
    mixture = MixtureDataset(sources, length=30, labels=[True, True, False])
    for index in range(30):
        item, number = mixture[index], mixture.drawn(index)[0]
        assert set(item) == KEYS
        labels = (float(item["fixed_label"].max()), float(item["moving_label"].max()))
        assert labels == ((2, 3) if number == 0 else (0, 0)) and item["fixed_label"].shape == (1, *SHAPE)
        # Seen everywhere, and nothing known of the affine.
        assert all((item[f"{role}_mask"] == torch.ones(1, *SHAPE)).all() for role in ("fixed", "moving"))
        assert item["affine"].shape == (3, 4) and item["affine"].isnan().all()
    batch = next(iter(DataLoader(mixture, batch_size=30)))
    assert batch["moving"].shape == (30, 1, *SHAPE)


def test_masks_and_affines_of_posed_sources_are_kept():
    posed = AugmentedPairs(Constant(1), twins=1.0)
    mixture = MixtureDataset([posed, Constant(0)], length=30, seed=2)
    mixture.set_epoch(3)
    numbers = set()
    for index in range(30):
        item, (number, place) = mixture[index], mixture.drawn(index)
        numbers.add(number)
        assert set(item) == KEYS
        if number == 0:
            for key in ("fixed_mask", "moving_mask", "affine"):
                assert torch.equal(item[key], posed[place][key])
            assert item["fixed_mask"].min() < 1
    assert numbers == {0, 1} and next(iter(DataLoader(mixture, batch_size=30)))["affine"].shape == (30, 3, 4)


@pytest.mark.parametrize(("arguments", "words"), [
    ({"sources": []}, "sources: the mixture has none"),
    ({"sources": [Constant(0)], "weights": [1, 2]}, "weights: 2 for 1"),
    ({"sources": [Constant(0)], "weights": [float("nan")]}, "weights="),
    ({"sources": [Constant(0)], "length": 0}, "length=0"),
])  # fmt: skip
def test_bad_arguments(arguments, words):
    with pytest.raises(InputError, match=words):
        MixtureDataset(**arguments)
