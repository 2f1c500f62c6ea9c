"""Transforms of elastix, NiftyReg, FSL, AFNI and X5: what those tools, or their own libraries, make of the files."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from nitransforms.linear import Affine
from scipy.ndimage import gaussian_filter

from image_files import turned_image
from scripts.api import grid_of
from scripts.cli import main
from scripts.errors import InputError
from scripts.transform import Transform

NEAR = 0.01  # mm


@pytest.fixture(params=[(0.1, 0.2, -0.1), (0.0, 0.0, 0.0)], ids=["oblique", "straight"])
def folder(tmp_path, request):
    turned_image(tmp_path / "fixed.nii.gz", (24, 26, 22), (1.5, 1.6, 2.0), request.param)
    turned_image(tmp_path / "moving.nii.gz", (25, 25, 21), (1.6, 1.4, 2.1), request.param, -1)
    return tmp_path


def inner(file, margin=4):
    """Voxels of a grid but for its rim, and where they are, RAS mm."""
    grid = nib.load(file)
    index = np.stack(np.indices(np.array(grid.shape[:3]) - 2 * margin), -1).reshape(-1, 3) + margin
    return index, nib.affines.apply_affine(grid.affine, index)


def frames(folder):
    return {role: grid_of(folder / f"{role}.nii.gz") for role in ("fixed", "moving")}


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [("rigid", "bspline"), ("affine", "bspline"), ("translation",), ("similarity",)])
def test_elastix_carries_points_as_transformix_does(folder, kinds):
    if importlib.util.find_spec("itk.ElastixPython") is None:
        pytest.skip("needs itk-elastix")
    import itk

    maps = itk.ParameterObject.New()
    for kind in kinds:
        one = maps.GetDefaultParameterMap("rigid" if kind == "similarity" else kind, 1, 8.0)
        one["MaximumNumberOfIterations"] = ["30"]
        if kind == "similarity":
            one["Transform"] = ["SimilarityTransform"]
        maps.AddParameterMap(one)
    fixed, moving = (itk.imread(str(folder / f"{role}.nii.gz"), itk.F) for role in ("fixed", "moving"))
    _, found = itk.elastix_registration_method(
        fixed, moving, parameter_object=maps, output_directory=str(folder), log_to_console=False
    )
    field = np.asarray(itk.transformix_deformation_field(moving, found)).transpose(2, 1, 0, 3) * (-1, -1, 1)
    index, points = inner(folder / "fixed.nii.gz")
    theirs = points + field[tuple(index.T)]
    ours = Transform.read(folder / f"TransformParameters.{len(kinds) - 1}.txt").points(points)
    assert np.abs(theirs - points).max() > 0.05
    np.testing.assert_allclose(ours, theirs, atol=NEAR)


@pytest.mark.slow
def test_niftyregs_control_points_carry_points_as_reg_transform_does(folder):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
    from registration.peers.niftyreg import find_program

    programs = {name: find_program(name) for name in ("reg_f3d", "reg_transform")}
    if None in programs.values():
        pytest.skip("needs NiftyReg")
    fixed, moving, grid, field = (str(folder / f"{n}.nii.gz") for n in ("fixed", "moving", "cpp", "def"))
    call = {"check": True, "capture_output": True}
    words = ["-ref", fixed, "-flo", moving, "-cpp", grid, "-res", str(folder / "res.nii.gz"), "-maxit", "20"]
    subprocess.run([programs["reg_f3d"], *words], **call)
    subprocess.run([programs["reg_transform"], "-ref", fixed, "-def", grid, field], **call)
    index, points = inner(fixed)
    theirs = np.squeeze(nib.load(field).get_fdata())[tuple(index.T)]
    assert np.abs(theirs - points).max() > 0.1
    for file in (grid, field):
        np.testing.assert_allclose(Transform.read(file).points(points), theirs, atol=NEAR)


@pytest.mark.parametrize("absolute", [False, True])
def test_a_field_of_fnirt_carries_points_as_fslpy_does(folder, absolute):
    fsl = pytest.importorskip("fsl.transform.fnirt")
    from fsl.data.image import Image

    fixed, moving = (Image(str(folder / f"{role}.nii.gz")) for role in ("fixed", "moving"))
    field = np.stack([gaussian_filter(np.random.default_rng(n).normal(size=fixed.shape), 4) for n in range(3)], -1)
    field *= 3 / np.abs(field).max()
    index, points = inner(folder / "fixed.nii.gz")
    start = fixed.getAffine("voxel", "fsl")
    if absolute:
        field += nib.affines.apply_affine(start, np.stack(np.indices(fixed.shape), -1))
    written = nib.Nifti1Image(field.astype(np.float32), fixed.header.get_best_affine())
    written.header["intent_code"] = 2006
    nib.save(written, folder / "warp.nii.gz")
    read = fsl.readFnirt(str(folder / "warp.nii.gz"), moving, fixed)
    theirs = read.transform(nib.affines.apply_affine(start, index))
    theirs = nib.affines.apply_affine(moving.getAffine("fsl", "world"), theirs)
    ours = Transform.read(folder / "warp.nii.gz", **frames(folder)).points(points)
    np.testing.assert_allclose(ours, theirs, atol=NEAR)


def test_coefficients_of_fnirt_carry_points_as_fslpy_does(folder):
    fsl = pytest.importorskip("fsl.transform.fnirt")
    from fsl.data.image import Image
    from fsl.transform.nonlinear import CoefficientField

    fixed, moving = (Image(str(folder / f"{role}.nii.gz")) for role in ("fixed", "moving"))
    knots, random = np.array((5, 4, 3)), np.random.default_rng(1)
    shape = np.ceil((np.array(fixed.shape) + 1) / knots).astype(int) + 2
    premat = np.eye(4)
    premat[:3] += 0.03 * random.normal(size=(3, 4)) * (1, 1, 1, 50)
    field = CoefficientField(
        random.normal(size=(*shape, 3)), moving, fixed, "fsl", "fsl", knotSpacing=knots,
        fieldToRefMat=np.diag([*knots, 1]), srcToRefMat=premat,
    )  # fmt: skip
    fsl.toFnirt(field).save(str(folder / "coefficients.nii.gz"))
    read = fsl.readFnirt(str(folder / "coefficients.nii.gz"), moving, fixed)
    index, points = inner(folder / "fixed.nii.gz", 0)
    theirs = read.transform(nib.affines.apply_affine(fixed.getAffine("voxel", "fsl"), index))
    theirs = nib.affines.apply_affine(moving.getAffine("fsl", "world"), theirs)
    ours = Transform.read(folder / "coefficients.nii.gz", **frames(folder)).points(points)
    np.testing.assert_allclose(ours, theirs, atol=NEAR)
    other = {**frames(folder), "fixed": frames(folder)["moving"]}
    with pytest.raises(InputError, match="give that as the fixed image"):
        Transform.read(folder / "coefficients.nii.gz", **other)


def test_affines_of_afni_and_x5_are_those_of_nitransforms_both_ways(folder, capsys):
    matrix = np.eye(4)
    matrix[:3] += 0.05 * np.random.default_rng(3).normal(size=(3, 4)) * (1, 1, 1, 100)
    grid, points = nib.load(folder / "fixed.nii.gz"), inner(folder / "fixed.nii.gz")[1]
    images = [word for role in ("fixed", "moving") for word in (f"--{role}", str(folder / f"{role}.nii.gz"))]
    oblique = np.abs(grid.affine[0, 1]) > 1e-3
    for name, kind in (("a.aff12.1D", "afni"), ("a.x5", "X5")):
        Affine(matrix, reference=grid).to_filename(folder / name, fmt=kind, moving=folder / "moving.nii.gz")
        back, again = folder / "back.tfm", folder / f"again.{name}"
        if oblique and kind == "afni":
            assert main(["convert", str(folder / name), str(back), *images]) == 1
            assert "oblique; register what 3dWarp -deoblique makes of it" in capsys.readouterr().err
            continue
        assert main(["convert", str(folder / name), str(back), *images]) == 0
        theirs = nib.affines.apply_affine(matrix, points)
        np.testing.assert_allclose(Transform.read(back).points(points), theirs, atol=NEAR)
        found = sitk.ReadTransform(str(back)).TransformPoint((points[0] * (-1, -1, 1)).tolist())
        np.testing.assert_allclose(found * np.array((-1, -1, 1)), theirs[0], atol=NEAR)
        assert main(["convert", str(back), str(again), *images]) == 0
        read = Affine.from_filename(again, fmt=kind, reference=grid, moving=folder / "moving.nii.gz")
        np.testing.assert_allclose(np.atleast_3d(read.map(points))[..., 0], theirs, atol=NEAR)


BAD = {
    "weighted.txt": ('(Transform "WeightedCombinationTransform")\n', "WeightedCombinationTransform (Compose), which"),
    "added.txt": ('(Transform "AffineTransform")\n(HowToCombineTransforms "Add")\n', "AffineTransform (Add), which is"),
    "lacking.txt": ('(Transform "AffineTransform")\n', "has no line (CenterOfRotationPoint ...)"),
    "words.txt": ('(Transform "AffineTransform")\n(CenterOfRotationPoint a b c)\n', "RotationPoint are no numbers"),
    "circle.txt": (
        '(Transform "AffineTransform")\n(InitialTransformParametersFileName "circle.txt")\n',
        "begins with circle.txt, which is not beside it",
    ),
    "short.1D": ("1 0 0 0 0 1 0 0\n", "is no .1D file with one affine of AFNI"),
    "none.1D": ("# of no numbers\n", "is no .1D file with one affine of AFNI"),
    "none.x5": ("nothing", "is no X5 file with one transform, or damaged; copy it again"),
    "none.lta": ("type = 1\nnxforms = 1\n", "is no LTA of FreeSurfer that can be read, or damaged; copy it again"),
    "none.dcm": ("nothing", "is no registration of DICOM that can be read, or damaged; copy it again"),
    **{
        f"empty{end}": ("", "is empty; copy it again") for end in (".1D", ".x5", ".lta", ".dcm", ".m3z", ".mgz", ".tfm")
    },
    **{f"empty{end}": ("", "is empty; copy it again") for end in (".nii", ".nii.gz", ".nrrd", ".mha", ".h5")},
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_refused_in_one_line(tmp_path, capsys, name):
    text, message = BAD[name]
    (tmp_path / name).write_text(text)
    assert main(["convert", str(tmp_path / name), str(tmp_path / "out.h5")]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
