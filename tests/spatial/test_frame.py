"""Frames: every conversion is its inverse's inverse, and says what nibabel, MONAI, ITK and SimpleITK say."""

import itertools

import itk
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from scripts.errors import InputError
from scripts.geometry import identity_map
from scripts.spatial.frame import Frame, convert_points, network_frame

ORIENTATIONS = [
    np.diag(signs)[:, list(order)]
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1.0, -1.0), repeat=3)
]
TURN = Rotation.from_euler("xyz", (12, -25, 40), degrees=True).as_matrix()
OBLIQUE = Frame.from_parts((7, 5, 9), (0.8, 1.6, 2.5), (-71.3, 44.0, 310.5), TURN)


@st.composite
def frames(draw, smallest=2):
    direction = ORIENTATIONS[draw(st.integers(0, 47))]
    angles = draw(st.tuples(*[st.floats(-180, 180)] * 3))
    if draw(st.booleans()):
        direction = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ direction
    return Frame.from_parts(draw(st.tuples(*[st.integers(smallest, 400)] * 3)),
        draw(st.tuples(*[st.floats(0.05, 12)] * 3)), draw(st.tuples(*[st.floats(-900, 900)] * 3)), direction,
        draw(st.sampled_from(["RAS", "LPS"])))  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(frame=frames(), seed=st.integers(0, 2**32 - 1))
def test_round_trips(frame, seed):
    part = np.random.default_rng(seed).uniform(-0.5, 1.5, size=(2, 4, 3))
    voxels = part * (np.asarray(frame.shape) - 1)
    for space in ("RAS", "LPS"):
        np.testing.assert_allclose(frame.world_to_voxel(frame.voxel_to_world(voxels, space), space), voxels, atol=1e-8)
        normalised = frame.world_to_normalised(frame.voxel_to_world(voxels, space), space)
        np.testing.assert_allclose(normalised, 2 * part - 1, atol=1e-9)
        np.testing.assert_allclose(
            frame.normalised_to_world(normalised, space), frame.voxel_to_world(voxels, space), atol=1e-8
        )
    np.testing.assert_allclose(frame.direction.T @ frame.direction, np.eye(3), atol=1e-9)
    rebuilt = Frame.from_parts(frame.shape, frame.spacing, frame.origin, frame.direction)
    assert frame.same_as(rebuilt, 1e-8)
    corners = frame.voxel_to_world([(0, 0, 0), np.asarray(frame.shape) - 1])
    np.testing.assert_allclose(frame.centre, corners.mean(axis=0), atol=1e-8)
    np.testing.assert_allclose(np.linalg.norm(corners[1] - corners[0]), np.linalg.norm(frame.extent), rtol=1e-9)


@settings(max_examples=25, deadline=None)
@given(frame=frames(smallest=1), seed=st.integers(0, 2**32 - 1))
def test_agrees_with_itk_and_nibabel(frame, seed):
    image = sitk.Image([1, 1, 1], sitk.sitkUInt8)  # its size does not enter the conversion of coordinates
    lps = np.diag((-1.0, -1.0, 1.0))
    image.SetSpacing(frame.spacing.tolist())
    image.SetOrigin((lps @ frame.origin).tolist())
    image.SetDirection((lps @ frame.direction).ravel().tolist())
    assert Frame(image.GetSize(), frame.affine).same_as(Frame.from_itk(image), 1e-6)
    voxels = np.random.default_rng(seed).uniform(-50, 400, size=(5, 3))
    for voxel in voxels:
        there = image.TransformContinuousIndexToPhysicalPoint(voxel.tolist())
        np.testing.assert_allclose(frame.voxel_to_world(voxel, "LPS"), there, atol=1e-6)
    np.testing.assert_allclose(frame.voxel_to_world(voxels), nib.affines.apply_affine(frame.affine, voxels), atol=1e-8)


def test_normalised_grid_is_the_networks():
    grid = identity_map(list(OBLIQUE.shape), dtype=torch.float64)[0].permute(1, 2, 3, 0).numpy()
    voxels = np.stack(np.indices(OBLIQUE.shape), axis=-1)
    np.testing.assert_allclose(OBLIQUE.world_to_normalised(OBLIQUE.voxel_to_world(voxels)), grid, atol=1e-12)


def test_from_files_of_itk(tmp_path):
    path = tmp_path / "a.nii.gz"
    image = nib.Nifti1Image(np.zeros(OBLIQUE.shape, dtype=np.float32), OBLIQUE.affine)
    nib.save(image, path)
    read = itk.imread(str(path))
    assert Frame.from_itk(read).same_as(OBLIQUE, 1e-3)
    assert Frame.from_itk(sitk.ReadImage(str(path))).same_as(OBLIQUE, 1e-3)
    # A region cut out of an image keeps the image's origin and starts at another index.
    cut = itk.region_of_interest_image_filter(read, region_of_interest=itk.ImageRegion[3]([2, 1, 3], [4, 3, 5]))
    extract = itk.extract_image_filter(
        read, extraction_region=itk.ImageRegion[3]([2, 1, 3], [4, 3, 5]), direction_collapse_to_strategy=1
    )
    assert tuple(extract.GetLargestPossibleRegion().GetIndex()) == (2, 1, 3)
    for part in (cut, extract):
        np.testing.assert_allclose(Frame.from_itk(part).origin, OBLIQUE.voxel_to_world((2, 1, 3)), atol=1e-4)


def test_known_values():
    frame = Frame.from_parts((11, 21, 31), (1, 2, 3), (10, 20, 30), np.eye(3), "LPS")
    np.testing.assert_allclose(frame.origin, (-10, -20, 30))
    np.testing.assert_allclose(frame.extent, (10, 40, 90))
    np.testing.assert_allclose(frame.centre, (-15, -40, 75))
    np.testing.assert_allclose(frame.voxel_to_world((1, 1, 1), "LPS"), (11, 22, 33))
    np.testing.assert_allclose(frame.world_to_normalised((20, 60, 120), "LPS"), (1, 1, 1))
    small = frame.resized((6, 11, 11))
    np.testing.assert_allclose(small.spacing, (2, 4, 9))
    np.testing.assert_allclose(small.normalised_to_world((1, -1, 0.5)), frame.normalised_to_world((1, -1, 0.5)))
    assert frame.padded((1, 0, 2)).shape == (13, 21, 35)
    np.testing.assert_allclose(frame.padded((1, 0, 2)).voxel_to_world((1, 0, 2)), frame.origin)
    assert frame.contains_voxel([(-0.5, 0, 0), (10.49, 20, 30), (10.5, 0, 0), (0, -0.51, 0)]).tolist() == [1, 1, 0, 0]
    with pytest.raises(ValueError):
        frame.affine[0, 0] = 3


def test_same_as():
    shifted = OBLIQUE.affine.copy()
    shifted[0, 3] += 0.01
    assert not OBLIQUE.same_as(Frame(OBLIQUE.shape, shifted)) and OBLIQUE.same_as(Frame(OBLIQUE.shape, shifted), 0.011)
    assert not OBLIQUE.same_as(Frame((7, 5, 8), OBLIQUE.affine))
    single = Frame((1, 4, 4), np.eye(4))
    assert not single.same_as(Frame((1, 4, 4), np.diag((2.0, 1, 1, 1))))


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "PIR", "SLA"])
@settings(max_examples=30, deadline=None)
@given(image=frames())
def test_network_frame(orientation, image):
    frame = network_frame(image, (20, 30, 40), (2.0, 1.5, 1.0), orientation=orientation)
    assert frame.shape == (20, 30, 40)
    np.testing.assert_allclose(frame.spacing, (2, 1.5, 1), rtol=1e-9)
    np.testing.assert_allclose(frame.centre, image.centre, atol=1e-6)
    steps = image.direction.T @ frame.direction  # the image's own columns, reordered and flipped
    np.testing.assert_allclose(np.sort(np.abs(steps), axis=0), [[0] * 3, [0] * 3, [1] * 3], atol=1e-7)
    assert "".join(nib.aff2axcodes(frame.affine)) == orientation


def test_network_frame_of_a_canonical_image_is_its_own():
    image = Frame((5, 6, 7), np.diag((1.0, 2.0, 3.0, 1)))
    assert network_frame(image, (5, 6, 7), (1, 2, 3)).same_as(image, 1e-9)
    np.testing.assert_allclose(network_frame(image, (9, 9, 9), (1, 1, 1), centre=(1, 2, 3)).centre, (1, 2, 3))


SHEAR = np.eye(4)
SHEAR[0, 1] = 0.01
FLAT = np.eye(4)
FLAT[:3, 2] = FLAT[:3, 1]
NAN = np.eye(4)
NAN[1, 1] = np.nan
BAD = {
    "zero spacing": (lambda: Frame((2, 2, 2), np.diag((1.0, 0, 1, 1))), "spacing must be three positive"),
    "negative spacing": (lambda: Frame.from_parts((2, 2, 2), (1, -1, 1), (0, 0, 0), np.eye(3)), "positive.*-1.0"),
    "NaN spacing": (lambda: Frame.from_parts((2, 2, 2), (1, np.nan, 1), (0, 0, 0), np.eye(3)), "spacing.*nan"),
    "two spacings": (lambda: Frame.from_parts((2, 2, 2), (1, 1), (0, 0, 0), np.eye(3)), "spacing must be three"),
    "NaN affine": (lambda: Frame((2, 2, 2), NAN), "must be finite"),
    "last row": (lambda: Frame((2, 2, 2), np.ones((4, 4))), "last row"),
    "3x3": (lambda: Frame((2, 2, 2), np.eye(3)), "4x4"),
    "shear": (lambda: Frame((2, 2, 2), SHEAR, "knee.nii"), r"knee.nii.*right angle or unit length by 0\.01"),
    "singular": (lambda: Frame((2, 2, 2), FLAT), "singular"),
    "2-D direction": (lambda: Frame.from_itk(sitk.Image([3, 3], sitk.sitkUInt8)), "3x3 direction"),
    "NaN origin": (lambda: Frame.from_parts((2, 2, 2), (1, 1, 1), (0, np.nan, 0), np.eye(3)), "finite origin"),
    "long direction": (lambda: Frame.from_parts((2, 2, 2), (1, 1, 1), (0, 0, 0), np.diag((1, 1.1, 1))), "by 0.21"),
    "2-D shape": (lambda: Frame((2, 2), np.eye(4)), "three positive numbers of voxels"),
    "zero shape": (lambda: Frame((2, 0, 2), np.eye(4)), "three positive numbers of voxels"),
    "space": (lambda: Frame.from_parts((2, 2, 2), (1, 1, 1), (0, 0, 0), np.eye(3), "RAI"), "RAI"),
    "points' space": (lambda: convert_points(np.zeros(3), "RAS", "scanner"), "scanner"),
    "single voxel": (lambda: Frame((1, 2, 2), np.eye(4)).normalised_affine, "at least 2 voxels"),
    "resized": (lambda: OBLIQUE.resized((1, 2, 2)), "need 2 voxels"),
    "network spacing": (lambda: network_frame(OBLIQUE, (2, 2, 2), (1, 0, 1)), "spacing: "),
    "network grid": (lambda: network_frame(OBLIQUE, (2, 2), (1, 1, 1)), "grid: "),
    "network centre": (lambda: network_frame(OBLIQUE, (2, 2, 2), (1, 1, 1), (0, 0)), "centre: "),
    "network orientation": (lambda: network_frame(OBLIQUE, (2, 2, 2), (1, 1, 1), orientation="RLS"), "orientation: "),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_input(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize("shear", [1e-7, 5e-6, 2e-5, 2e-4, 5e-4, 9.9e-4])
def test_small_shear_is_straightened(tmp_path, shear):
    """One tolerance: what is read can be written, and SimpleITK reads it where it was read, to what the note says."""
    affine, shape = OBLIQUE.affine.copy(), (60, 50, 40)
    affine[:3, :3] = TURN @ np.array([[1, shear, 0], [0, 1, 0], [0, 0, 1]]) * (0.8, 1.6, 2.5)
    frame, given = Frame(shape, affine, "knee.nii"), affine[:3, :3] * 1.0
    assert np.abs(frame.direction.T @ frame.direction - np.eye(3)).max() < 1e-5
    np.testing.assert_allclose(frame.spacing, np.linalg.norm(given, axis=0), rtol=1e-12)
    np.testing.assert_allclose(frame.centre, affine[:3] @ [29.5, 24.5, 19.5, 1], atol=1e-9)
    assert np.array_equal(frame.affine, affine) == (shear < 1e-5)
    corners = np.array(list(itertools.product((0, 59), (0, 49), (0, 39))))
    moved = np.linalg.norm(frame.corners - (corners @ given.T + affine[:3, 3]), axis=1).max()
    assert moved < 0.6 * shear * 49 * 1.6
    assert len(frame.notes) == (moved > 1e-3) and all(f"moves corners by {moved:.2g} mm" in n for n in frame.notes)
    image = nib.Nifti1Image(np.zeros(shape, np.uint8), frame.affine)
    image.set_sform(frame.affine, 1)
    image.set_qform(None, 0)
    nib.save(image, tmp_path / "a.nii")
    assert Frame.from_itk(sitk.ReadImage(str(tmp_path / "a.nii"))).same_as(frame, 1e-4)
