"""Displacement fields as files: SimpleITK carries points by them alike; other tools' fields mean what those say."""

import gzip
import warnings
import zlib

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from image_files import metaimage, nifti, nrrd
from refusals import one_line
from scripts.errors import InputError
from scripts.formats import read_field
from scripts.spatial import Frame, WorldTransform, ras_to_lps
from world_cases import AFFINE, FRAMES, OBLIQUE, displacement, save_field, sitk_points

FIELD = Frame((6, 7, 8), OBLIQUE.affine)
SFORM = {"sform_code": 1, "qform_code": 0}
VECTORS = np.random.default_rng(3).normal(size=(6, 7, 8, 3)).astype(np.float32)
PLACES = FIELD.voxel_to_world(np.stack(np.indices(FIELD.shape), axis=-1))
NODES = PLACES.reshape(-1, 3)


def field_bytes(vectors=VECTORS, axes=5, kind=nib.Nifti1Image, affine=FIELD.affine, **fields):
    """Bytes of a NIfTI vector file; its sform is set, with code 1."""
    shape = (*vectors.shape[:3], 1, 3)[5 - axes :] if axes == 5 else vectors.shape
    header = {"intent_code": 1007, "xyzt_units": 2, **SFORM, **fields}
    return nifti(np.asarray(vectors).reshape(shape), affine, kind, **header)


def read(path, expect=()):
    """The field of a file that warns of what is expected, and of nothing else."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        part = read_field(path)
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == len(expect)
    for message, words in zip(messages, expect, strict=True):
        assert message.startswith(f"{path}: ") and words in message and "\n" not in message
    return part


def in_sitk(path):
    return sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))


@pytest.mark.parametrize("name", FRAMES)
def test_simpleitk_and_a_round_trip(tmp_path, name):
    """A registration's displacement at the fixed voxels, written, is the same transform there and comes back whole."""
    fixed, moving = FRAMES[name]
    transform = WorldTransform.from_network(fixed, moving, AFFINE, displacement())
    here = fixed.voxel_to_world(np.stack(np.indices(fixed.shape), axis=-1))
    vectors = ras_to_lps(transform.apply(here) - here)
    path = tmp_path / "field.nii.gz"
    save_field(vectors, fixed.affine, path)
    points = here[1:-1, 1:-1, 1:-1].reshape(-1, 3)[::97]
    np.testing.assert_allclose(sitk_points(in_sitk(path), points), transform.apply(points), atol=0.01)
    back = read(path)
    np.testing.assert_allclose(ras_to_lps(back.displacement), vectors, atol=1e-4)
    np.testing.assert_allclose(back.frame.affine, fixed.affine, atol=1e-4)


MICRO = np.diag((1e3, 1e3, 1e3, 1)) @ FIELD.affine
AWAY = {"qform_code": 1, "quatern_b": 0.1, "quatern_c": 0.2, "quatern_d": 0.3, "qoffset_x": 5, "qoffset_y": 6}
AS_SIMPLEITK = {  # name -> content, warnings
    "plain": (field_bytes(), []),
    "float64": (field_bytes(VECTORS.astype(np.float64)), []),
    "intent 1006, RAS by the standard": (field_bytes(intent_code=1006), []),
    "micrometres": (field_bytes(affine=MICRO, xyzt_units=3), ["counts in micrometres"]),
    "metres": (field_bytes(affine=np.diag((1e-3, 1e-3, 1e-3, 1)) @ FIELD.affine, xyzt_units=1), ["counts in metres"]),
    "no unit": (field_bytes(xyzt_units=0), []),
    "qform alone": (field_bytes(sform_code=0, **AWAY), []),
    "both forms": (field_bytes(**AWAY), ["sform and qform place a corner"]),
    "slope NaN": (field_bytes(scl_slope=np.nan, scl_inter=np.nan), []),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", AS_SIMPLEITK)
def test_nifti_header_as_simpleitk_reads_it(tmp_path, name, packed):
    content, expect = AS_SIMPLEITK[name]
    path = tmp_path / ("field.nii.gz" if packed else "field.nii")
    path.write_bytes(gzip.compress(content, 1) if packed else content)
    part = read(path, expect)
    points = part.frame.voxel_to_world(np.random.default_rng(0).uniform(-1, 8, (80, 3)))
    assert 0.3 < part.covers(points).mean() < 1
    np.testing.assert_allclose(part.apply(points), sitk_points(in_sitk(path), points), rtol=1e-5, atol=2e-4)


INTS = np.round(VECTORS * 500).astype(np.int16)
AS_NIBABEL = {  # what ITK does not read, reads a third of, or takes otherwise, which is said
    "NIfTI-2": (field_bytes(kind=nib.Nifti2Image), []),
    "scaled": (field_bytes(scl_slope=2.5, scl_inter=-1), ["ITK, ANTs and Slicer scale a third"]),
    "scaled integers": (field_bytes(INTS, scl_slope=0.002, scl_inter=0.25), ["scale a third"]),
    "no form": (field_bytes(sform_code=0), ["ITK, ANTs and Slicer guess otherwise"]),
    "sform code 2 beside a qform": (field_bytes(**AWAY | {"sform_code": 2}), ["ITK, ANTs and Slicer use the qform"]),
    "slope 0": (field_bytes(scl_slope=0, scl_inter=3), ["ITK, ANTs and Slicer add 3"]),
}


@pytest.mark.parametrize("name", AS_NIBABEL)
def test_the_standard_as_nibabel_reads_it(tmp_path, name):
    content, expect = AS_NIBABEL[name]
    (tmp_path / "field.nii").write_bytes(content)
    part, theirs = read(tmp_path / "field.nii", expect), nib.load(tmp_path / "field.nii")
    np.testing.assert_allclose(ras_to_lps(part.displacement), theirs.get_fdata()[:, :, :, 0], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(part.frame.affine, theirs.affine, atol=1e-5)


def itk_image(vectors=VECTORS):
    image = sitk.GetImageFromArray(vectors.transpose(2, 1, 0, 3), isVector=True)
    image.SetOrigin((5.0, -7.0, 11.0))
    image.SetSpacing((1.0, 2.0, 3.0))
    image.SetDirection((0.0, -1, 0, 0.6, 0, 0.8, -0.8, 0, 0.6))
    return image


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd"])
def test_fields_that_itk_wrote(tmp_path, suffix, kind, packed):
    image = itk_image(VECTORS.astype(kind))
    path = tmp_path / f"field{suffix}"
    sitk.WriteImage(image, str(path), packed)
    part = read(path)
    points = part.frame.voxel_to_world(np.random.default_rng(0).uniform(-1, 8, (80, 3)))
    np.testing.assert_allclose(part.apply(points), sitk_points(in_sitk(path), points), atol=1e-5)
    np.testing.assert_array_equal(ras_to_lps(part.displacement), VECTORS)


def test_nrrd_in_ras_as_simpleitk_reads_it(tmp_path):
    """Its grid is turned to LPS, its vectors are not."""
    head = {"dimension": 4, "sizes": "3 6 7 8", "type": "float", "kinds": "vector domain domain domain"}
    head |= {"space": "right-anterior-superior", "space_directions": "none (1,0,0) (0,2,0) (0,0,3)"}
    data = np.moveaxis(VECTORS, -1, 0).tobytes(order="F")
    (tmp_path / "field.nrrd").write_bytes(nrrd(data=data, **head))
    part = read(tmp_path / "field.nrrd")
    points = part.frame.voxel_to_world(np.random.default_rng(0).uniform(-1, 8, (80, 3)))
    np.testing.assert_allclose(part.apply(points), sitk_points(in_sitk(tmp_path / "field.nrrd"), points), atol=1e-5)


POINTS = (PLACES + VECTORS).astype(np.float32)
NREG = {"intent_name": b"NREG_TRANS"}
SAID = "the coordinates themselves (RAS mm"
OTHER_TOOLS = {  # where the nodes go to, by the tool's own rule: always node + VECTORS in RAS
    "SPM's y_": (field_bytes(POINTS, intent_name=b"Mapping", descrip=b"Deformation field"), []),
    "SPM's y_ without an intent": (field_bytes(POINTS, intent_name=b"Mapping", intent_code=0), []),
    "NiftyReg deformation": (field_bytes(POINTS, intent_p1=0, **NREG), []),
    "NiftyReg displacement": (field_bytes(intent_p1=1, **NREG), []),
    "the standard's displacement": (field_bytes(intent_code=1006), []),
    "points without a name": (field_bytes(POINTS), [SAID]),
    "points without an intent": (field_bytes(POINTS, intent_code=0), [SAID]),
    "points of MRtrix": (field_bytes(POINTS, axes=4, intent_code=0), [SAID]),
}


@pytest.mark.parametrize("name", OTHER_TOOLS)
def test_fields_of_other_tools(tmp_path, name):
    content, expect = OTHER_TOOLS[name]
    (tmp_path / "field.nii").write_bytes(content)
    part = read(tmp_path / "field.nii", expect)
    np.testing.assert_allclose(part.apply(NODES), NODES + VECTORS.reshape(-1, 3), atol=1e-4)


@pytest.mark.parametrize("angles", [(0, 0, 0), (30, 0, 0), (0, 45, 0), (0, 0, 60), (-25, 30, 40)])
@pytest.mark.parametrize("size", [0.8, 1.0, 1.4])
def test_coordinates_of_another_patient_are_known(tmp_path, angles, size):
    """Turned and of another size, as those of a template in a scan, far away from the grid's own world."""
    matrix = size * Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    points = ((PLACES - FIELD.centre) @ matrix.T + (150, -80, 40) + VECTORS).astype(np.float32)
    (tmp_path / "field.nii").write_bytes(field_bytes(points))
    part = read(tmp_path / "field.nii", [SAID])
    np.testing.assert_allclose(part.apply(NODES), points.reshape(-1, 3), atol=1e-3)


def linear(matrix):
    """Vectors (LPS) of an affine about the grid's centre."""
    offset = ras_to_lps(PLACES - FIELD.centre)
    return (offset @ np.asarray(matrix, dtype=float).T - offset).astype(np.float32)


TURN = [[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]
PLAIN_DISPLACEMENTS = {
    "zero": np.zeros_like(VECTORS),
    "constant": np.full_like(VECTORS, 40),
    "quarter turn": linear(TURN),
    "half turn": linear(np.diag((-1, -1, 1))),
    "larger by half": linear(np.eye(3) * 1.5),
    "fallen on the side": linear([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]),
    "half a turn about x": linear(np.diag((1, -1, -1))),
    "half the size": linear(np.eye(3) * 0.5),
    "mirrored": linear(np.diag((-1, 1, 1))),
    "squeezed": linear(np.diag((0.5, 0.5, 1.4))),
}


@pytest.mark.parametrize("name", PLAIN_DISPLACEMENTS)
def test_large_displacements_are_not_taken_for_coordinates(tmp_path, name):
    vectors = PLAIN_DISPLACEMENTS[name]
    (tmp_path / "field.nii").write_bytes(field_bytes(vectors))
    np.testing.assert_allclose(read(tmp_path / "field.nii").displacement, ras_to_lps(vectors))


def test_refuses_another_suffix(tmp_path):
    with pytest.raises(ValueError, match=r"must end with .nii"):
        save_field(np.zeros((4, 4, 4, 3)), np.eye(4), tmp_path / "a.h5")
    assert list(tmp_path.iterdir()) == []


LPS_POINTS = ras_to_lps(POINTS)
BAD = {  # name -> file, content, message
    "intent 0": ("a.nii", field_bytes(intent_code=0), "does not say what its numbers are"),
    "LPS points": ("a.nii", field_bytes(LPS_POINTS), "look like coordinates in LPS mm"),
    "control points": ("a.nii", field_bytes(intent_p1=5, **NREG), "of a velocity of NiftyReg.*reg_transform"),
    "velocity": ("a.nii", field_bytes(intent_p1=3, **NREG), "velocity field of NiftyReg"),
    "older NiftyReg": ("a.nii", field_bytes(intent_name=b"NREG_CPP_FILE"), "older version or unknown kind of NiftyReg"),
    "DARTEL": ("a.nii", field_bytes(descrip=b"Flow Field"), "a velocity .* of SPM's DARTEL"),
    "FNIRT": ("a.nii", field_bytes(axes=4, intent_code=2006), "FSL's FNIRT.*both images.*avsm convert"),
    "its coefficients": ("a.nii", field_bytes(axes=4, intent_code=2007), "FSL's FNIRT.*both images.*avsm convert"),
    "others": ("a.nii", field_bytes(axes=4, intent_code=2009), "coefficients of FSL.*fnirtfileutils"),
    "infinite scale": ("a.nii", field_bytes(scl_slope=np.inf), "scale in its header is infinite"),
    "NaN": ("a.nii", field_bytes(VECTORS * np.nan), "1008 of 1008 numbers of the field are NaN, infinite or beyond"),
    "no vectors": ("a.nii", nifti(), r"is an image: its shape is \(6, 7, 8\)"),
    "time": ("a.nii", nifti(np.zeros((3, 3, 3, 2, 3), np.float32)), r"1, 3\): its shape is \(3, 3, 3, 2, 3\)"),
    "cut off": ("a.nii", field_bytes()[:-100], "as a displacement field .truncated"),
    "huge": ("a.nii", field_bytes(dim=[5, 30000, 30000, 3000, 1, 3]), "displacement field|GB of voxels"),
    "negative sizes": ("a.nii", field_bytes(dim=[5, -6, 7, 8, 1, 3]), "are not those of an image"),
    "shear": ("a.nii", field_bytes(srow_x=[1, 0.3]), "right angle"),
    "spacing 0": ("a.nii", field_bytes(sform_code=0, qform_code=1, pixdim=[1, 0, 1, 1]), "positive numbers of mm"),
    "complex": ("a.nii", field_bytes(VECTORS.astype(np.complex64)), "complex"),
    "junk": ("a.nii.gz", b"nonsense" * 40, "displacement field"),
    "image": ("a.mha", metaimage(), "is an image: values of a voxel: 1, need 3; give a transform"),
    "NRRD image": ("a.nrrd", nrrd(), "is an image: values of a voxel: 1, need 3; give a transform"),
    "colour image": ("a.mha", metaimage(np.zeros((6, 7, 8, 3), np.uint8), ElementNumberOfChannels=3, NDims=3,
                                        ElementType="MET_UCHAR", DimSize="6 7 8"), "is a colour image"),
    "two components": ("a.mha", metaimage(np.zeros((6, 7, 8, 2), np.int16), ElementNumberOfChannels=2, NDims=3,
                                          DimSize="6 7 8"), "is no displacement field: values of a voxel: 2"),
    "cut off MetaImage": ("a.mha", metaimage(ElementNumberOfChannels=3), "displacement field .truncated"),
    "packed, size unsaid": ("a.mha", metaimage(VECTORS[..., 0], zlib.compress(VECTORS.tobytes()), CompressedData="True",
        ElementNumberOfChannels=3, ElementType="MET_FLOAT"), "do not unpack"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_files_that_are_no_fields_are_refused(tmp_path, name, capfd):
    file, content, message = BAD[name]
    (tmp_path / file).write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with one_line(message, tmp_path / file):
            read_field(tmp_path / file)
    assert capfd.readouterr() == ("", "")


def test_doubled_distances_can_be_written_as_intent_1006(tmp_path):
    """Displacements that double every distance look like coordinates; the mend in the message works."""
    vectors = linear(np.eye(3) * 2)
    (tmp_path / "a.nii").write_bytes(field_bytes(vectors))
    with pytest.raises(InputError, match="if they are displacements, write them in RAS mm with intent 1006"):
        read_field(tmp_path / "a.nii")
    (tmp_path / "a.nii").write_bytes(field_bytes(ras_to_lps(vectors), intent_code=1006))
    np.testing.assert_allclose(read(tmp_path / "a.nii").displacement, ras_to_lps(vectors))
