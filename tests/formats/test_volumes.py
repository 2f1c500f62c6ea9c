"""Volumes read back by another library have the values and the place that were written."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.spatial.transform import Rotation

from scripts.errors import InputError
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


BIG = 2**31 + 5
STORED = [  # values, type asked for, type on disk
    (torch.tensor([0.5, -2.0]), None, "float32"),
    (torch.tensor([0.5, -2.0]).bfloat16(), None, "float32"),
    (np.array([0.5, -2.0], dtype=np.float16), None, "float32"),
    (np.array([0.5, -2.0]), None, "float64"),
    (torch.tensor([True, False]), None, "uint8"),
    (np.array([-128, 127], dtype=np.int8), None, "int8"),
    (np.array([3, 65535], dtype=np.uint16), None, "uint16"),
    (torch.tensor([3, 70000]), None, "int32"),
    (np.array([-1, BIG]), None, "int64"),
    (np.array([0, BIG], dtype=np.uint64), None, "uint32"),
    (np.array([0, 2**63 + 2**20], dtype=np.uint64), None, "uint64"),
    (np.array([-(2**62) - 1, 2**62 + 1]), None, "int64"),
    (torch.tensor([2.9999, 7.0001]), np.uint8, "uint8"),
    (np.array([2.5, -3.5]), np.int8, "int8"),
    (np.array([3, 200]), "int16", "int16"),
    (np.array([3, 2**24]), "float32", "float32"),
]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize(("values", "dtype", "stored"), STORED, ids=[f"{c[2]}-{i}" for i, c in enumerate(STORED)])
def test_types(tmp_path, values, dtype, stored, suffix):
    path = tmp_path / f"a{suffix}"
    save_volume(values.reshape(1, 1, 1, 1, 2), oblique(), path, dtype=dtype)
    image = sitk.ReadImage(str(path))
    found = sitk.GetArrayFromImage(image).ravel()
    assert found.dtype == stored and image.GetSize() == (1, 1, 2)
    if ".nii" in suffix:
        assert nib.load(path).get_data_dtype() == stored
        np.testing.assert_array_equal(np.asarray(nib.load(path).dataobj).ravel(), found)
    expected = values.float().numpy() if isinstance(values, torch.Tensor) and values.is_floating_point() else values
    # Halves are rounded to the even number.
    np.testing.assert_array_equal(found, np.rint(expected) if np.dtype(stored).kind in "iu" else expected)
    np.testing.assert_allclose(image.GetOrigin(), oblique()[:3, 3] * (-1, -1, 1), rtol=1e-6)


@pytest.mark.parametrize(("dtype", "ends"), [(np.uint8, (0, 255)), (np.int16, (-32768, 32767))])
def test_overshoot_of_a_spline_is_clipped_where_it_is_asked_for(tmp_path, dtype, ends):
    values = np.array([ends[0] - 9.4, 3.4, ends[1] + 20], dtype=np.float32).reshape(1, 1, 3)
    with pytest.raises(InputError, match="cannot hold"):
        save_volume(values, np.eye(4), tmp_path / "a.nii", dtype)
    save_volume(values, np.eye(4), tmp_path / "a.nii", dtype, clip=True)
    assert np.asarray(nib.load(tmp_path / "a.nii").dataobj).ravel().tolist() == [ends[0], 3, ends[1]]


CUBE = np.zeros((2, 3, 4), dtype=np.float32)


@pytest.mark.parametrize(("array", "affine", "name", "dtype", "message"), [
    (np.zeros((2, 2, 3, 4)), np.eye(4), "a.nii", None, "array: need one volume"),
    (np.zeros((3, 4)), np.eye(4), "a.nii", None, "array: need one volume"),
    (CUBE, np.eye(3), "a.nii", None, "affine_ras: need a 4x4"),
    (CUBE, np.diag([1.0, 0, 1, 1]), "a.nii", None, "affine_ras: the spacing must be"),
    (CUBE, np.full((4, 4), np.nan), "a.nii", None, "affine_ras: the affine must be finite"),
    (CUBE, np.eye(4), "a.png", None, "must end with .nii"),
    (CUBE - 1, np.eye(4), "a.nii", np.uint8, "a.nii: uint8 cannot hold its value -1.0; choose a wider type"),
    (CUBE * np.nan, np.eye(4), "a.nii", np.int16, "cannot hold"),
    (np.full((2, 2, 2), 1e39), np.eye(4), "a.nii", np.float32, "cannot hold"),
    (np.full((2, 2, 2), 2**40), np.eye(4), "a.mha", np.int32, "int32 cannot hold its value 1099511627776"),
    (np.full((2, 2, 2), 2**24 + 1), np.eye(4), "a.nii", np.float32, "does not know the number 16777217"),
])  # fmt: skip
def test_refusals(tmp_path, array, affine, name, dtype, message):
    with pytest.raises(ValueError, match=message):
        save_volume(array, affine, tmp_path / name, dtype=dtype)
    assert list(tmp_path.iterdir()) == []
