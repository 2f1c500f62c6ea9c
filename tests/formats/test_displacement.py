"""The written field, read by SimpleITK, moves images and points as the map does."""

from __future__ import annotations

import math

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.spatial.transform import Rotation

from scripts.formats.displacement import (
    load_displacement,
    map_from_world_displacement,
    save_displacement,
    voxel_displacement,
    world_displacement,
)
from scripts.formats.volumes import save_volume
from scripts.geometry import affine_map, identity_map, warp
from scripts.spatial.frame import ras_to_lps


def frame(angles=(0, 0, 0), spacing=(1, 1, 1), origin=(0, 0, 0), flip=(1, 1, 1)):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag(flip) @ np.diag(spacing)
    affine[:3, 3] = origin
    return affine


OBLIQUE = frame((12, -25, 40), (0.8, 1.6, 2.5), (-71.3, 44.0, 310.5))
OTHER = frame((-30, 8, 15), (1.1, 0.9, 2.0), (25.0, -90.2, -12.0), flip=(-1, 1, 1))
FRAMES = {  # fixed affine, moving affine, moving shape
    "identity": (np.eye(4), np.eye(4), None),
    "anisotropic": (frame(spacing=(0.7, 1.3, 3)), frame(spacing=(0.7, 1.3, 3)), None),
    "shifted": (frame(origin=(10, -20, 30)), frame(origin=(-5, 60, 7.5)), None),
    "flipped": (frame(flip=(-1, -1, 1)), frame(flip=(1, -1, -1), origin=(3, 2, 1)), None),
    "oblique": (OBLIQUE, OBLIQUE, None),
    "oblique and different": (OBLIQUE, OTHER, None),
    "oblique, other shape": (OBLIQUE, OTHER, (17, 25, 22)),
    "near half a turn": (frame((0, 0, 179.99), (1, 2, 3), (100, 200, -300)), OTHER, None),
}
SHAPE = (20, 23, 18)


def smooth_map(shape=SHAPE):
    """An affine map with a bending on top, inside the moving grid at interior voxels."""
    x = affine_map(affine_rows(), shape)
    return x + 0.06 * torch.stack([torch.sin(3 * x[:, 1]), torch.cos(2 * x[:, 2]), torch.sin(4 * x[:, 0])], dim=1)


def affine_rows():
    return torch.tensor([[[0.9, 0.08, -0.05, 0.04], [-0.06, 0.85, 0.03, -0.07], [0.02, 0.05, 0.95, 0.03]]])


MAPS = {
    "identity": lambda: identity_map(SHAPE),
    "affine": lambda: affine_map(affine_rows(), SHAPE),
    "deformable": smooth_map,
}


def read_transform(path):
    return sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))


def expected_point(phi, index, moving, shape):
    """Where a fixed voxel goes, in LPS, written out by hand for one voxel."""
    coordinate = phi[0, :, index[0], index[1], index[2]].double().tolist()
    voxel = [(c + 1) * (n - 1) / 2 for c, n in zip(coordinate, shape, strict=True)]
    x, y, z, _ = moving @ (*voxel, 1)
    return -x, -y, z


@pytest.mark.parametrize("map_name", MAPS)
@pytest.mark.parametrize("frame_name", FRAMES)
def test_simpleitk_moves_images_and_points_alike(tmp_path, frame_name, map_name):
    fixed, moving, moving_shape = FRAMES[frame_name]
    phi = MAPS[map_name]()
    shape = moving_shape or SHAPE
    image = torch.from_numpy(np.random.default_rng(0).uniform(0, 1000, size=shape)).float()[None, None]
    moved = warp(image, phi)
    save_volume(image, moving, tmp_path / "moving.nii.gz")
    save_volume(moved, fixed, tmp_path / "moved.nii.gz")
    save_displacement(phi, fixed, moving, tmp_path / "field.nii.gz", moving_shape)

    transform = read_transform(tmp_path / "field.nii.gz")
    reference = sitk.ReadImage(str(tmp_path / "moved.nii.gz"))
    resampled = sitk.Resample(
        sitk.ReadImage(str(tmp_path / "moving.nii.gz")), reference, transform, sitk.sitkLinear, 0.0, sitk.sitkFloat64
    )
    difference = np.abs(sitk.GetArrayFromImage(resampled).transpose(2, 1, 0) - moved[0, 0].numpy())
    # Within half a voxel of the moving grid's edge ITK repeats the edge, grid_sample fades to zero.
    inside = (phi[0].abs() < 1 - 1e-3).all(dim=0).numpy()
    inside[[0, -1]] = inside[:, [0, -1]] = inside[:, :, [0, -1]] = False
    assert inside.mean() > 0.6
    assert difference[inside].max() < 1e-3 * 1000

    for index in [(1, 1, 1), (10, 11, 9), (18, 21, 16), (3, 20, 2)]:
        start = reference.TransformIndexToPhysicalPoint(index)
        end = transform.TransformPoint(start)
        assert math.dist(end, expected_point(phi, index, moving, shape)) < 0.01


@pytest.mark.parametrize("frame_name", FRAMES)
def test_affine_map_is_an_affine_transform(tmp_path, frame_name):
    """The field of an affine map is the matrix M S A S' F^-1 at points between voxels too."""
    fixed, moving, moving_shape = FRAMES[frame_name]
    shape = moving_shape or SHAPE
    save_displacement(MAPS["affine"](), fixed, moving, tmp_path / "field.nii.gz", moving_shape)
    transform = read_transform(tmp_path / "field.nii.gz")

    def to_normalised(n):
        matrix = np.diag([*(2 / (np.array(n) - 1)), 1.0])
        matrix[:3, 3] = -1
        return matrix

    middle = np.vstack([affine_rows()[0].double().numpy(), (0, 0, 0, 1)])
    ras = moving @ np.linalg.inv(to_normalised(shape)) @ middle @ to_normalised(SHAPE) @ np.linalg.inv(fixed)
    flip = np.diag([-1.0, -1, 1, 1])
    lps = flip @ ras @ flip
    for voxel in np.random.default_rng(1).uniform(1, np.array(SHAPE) - 2, size=(50, 3)):
        point = (flip @ fixed @ (*voxel, 1))[:3]
        assert math.dist(transform.TransformPoint(point), (lps @ (*point, 1))[:3]) < 0.01


def test_inverse_field_is_the_exchange_of_the_two_grids(tmp_path):
    """Saved with the affines exchanged, the inverse map takes moved points back."""
    rows = np.vstack([affine_rows()[0].double().numpy(), (0, 0, 0, 1)])
    inverse = torch.from_numpy(np.linalg.inv(rows)[None, :3]).float()
    moving_shape = (17, 25, 22)
    save_displacement(MAPS["affine"](), OBLIQUE, OTHER, tmp_path / "forward.nii.gz", moving_shape)
    save_displacement(affine_map(inverse, moving_shape), OTHER, OBLIQUE, tmp_path / "inverse.nii.gz", SHAPE)
    forward, backward = read_transform(tmp_path / "forward.nii.gz"), read_transform(tmp_path / "inverse.nii.gz")
    for voxel in np.random.default_rng(2).uniform(4, np.array(SHAPE) - 5, size=(20, 3)):
        point = tuple((OBLIQUE @ (*voxel, 1))[:3] * (-1, -1, 1))
        moved = forward.TransformPoint(point)
        assert math.dist(point, moved) > 1
        assert math.dist(backward.TransformPoint(moved), point) < 0.01


@pytest.mark.parametrize("frame_name", FRAMES)
def test_round_trip(tmp_path, frame_name):
    fixed, moving, moving_shape = FRAMES[frame_name]
    phi = smooth_map()
    save_displacement(phi, fixed, moving, tmp_path / "field.nii.gz", moving_shape)
    field, affine = load_displacement(tmp_path / "field.nii.gz")
    np.testing.assert_allclose(affine, fixed, atol=1e-4)
    np.testing.assert_allclose(field, world_displacement(phi, fixed, moving, moving_shape), atol=1e-3)
    back = map_from_world_displacement(field, fixed, moving, moving_shape)
    assert back.shape == phi.shape and back.dtype == torch.float32
    torch.testing.assert_close(back, phi, atol=1e-5, rtol=0)


def test_header_is_what_itk_and_ants_expect(tmp_path):
    save_displacement(smooth_map(), OBLIQUE, OTHER, tmp_path / "field.nii.gz")
    image = nib.load(tmp_path / "field.nii.gz")
    assert image.shape == (*SHAPE, 1, 3)
    assert int(image.header["intent_code"]) == 1007 and image.get_data_dtype() == np.float32
    assert image.header.get_xyzt_units()[0] == "mm"
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 0)
    np.testing.assert_allclose(image.header.get_zooms()[:3], (0.8, 1.6, 2.5), rtol=1e-5)


def test_field_written_by_itk_is_read(tmp_path):
    vectors = np.random.default_rng(3).normal(size=(4, 5, 6, 3)).astype(np.float32)
    image = sitk.GetImageFromArray(vectors.transpose(2, 1, 0, 3), isVector=True)
    image.SetOrigin((5.0, -7.0, 11.0))
    image.SetSpacing((1.0, 2.0, 3.0))
    sitk.WriteImage(image, str(tmp_path / "field.nii.gz"))
    field, affine = load_displacement(tmp_path / "field.nii.gz")
    np.testing.assert_allclose(field, vectors)
    np.testing.assert_allclose(affine, frame(spacing=(1, 2, 3), origin=(-5, 7, 11), flip=(-1, -1, 1)), atol=1e-5)


def test_one_voxel_shift_by_hand():
    """Looking one voxel further along each axis in turn, 2 x 3 x 4 mm voxels, grids 10 mm apart along x."""
    fixed, moving = np.diag([2.0, 3, 4, 1]), np.diag([2.0, 3, 4, 1])
    moving[0, 3] = 10
    for axis, step in enumerate([(-12, 0, 0), (-10, -3, 0), (-10, 0, 4)]):
        phi = identity_map(SHAPE)
        phi[:, axis] += 2 / (SHAPE[axis] - 1)
        expected = np.broadcast_to(step, (*SHAPE, 3))
        np.testing.assert_allclose(world_displacement(phi, fixed, moving), expected, atol=1e-4)
        voxels = np.zeros((3, *SHAPE))
        voxels[axis] = 1
        np.testing.assert_allclose(voxel_displacement(phi[0]), voxels, atol=1e-5)


def test_ras_to_lps_is_its_own_inverse():
    vectors = np.array([[1.0, 2.0, 3.0], [-4.0, 0.0, 6.0]])
    np.testing.assert_array_equal(ras_to_lps(vectors), [[-1, -2, 3], [4, 0, 6]])
    np.testing.assert_array_equal(ras_to_lps(ras_to_lps(vectors)), vectors)
    with pytest.raises(ValueError, match="three components"):
        ras_to_lps(np.zeros((3, 2)))


SHEAR = np.eye(4)
SHEAR[0, 1] = 0.1


@pytest.mark.parametrize(
    ("phi", "fixed", "moving", "shape", "name", "message"),
    [
        (torch.zeros(2, 3, 4, 4, 4), np.eye(4), np.eye(4), None, "a.nii", "map: need one map"),
        (torch.zeros(1, 2, 4, 4, 4), np.eye(4), np.eye(4), None, "a.nii", "map: need one map"),
        (torch.full((1, 3, 4, 4, 4), torch.nan), np.eye(4), np.eye(4), None, "a.nii", "map: holds NaN"),
        (torch.zeros(1, 3, 4, 4, 4), np.eye(3), np.eye(4), None, "a.nii", "fixed_affine: need a 4x4"),
        (torch.zeros(1, 3, 4, 4, 4), np.eye(4), np.zeros((4, 4)), None, "a.nii", "moving_affine: "),
        (torch.zeros(1, 3, 4, 4, 4), SHEAR, np.eye(4), None, "a.nii", "fixed_affine: has shear"),
        (torch.zeros(1, 3, 4, 4, 4), np.eye(4), np.eye(4), (4, 1, 4), "a.nii", "moving_shape: need three sizes"),
        (torch.zeros(1, 3, 4, 4, 4), np.eye(4), np.eye(4), None, "a.h5", "must end with .nii"),
    ],
)
def test_refusals(tmp_path, phi, fixed, moving, shape, name, message):
    with pytest.raises(ValueError, match=message):
        save_displacement(phi, fixed, moving, tmp_path / name, shape)
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_no_fields_are_refused(tmp_path):
    save_volume(np.zeros((3, 3, 3)), np.eye(4), tmp_path / "volume.nii")
    with pytest.raises(ValueError, match="must hold a field"):
        load_displacement(tmp_path / "volume.nii")
    image = nib.Nifti1Image(np.zeros((3, 3, 3, 1, 3), dtype=np.float32), np.eye(4))
    image.header.set_intent(1006)
    nib.save(image, tmp_path / "displacement.nii")
    with pytest.raises(ValueError, match="intent 1006"):
        load_displacement(tmp_path / "displacement.nii")
