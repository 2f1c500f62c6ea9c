import gzip

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import LoadImage

from scripts.data.checks import check_dataset_dir, check_image, check_label
from scripts.errors import InputError

SHAPE = (6, 7, 8)
AFFINE = np.diag((1.0, 2.0, 3.0, 1.0))


def noise(shape=SHAPE):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def save(path, array, affine=AFFINE):
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def with_value(value):
    array = noise()
    array[1, 2, 3] = value
    return array


def truncated(path):
    data = gzip.compress(nib.Nifti1Image(noise((20, 20, 20)), AFFINE).to_bytes())
    path.write_bytes(data[: len(data) // 2])


def damaged(path):
    data = bytearray(gzip.compress(nib.Nifti1Image(noise((20, 20, 20)), AFFINE).to_bytes()))
    data[2000:2100] = bytes(100)
    path.write_bytes(bytes(data))


def short(path):
    path.write_bytes(nib.Nifti1Image(noise(), AFFINE).to_bytes()[:-100])


def singular(path):
    data = bytearray(nib.Nifti1Image(noise(), np.eye(4)).to_bytes())
    rows = np.frombuffer(data, np.float32, count=12, offset=280).reshape(3, 4)  # the header's srow_x, srow_y, srow_z
    rows[:, 1] = rows[:, 0]  # two axes in one direction
    path.write_bytes(gzip.compress(bytes(data)))


# name, maker of the file, words of the message
BAD_IMAGES = [
    ("absent.nii.gz", lambda p: None, "does not exist"),
    ("folder.nii.gz", lambda p: p.mkdir(), "not a file"),
    ("zero.nii.gz", lambda p: p.write_bytes(b""), "0 bytes"),
    ("text.nii.gz", lambda p: p.write_text("not an image"), "truncated or damaged"),
    ("text.nii", lambda p: p.write_text("not an image"), "cannot be read"),
    ("kind.xyz", lambda p: p.write_text("not an image"), "cannot be read"),
    ("truncated.nii.gz", truncated, "truncated or damaged"),
    ("damaged.nii.gz", damaged, "truncated or damaged"),
    ("short.nii", short, "cannot be read"),
    ("plane.nii.gz", lambda p: save(p, noise((6, 7))), r"not 3-D, its shape is \(6, 7\)"),
    ("four.nii.gz", lambda p: save(p, noise((6, 7, 8, 2))), r"not 3-D, its shape is \(6, 7, 8, 2\)"),
    ("flat.nii.gz", lambda p: save(p, noise((6, 1, 8))), r"empty or flat, its shape is \(6, 1, 8\)"),
    ("constant.nii.gz", lambda p: save(p, np.full(SHAPE, 3, np.int16)), "constant image, every voxel is 3"),
    ("nan.nii.gz", lambda p: save(p, with_value(np.nan)), "1 of 336 voxels are NaN or Inf"),
    ("inf.nii.gz", lambda p: save(p, with_value(-np.inf)), "1 of 336 voxels are NaN or Inf"),
    ("complex.nii.gz", lambda p: save(p, noise().astype(np.complex64)), "complex"),
    ("singular.nii.gz", singular, "is singular, its axes do not span a volume"),
]


@pytest.mark.parametrize(("name", "make", "words"), BAD_IMAGES, ids=[case[0] for case in BAD_IMAGES])
def test_bad_image_is_named(tmp_path, name, make, words):
    make(tmp_path / name)
    with pytest.raises(InputError, match=words) as caught:
        check_image(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def moved_affine(amount):
    affine = AFFINE.copy()
    affine[0, 3] += amount
    return affine


BAD_LABELS = [
    ("shape", lambda p: save(p, np.zeros((6, 7, 9), np.uint8)), r"shape \(6, 7, 9\) differs from \(6, 7, 8\)"),
    ("affine", lambda p: save(p, np.zeros(SHAPE, np.uint8), moved_affine(0.01)), "differs by up to 0.01 mm"),
    ("fraction", lambda p: save(p, np.where(noise() > 0, 1.5, 0).astype(np.float32)), "1.5 is not an integer"),
    ("nan", lambda p: save(p, with_value(np.nan)), "NaN"),
    ("absent", lambda p: None, "does not exist"),
]


@pytest.mark.parametrize(("name", "make", "words"), BAD_LABELS, ids=[case[0] for case in BAD_LABELS])
def test_bad_label_is_named(tmp_path, name, make, words):
    image = save(tmp_path / "image.nii.gz", noise())
    make(tmp_path / f"{name}.nii.gz")
    with pytest.raises(InputError, match=words) as caught:
        check_label(tmp_path / f"{name}.nii.gz", image)
    assert str(tmp_path / f"{name}.nii.gz") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_good_image_and_label(tmp_path, suffix):
    image, label = tmp_path / f"image{suffix}", tmp_path / "label.nii.gz"
    if suffix.startswith(".nii"):
        save(image, noise())
    else:
        itk = pytest.importorskip("itk")
        volume = itk.image_from_array(np.ascontiguousarray(noise().transpose()))
        volume.SetSpacing((1.0, 2.0, 3.0))
        volume.SetDirection(np.diag((-1.0, -1.0, 1.0)))  # LPS to RAS
        itk.imwrite(volume, str(image))
    values = np.zeros(SHAPE, np.uint8)
    values[2, 2, 2], values[3, 3, 3] = 2, 7
    save(label, values, moved_affine(5e-4))
    info = check_image(image)
    assert info.shape == SHAPE
    assert info.path == image
    np.testing.assert_allclose(info.affine, AFFINE, atol=1e-6)
    assert info.spacing == pytest.approx((1, 2, 3))
    assert check_label(label, image).labels == (0, 2, 7)
    assert check_label(label, info).labels == (0, 2, 7)


def test_trailing_axis_of_one_is_dropped(tmp_path):
    """As MONAI's loader does in the workflows."""
    image = save(tmp_path / "single.nii.gz", noise((*SHAPE, 1)))
    assert check_image(image).shape == SHAPE
    loaded = LoadImage(image_only=True, ensure_channel_first=True)(image)
    assert loaded.shape == (1, *SHAPE)
    np.testing.assert_array_equal(loaded[0], noise())


def test_check_dataset_dir(tmp_path):
    with pytest.raises(InputError, match=r"no dataset\.json"):
        check_dataset_dir(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        check_dataset_dir(tmp_path / "absent")
    (tmp_path / "list.txt").write_text("x")
    with pytest.raises(InputError, match=r"unknown kind of data list '\.txt'"):
        check_dataset_dir(tmp_path / "list.txt")
    (tmp_path / "dataset.json").write_text("{}")
    assert check_dataset_dir(tmp_path) == tmp_path / "dataset.json"
    assert check_dataset_dir(tmp_path / "dataset.json") == tmp_path / "dataset.json"
