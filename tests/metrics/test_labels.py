"""Dice and surface distances: known answers, and the values of MONAI."""

import math
import warnings

import monai.metrics
import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion, gaussian_filter

from scripts.metrics import label_metrics, mean_metrics
from scripts.metrics.summary import summarise

SPACING = (0.5, 1.5, 4.0)


def box(start, stop, shape=(24, 20, 14), value=1):
    labels = np.zeros(shape, np.int16)
    labels[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = value
    return labels


def reference(moved, fixed, spacing):
    """Dice, HD95 and ASSD of MONAI, on the whole image."""
    pair = [torch.from_numpy(mask)[None, None] for mask in (moved, fixed)]
    options = {"include_background": True, "spacing": list(spacing)}
    return {
        "dice": monai.metrics.compute_dice(*(mask.float() for mask in pair)).item(),
        "hd95": monai.metrics.compute_hausdorff_distance(*pair, percentile=95, **options).item(),
        "assd": monai.metrics.compute_average_surface_distance(*pair, symmetric=True, **options).item(),
    }


def blobs(seed, shape=(24, 30, 20)):
    volume = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    return np.digitize(volume, np.quantile(volume, (0.6, 0.8, 0.95))).astype(np.int16)


PAIRS = {
    "blobs": (blobs(0), blobs(1)),
    "other blobs": (blobs(2), blobs(3)),
    "blobs that touch": (blobs(4), np.roll(blobs(4), 1, 0)),
    "apart": (box((0, 0, 0), (3, 4, 5)), box((20, 15, 10), (24, 20, 14))),
    "one voxel": (box((3, 3, 3), (4, 4, 4)), box((2, 2, 2), (12, 12, 12))),
    "one within the other": (box((0, 0, 0), (24, 20, 14)), box((10, 8, 6), (12, 10, 8))),
    "one slice": (box((0, 2, 0), (24, 3, 14)), box((0, 2, 0), (24, 3, 9))),
    "only fixed": (box((0, 0, 0), (0, 0, 0)), box((2, 2, 2), (12, 12, 12))),
    "only moved": (box((2, 2, 2), (12, 12, 12)), box((0, 0, 0), (0, 0, 0))),
}


@pytest.mark.parametrize("spacing", [(1, 1, 1), SPACING, (3.0, 0.4, 0.4)])
@pytest.mark.parametrize("name", PAIRS)
def test_as_monai(name, spacing):
    moved, fixed = PAIRS[name]
    measures = label_metrics(moved, fixed, spacing)
    assert list(measures) == list(range(1, int(max(moved.max(), fixed.max())) + 1))
    for label, values in measures.items():
        expected = reference(moved == label, fixed == label, spacing)
        if name.startswith("only"):
            # A label that one map lacks: MONAI says infinity or 0 of some of its distances.
            expected |= {"hd95": math.nan, "assd": math.nan}
        assert values == pytest.approx(expected, rel=1e-6, nan_ok=True)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_shifted_plate(axis):
    """A plate one voxel thick, moved along its normal: every distance is the shift in mm."""
    start, stop = [2, 2, 2], [8, 8, 8]
    stop[axis] = start[axis] + 1
    fixed = box(start, stop)
    moved = np.roll(fixed, 3, axis=axis)
    values = label_metrics(moved, fixed, SPACING)[1]
    assert values == pytest.approx({"dice": 0, "hd95": 3 * SPACING[axis], "assd": 3 * SPACING[axis]})


def test_a_few_far_voxels_are_left_out_of_hd95():
    fixed = box((2, 2, 2), (12, 12, 12))
    moved = fixed.copy()
    moved[22, 18, 12] = 1
    values = label_metrics(moved, fixed, (1, 1, 1))[1]
    surface = (fixed > 0) & ~binary_erosion(fixed > 0)
    far = math.dist((22, 18, 12), (11, 11, 11))
    assert values["hd95"] == 0 and values["assd"] == pytest.approx(far / (2 * surface.sum() + 1))
    assert values["dice"] == pytest.approx(2000 / 2001)


@pytest.mark.parametrize(
    "in_moved, in_fixed, dice", [(True, False, math.nan), (False, True, 0.0), (False, False, math.nan)]
)
def test_absent_labels(in_moved, in_fixed, dice):
    """As in the workflows' tables: no Dice where the fixed image lacks the label."""
    empty, full = np.zeros((24, 20, 14), np.int16), box((2, 2, 2), (8, 8, 8), value=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = label_metrics(full if in_moved else empty, full if in_fixed else empty, SPACING, [5])[5]
    assert values["dice"] == pytest.approx(dice, nan_ok=True)
    assert math.isnan(values["hd95"]) and math.isnan(values["assd"])


def test_labels_asked_for():
    moved, fixed = blobs(0), blobs(1)
    all_of_them = label_metrics(moved, fixed, SPACING)
    assert label_metrics(moved, fixed, SPACING, (3, 1)) == {3: all_of_them[3], 1: all_of_them[1]}
    assert label_metrics(moved * 0, fixed * 0, SPACING) == {}
    background = label_metrics(moved, fixed, SPACING, [0])[0]
    assert background == pytest.approx(reference(moved == 0, fixed == 0, SPACING), rel=1e-6)


def test_means_leave_out_what_is_not_defined():
    values = {1: {"dice": 0.5, "hd95": 2.0, "assd": 1.0}, 2: {"dice": 1.0, "hd95": math.nan, "assd": 3.0}}
    assert mean_metrics(values) == {"dice": 0.75, "hd95": 2.0, "assd": 2.0}
    assert all(math.isnan(value) for value in mean_metrics({}).values())


def test_means_over_the_pairs_of_a_run():
    rows = [
        {"name": "a", "dice": 0.5, "folds": 0.0, "one": math.nan, "none": math.nan},
        {"name": "b", "dice": 0.7, "folds": 4.0, "one": 3.0, "none": math.nan},
        {"name": "c", "dice": math.nan, "folds": 2.0, "one": math.nan},
    ]
    expected = {"pairs": 3, "dice": 0.6, "dice_std": 0.02**0.5, "folds": 2.0, "folds_std": 2.0}
    expected |= {"one": 3.0, "one_std": 0.0, "none": None, "none_std": None}
    assert summarise(rows) == pytest.approx(expected) and summarise([]) == {"pairs": 0}
