"""Doubt without labels: right and wrong maps, contrast, where the map is off, and what lies outside."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from scripts.metrics import doubt_of
from scripts.synthetic.fields import smooth_noise

SHAPE = (40, 44, 36)
SPACING = (1.0, 1.0, 1.5)


def volume(seed=0):
    """Smooth structures of several sizes, and a little noise."""
    generator = torch.Generator().manual_seed(seed)
    parts = [smooth_noise(generator, 1, [n // size for n in SHAPE], SHAPE) for size in (3, 6)]
    image = sum(parts) + 0.02 * torch.randn(1, *SHAPE, generator=generator)
    image = image - image.amin()
    return (image / image.amax())[None]


def shifted(image, voxels):
    return torch.roll(image, voxels, dims=(2, 3, 4))


FIXED = volume()
CONTRASTS = {
    "same": lambda x: x,
    "inverted": lambda x: 1 - x,
    "brighter": lambda x: 0.2 + 0.5 * x,
    "curved": lambda x: x**2,
}


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_a_right_map_is_told_from_wrong_ones_whatever_the_contrast(contrast):
    noise = 0.01 * torch.randn(FIXED.shape, generator=torch.Generator().manual_seed(7))
    moved = CONTRASTS[contrast](FIXED) + noise
    right = doubt_of(FIXED, shifted(moved, (3, 0, 0)), moved, SPACING)
    off = doubt_of(FIXED, moved, shifted(moved, (0, 4, 0)), SPACING)
    other = doubt_of(FIXED, moved, volume(1), SPACING)
    assert right.agreement > 0.5 > off.agreement > other.agreement - 0.05
    assert right.settled > 0.8 and off.settled < 0.3 and other.settled < 0.3
    assert right.agreement > right.affine_agreement and off.agreement < off.affine_agreement
    assert abs(other.agreement) < 0.1
    mean = {name: (one.uncertainty * one.weight).sum().item() for name, one in (("right", right), ("off", off))}
    assert mean["right"] < 0.5 < 2 < mean["off"]


def test_uncertainty_is_larger_where_the_map_is_more_off():
    """A shift that grows from nothing to four voxels along an axis: the map ranks the errors, in mm."""
    places = torch.arange(SHAPE[1], dtype=torch.float32)
    amount = 4 * places / (SHAPE[1] - 1)
    rows = [shifted(FIXED, (round(float(one)), 0, 0))[..., row : row + 1, :] for row, one in enumerate(amount)]
    moved = torch.cat(rows, dim=3)
    doubt = doubt_of(FIXED, moved, moved, SPACING)
    truth = amount[:: doubt.step].view(1, -1, 1).expand(doubt.uncertainty.shape)
    inner = (slice(3, -3),) * 3
    rank = spearmanr(doubt.uncertainty[inner].flatten(), truth[inner].flatten()).statistic
    assert rank > 0.5
    ends = [doubt.uncertainty[2:-2, part, 2:-2].median().item() for part in (slice(1, 4), slice(-4, -1))]
    assert ends[0] < 1 < 2.5 < ends[1] < 6


def test_what_is_masked_or_outside_does_not_count():
    moved = FIXED.clone()
    moved[:, :, :, 30:] = volume(2)[:, :, :, 30:]
    mask = torch.ones_like(FIXED)
    mask[:, :, :, 28:] = 0
    whole, masked = doubt_of(FIXED, moved, moved, SPACING), doubt_of(FIXED, moved, moved, SPACING, mask)
    inside = doubt_of(FIXED, moved, moved, SPACING, inside=mask)
    assert masked.agreement > whole.agreement + 0.1 and masked.outside == 0
    assert inside.agreement == pytest.approx(masked.agreement, abs=1e-5)
    assert inside.outside == pytest.approx(16 / 44, abs=0.1)
    nothing = doubt_of(FIXED, moved, moved, SPACING, inside=torch.zeros_like(mask))
    assert nothing.outside == 1 and np.isfinite([nothing.agreement, nothing.settled]).all()


def test_large_and_constant_images():
    large = torch.nn.functional.interpolate(FIXED, scale_factor=3)
    doubt = doubt_of(large, large, large, SPACING)
    assert doubt.step > 2 and doubt.agreement == pytest.approx(1)
    flat = torch.zeros(1, 1, 20, 20, 20)
    doubt = doubt_of(flat, flat, flat, SPACING)
    assert np.isfinite([doubt.agreement, doubt.settled, doubt.outside]).all() and doubt.uncertainty.isfinite().all()
