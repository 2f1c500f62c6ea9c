"""Acceptance: a flow that folds, or is less similar than its affine on the fixed image's own grid, is shortened."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from flows import vortex
from scripts.formats.images import Image
from scripts.layers import VSVF
from scripts.metrics import world_jacobian
from scripts.networks import AVSM
from scripts.registration.accept import NativeSimilarity, accept
from scripts.registration.grids import NetworkGrids
from scripts.registration.intensities import sample
from scripts.registration.pair import Pair
from scripts.registration.sampling import SampledPair
from scripts.registration.world import world_transform
from scripts.spatial.frame import Frame
from scripts.spatial.resampling import resample_image
from scripts.spatial.transform import WorldTransform

FRAME = Frame((32, 36, 28), np.diag([3.0, 3.0, 3.0, 1.0]), "image")
GRIDS = NetworkGrids(FRAME, FRAME, "header")
IDENTITY = WorldTransform(np.eye(4))


def shift(millimetres):
    matrix = np.eye(4)
    matrix[0, 3] = millimetres
    return WorldTransform(matrix)


def image(array, frame=FRAME):
    return Image(np.asarray(array, np.float32), frame, Path("image.nii.gz"))


def texture(seed=0, shape=FRAME.shape):
    noise = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 2.0)
    return ((noise - noise.min()) / np.ptp(noise)).astype(np.float32)


def flow(strength):
    return vortex(strength, FRAME.shape, rise=0.0)


def pair(fixed, moving, mask=None, frame=FRAME):
    return Pair(image(fixed, frame), image(moving, frame), fixed_mask=mask)


def warped(strength):
    """A moving image, and the fixed one that a flow of this strength makes of it."""
    moving = texture()
    transform = world_transform(flow(strength), VSVF(), GRIDS, FRAME, FRAME)
    return pair(resample_image(moving, FRAME, FRAME, [transform]), moving)


class Flows(AVSM):
    """Gives the flow of a strength, shortened as its momenta are: the smoother is left out."""

    def __init__(self, strength):
        super().__init__(torch.nn.Identity(), torch.nn.Identity(), VSVF())
        self.strength = strength

    def integrate(self, moving, affine, momenta):
        found = flow(self.strength * momenta[0].item())
        transform = world_transform(found, VSVF(), GRIDS, FRAME, FRAME)
        found.moved = torch.from_numpy(resample_image(moving[0, 0].numpy(), FRAME, FRAME, [transform]))[None, None]
        return found


def accepted(images, strength, **options):
    """What is accepted of a flow of some strength."""
    moving, fixed = (
        torch.from_numpy(sample(one.array, one.frame, grid))[None, None]
        for one, grid in ((images.moving, GRIDS.moving), (images.fixed, GRIDS.fixed))
    )
    network = Flows(strength)
    found = network.integrate(moving, None, [torch.ones(1)])
    found.momenta = [torch.ones(1)]
    return accept(found, network, SampledPair(GRIDS, moving, fixed, None, None), images, 0.05, **options)


@pytest.mark.parametrize(
    ("found", "true", "expected"),
    [(0.6, 0.6, 1.0), (1.0, 0.4, 0.5), (-0.6, 0.6, 0.0), (0.6, 0.0, 0.0)],
    ids=["right", "too-far", "wrong-way", "nothing-to-do"],
)
def test_a_flow_that_is_less_similar_than_its_affine_is_cut_to_its_best_part(found, true, expected):
    images = warped(true)
    result = accepted(images, found)
    assert result.length == expected and any("less similar" in note for note in result.notes) == (expected < 1)
    assert NativeSimilarity(images).gain(result.affine, result.transform) >= (0.01 if expected > 0 else 0)
    points = FRAME.voxel_to_world(np.stack(np.indices(FRAME.shape), axis=-1))
    np.testing.assert_allclose(result.displacement, result.transform.apply(points) - points, atol=1e-4)
    assert accepted(images, found, keep_better=False).length == 1.0


def test_what_is_cut_has_no_folds_either():
    """The whole folds and is less similar: both count, and lengths are parts of what was found."""
    result = accepted(warped(-0.5), 20.0)
    assert result.jacobian.folds == 0 and result.length == 0.0


def test_a_flow_is_shortened_until_nothing_folds_and_no_further():
    images = warped(0.6)
    result = accepted(images, 6.0, keep_better=False)
    assert result.jacobian.folds == 0 and 0 < result.length < 1
    (note,) = result.notes
    assert f"shortened to {result.length:.3g}" in note and "no folds" in note
    longer = min(length for length in (0.97, 0.94, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.25, 1.0) if length > result.length)
    transform = world_transform(flow(6.0 * longer), VSVF(), GRIDS, FRAME, FRAME).covering(FRAME)
    points = FRAME.voxel_to_world(np.stack(np.indices(FRAME.shape), axis=-1))
    assert world_jacobian([WorldTransform(np.eye(4), transform.apply(points) - points, FRAME)], FRAME).folds > 0
    assert accepted(images, 0.3, keep_better=False).length == 1.0


@pytest.mark.parametrize("spacing", [1.0, 3.0])
@pytest.mark.parametrize("contrast", [1.0, 0.25])
def test_the_better_of_two_transforms_gains(spacing, contrast):
    frame = Frame(FRAME.shape, np.diag([spacing] * 3 + [1.0]), "image")
    moving = texture()
    fixed = 100 * contrast * resample_image(moving, frame, frame, [shift(2 * spacing)]) + 7
    similarity = NativeSimilarity(pair(fixed, moving, frame=frame))
    assert similarity.gain(IDENTITY, shift(2 * spacing)) > 0.1 and similarity.gain(shift(2 * spacing), IDENTITY) < -0.1
    assert similarity.gain(shift(spacing), shift(spacing)) == 0


def test_only_the_mask_counts_and_what_both_transforms_see():
    moving, left = texture(), np.zeros(FRAME.shape, bool)
    left[:16] = True
    fixed = np.where(left[..., :], moving, texture(1))
    here, there = (image(mask) for mask in (left, ~left))
    assert NativeSimilarity(pair(fixed, moving, here)).gain(shift(6.0), IDENTITY) > 0.1
    assert abs(NativeSimilarity(pair(fixed, moving, there)).gain(shift(6.0), IDENTITY)) < 0.1
    assert NativeSimilarity(pair(fixed, moving)).gain(shift(1e4), IDENTITY) == 0  # nothing that both see


@pytest.mark.parametrize(("shape", "spacing", "most", "strides"), [
    ((40, 40, 40), (1, 1, 1), 64_000, (1, 1, 1)),
    ((40, 40, 10), (1, 1, 4), 4_000, (2, 2, 1)),
    ((40, 40, 40), (1, 1, 1), 8_000, (2, 2, 2)),
    ((100, 1, 1), (1, 1, 1), 25, (4, 1, 1)),
])  # fmt: skip
def test_a_large_image_is_thinned_where_it_is_finest(shape, spacing, most, strides):
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = 5, -6, 7
    frame = Frame(shape, affine, "image")
    similarity = NativeSimilarity(pair(texture(0, shape), texture(0, shape), frame=frame), None, most)
    assert math.prod(similarity.frame.shape) <= most
    np.testing.assert_allclose(similarity.frame.voxel_to_world([1, 1, 1]), frame.voxel_to_world(strides))
    assert tuple(similarity.fixed.shape[2:]) == similarity.frame.shape


@pytest.mark.parametrize("contrast", ["same", "inverted", "folded"])
def test_no_flow_leaves_more_doubt_than_its_affine_whatever_the_contrast(contrast):
    """Where the similarity of one contrast says nothing, structures decide."""
    right = warped(0.2)
    change = {"same": lambda x: x, "inverted": lambda x: 1 - x, "folded": lambda x: np.abs(x - 0.5)}[contrast]
    images = pair(right.fixed.array, change(right.moving.array))
    for strength in (0.2, -0.2, 1.0):
        result = accepted(images, strength)
        assert result.length == 0 or result.doubt.agreement >= result.doubt.affine_agreement
    wrong = accepted(images, -0.2)
    assert wrong.length == 0 and any("only the affine is left" in note for note in wrong.notes)
