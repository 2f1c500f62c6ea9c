"""Likeness on the fixed image's own grid: a flow that is worse there than its affine is cut."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from flows import vortex
from scripts.formats.images import Image
from scripts.layers import VSVF
from scripts.registration.grids import NetworkGrids
from scripts.registration.likeness import NativeLikeness
from scripts.registration.update import Registered
from scripts.registration.world import WorldTransformsd, world_transforms
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


def pulled(strength):
    """A moving image, and the fixed one that a flow of this strength makes of it."""
    moving = texture()
    transform, _ = world_transforms(flow(strength), VSVF(), GRIDS, FRAME, FRAME, field_spacing=2.0, tolerance=None)
    return {"fixed": image(resample_image(moving, FRAME, FRAME, [transform])), "moving": image(moving)}


def in_the_world(images, strength, **options):
    """`WorldTransformsd` of a flow of some strength that can be shortened."""

    def shorter(factor, why):
        note = f"{factor:g}, {why}"
        return Registered(flow(strength * factor), None, {}, 0, {}, [note], {"length": factor}, shorter)

    found = Registered(flow(strength), None, {}, 0, {}, [], {"length": 1.0}, shorter)
    step = WorldTransformsd(SimpleNamespace(vsvf=VSVF()), field_spacing=2.0, tolerance=None, **options)
    return step({"images": images, "grids": GRIDS, "registered": found})


@pytest.mark.parametrize(
    ("found", "true", "expected"),
    [(0.6, 0.6, 1.0), (1.0, 0.4, 0.5), (-0.6, 0.6, 0.0), (0.6, 0.0, 0.0)],
    ids=["right", "too-far", "wrong-way", "nothing-to-do"],
)
def test_a_flow_that_is_less_alike_than_its_affine_is_cut_to_its_best_part(found, true, expected):
    images = pulled(true)
    item = in_the_world(images, found)
    assert item["registered"].twin["length"] == expected
    assert any("less similar" in note for note in item["registered"].notes) == (expected < 1)
    assert NativeLikeness(images).gain(item["affine_transform"], item["transform"]) >= (0.01 if expected > 0 else 0)
    points = FRAME.voxel_to_world(np.stack(np.indices(FRAME.shape), axis=-1))
    np.testing.assert_allclose(item["displacement"], item["transform"].apply(points) - points, atol=1e-4)
    assert in_the_world(images, found, keep_better=False)["registered"].twin["length"] == 1.0


def test_what_is_cut_has_no_folds_either():
    """The whole folds and is less alike: both count, and lengths are parts of what was found."""
    item = in_the_world(pulled(-0.5), 20.0)
    assert item["regularity"].folds == 0 and item["registered"].twin["length"] == 0.0


@pytest.mark.parametrize("spacing", [1.0, 3.0])
@pytest.mark.parametrize("contrast", [1.0, 0.25])
def test_the_better_of_two_transforms_gains(spacing, contrast):
    frame = Frame(FRAME.shape, np.diag([spacing] * 3 + [1.0]), "image")
    moving = texture()
    fixed = 100 * contrast * resample_image(moving, frame, frame, [shift(2 * spacing)]) + 7
    likeness = NativeLikeness({"fixed": image(fixed, frame), "moving": image(moving, frame)})
    assert likeness.gain(IDENTITY, shift(2 * spacing)) > 0.1
    assert likeness.gain(shift(2 * spacing), IDENTITY) < -0.1
    assert likeness.gain(shift(spacing), shift(spacing)) == 0


def test_only_the_mask_counts_and_what_both_transforms_see():
    moving, left = texture(), np.zeros(FRAME.shape, bool)
    left[:16] = True
    fixed = np.where(left[..., :], moving, texture(1))
    images = {"fixed": image(fixed), "moving": image(moving)}
    here, there = (image(mask) for mask in (left, ~left))
    assert NativeLikeness({**images, "fixed_mask": here}).gain(shift(6.0), IDENTITY) > 0.1
    assert abs(NativeLikeness({**images, "fixed_mask": there}).gain(shift(6.0), IDENTITY)) < 0.1
    assert NativeLikeness(images).gain(shift(1e4), IDENTITY) == 0  # nothing that both see


@pytest.mark.parametrize(
    ("shape", "spacing", "most", "strides"),
    [
        ((40, 40, 40), (1, 1, 1), 64_000, (1, 1, 1)),
        ((40, 40, 10), (1, 1, 4), 4_000, (2, 2, 1)),
        ((40, 40, 40), (1, 1, 1), 8_000, (2, 2, 2)),
        ((100, 1, 1), (1, 1, 1), 25, (4, 1, 1)),
    ],
)
def test_a_large_image_is_thinned_where_it_is_finest(shape, spacing, most, strides):
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = 5, -6, 7
    frame = Frame(shape, affine, "image")
    likeness = NativeLikeness(
        {"fixed": image(texture(0, shape), frame), "moving": image(texture(0, shape), frame)}, None, most
    )
    assert likeness.strides == strides and math.prod(likeness.frame.shape) <= most
    np.testing.assert_allclose(likeness.frame.voxel_to_world([1, 0, 0]), frame.voxel_to_world([strides[0], 0, 0]))
    assert tuple(likeness.fixed.shape[2:]) == likeness.frame.shape
