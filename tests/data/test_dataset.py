import monai.transforms as mt
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, MetaTensor

from scripts.data.dataset import PairDataset
from scripts.data.pairs import cross_subject_pairs
from scripts.errors import InputError

GRID = (12, 16, 12)


class Counter(mt.MapTransform):
    """Notes every image it is given."""

    def __init__(self):
        super().__init__(("image",))
        self.seen = []

    def __call__(self, data):
        self.seen.append(data["image"])
        return data


def preprocessing(*first):
    keys = ("image", "label")
    return mt.Compose([*first, mt.LoadImaged(keys, image_only=True, ensure_channel_first=True, allow_missing_keys=True),
        mt.Orientationd(keys, "RAS", labels=None, allow_missing_keys=True),
        mt.Spacingd(keys, (1.0, 1.0, 1.0), mode=("bilinear", "nearest"), allow_missing_keys=True),
        mt.ScaleIntensityRangePercentilesd("image", 0.1, 99.9, 0, 1, clip=True),
        mt.ResizeWithPadOrCropd(keys, GRID, allow_missing_keys=True)])  # fmt: skip


@pytest.fixture
def listed(tmp_path):
    """Four images of different sizes, three of them with a label."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(4):
        shape = (10 + number, 12, 9)
        affine = np.diag((-1.0, 1.0, 1.5, 1.0))
        item = {"image": str(tmp_path / f"i{number}.nii.gz"), "subject": str(number)}
        nib.save(nib.Nifti1Image(rng.normal(100, 20, shape).astype(np.float32), affine), item["image"])
        if number:
            item["label"] = str(tmp_path / f"l{number}.nii.gz")
            nib.save(nib.Nifti1Image(rng.integers(0, 3, shape).astype(np.uint8), affine), item["label"])
        found.append(item)
    return found


@pytest.mark.parametrize("cache", [True, False])
def test_items_and_collation(listed, cache):
    pairs = cross_subject_pairs(listed[1:])
    dataset = PairDataset(data=pairs, transform=preprocessing(), cache=cache)
    assert len(dataset) == 6
    item = dataset[0]
    assert set(item) == {"fixed", "moving", "fixed_label", "moving_label", "name"}
    for key in ("fixed", "moving", "fixed_label", "moving_label"):
        assert isinstance(item[key], MetaTensor) and item[key].shape == (1, *GRID)
    assert item["fixed"].dtype == torch.float32 and set(item["fixed_label"].unique().tolist()) == {0, 1, 2}
    assert item["fixed"].meta["filename_or_obj"] == pairs[0]["fixed"]
    # the files' first axis points left with 1.5 mm slices: oriented and resampled
    np.testing.assert_allclose(np.asarray(item["fixed"].affine)[:3, :3], np.eye(3), atol=1e-6)
    batch = next(iter(DataLoader(dataset, batch_size=3, num_workers=0)))
    assert batch["fixed"].shape == (3, 1, *GRID) and batch["name"] == [pair["name"] for pair in pairs[:3]]
    assert batch["fixed"].affine.shape == (3, 4, 4)
    with pytest.raises(IndexError):
        dataset[6]


def test_each_image_is_loaded_once(listed):
    counter = Counter()
    pairs = cross_subject_pairs(listed)
    dataset = PairDataset(pairs, preprocessing(counter))
    for index in range(len(dataset)):
        dataset[index]
    assert sorted(counter.seen) == sorted(item["image"] for item in listed)


def test_changing_an_item_leaves_the_cache(listed):
    dataset = PairDataset(cross_subject_pairs(listed), preprocessing())
    before = dataset[0]["fixed"].clone()
    dataset[0]["fixed"].zero_()
    assert torch.equal(dataset[0]["fixed"], before) and before.abs().sum() > 0


def test_augmentation_is_repeatable(listed):
    pairs = cross_subject_pairs(listed)

    def dataset(seed):
        augment = mt.RandGaussianNoised(("fixed", "moving"), prob=1.0, std=0.1)
        return PairDataset(pairs, preprocessing(), augment=augment, seed=seed)

    first, second, other = dataset(0), dataset(0), dataset(1)
    second[3]  # the order of access does not matter
    assert torch.equal(first[0]["fixed"], second[0]["fixed"]) and not torch.equal(first[0]["fixed"], other[0]["fixed"])
    start = first[0]["fixed"]
    first.set_epoch(1)
    assert not torch.equal(first[0]["fixed"], start)
    first.set_epoch(0)
    assert torch.equal(first[0]["fixed"], start)
    loader = DataLoader(first, batch_size=1, num_workers=1, persistent_workers=True)
    assert torch.equal(next(iter(loader))["fixed"][0], start)
    first.set_epoch(1)  # reaches a worker that is already running
    assert torch.equal(next(iter(loader))["fixed"][0], first[0]["fixed"])
    assert not torch.equal(next(iter(loader))["fixed"][0], start)


def test_bad_arguments(listed, tmp_path):
    pairs = cross_subject_pairs(listed)
    with pytest.raises(InputError, match="empty"):
        PairDataset([], preprocessing())
    with pytest.raises(ValueError, match="RandGaussianNoised is random"):
        PairDataset(pairs, preprocessing(mt.RandGaussianNoised("image")))
    two = [dict(pairs[0], fixed=listed[1]["image"], fixed_label=label) for label in ("x.nii", "y.nii")]
    with pytest.raises(InputError, match="two labels"):
        PairDataset(two, preprocessing())


def test_bad_file_is_found_before_any_work(listed):
    counter = Counter()
    shape = nib.load(listed[3]["image"]).shape
    nib.save(nib.Nifti1Image(np.ones(shape, np.float32), np.eye(4)), listed[3]["image"])
    with pytest.raises(InputError, match=r"i3\.nii\.gz: constant image"):
        PairDataset(cross_subject_pairs(listed), preprocessing(counter))
    assert counter.seen == []
