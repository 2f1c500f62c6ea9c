"""``avsm convert``: what other tools' own libraries make of the same files."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from nitransforms.linear import Affine

from image_files import turned_image
from scripts.cli import main
from scripts.transform import Transform

# Axes flipped or not: FSL counts a right-handed image's first axis from its other end.
FLIPS = [(fixed, moving) for fixed in (1, -1) for moving in (1, -1)]
POINTS = np.random.default_rng(5).uniform(-40, 40, (50, 3))


def affine(seed=0):
    """Fixed to moving, RAS mm."""
    random = np.random.default_rng(seed)
    matrix = np.eye(4)
    matrix[:3, :3] += 0.1 * random.normal(size=(3, 3))
    matrix[:3, 3] = random.normal(size=3) * 10
    return matrix


def carried(matrix, points=POINTS):
    return points @ matrix[:3, :3].T + matrix[:3, 3]


@pytest.fixture(params=FLIPS, ids=lambda flips: f"fixed {flips[0]}, moving {flips[1]}")
def folder(tmp_path, request):
    """Both images and ``affine.tfm``."""
    fixed, moving = request.param
    turned_image(tmp_path / "fixed.nii.gz", (20, 22, 24), (1.2, 1.5, 2.0), (0.1, 0.2, -0.1), fixed)
    turned_image(tmp_path / "moving.nii.gz", (18, 25, 21), (0.9, 1.1, 1.7), (-0.2, 0.1, 0.3), moving)
    write_itk(affine(), tmp_path / "affine.tfm")
    return tmp_path


def write_itk(matrix, path):
    """By SimpleITK."""
    flip = np.diag((-1.0, -1.0, 1.0, 1.0))
    lps = flip @ matrix @ flip
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(lps[:3, :3].ravel().tolist())
    transform.SetTranslation(lps[:3, 3].tolist())
    sitk.WriteTransform(transform, str(path))


def convert(folder, *words):
    images = [word for role in ("fixed", "moving") for word in (f"--{role}", str(folder / f"{role}.nii.gz"))]
    return main(["convert", *(str(folder / word) for word in words), *images])


@pytest.mark.parametrize(("name", "kind"), [("a.mat", "fsl"), ("a.lta", "fs")])
def test_affines_are_those_of_nitransforms_both_ways(folder, name, kind):
    assert convert(folder, "affine.tfm", name) == 0
    images = {"reference": folder / "fixed.nii.gz", "moving": folder / "moving.nii.gz"}
    read = Affine.from_filename(folder / name, fmt=kind, **images)
    np.testing.assert_allclose(read.map(POINTS), carried(affine()), atol=1e-3)
    other = affine(1)
    Affine(other, reference=images["reference"]).to_filename(folder / name, fmt=kind, moving=images["moving"])
    assert convert(folder, name, "back.tfm") == 0
    found = sitk.ReadTransform(str(folder / "back.tfm"))
    there = np.array([found.TransformPoint(point) for point in (POINTS * (-1, -1, 1)).tolist()]) * (-1, -1, 1)
    np.testing.assert_allclose(there, carried(other), atol=1e-3)


def test_an_lta_says_which_volume_is_which(folder, capsys):
    assert convert(folder, "affine.tfm", "a.lta") == 0 and capsys.readouterr().out == f"{folder / 'a.lta'}\n"
    lines = (folder / "a.lta").read_text().splitlines()
    volumes = {name: lines[lines.index(f"{name} volume info") + 3] for name in ("src", "dst")}
    assert volumes == {"src": "volume = 18 25 21", "dst": "volume = 20 22 24"} and lines[0] == "type      = 1"


def test_several_become_one_field(folder):
    write_itk(affine(2), folder / "second.tfm")
    assert convert(folder, "affine.tfm", "second.tfm", "field.nii.gz") == 0
    field = sitk.DisplacementFieldTransform(sitk.ReadImage(str(folder / "field.nii.gz"), sitk.sitkVectorFloat64))
    grid = nib.load(folder / "fixed.nii.gz")
    points = nib.affines.apply_affine(grid.affine, [[3, 4, 5], [10, 12, 9], [18, 20, 22]])
    there = np.array([field.TransformPoint(point) for point in (points * (-1, -1, 1)).tolist()]) * (-1, -1, 1)
    np.testing.assert_allclose(there, carried(affine(2), carried(affine(), points)), atol=1e-3)
    assert convert(folder, "affine.tfm", "second.tfm", "both.tfm") == 0
    np.testing.assert_allclose(
        Transform.read(folder / "both.tfm").points(points), carried(affine(2), carried(affine(), points)), atol=1e-6
    )


def test_an_inverse_is_written_where_it_can_be(folder):
    grid = nib.load(folder / "fixed.nii.gz")
    points = nib.affines.apply_affine(grid.affine, [[8, 9, 10], [10, 12, 9]])
    images = ["--fixed", str(folder / "fixed.nii.gz")]
    assert main(["convert", f"inverse:{folder}/affine.tfm", str(folder / "back.tfm")]) == 0
    np.testing.assert_allclose(Transform.read(folder / "back.tfm").points(carried(affine(), points)), points, atol=1e-4)
    assert convert(folder, "affine.tfm", "field.nii.gz") == 0
    assert main(["convert", f"inverse:{folder}/field.nii.gz", str(folder / "back.h5")]) != 0
    assert main(["convert", f"inverse:{folder}/field.nii.gz", str(folder / "back.nii.gz"), *images]) == 0


BAD = {  # name -> words, what is said
    "no images": (["plain.mat", "out.tfm"], "avsm convert"),
    "one image": (["affine.tfm", "out.lta", "--fixed", "fixed.nii.gz"], "depends on the moving image; give --moving"),
    "no image": (["affine.tfm", "out.lta"], "the fixed image and the moving image; give --fixed and --moving"),
    "field": (["affine.tfm", "out.nii.gz"], "depends on the fixed image; give --fixed"),
    "field in an affine": (["field.nii.gz", "out.lta"], ".lta holds an affine only"),
    "kind": (["affine.tfm", "out.xfm"], "must end with"),
    "itself": (["affine.tfm", "affine.tfm"], "is read as well"),
    "missing": (["no.tfm", "out.tfm"], "does not exist"),
}


@pytest.mark.parametrize("name", BAD)
def test_refusals(tmp_path, capsys, name):
    turned_image(tmp_path / "fixed.nii.gz", (20, 22, 24), (1.2, 1.5, 2.0), (0.1, 0.2, -0.1))
    write_itk(affine(), tmp_path / "affine.tfm")
    np.savetxt(tmp_path / "plain.mat", affine())
    main(["convert", str(tmp_path / "affine.tfm"), str(tmp_path / "field.nii.gz"), "--fixed",
        str(tmp_path / "fixed.nii.gz")])  # fmt: skip
    before = sorted(tmp_path.iterdir())
    words, message = BAD[name]
    capsys.readouterr()
    assert main(["convert", *(word if word.startswith("--") else str(tmp_path / word) for word in words)]) != 0
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and sorted(tmp_path.iterdir()) == before
