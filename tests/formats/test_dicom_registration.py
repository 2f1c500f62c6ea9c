"""Registration objects of DICOM, out of ``avsm convert`` and in, and one series of several in a folder.

Applied by the standard's formula alone, checked by dciodvfy and compared with plastimatch where these are installed.
"""

import re
import shutil
import subprocess

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from deploy_cases import STUDY, write_study
from dicom_reading import to_registered, to_source, validate
from pydicom import uid

from scripts.api import grid_of
from scripts.cli import main
from scripts.errors import InputError
from scripts.formats import read_image, write_transform
from scripts.spatial import Frame, WorldTransform, ras_to_lps
from scripts.transform import Transform

NEAR = 0.01  # mm
FIXED, MOVING = f"{STUDY}.3", f"{STUDY}.7"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two series in one folder; a turn, an affine, a bend and a bend after an affine between them."""
    folder = tmp_path_factory.mktemp("study")
    write_study(folder / "in")
    fixed, moving = (grid_of(folder / "in" / number) for number in "37")
    angle, middle = 0.2, np.eye(4)
    middle[:3, 3] = fixed.centre
    turn = np.eye(4)
    turn[:2, :2] = (np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))
    turn = middle @ turn @ np.linalg.inv(middle)
    turn[:3, 3] += moving.centre - fixed.centre
    affine = turn.copy()
    affine[:3, :3] *= (1.05, 0.94, 1.1)
    grid = fixed.resized((8, 9, 7))
    bend = WorldTransform(affine, np.random.default_rng(1).normal(size=(*grid.shape, 3)), grid)
    write_transform(WorldTransform(turn), folder / "RIGID.tfm")
    write_transform(WorldTransform(affine), folder / "AFFINE.tfm")
    write_transform(bend, folder / "bend.h5")
    write_transform(
        [WorldTransform(middle @ np.diag((1.02, 1, 1, 1)) @ np.linalg.inv(middle)), bend], folder / "two.h5"
    )
    return folder


def convert(study, *words):
    images = ["--fixed", str(study / "in" / "3"), "--moving", str(study / "in" / MOVING)]
    assert main(["convert", *(str(study / word) for word in words), *images]) == 0
    return study / words[-1]


def places(study, count=400):
    """Points of the fixed image, RAS mm."""
    frame = grid_of(study / "in" / "3")
    return frame.voxel_to_world(np.random.default_rng(0).uniform(0.5, np.array(frame.shape) - 1.5, (count, 3)))


@pytest.mark.parametrize("kind", ["RIGID", "AFFINE"])
def test_an_affine_out_and_in(study, kind):
    points = places(study)
    there = Transform.read(study / f"{kind}.tfm").points(points)
    file = convert(study, f"{kind}.tfm", f"{kind}.dcm")
    ds = pydicom.dcmread(file)
    back = to_registered(ds, MOVING, ras_to_lps(there))
    np.testing.assert_allclose(ras_to_lps(back), points, atol=NEAR)
    moving = ds.RegistrationSequence[1].MatrixRegistrationSequence[0].MatrixSequence[0]
    assert moving.FrameOfReferenceTransformationMatrixType == kind
    np.testing.assert_allclose(Transform.read(file).points(points), there, atol=NEAR)
    assert ds.PatientID == "P-1" and ds.StudyInstanceUID == STUDY and ds.SeriesNumber == 8


@pytest.mark.parametrize("name", ["bend", "two"])
def test_a_field_out_and_in(study, name):
    """Of several parts the displacement of the fixed image's voxels is written, linear between them."""
    points = places(study)
    if name == "two":
        points = grid_of(study / "in" / "3").places[1:-1, 1:-1, 1:-1].reshape(-1, 3)
    there = Transform.read(study / f"{name}.h5").points(points)
    file = convert(study, f"{name}.h5", f"{name}.dcm")
    np.testing.assert_allclose(
        ras_to_lps(to_source(pydicom.dcmread(file), MOVING, ras_to_lps(points))), there, atol=NEAR
    )
    np.testing.assert_allclose(Transform.read(file).points(points), there, atol=NEAR)
    assert np.abs(there - points).max() > 5


def test_a_matrix_before_the_field_counts(study):
    """Another program's object may have one."""
    file, points = convert(study, "bend.h5", "pre.dcm"), places(study, 50)
    ds = pydicom.dcmread(file)
    item = ds.DeformableRegistrationSequence[1].PreDeformationMatrixRegistrationSequence[0]
    item.FrameOfReferenceTransformationMatrix = [0.9, 0.1, 0, 5, -0.1, 1.1, 0, -3, 0, 0.05, 1, 2, 0, 0, 0, 1]
    item.FrameOfReferenceTransformationMatrixType = "AFFINE"
    ds.save_as(file)
    expected = ras_to_lps(to_source(ds, MOVING, ras_to_lps(points)))
    np.testing.assert_allclose(Transform.read(file).points(points), expected, atol=NEAR)


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="needs dciodvfy, of Debian's dicom3tools")
def test_dciodvfy_finds_nothing(study):
    files = [convert(study, name, f"{name}.dcm") for name in ("RIGID.tfm", "AFFINE.tfm", "bend.h5", "two.h5")]
    assert validate(files) == []


@pytest.mark.skipif(shutil.which("plastimatch") is None, reason="needs plastimatch, of Debian")
def test_what_plastimatch_writes(study):
    """It writes rigid ones, with six decimals; its command reads none."""
    words = ["plastimatch", "xf-convert", "--input", study / "RIGID.tfm", "--output-dicom", study / "plastimatch"]
    for number, role in (("3", "fixed"), ("7", "moving")):
        (study / role).mkdir()
        for file in (study / "in").glob(f"MR{number}_*"):
            shutil.copy(file, study / role)
        words += [f"--{role}-rcs", study / role]
    subprocess.run(words, check=True, capture_output=True)
    (file,) = (study / "plastimatch").iterdir()
    points = places(study)
    np.testing.assert_allclose(
        Transform.read(file).points(points), Transform.read(study / "RIGID.tfm").points(points), atol=NEAR
    )


@pytest.mark.parametrize("name", ["RIGID.tfm", "bend.h5"])
@pytest.mark.parametrize("syntax", [None, uid.ImplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian])
def test_a_file_that_is_cut_off_is_refused_or_read_right(study, name, syntax):
    """Wherever: of one that ends within a sequence pydicom reads what is there, most of it the identity."""
    file = convert(study, name, "whole.dcm")
    if syntax is not None:
        ds = pydicom.dcmread(file)
        ds.file_meta.TransferSyntaxUID = syntax
        ds.save_as(file, implicit_vr=syntax.is_implicit_VR, little_endian=True)
    content, points = file.read_bytes(), places(study, 5)
    there = Transform.read(file).points(points)
    np.testing.assert_allclose(there, Transform.read(study / name).points(points), atol=NEAR)
    random = np.random.default_rng(0)
    near = random.integers(0, min(len(content), 24_000), 150), random.integers(0, len(content), 50)
    refused = 0
    for length in (*np.concatenate(near).tolist(), len(content) - 8, len(content) - 1):
        (study / "cut.dcm").write_bytes(content[:length])
        try:  # behind the sequence a file may end between two elements
            np.testing.assert_array_equal(Transform.read(study / "cut.dcm").points(points), there)
        except InputError as error:
            refused += 1
            assert "cut.dcm" in str(error)
    assert refused > 195


def test_a_registration_of_three_images_of_one_or_of_none_is_refused(study, capsys):
    file = convert(study, "RIGID.tfm", "three.dcm")
    ds = pydicom.dcmread(file)
    ds.RegistrationSequence.append(ds.RegistrationSequence[1])
    ds.save_as(file)
    capsys.readouterr()
    assert main(["convert", str(file), str(study / "out.h5")]) == 1
    assert "it registers 2 images to a third one, need one" in capsys.readouterr().err
    ds.RegistrationSequence = ds.RegistrationSequence[:1]  # the fixed series' alone
    ds.save_as(file)
    assert main(["convert", str(file), str(study / "out.h5")]) == 1
    assert "it registers 0 images to a third one, need one" in capsys.readouterr().err
    image = next((study / "in").glob("MR3_*"))
    shutil.copy(image, study / "slice.dcm")
    assert main(["convert", str(study / "slice.dcm"), str(study / "out.h5")]) == 1
    assert re.search(r"slice.dcm: is of .*Image Storage; give a registration object", capsys.readouterr().err)


def test_one_series_of_several(study, capsys):
    """By its number, UID or description, and by --series."""
    for name in ("3", FIXED, "Knee fixed"):
        image = read_image(study / "in" / name)
        files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(study / "in"), FIXED)
        other = sitk.ReadImage(files)
        np.testing.assert_array_equal(image.array, sitk.GetArrayFromImage(other).T)
        assert image.frame.same_as(Frame.from_itk(other))
    words = ["apply", "--transform", str(study / "RIGID.tfm"), "--reference", str(study / "in" / "3"), "--input"]
    assert main([*words, str(study / "in" / MOVING), "--output", str(study / "moved.nii.gz")]) == 0
    assert read_image(study / "moved.nii.gz").frame.same_as(grid_of(study / "in" / "3"))
    capsys.readouterr()
    for name, message in (
        ("", r"2 DICOM series, 'Knee fixed' \(number 3, .*name one by"),
        ("/8", "0 series called '8'"),
    ):
        assert main([*words, f"{study}/in{name}", "--output", str(study / "none.nii.gz")]) == 1
        assert re.search(message, capsys.readouterr().err)
    assert main([*words, f"{study}/out/8", "--output", str(study / "none.nii.gz")]) == 1
    assert "out/8: input does not exist" in capsys.readouterr().err


@pytest.mark.slow
def test_series_of_a_registration(study, capsys):
    words = ["register", "--fixed", str(study / "in"), "--moving", str(study / "in"), "--transform", "rigid"]
    words += ["--initialisation", "geometry", "--grid-voxels", "8000", "--no-report"]
    assert main([*words, "--output", str(study / "out"), "--series", "3", "Knee moving"]) == 0
    assert read_image(study / "out" / "moved.nii.gz").frame.same_as(grid_of(study / "in" / "3"))
    for series in (["3", "8"], ["1", "2", "3"], ["3"], ["3", "3"]):
        try:
            assert main([*words, "--output", str(study / "none"), "--series", *series]) == 1
        except SystemExit as error:
            assert error.code == 2
    assert not (study / "none").exists()
