"""Images of other libraries keep their voxels and their place, in and out."""

import itk
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data import MetaTensor

from refusals import one_line
from scripts.errors import InputError
from scripts.formats import image_from, image_like, read_label
from world_cases import frame, to_sitk

GRIDS = {
    "oblique": frame((7, 5, 9), (12, -25, 40), (0.8, 1.6, 2.5), (-71.3, 44.0, 310.5)),
    "flipped": frame((7, 5, 9), spacing=(1, 2, 3), origin=(9, -8, 7), flip=(-1, 1, -1), order=(2, 0, 1)),
}


def to_itk(array, where):
    simple = to_sitk(array, where)
    image = itk.image_from_array(np.ascontiguousarray(array.transpose(2, 1, 0)))
    image.SetSpacing(simple.GetSpacing())
    image.SetOrigin(simple.GetOrigin())
    image.SetDirection(itk.matrix_from_array(np.reshape(simple.GetDirection(), (3, 3))))
    return image


def meta_lps(array, where):
    tensor = MetaTensor(torch.from_numpy(array[None]), affine=torch.from_numpy(np.diag((-1, -1, 1, 1)) @ where.affine))
    tensor.meta["space"] = "LPS"
    return tensor


KINDS = {
    "nibabel": lambda array, where: nib.Nifti1Image(array, where.affine),
    "SimpleITK": to_sitk,
    "ITK": to_itk,
    "MetaTensor": lambda array,
        where: MetaTensor(torch.from_numpy(array), affine=torch.from_numpy(where.affine.copy())),
    "MetaTensor with a channel, LPS": meta_lps,
    "pair": lambda array, where: (array, where.affine),
}  # fmt: skip


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("kind", KINDS)
def test_in_and_out(kind, grid):
    where = GRIDS[grid]
    array = np.random.default_rng(0).normal(size=where.shape).astype(np.float32)
    source = KINDS[kind](array, where)
    image = image_from(source)
    np.testing.assert_array_equal(image.array, array)
    assert image.frame.same_as(where, 1e-6) and image.frame.shape == where.shape
    other = GRIDS["flipped"].padded((1, 0, 2))
    moved = np.random.default_rng(1).normal(size=other.shape).astype(np.float32)
    result = image_like(source, moved, other)
    assert type(result) is type(source) and getattr(result, "ndim", 3) == getattr(source, "ndim", 3)
    if isinstance(source, MetaTensor):
        assert result.meta.get("space") in (source.meta.get("space"), "RAS")
    again = image_from(result)
    np.testing.assert_array_equal(again.array, moved)
    assert again.frame.same_as(other, 1e-6)
    assert image_from(image_like(source, moved > 0, other)).array.dtype == np.uint8


def wrong_space():
    tensor = MetaTensor(torch.zeros(2, 2, 2))
    tensor.meta["space"] = "RAI"
    return tensor


BAD = {
    "another object": (lambda: {"array": 1}, "dict is no image"),
    "complex": (lambda: (np.zeros((2, 2, 2), dtype=complex), np.eye(4)), "real values, got complex128"),
    "4-D": (lambda: nib.Nifti1Image(np.zeros((2, 2, 2, 3)), np.eye(4)), r"one 3D volume.*\(2, 2, 2, 3\)"),
    "batch": (lambda: MetaTensor(torch.zeros(2, 1, 2, 2, 2)), "one 3D volume"),
    "2-D SimpleITK": (lambda: sitk.Image([3, 3], sitk.sitkUInt8), "3x3 direction"),
    "SimpleITK vectors": (lambda: sitk.Image([3, 3, 3], sitk.sitkVectorFloat32, 2), "one 3D volume"),
    "small affine": (lambda: (np.zeros((2, 2, 2)), np.eye(3)), "4x4"),
    "shear": (lambda: (np.zeros((2, 2, 2)), np.eye(4) + np.eye(4, k=1) * 0.1), "image: "),
    "space": (wrong_space, "its space is 'RAI'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_objects_are_named_in_one_line(name):
    make, message = BAD[name]
    with one_line(message):
        image_from(make())


KEPT = {  # values, type by SimpleITK and nibabel, type by ITK (None: refused)
    "int8": (np.array([-128, 127], np.int8), "int8", "int16"),
    "int64, small": (np.array([-7, 2**31 - 1]), "int32", "int32"),
    "int64, large": (np.array([-7, 2**40 + 1]), "int64", None),
    "int64, large and positive": (np.array([7, 2**40 + 1]), "int64", "uint64"),
    "uint64": (np.array([7, 2**63 + 1], np.uint64), "uint64", "uint64"),
    "bool": (np.array([False, True]), "uint8", "uint8"),
}


@pytest.mark.parametrize("kind", ["nibabel", "SimpleITK", "ITK"])
@pytest.mark.parametrize("name", KEPT)
def test_every_library_gets_a_type_it_has_and_the_values(name, kind):
    values, dtype, by_itk = KEPT[name]
    where = GRIDS["oblique"]
    source = KINDS[kind](np.zeros(where.shape, np.float32), where)
    array = np.resize(values, where.shape)
    if kind == "ITK" and by_itk is None:
        with pytest.raises(InputError, match="an image of itk: uint64 cannot hold its values -7 to"):
            image_like(source, array, where)
        return
    found = image_from(image_like(source, array, where)).array
    np.testing.assert_array_equal(found, array)
    assert found.dtype == (by_itk if kind == "ITK" else dtype)


def test_a_nifti_image_in_memory_is_read_by_the_rules_of_its_file(tmp_path):
    """Micrometres are turned to mm, and labels that a slope has rounded are whole."""
    image = nib.Nifti1Image(np.resize(np.arange(6, dtype=np.int16) * 6553, (6, 7, 8)), np.diag([1000.0, 2000, 3000, 1]))
    image.header.set_xyzt_units("micron")
    content = bytearray(image.to_bytes())
    content[112:116] = np.float32(5 / 32765).tobytes()
    (tmp_path / "label.nii").write_bytes(content)
    loaded = nib.load(tmp_path / "label.nii")
    for source in (tmp_path / "label.nii", loaded):
        label = read_label(source)
        np.testing.assert_array_equal(label.array, np.resize(np.arange(6), (6, 7, 8)))
        np.testing.assert_allclose(label.frame.spacing, (1, 2, 3))
        assert [note for note in label.notes if "counts in micrometres" in note] == list(label.notes)
    assert (np.asarray(loaded.dataobj) != np.rint(loaded.dataobj)).any()
