"""Displacement fields as NIfTI files: SimpleITK carries points by them as the world transform does."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from scripts.formats import load_displacement, save_volume, save_world_displacement
from scripts.spatial import WorldTransform, ras_to_lps
from world_cases import AFFINE, FRAMES, OBLIQUE, SHAPE, displacement, sitk_points


@pytest.mark.parametrize("name", FRAMES)
def test_simpleitk_and_a_round_trip(tmp_path, name):
    """A registration's displacement at the fixed voxels, written, is the same transform there and comes back whole."""
    fixed, moving = FRAMES[name]
    transform = WorldTransform.from_network(fixed, moving, AFFINE, displacement())
    voxels = np.stack(np.indices(fixed.shape), axis=-1)
    here = fixed.voxel_to_world(voxels)
    vectors = ras_to_lps(transform.apply(here) - here)
    path = tmp_path / "field.nii.gz"
    save_world_displacement(vectors, fixed.affine, path)
    field = sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))
    points = here[1:-1, 1:-1, 1:-1].reshape(-1, 3)[::97]
    np.testing.assert_allclose(sitk_points(field, points), transform.apply(points), atol=0.01)
    back, affine = load_displacement(path)
    np.testing.assert_allclose(back, vectors, atol=1e-4)
    np.testing.assert_allclose(affine, fixed.affine, atol=1e-4)


def test_header_is_what_itk_and_ants_expect(tmp_path):
    save_world_displacement(np.zeros((*SHAPE, 3)), OBLIQUE.affine, tmp_path / "field.nii.gz")
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
    expected = np.diag((-1.0, -2, 3, 1))
    expected[:3, 3] = (-5, 7, 11)
    np.testing.assert_allclose(affine, expected, atol=1e-5)


def test_ras_to_lps_is_its_own_inverse():
    vectors = np.array([[1.0, 2.0, 3.0], [-4.0, 0.0, 6.0]])
    np.testing.assert_array_equal(ras_to_lps(vectors), [[-1, -2, 3], [4, 0, 6]])
    np.testing.assert_array_equal(ras_to_lps(ras_to_lps(vectors)), vectors)
    with pytest.raises(ValueError, match="three components"):
        ras_to_lps(np.zeros((3, 2)))


SHEAR = np.eye(4)
SHEAR[0, 1] = 0.1


@pytest.mark.parametrize(
    ("shape", "affine", "name", "message"),
    [
        ((4, 4, 4, 2), np.eye(4), "a.nii", "displacement: need"),
        ((4, 4, 4, 3), np.eye(3), "a.nii", "fixed_affine: need a 4x4"),
        ((4, 4, 4, 3), np.zeros((4, 4)), "a.nii", "fixed_affine: "),
        ((4, 4, 4, 3), SHEAR, "a.nii", "fixed_affine: has shear"),
        ((4, 4, 4, 3), np.eye(4), "a.h5", "must end with .nii"),
    ],
)
def test_refusals(tmp_path, shape, affine, name, message):
    with pytest.raises(ValueError, match=message):
        save_world_displacement(np.zeros(shape), affine, tmp_path / name)
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
