"""Volumes read back by another library have the values and the place that were written."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.spatial.transform import Rotation

from scripts.formats.volumes import save_volume


def oblique(angles=(10, -20, 35), spacing=(0.7, 1.5, 3.0), origin=(-80.0, 33.0, 512.0), flip=(1, 1, 1)):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag(flip) @ np.diag(spacing)
    affine[:3, 3] = origin
    return affine


@pytest.mark.parametrize(
    "affine",
    [
        np.eye(4),
        oblique(),
        oblique(flip=(-1, 1, 1)),
        oblique(angles=(0, 0, 179.99)),  # where a qform in single precision fails
        oblique(angles=(90, 0, 0)),
    ],
    ids=["identity", "oblique", "left-handed", "near-half-turn", "quarter-turn"],
)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_itk_reads_the_same_place(tmp_path, affine, suffix):
    array = np.arange(5 * 6 * 7, dtype=np.float32).reshape(5, 6, 7)
    path = tmp_path / f"volume{suffix}"
    save_volume(array, affine, path)
    image = sitk.ReadImage(str(path))
    assert image.GetSize() == (5, 6, 7)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).transpose(2, 1, 0), array)
    for index in [(0, 0, 0), (4, 0, 0), (0, 5, 0), (0, 0, 6), (4, 5, 6)]:
        ras = (affine @ (*index, 1))[:3]
        np.testing.assert_allclose(image.TransformIndexToPhysicalPoint(index), ras * (-1, -1, 1), atol=2e-3)
    np.testing.assert_allclose(nib.load(path).affine, affine, atol=1e-4)


@pytest.mark.parametrize(
    ("values", "dtype", "stored"),
    [
        (torch.tensor([0.5, -2.0]), None, "float32"),
        (torch.tensor([0.5, -2.0]).bfloat16(), None, "float32"),
        (np.array([0.5, -2.0], dtype=np.float16), None, "float32"),
        (np.array([0.5, -2.0]), None, "float64"),
        (torch.tensor([True, False]), None, "uint8"),
        (torch.tensor([3, 70000]), None, "int32"),
        (torch.tensor([2.9999, 7.0001]), np.uint8, "uint8"),
        (np.array([3, 200]), "int16", "int16"),
    ],
)
def test_types(tmp_path, values, dtype, stored):
    volume = values.reshape(1, 1, 1, 1, 2)
    save_volume(volume, np.eye(4), tmp_path / "a.nii.gz", dtype=dtype)
    image = nib.load(tmp_path / "a.nii.gz")
    assert image.get_data_dtype() == stored and image.shape == (1, 1, 2)
    expected = np.asarray([float(v) for v in values])
    np.testing.assert_allclose(image.get_fdata().ravel(), expected.round() if dtype is not None else expected)


CUBE = np.zeros((2, 3, 4), dtype=np.float32)


@pytest.mark.parametrize(
    ("array", "affine", "name", "dtype", "message"),
    [
        (np.zeros((2, 2, 3, 4)), np.eye(4), "a.nii", None, "array: need one volume"),
        (np.zeros((3, 4)), np.eye(4), "a.nii", None, "array: need one volume"),
        (CUBE, np.eye(3), "a.nii", None, "affine_ras: need a 4x4"),
        (CUBE, np.diag([1.0, 0, 1, 1]), "a.nii", None, "affine_ras.*singular"),
        (CUBE, np.full((4, 4), np.nan), "a.nii", None, "affine_ras: need finite"),
        (CUBE, np.eye(4), "a.mha", None, "must end with .nii"),
        (CUBE - 1, np.eye(4), "a.nii", np.uint8, "cannot hold the values -1"),
        (CUBE * np.nan, np.eye(4), "a.nii", np.int16, "cannot hold"),
        (np.full((2, 2, 2), 2**40), np.eye(4), "a.nii", None, "cannot hold"),
    ],
)
def test_refusals(tmp_path, array, affine, name, dtype, message):
    with pytest.raises(ValueError, match=message):
        save_volume(array, affine, tmp_path / name, dtype=dtype)
    assert list(tmp_path.iterdir()) == []
