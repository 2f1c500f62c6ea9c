"""DICOM results of a transform that is known: the moved series, and the two registration objects."""

import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from avsm_deploy.outputs import AFFINE, DEFORMABLE, ITK, MOVED, write_dicom
from avsm_deploy.pair import find_pair
from avsm_deploy.request import load_request
from deploy_cases import PATIENT, STUDY, write_study
from dicom_reading import read_folder, to_registered, to_source, validate
from dicom_reading import read_image as read_series

import world_cases as world
from scripts.formats.dicom_registration import dicom_grid
from scripts.formats.images import read_image
from scripts.formats.transform_files import write_transform
from scripts.formats.volumes import save_volume
from scripts.registration import METRICS
from scripts.spatial import nearest_of_kind
from scripts.spatial.frame import Frame, network_frame, ras_to_lps
from scripts.spatial.resampling import resample_image
from scripts.spatial.transform import WorldTransform

pytestmark = pytest.mark.integrations

FIXED, MOVING = f"{STUDY}.3", f"{STUDY}.7"
WEIGHTS = "0123456789abcdef" * 4


def bend(fixed: Frame, moving: Frame) -> WorldTransform:
    """An affine and a bending by several mm between two images, as a registration has it: on a grid of its own."""
    grids = [network_frame(image, (48, 64, 48), image.extent[0] / np.array((40, 50, 40))) for image in (fixed, moving)]
    return WorldTransform.from_network(*grids, world.AFFINE, world.displacement((24, 32, 24), 0.03)).covering(fixed)


def write_itk(folder: Path, images, transform: WorldTransform) -> None:
    """The files that a registration leaves, made of its transform."""
    folder.mkdir(parents=True)
    fixed, moving = (read_image(path) for path in images)
    where = fixed.frame.voxel_to_world(np.stack(np.indices(fixed.frame.shape), axis=-1))
    moved = resample_image(moving.array, moving.frame, fixed.frame, [transform], fill=float(moving.array.min()))
    save_volume(moved, fixed.frame.affine, folder / "moved.nii.gz", np.float32)
    world.save_field(ras_to_lps(transform.apply(where) - where), fixed.frame.affine, folder / "displacement.nii.gz")
    write_transform(transform, folder / "transform.h5")
    write_transform(transform.affine_part, folder / "affine.tfm")
    (folder / METRICS).write_text(json.dumps({"weights_sha256": WEIGHTS}))


def make(folder: Path, kind: str = "MR", rigid: bool = False, **moving) -> Path:
    """A study in ``in``, and what the app makes of it and a known transform in ``out``."""
    write_study(folder / "in", kind, **moving)
    pair = find_pair(folder / "in", load_request(folder / "in"))
    images = pair.paths(folder / "work")
    fixed, moving_frame = (read_image(path).frame for path in images)
    transform = bend(fixed, moving_frame)
    if rigid:
        transform = WorldTransform(nearest_of_kind(transform.linear, "rigid", fixed), kind="rigid")
    write_itk(folder / "out" / ITK, images, transform)
    write_dicom(pair, images, folder / "out")
    return folder


KINDS = {
    "MR": {"kind": "MR"},
    "CT": {"kind": "CT"},
    "CT in another study": {"kind": "CT", "StudyInstanceUID": f"{STUDY}.55"},
    "signed CT of no paired part": {"kind": "CT", "dtype": np.int16, "BodyPartExamined": "LIVER", "Laterality": None},
    "stripped MR": {"kind": "MR",
        **dict.fromkeys(("ScanningSequence", "SequenceVariant", "ScanOptions", "MRAcquisitionType", "RepetitionTime")),
        **dict.fromkeys(("EchoTime", "EchoTrainLength", "Manufacturer", "WindowCenter", "WindowWidth"))},
    "lossy MR": {"kind": "MR", "LossyImageCompression": "01", "LossyImageCompressionRatio": 10,
        "LossyImageCompressionMethod": "ISO_10918_1"},
}  # fmt: skip


@pytest.fixture(scope="module", params=list(KINDS))
def result(request, tmp_path_factory):
    return make(tmp_path_factory.mktemp("result"), **KINDS[request.param])


def some_points(folder: Path, count: int = 3000) -> np.ndarray:
    """Points of the fixed image up to its outermost voxel centres, ``(n, 3)`` LPS mm."""
    image = read_series(folder / "in", FIXED)
    size = np.array(image.GetSize())
    index = np.random.default_rng(0).uniform(0, size - 1, (count, 3))
    index[:8] = np.array(list(np.ndindex(2, 2, 2))) * (size - 1)
    return np.array([image.TransformContinuousIndexToPhysicalPoint(i.tolist()) for i in index])


def by_itk(path: Path, points: np.ndarray) -> np.ndarray:
    transform = sitk.ReadTransform(str(path))
    return np.array([transform.TransformPoint(point) for point in points.tolist()])


def test_validator_finds_nothing(result):
    out = result / "out"
    assert validate([*(out / MOVED).iterdir(), out / AFFINE, out / DEFORMABLE]) == []


def test_moved_series_is_the_moved_image(result):
    """Read by SimpleITK it equals the NIfTI file to half a step of its rescaling, on the fixed series' very grid."""
    moved = read_series(result / "out" / MOVED)
    expected = sitk.ReadImage(str(result / "out" / ITK / "moved.nii.gz"), sitk.sitkFloat64)
    fixed = read_series(result / "in", FIXED)
    assert moved.GetSize() == expected.GetSize() == fixed.GetSize()
    for name, tolerance in (("GetOrigin", 1e-4), ("GetDirection", 1e-6), ("GetSpacing", 1e-5)):
        for other in (expected, fixed):
            np.testing.assert_allclose(getattr(moved, name)(), getattr(other, name)(), atol=tolerance)
    step = float(read_folder(result / "out" / MOVED)[0].get("RescaleSlope", 1))
    difference = np.abs(sitk.GetArrayFromImage(moved - expected))
    assert difference.max() <= 0.5 * step + 1e-3 and np.ptp(sitk.GetArrayFromImage(moved)) > 500


def test_deformable_object_carries_points_as_the_itk_file(result):
    points = some_points(result)
    ds = pydicom.dcmread(result / "out" / DEFORMABLE)
    expected = by_itk(result / "out" / ITK / "transform.h5", points)
    found = to_source(ds, MOVING, points)
    assert np.linalg.norm(found - expected, axis=1).max() < 5e-3  # mm; 0.1 is asked for
    # The grid does what no affine does.
    affine = by_itk(result / "out" / ITK / "affine.tfm", points)
    assert np.linalg.norm(affine - expected, axis=1).max() > 3
    np.testing.assert_allclose(to_source(ds, FIXED, points), points, atol=1e-9)


def test_affine_object_carries_points_back(result):
    """A matrix of the standard goes from the named frame of reference to the registered one: moving to fixed."""
    points = some_points(result)
    ds = pydicom.dcmread(result / "out" / AFFINE)
    moving = by_itk(result / "out" / ITK / "affine.tfm", points)
    np.testing.assert_allclose(to_registered(ds, MOVING, moving), points, atol=1e-3)
    np.testing.assert_allclose(to_registered(ds, FIXED, points), points, atol=1e-9)


def test_a_rigid_transform_is_said_to_be_rigid(tmp_path):
    out = make(tmp_path, rigid=True) / "out"
    assert not (out / DEFORMABLE).exists() and validate([out / AFFINE]) == []
    for item in pydicom.dcmread(out / AFFINE).RegistrationSequence:
        (matrix,) = item.MatrixRegistrationSequence[0].MatrixSequence
        assert matrix.FrameOfReferenceTransformationMatrixType == "RIGID"
        turn = np.array(matrix.FrameOfReferenceTransformationMatrix, float).reshape(4, 4)[:3, :3]
        np.testing.assert_allclose(turn.T @ turn, np.eye(3), atol=1e-6)
        assert np.linalg.det(turn) > 0


def test_objects_say_whose_they_are(result):
    images = [pydicom.dcmread(path) for path in (result / "in").iterdir()]
    fixed, moving = ({ds.SOPInstanceUID: ds for ds in images if ds.SeriesInstanceUID == uid} for uid in (FIXED, MOVING))
    slices = read_folder(result / "out" / MOVED)
    objects = [pydicom.dcmread(result / "out" / name) for name in (AFFINE, DEFORMABLE)]
    everything = [*slices, *objects]
    uids = [ds.SOPInstanceUID for ds in everything]
    assert len(set(uids) | set(fixed) | set(moving)) == len(uids) + len(fixed) + len(moving)
    assert len({ds.SeriesInstanceUID for ds in everything} | {FIXED, MOVING}) == 5
    assert sorted({int(ds.SeriesNumber) for ds in everything}) == ([8, 9, 10] if _same_study(moving) else [4, 5, 6])
    for ds in everything:
        assert (ds.StudyInstanceUID, ds.FrameOfReferenceUID) == (STUDY, f"{STUDY}.9.3")
        assert {keyword: str(ds[keyword].value) for keyword in PATIENT} == PATIENT
        assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID
        assert "weights 0123456789abcdef" in ds.SoftwareVersions and ds.Manufacturer == "AVSM"
    source = next(iter(moving.values()))
    for ds in slices:
        assert ds.SOPClassUID == source.SOPClassUID and ds.Modality == source.Modality
        assert ds.ImageType[:2] == ["DERIVED", "SECONDARY"]
        meanings = [code.CodeMeaning for code in ds.DerivationCodeSequence]
        assert meanings == ["Spatial resampling", "Deformed for Registration"]
        (place,) = ds.ReferencedImageSequence
        place = fixed[place.ReferencedSOPInstanceUID]
        assert ds.ImagePositionPatient == place.ImagePositionPatient and ds.InstanceNumber == place.InstanceNumber
        used = {item.ReferencedSOPInstanceUID for item in ds.SourceImageSequence}
        assert used and used <= set(moving)
        for keyword in ("LossyImageCompression", "LossyImageCompressionMethod", "WindowCenter", "EchoTime", "KVP"):
            assert ds.get(keyword) == source.get(keyword), keyword


def _same_study(moving):
    return next(iter(moving.values())).StudyInstanceUID == STUDY


def test_references_are_complete(result):
    images = [pydicom.dcmread(path) for path in (result / "in").iterdir()]
    for name, sequence in ((AFFINE, "RegistrationSequence"), (DEFORMABLE, "DeformableRegistrationSequence")):
        ds = pydicom.dcmread(result / "out" / name)
        here = list(ds.ReferencedSeriesSequence)
        elsewhere = {
            study.StudyInstanceUID: list(study.ReferencedSeriesSequence)
            for study in ds.get("StudiesContainingOtherReferencedInstancesSequence", [])
        }
        for uid in (FIXED, MOVING):
            ours = {image.SOPInstanceUID for image in images if image.SeriesInstanceUID == uid}
            study = next(image.StudyInstanceUID for image in images if image.SeriesInstanceUID == uid)
            listed = here if study == STUDY else elsewhere[study]
            (series,) = (item for item in listed if item.SeriesInstanceUID == uid)
            assert {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence} == ours
            keyword = "FrameOfReferenceUID" if name == AFFINE else "SourceFrameOfReferenceUID"
            assert [i[keyword].value for i in ds[sequence]] == [f"{STUDY}.9.3", f"{STUDY}.9.7"]
            assert ours in [{i.ReferencedSOPInstanceUID for i in item.ReferencedImageSequence} for item in ds[sequence]]


RESCALES = {
    "fractions": {"slope": 0.25, "intercept": -3.0},
    "a slope for each slice": {"RescaleSlope": lambda k: f"{1 + 0.01 * k:.4f}", "RescaleIntercept": "0"},
}


@pytest.mark.parametrize("name", list(RESCALES))
def test_rescaled_values(tmp_path, name):
    """MR has no rescaling in its standard; where the source has it, the result has, and is not the poorer for it."""
    make(tmp_path, **RESCALES[name])
    ds = read_folder(tmp_path / "out" / MOVED)[0]
    step = float(ds.RescaleSlope)
    assert step == 0.25 if name == "fractions" else step < 0.05
    test_moved_series_is_the_moved_image(tmp_path)
    said = validate((tmp_path / "out" / MOVED).iterdir())
    assert not [line for line in said if "Rescale" not in line and "Standard Extended" not in line]
    assert not [line for line in said if "Error" in line]


GRIDS = {
    "straight": world.frame((7, 9, 8), spacing=(2, 3, 4)),
    "oblique": world.frame((7, 9, 8), (12, -25, 40), (2, 3, 4), (10, -20, 30)),
    "left-handed": world.frame((7, 9, 8), (12, -25, 40), (2, 3, 4), (10, -20, 30), (1, 1, -1)),
    "axes exchanged": world.frame((7, 9, 8), (5, 0, 0), (2, 3, 4), (10, -20, 30), order=(1, 0, 2)),
}


def skewed() -> Frame:
    affine = GRIDS["left-handed"].affine.copy()
    affine[:3, 0] += 5e-4 * affine[:3, 1]
    return Frame((7, 9, 8), affine)


@pytest.mark.parametrize("name", [*GRIDS, "skewed"])
def test_any_grid_becomes_dicoms(name):
    """Its third axis is across the first two, and its linear interpolation is still the transform's."""
    where = skewed() if name == "skewed" else GRIDS[name]
    field = np.random.default_rng(1).normal(size=(*where.shape, 3))
    if name == "skewed":  # what is sampled anew must not be noise
        field = np.sin(where.voxel_to_world(np.stack(np.indices(where.shape), axis=-1)) / 15) * 8
    transform = WorldTransform(np.eye(4), field, where)
    grid = dicom_grid(transform)
    np.testing.assert_allclose(np.cross(*grid.directions[:, :2].T), grid.directions[:, 2], atol=1e-9)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = grid.directions * grid.spacing, grid.position
    ours = WorldTransform(
        np.eye(4), ras_to_lps(grid.vectors), Frame(grid.vectors.shape[:3], np.diag((-1, -1, 1, 1)) @ affine)
    )
    points = world.some_points(where, 500) if name != "skewed" else world.some_points(where, 500, margin=-0.05)
    difference = np.linalg.norm(ours.apply(points) - transform.apply(points), axis=1)
    assert difference.max() < (2e-2 if name == "skewed" else 1e-5)
