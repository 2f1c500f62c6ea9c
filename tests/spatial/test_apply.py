"""Images, labels and points under transforms: as ITK does it, and in agreement with each other."""

import warnings

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from scripts.errors import InputError
from scripts.formats.transform_files import read_transforms, write_transform
from scripts.spatial import resampling as apply
from scripts.spatial.resampling import OutsideFieldWarning, resample_image, resample_labels, transform_points
from scripts.spatial.transform import WorldTransform
from world_cases import (
    AFFINE,
    FRAMES,
    LABELS,
    OBLIQUE,
    OTHER,
    displacement,
    from_sitk,
    label_map,
    noise,
    sitk_points,
    some_points,
    to_sitk,
)


def make(name):
    fixed, moving = FRAMES[name]
    return fixed, moving, WorldTransform.from_network(fixed, moving, AFFINE, displacement())


def in_sitk(folder, transform):
    write_transform(transform, folder / "transform.h5")
    return sitk.ReadTransform(str(folder / "transform.h5"))


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("mode", ["linear", "bspline"])
def test_image_as_itk(tmp_path, name, mode):
    fixed, moving, transform = make(name)
    image = noise(moving.shape)
    reference = to_sitk(np.zeros(fixed.shape, np.float32), fixed)
    how = sitk.sitkLinear if mode == "linear" else sitk.sitkBSpline
    # A double image keeps SimpleITK from rounding the result.
    theirs = from_sitk(
        sitk.Resample(to_sitk(image.astype(np.float64), moving), reference, in_sitk(tmp_path, transform), how, -1.0)
    )
    ours = resample_image(image, moving, fixed, [transform], mode, fill=-1)
    assert ours.dtype == np.float32 and (ours == -1).any() and (ours != -1).mean() > 0.5
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("name", FRAMES)
def test_nearest_labels_as_itk(tmp_path, name):
    fixed, moving, transform = make(name)
    labels = label_map(moving.shape)
    reference = to_sitk(np.zeros(fixed.shape, np.uint8), fixed)
    theirs = from_sitk(
        sitk.Resample(to_sitk(labels, moving), reference, in_sitk(tmp_path, transform), sitk.sitkNearestNeighbor, 9)
    )
    ours = resample_labels(labels, moving, fixed, [transform], fill=9)
    assert ours.dtype == np.uint8
    assert (ours != theirs).mean() < 1e-3  # halves may round either way


@pytest.mark.parametrize("name", ["anisotropic", "oblique, other size"])
def test_linear_labels_are_the_largest_indicator(name):
    fixed, moving, transform = make(name)
    labels = label_map(moving.shape)
    world = transform.apply(fixed.voxel_to_world(np.stack(np.indices(fixed.shape), axis=-1)))
    voxels = np.moveaxis(moving.world_to_voxel(world), -1, 0)
    scores = np.stack([map_coordinates((labels == n).astype(float), voxels, order=1, mode="nearest") for n in LABELS])
    clear = np.diff(np.sort(scores, axis=0)[-2:], axis=0)[0] > 1e-9
    inside = moving.contains_voxel(np.moveaxis(voxels, 0, -1))
    ours = resample_labels(labels, moving, fixed, [transform], "linear", fill=7)
    where = clear & inside
    assert where.mean() > 0.5
    np.testing.assert_array_equal(ours[where], LABELS[scores.argmax(axis=0)][where])
    assert (ours[~inside] == 7).all() and not inside.all()


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    mode=st.sampled_from(["nearest", "linear"]),
    kind=st.sampled_from([np.uint8, np.int32, np.float32, np.uint16]),
    name=st.sampled_from(sorted(FRAMES)),
    size=st.floats(0, 0.3),
)
def test_labels_are_never_invented(seed, mode, kind, name, size):
    fixed, moving = FRAMES[name]
    rng = np.random.default_rng(seed)
    values = rng.choice(250, 4, replace=False) + 1
    labels = rng.choice(values, moving.shape).astype(kind)
    transform = WorldTransform.from_network(fixed, moving, AFFINE, displacement(size=size))
    result = resample_labels(labels, moving, fixed, [transform], mode)
    assert result.dtype == kind and result.shape == fixed.shape and set(np.unique(result)) <= {0, *values}


def test_identity_keeps_every_value():
    image = noise(OBLIQUE.shape)
    labels = label_map(OBLIQUE.shape)
    np.testing.assert_allclose(resample_image(image, OBLIQUE, OBLIQUE), image, atol=1e-6)
    np.testing.assert_allclose(resample_image(image, OBLIQUE, OBLIQUE, mode="bspline"), image, atol=1e-6)
    for mode in ("nearest", "linear"):
        np.testing.assert_array_equal(resample_labels(labels, OBLIQUE, OBLIQUE, mode=mode), labels)


@pytest.mark.parametrize("block", [1000, 1 << 18])
def test_blocks_do_not_show(monkeypatch, block):
    fixed, moving, transform = make("oblique, other size")
    image, labels = noise(moving.shape), label_map(moving.shape)
    whole = resample_image(image, moving, fixed, [transform]), resample_labels(labels, moving, fixed, [transform])
    monkeypatch.setattr(apply, "_BLOCK", block)
    np.testing.assert_array_equal(resample_image(image, moving, fixed, [transform]), whole[0])
    np.testing.assert_array_equal(resample_labels(labels, moving, fixed, [transform]), whole[1])


def test_order_is_that_of_ants(tmp_path):
    """[warp, affine] is affine(warp(p)); ITK's composite stacks them the other way round."""
    fixed, moving, transform = make("oblique, other size")
    warp_alone = WorldTransform(np.eye(4), transform.displacement, transform.frame)
    affine_alone = transform.affine_part
    points = some_points(fixed)
    both = transform_points(points, [warp_alone, affine_alone], "RAS")
    np.testing.assert_allclose(both, affine_alone.apply(warp_alone.apply(points)), atol=1e-9)
    np.testing.assert_allclose(both, transform.apply(points), atol=1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OutsideFieldWarning)
        assert np.abs(transform_points(points, [affine_alone, warp_alone], "RAS") - both).max() > 1
    stack = sitk.CompositeTransform(3)
    shift = sitk.TranslationTransform(3, (3.0, -2.0, 1.0))
    for part in (shift, in_sitk(tmp_path, affine_alone), in_sitk(tmp_path, warp_alone)):  # added last acts first
        stack.AddTransform(part)
    sitk.WriteTransform(shift, str(tmp_path / "shift.tfm"))
    listed = [warp_alone, affine_alone, *read_transforms(tmp_path / "shift.tfm")]
    np.testing.assert_allclose(transform_points(points, listed, "RAS"), sitk_points(stack, points), atol=1e-8)
    image = noise(moving.shape)
    reference = to_sitk(np.zeros(fixed.shape), fixed)
    theirs = from_sitk(sitk.Resample(to_sitk(image.astype(np.float64), moving), reference, stack, sitk.sitkLinear, 0.0))
    np.testing.assert_allclose(resample_image(image, moving, fixed, listed), theirs, atol=1e-5)


def test_outside_is_said():
    fixed, moving, transform = make("shifted")
    shift = WorldTransform(np.eye(4))
    inside = some_points(fixed, 7)
    with warnings.catch_warnings():
        warnings.simplefilter("error", OutsideFieldWarning)
        transform_points(inside, [shift, transform], "RAS")
        resample_image(noise(moving.shape), moving, fixed, [transform])
    mixed = np.concatenate([inside, inside + 500])
    with pytest.warns(OutsideFieldWarning, match=r"transforms\[1\]: 7 of 14 points") as caught:
        transform_points(mixed, [shift, transform], "RAS")
    assert len(caught) == 1 and caught[0].filename == __file__
    larger = fixed.padded((2, 0, 0))
    # The field's own voxels are coarser: half of one reaches over the first of the two added layers.
    count = 2 * fixed.shape[1] * fixed.shape[2]
    with pytest.warns(OutsideFieldWarning, match=rf"transforms\[0\]: {count} of \d+ voxels") as caught:
        resample_image(noise(moving.shape), moving, larger, [transform])
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error", OutsideFieldWarning)
        resample_labels(label_map(moving.shape), moving, larger, [transform.covering(larger)])


IMAGE = np.zeros(OBLIQUE.shape, np.float32)
BAD = {
    "frame": (lambda: resample_image(IMAGE, OTHER, OBLIQUE), "image: its shape"),
    "label frame": (lambda: resample_labels(IMAGE, OTHER, OBLIQUE), "labels: its shape"),
    "image mode": (lambda: resample_image(IMAGE, OBLIQUE, OBLIQUE, mode="nearest"), "mode: .*nearest"),
    "label mode": (lambda: resample_labels(IMAGE, OBLIQUE, OBLIQUE, mode="bspline"), "mode: .*bspline"),
    "NaN in a spline": (lambda: resample_image(IMAGE * np.nan, OBLIQUE, OBLIQUE, mode="bspline"), "NaN or infinity"),
    "halves": (lambda: resample_labels(IMAGE + 0.5, OBLIQUE, OBLIQUE), "not whole numbers"),
    "fill": (lambda: resample_labels(IMAGE.astype(np.uint8), OBLIQUE, OBLIQUE, fill=-1), "fill: -1"),
    "points": (lambda: transform_points(np.zeros(3), [], "RAS"), r"shape \(N, 3\)"),
    "NaN points": (lambda: transform_points(np.full((1, 3), np.nan), [], "RAS"), "finite"),
    "space": (lambda: transform_points(np.zeros((1, 3)), [], "mm"), "'mm'"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()
