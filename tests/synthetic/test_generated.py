import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, MetaTensor

from scripts.data.build import generated_dataset
from scripts.errors import InputError
from scripts.geometry import count_folds, std_log_jacobian, warp
from scripts.synthetic.generated import HELD_OUT, GeneratedPairs, generated_pairs
from scripts.synthetic.knee_labels import KneeLabels
from scripts.synthetic.phantom import KneePhantom
from scripts.synthetic.seeded import seeded
from scripts.synthetic.shapes import RandomShapes, pair_warps
from scripts.synthetic.warps import WarpRange, grid_points, random_warp

SHAPE = (24, 32, 24)
MODES = ("cross_subject", "longitudinal")
NAMES = ("shapes", "knee", "phantom")


def knee_label(path):
    """A knee of boxes and balls with all the values of a real label map, 3 mm, a flipped axis."""
    shape = (38, 46, 46)
    x, y, z = (np.indices(shape) * 3.0) - np.array([56, 64, 68]).reshape(3, 1, 1, 1)
    volume = np.zeros(shape, np.uint8)
    ball = np.sqrt((x / 1.2) ** 2 + y**2 + (z - 22) ** 2)
    volume[ball < 28] = 1
    volume[ball < 23] = 5
    plate = (abs(x) < 30) & (abs(y) < 24)
    volume[plate & (z < -14)] = 6
    volume[plate & (abs(z + 11) < 3)] = 2
    volume[plate & (abs(z + 11) < 3) & (x > 0)] = 3
    for value, centre, radius in ((4, 40, 7), (7, 48, 7), (8, -42, 6), (9, -30, 5), (10, -32, 5)):
        height = {8: -30, 9: -8, 10: -8}.get(value, 20)
        side = {9: 20, 10: -20}.get(value, 0)
        volume[np.sqrt((x - side) ** 2 + (y - centre) ** 2 + (z - height) ** 2) < radius] = value
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    affine[0] = [-3, 0, 0, 111]
    nib.save(nib.Nifti1Image(volume[::-1].copy(), affine), path)
    return path


@pytest.fixture(scope="module")
def knee_path(tmp_path_factory):
    return knee_label(tmp_path_factory.mktemp("knee") / "label.nii.gz")


@pytest.fixture(scope="module")
def generators(knee_path):
    return {
        "shapes": RandomShapes(SHAPE),
        "knee": KneeLabels(knee_path, SHAPE),
        "phantom": KneePhantom(SHAPE, (2, 2, 3)),
    }


@pytest.fixture(scope="module")
def pairs(generators):
    return {
        (name, mode): [generator.pair(seed, mode, True) for seed in range(6)]
        for name, generator in generators.items()
        for mode in MODES
    }


def agreement(a, b):
    """Part of the voxels that either labels which have the same label in both."""
    either = (a > 0) | (b > 0)
    return float(((a == b) & either).sum() / either.sum())


def moved(label, mapping):
    return warp(label[None, None].float(), mapping[None], mode="nearest")[0, 0].round().to(label.dtype)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NAMES)
def test_true_map_reproduces_the_fixed_label(pairs, name, mode):
    before, after = [], []
    for pair in pairs[name, mode]:
        # Only where the map stays inside the moving grid is there anything to compare.
        inside = (pair["true_map"].abs() <= 1).all(0)
        fixed, moving = pair["fixed_label"] * inside, pair["moving_label"]
        before.append(agreement(fixed, moving * inside))
        after.append(agreement(fixed, moved(moving, pair["true_map"]) * inside))
    # Cartilage is thinner than these voxels of 5 mm.
    assert np.mean(after) > {"shapes": 0.85, "knee": 0.75, "phantom": 0.75}[name]
    assert np.mean(after) > np.mean(before) + {"cross_subject": 0.1, "longitudinal": 0.03}[mode]


@pytest.mark.parametrize("mode", MODES)
def test_both_scans_see_the_same_point(mode):
    for seed in range(6):
        fixed, moving, mapping = pair_warps(seed, mode, SHAPE, (23, 31, 23), WarpRange())
        points = grid_points(SHAPE)
        inner = points[:, (points.abs() < 0.7).all(0)]
        gap = (moving(mapping(inner)) - fixed(inner)) * (torch.tensor(SHAPE)[:, None] - 1) / 2
        assert gap.norm(dim=0).max() < 0.6  # voxels
        assert gap.norm(dim=0).mean() < 0.06


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NAMES)
def test_true_maps_have_no_folds(pairs, name, mode):
    maps = torch.stack([pair["true_map"] for pair in pairs[name, mode]])
    assert count_folds(maps)[0].tolist() == [0] * len(maps)
    spread = std_log_jacobian(maps)
    assert spread.min() > 0.005 and spread.max() < 0.8


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_strong_warps_stay_invertible(factor):
    bounds = WarpRange(displacement=0.3 * factor)
    for seed in range(6):
        chain = random_warp(seeded(seed), SHAPE, (23, 31, 23), bounds)
        points = grid_points(SHAPE)
        image = chain(points)
        assert count_folds(image.reshape(1, 3, *SHAPE))[0] == 0 and (image - points).abs().max() > 0.1
        inner = (points.abs() < 0.6).all(0)
        back = chain.inverse()(image)[:, inner]
        assert (back - points[:, inner]).abs().max() < 0.06


def test_pairs_are_deterministic_and_differ(generators, pairs):
    for name in NAMES:
        generator = generators[name]
        again = generator.pair(1, "longitudinal")
        for key, value in again.items():
            assert torch.equal(value, pairs[name, "longitudinal"][1][key])
        assert "true_map" not in generator.pair(1, "longitudinal", true_map=False)
        assert not torch.equal(again["fixed"], pairs[name, "longitudinal"][2]["fixed"])
        assert not torch.equal(again["fixed"], pairs[name, "cross_subject"][1]["fixed"])


def test_subjects_have_bones_and_cartilage_of_their_own(knee_path):
    """Volumes differ between subjects beyond what their warps do, and are one at both visits of one."""
    same, other = (KneeLabels(knee_path, SHAPE, bounds={"degrees": 1.0}, thicker=most) for most in (0.0, 6.0))
    assert same.bounds == WarpRange(degrees=1.0)
    for mode in MODES:
        plain, own = (generator.pair(3, mode) for generator in (same, other))
        assert torch.equal(plain["true_map"], own["true_map"])
        grown = {
            role: [int((own[role] == v).sum()) / int((plain[role] == v).sum()) for v in (3, 4)]
            for role in ("fixed_label", "moving_label")
        }
        apart = np.abs(np.subtract(*grown.values())).max()
        assert apart > 0.3 if mode == "cross_subject" else apart < 0.15
        assert max(abs(ratio - 1) for ratio in grown["fixed_label"]) > 0.05
    with pytest.raises(InputError, match="unexpected keyword argument 'turns'; see the fields of WarpRange"):
        KneeLabels(knee_path, SHAPE, bounds={"turns": 1.0})


def test_lists_and_splits_share_no_seed():
    found = {
        split: {entry["seed"] for seed in range(3) for entry in generated_pairs(40, seed=seed, split=split)}
        for split in (None, "train", "held_out")
    }
    assert [len(seeds) for seeds in found.values()] == [120] * 3
    assert max(found["train"]) < HELD_OUT <= min(found["held_out"]) and max(found["held_out"]) < 2**63


@pytest.mark.parametrize("name", NAMES)
def test_fresh_stream(generators, name):
    def dataset(fresh=True):
        return GeneratedPairs(generated_pairs(4, "both"), generators[name], fresh=fresh, seed=5)

    first, second, fixed = dataset(), dataset(), dataset(False)
    start, listed = first[0]["fixed"], fixed[0]["fixed"]
    assert torch.equal(start, second[0]["fixed"]) and not torch.equal(start, first[2]["fixed"])
    for data in (first, second, fixed):
        data.set_epoch(1)
    assert not torch.equal(first[0]["fixed"], start)
    second[3]  # the order of access does not matter
    assert torch.equal(first[0]["fixed"], second[0]["fixed"]) and torch.equal(fixed[0]["fixed"], listed)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [{"cache": True}, {"cache": False}, {"fresh": True}])
def test_items_and_workers(generators, name, options):
    dataset = GeneratedPairs(generated_pairs(4, "both"), generators[name], **options)
    item = dataset[1]
    assert set(item) == {"fixed", "moving", "fixed_label", "moving_label", "name"}
    for key in set(item) - {"name"}:
        assert isinstance(item[key], MetaTensor) and item[key].shape == (1, *SHAPE) and item[key].dtype == torch.float32
        assert np.allclose(item[key].affine, generators[name].affine)
    dataset.set_epoch(2)
    batches = list(DataLoader(dataset, batch_size=2, num_workers=1 if name == "shapes" else 0))
    for number, batch in enumerate(batches):
        for place in range(2):
            assert torch.equal(batch["fixed"][place], dataset[2 * number + place]["fixed"])
    assert len({name for batch in batches for name in batch["name"]}) == 4
    dataset[0]["fixed"].zero_()
    assert dataset[0]["fixed"].sum() > 0


BAD = [
    (lambda: RandomShapes((16, 16)), r"shape=\(16, 16\)"),
    (lambda: RandomShapes(SHAPE, multimodal=1.5), "multimodal=1.5"),
    (lambda: RandomShapes(SHAPE).pair(0, "both"), "mode='both'"),
    (lambda: generated_pairs(1, "x"), "mode='x'"),
    (lambda: generated_dataset("brain", SHAPE), "kind='brain'"),
    (lambda: generated_dataset("knee_labels", SHAPE, path="/nowhere/knee.nrrd"),
        "/nowhere/knee.nrrd: file does not exist"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "words"), BAD)
def test_bad_arguments(call, words):
    with pytest.raises(InputError, match=words):
        call()


@pytest.mark.data
def test_real_knee_keeps_its_cartilage():
    path = Path(os.environ["AVSM_DATA"]) / "knee_labels" / "pymskt_dess_right_label.nrrd"
    generator = KneeLabels(path, (48, 64, 48))
    voxel = float(np.prod(generator.spacing)) / 1000
    for seed in range(4):
        label = generator.pair(seed, "cross_subject")["fixed_label"]
        volumes = [float((label == v).sum()) * voxel for v in (1, 2, 3, 4)]
        # The label map has 11.8, 3.8, 142 and 101 ml.
        for volume, (low, high) in zip(volumes, ((6, 20), (1.8, 7), (80, 220), (55, 170)), strict=True):
            assert low < volume < high
