"""One reader: what it gives for sound files of every format, and the one line it gives for others."""

import errno
import gzip
import logging
import os
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

import scripts
from image_files import SHAPE, dicom, metaimage, mgh, nifti, nrrd, series, voxels
from refusals import one_line
from scripts.errors import InputError
from scripts.formats.images import files_of, read_image, read_label, read_mask
from scripts.spatial.frame import Frame
from world_cases import FRAMES, from_sitk, to_sitk

NOISE = voxels(np.float32)
SUFFIXES = [".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd"]


def put(path, data):
    path.write_bytes(data)
    return path


def save(path, array, frame):
    """Write with nibabel or SimpleITK, never with this project."""
    if ".nii" in path.name:
        nib.save(nib.Nifti1Image(array, frame.affine, dtype=array.dtype), path)
    else:
        sitk.WriteImage(to_sitk(array, frame), str(path), ".n" in path.name)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", list(FRAMES))
def test_every_format_gives_the_same_volume_in_the_same_place(tmp_path, name, suffix):
    frame = FRAMES[name][1]
    array = voxels(np.int16, frame.shape)
    image = read_image(save(tmp_path / f"image{suffix}", array, frame))
    np.testing.assert_array_equal(image.array, array)
    assert image.frame.same_as(frame) and image.path == tmp_path / f"image{suffix}" and image.notes == ()
    assert image.array.dtype == np.int16 and image.array.flags.c_contiguous and image.array.flags.writeable


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_types_are_kept(tmp_path, dtype, suffix):
    dtype = np.dtype(dtype)
    array = voxels(dtype)
    if dtype.kind in "iu":  # both ends, which no other type holds
        array[0, 0, :2] = np.iinfo(dtype).min, np.iinfo(dtype).max
    image = read_image(save(tmp_path / f"image{suffix}", array, FRAMES["identity"][0]))
    assert image.array.dtype == dtype
    np.testing.assert_array_equal(image.array, array)


SFORM = np.array([[1.0, 0, 0, 9], [0, 2, 0, 8], [0, 0, 3, 7], [0, 0, 0, 1]])
TURN = np.array([[0.8, -1.2, 0, 5], [0.6, 1.6, 0, 6], [0, 0, -3, 7], [0, 0, 0, 1]])  # about z, third axis flipped
TURN_QFORM = {
    "pixdim": [-1, 1, 2, 3], "quatern_d": np.sin(np.arccos(0.8) / 2), "qoffset_x": 5, "qoffset_y": 6, "qoffset_z": 7,
}  # fmt: skip
UNSET = np.array([[-1.0, 0, 0, 2.5], [0, 2, 0, -6], [0, 0, 3, -10.5], [0, 0, 0, 1]])
ONLY_S = {"sform_code": 1, "qform_code": 0}
ONLY_Q = {"sform_code": 0, "qform_code": 1}
BOTH = {"sform_code": 1, "qform_code": 1}
# name, fields of the header, affine, words of its only note
NIFTI_PLACES = [
    ("sform", ONLY_S, SFORM, None),
    ("sform of any code", {"sform_code": 4, "qform_code": 0}, SFORM, None),
    ("qform", {**TURN_QFORM, **ONLY_Q}, TURN, None),
    ("qform, qfac 0 means 1", {**TURN_QFORM, **ONLY_Q, "pixdim": [0]}, TURN @ np.diag((1, 1, -1, 1)), None),
    ("both agree", BOTH, SFORM, None),
    ("both almost agree", {**BOTH, "qoffset_x": 9.015}, SFORM, None),
    ("both, a shift", {**BOTH, "qoffset_x": 9.5}, SFORM, "sform and qform place a corner 0.5 mm apart; the sform is"),
    ("both, a turn", {**TURN_QFORM, **BOTH}, SFORM, "mm apart"),
    ("qform not a number", {**BOTH, "quatern_b": np.nan}, SFORM, "the qform is broken"),
    ("qform no rotation", {**BOTH, "quatern_b": 2.0}, SFORM, "the qform is broken"),
    ("sform, pixdim 0", {**ONLY_S, "pixdim": [1, 0, 2, 3]}, SFORM, "pixdim says voxels of 0 x 2 x 3 mm, the sform 1 x"),
    ("neither", {"sform_code": 0, "qform_code": 0}, UNSET, "neither sform nor qform is set"),
    ("micrometres", {**ONLY_S, "xyzt_units": 3 + 8}, np.diag((1e-3, 1e-3, 1e-3, 1)) @ SFORM, "counts in micrometres"),
    ("metres", {**ONLY_Q, "xyzt_units": 1}, np.diag((1e3, 1e3, 1e3, 1)) @ SFORM, "counts in metres"),
]


@pytest.mark.parametrize(("fields", "affine", "words"), [c[1:] for c in NIFTI_PLACES], ids=[c[0] for c in NIFTI_PLACES])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_nifti_place(tmp_path, kind, fields, affine, words):
    image = read_image(put(tmp_path / "image.nii", nifti(affine=SFORM, kind=kind, **fields)))
    np.testing.assert_allclose(image.frame.affine, affine, atol=1e-5 * np.abs(affine).max())
    assert len(image.notes) == (words is not None)
    assert words is None or words in image.notes[0]


@pytest.mark.parametrize("qform", [0, 1, 2, 4])
@pytest.mark.parametrize("sform", [0, 1, 2, 4])
def test_a_note_says_where_itk_places_a_nifti_elsewhere(tmp_path, sform, qform):
    """And only there; nibabel's place is ours."""
    fields = {**TURN_QFORM, "sform_code": sform, "qform_code": qform, "pixdim": [1, 1, 2, 3]}
    path = put(tmp_path / "image.nii", nifti(affine=SFORM, **fields))
    image = read_image(path)
    np.testing.assert_allclose(image.frame.affine, nib.load(path).affine, atol=1e-6)
    elsewhere = not image.frame.same_as(Frame.from_itk(sitk.ReadImage(str(path))))
    assert elsewhere == any("ITK, ANTs and Slicer" in note for note in image.notes)
    assert elsewhere == ((sform, qform) == (0, 0) or (sform > 1 and qform > 0))


@pytest.mark.parametrize(("slope", "inter"), [(0, 7), (0, 0), (1, 7), (2, 0), (np.nan, 7), (np.nan, np.nan)])
def test_a_note_says_where_itk_scales_otherwise(tmp_path, slope, inter):
    path = put(tmp_path / "image.nii", nifti(scl_slope=slope, scl_inter=inter))
    image = read_image(path)
    np.testing.assert_array_equal(image.array, np.asarray(nib.load(path).dataobj))
    otherwise = not np.array_equal(image.array, from_sitk(sitk.ReadImage(str(path))))
    assert otherwise == any("ITK, ANTs and Slicer add 7" in note for note in image.notes)


def test_packing_is_seen_not_believed(tmp_path):
    for name, data, note in (
        ("packed.nii", gzip.compress(nifti()), "is compressed, which its name does not say"),
        ("plain.nii.gz", nifti(), "is not compressed, which its name does not say"),
        ("two.nii.gz", gzip.compress(nifti()[:400]) + gzip.compress(nifti()[400:]), None),
        ("stored.nii.gz", gzip.compress(nifti(), 0), None),
        ("zeros.nii.gz", gzip.compress(nifti()) + bytes(100), None),  # of a tape
    ):
        image = read_image(put(tmp_path / name, data))
        np.testing.assert_array_equal(image.array, voxels())
        assert [note in said for said in image.notes] == ([] if note is None else [True])


@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4", "u2"])
@pytest.mark.parametrize("suffix", [".mgz", ".mgh"])
def test_freesurfers_images(tmp_path, suffix, dtype):
    frame = FRAMES["oblique"][0]
    nib.save(nib.MGHImage(voxels(dtype, frame.shape), frame.affine), tmp_path / f"image{suffix}")
    image = read_image(tmp_path / f"image{suffix}")
    np.testing.assert_array_equal(image.array, voxels(dtype, frame.shape))
    np.testing.assert_allclose(image.frame.affine, nib.load(image.path).affine, atol=1e-5)
    assert image.array.dtype == dtype and image.notes == ()


READER = """
import re, sys
sys.path.insert(0, sys.argv[1])
from scripts.errors import InputError
from scripts.formats.images import read_image
found = []
for path in sys.argv[2:]:
    try:
        found.append(read_image(path).array.shape[0])
    except InputError as error:
        found.append("hold more than its header" in str(error))
print(*found, int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the memory taken")
def test_a_small_file_costs_what_its_header_tells_of(tmp_path):
    """Half a gigabyte of zeros behind ten voxels cubed is not unpacked into memory."""
    small = voxels(shape=(10, 10, 10))
    files = []
    for name, head in (
        ("a.nii.gz", nifti(small)),
        ("a.mgz", mgh(small)),
        ("a.mha", small.tobytes(order="F")),
        ("a.nrrd", small.tobytes(order="F")),
    ):
        pack = zlib.compressobj(1, zlib.DEFLATED, 31 if name != "a.mha" else 15)
        data = pack.compress(head) + b"".join(pack.compress(bytes(1 << 24)) for _ in range(32)) + pack.flush()
        if name == "a.mha":
            data = metaimage(small, data, **ZIPPED)
        if name == "a.nrrd":
            data = nrrd(small, data, encoding="gzip")
        files.append(str(put(tmp_path / name, data)))
        assert len(data) < 6e6
    words = [sys.executable, "-c", READER, str(Path(scripts.__file__).parents[1]), *files]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100, check=True)
    *found, megabytes = done.stdout.split()
    assert found == ["10", "10", "True", "10"]  # MetaImage's reader takes no such file
    assert int(megabytes) < 300
    assert any("bytes more than the header tells of" in note for note in read_image(files[0]).notes)


def test_what_no_memory_holds_is_refused_at_once(tmp_path):
    header = nifti(dim=[3, 12000, 12000, 12000])[:352]
    path = tmp_path / "sparse.nii"
    put(path, header)
    with path.open("r+b") as stream:
        try:
            stream.truncate(2 * 12000**3 + 352)
        except OSError:
            pytest.skip("the file system holds no sparse file of so many bytes")
    for file in (path, put(tmp_path / "packed.nii.gz", gzip.compress(header + bytes(1000)))):
        with pytest.raises(InputError, match=r"tells of 3219 GB of voxels, too many for the .* GB of memory here"):
            read_image(file)


def patterned(tmp_path, header, names, listed=""):
    """A header whose voxels lie in files of one slice each."""
    put(tmp_path / header[0], header[1] + listed.encode())
    for number, name in enumerate(names):
        put(tmp_path / name, voxels()[:, :, number].tobytes(order="F"))
    return [tmp_path / name for name in (header[0], *names)]


SLICES = [f"s{number:02d}.raw" for number in range(SHAPE[2])]
SPREAD = {
    "MetaImage, beside": (("a.mhd", metaimage(data=b"", ElementDataFile="a.raw")), ["a.raw"], ""),
    "NRRD, beside": (("a.nhdr", nrrd(data=b"", data_file="a.raw")), ["a.raw"], ""),
    "MetaImage, list": (("a.mhd", metaimage(data=b"", ElementDataFile="LIST")), SLICES, "\n".join(SLICES)),
    "NRRD, list": (("a.nhdr", nrrd(data=b"", data_file="LIST")[:-1]), SLICES, "\n".join(SLICES) + "\n"),
    "MetaImage, pattern": (("a.mhd", metaimage(data=b"", ElementDataFile="s%02d.raw 0 7 1")), SLICES, ""),
    "NRRD, pattern": (("a.nhdr", nrrd(data=b"", data_file="s%02d.raw 0 7 1 2")), SLICES, ""),
}


@pytest.mark.parametrize("name", SPREAD)
def test_every_file_of_an_image_is_known(tmp_path, name):
    header, names, listed = SPREAD[name]
    files = patterned(tmp_path, header, names, listed)
    if len(names) == 1:
        put(tmp_path / names[0], voxels().tobytes(order="F"))
    assert files_of(files[0]) == sorted(files)
    np.testing.assert_array_equal(read_image(files[0]).array, from_sitk(sitk.ReadImage(str(files[0]))))
    np.testing.assert_array_equal(read_image(files[0]).array, voxels())
    files[-1].unlink()
    with pytest.raises(InputError, match="does not exist; put it there or mend the header"):
        read_image(files[0])
    assert files_of(files[0]) == [files[0]]


def test_files_of_other_images(tmp_path):
    folder = series(tmp_path / "series")
    (folder / ".hidden").touch()
    (folder / "deeper").mkdir()
    assert files_of(folder) == [folder / f"s{number:03d}.dcm" for number in range(8)]
    for name, data in (("a.nii.gz", b""), ("a.mha", metaimage()), ("a.nrrd", nrrd()), ("b.nrrd", b"none")):
        assert files_of(put(tmp_path / name, data)) == [tmp_path / name]
    assert files_of(tmp_path / "absent.mhd") == [tmp_path / "absent.mhd"]
    assert files_of(put(tmp_path / "a.mhd", metaimage(ElementDataFile="%99999999d 1 9 1"))) == [tmp_path / "a.mhd"]


# type on disk, slope, intercept, type in memory
SCALED = [
    ("u1", 0.5, -3, np.float32),
    ("i2", 2, 1024, np.float32),
    ("u2", 0.001, 0, np.float32),
    ("i4", 1e-3, 5, np.float64),
    ("f4", 3, 1, np.float32),
    ("i2", 1, 0, np.int16),
    ("i2", 0, 7, np.int16),  # NIfTI: a slope of 0 means no scaling
    ("i2", np.nan, np.nan, np.int16),
]


@pytest.mark.parametrize(("stored", "slope", "inter", "dtype"), SCALED)
@pytest.mark.parametrize("order", ["<", ">"])
def test_nifti_scaling_and_byte_order(tmp_path, order, stored, slope, inter, dtype):
    array = voxels(stored)
    header = nib.Nifti1Header(endianness=order)
    header.set_data_dtype(stored)
    data = nib.Nifti1Image(array, SFORM, header).to_bytes()
    start = {"<": "<f4", ">": ">f4"}[order]
    data = data[:112] + np.array([slope, inter], start).tobytes() + data[120:]
    image = read_image(put(tmp_path / "image.nii", data))
    assert image.array.dtype == dtype and image.array.dtype.isnative
    scaled = array if dtype == np.int16 else array * np.float64(np.float32(slope)) + inter
    np.testing.assert_allclose(image.array, scaled, rtol=2e-7 if dtype == np.float32 else 1e-12)
    np.testing.assert_allclose(image.array, np.asarray(nib.load(image.path).dataobj), rtol=2e-7)


SIGNS = [("right-anterior-superior", (1, 1, 1)), ("LAS", (-1, 1, 1)), ("left-posterior-superior", (-1, -1, 1))]


@pytest.mark.parametrize(("space", "sign"), SIGNS)
def test_nrrd_spaces(tmp_path, space, sign):
    image = read_image(put(tmp_path / "image.nrrd", nrrd(space=space)))
    np.testing.assert_allclose(
        image.frame.affine, np.diag((*sign, 1.0)) @ [[1, 0, 0, 4], [0, 2, 0, 5], [0, 0, 3, 6], [0, 0, 0, 1]]
    )
    assert image.notes == ()


NOTES = [
    ("place.mgh", mgh(goodRASFlag=0), "its place in the world is not set"),
    ("spacing.mha", metaimage(ElementSpacing=None), "no ElementSpacing: voxels are taken for 1 mm"),
    ("matrix.mha", metaimage(TransformMatrix=None), "no TransformMatrix"),
    ("units.mha", metaimage(DistanceUnits="um"), "DistanceUnits um are read as mm"),
    ("slope.mha", metaimage(ElementToIntensityFunctionSlope=2), "is not applied"),
    ("longer.mha", metaimage() + bytes(10), "longer.mha holds 10 bytes more than the header tells of"),
    ("spacings.nrrd", nrrd(space_directions=None, space=None, space_origin=None, spacings="1 2 3"),
        "no space directions"),
    ("nothing.nrrd", nrrd(space_directions=None, space=None, space_origin=None), "voxels for 1 mm"),
    ("space.nrrd", nrrd(space="scanner-xyz"), "space 'scanner-xyz' is read as left-posterior-superior"),
    ("units.nrrd", nrrd(space_units='"mm" "mm" "um"'), 'space units "mm" "mm" "um" are read as mm'),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data", "words"), NOTES, ids=[case[0] for case in NOTES])
def test_notes(tmp_path, name, data, words):
    image = read_image(put(tmp_path / name, data))
    np.testing.assert_array_equal(image.array, voxels())
    assert len(image.notes) == 1 and words in image.notes[0]


def packed(make, pack, spoil=lambda data: data, **fields):
    """A file whose voxels are packed, then spoiled."""
    data = spoil(pack(voxels(shape=(20, 20, 20)).tobytes(order="F")))
    return make(voxels(shape=(20, 20, 20)), data, **fields)


def holed(data):
    return data[:-60] + bytes(20) + data[-40:]


ZIPPED = {"CompressedData": "True", "CompressedDataSize": None}
RGB = np.zeros(SHAPE, nib.nifti1.data_type_codes.dtype[128])
TWO = voxels(shape=(*SHAPE, 2))
# name, bytes, words of the message
BAD = [
    ("text.nii", b"not an image", "no header of a single NIfTI file"),
    ("text.mha", b"not an image", "no MetaImage header"),
    ("text.nrrd", b"not an image", "no NRRD header"),
    ("picture.png", b"\x89PNG\r\n\x1a\n" + bytes(500), "unknown kind '.png'"),
    ("slice.dcm", dicom(voxels(shape=(6, 7))), "one DICOM file; give the folder"),
    ("no.dcm", b"DICM", "a DICOM file, but damaged or without an image"),
    ("cut.nii.gz", gzip.compress(nifti())[:-4], "gzip data truncated or damaged"),
    ("tail.nii.gz", gzip.compress(nifti())[:-8] + bytes(8), "gzip data truncated or damaged"),
    ("cut.nii", nifti()[:-1], "truncated: its header tells of 672 bytes of voxels, the data hold 671"),
    ("pair.nii", nifti(magic=b"ni1"), "no header of a single NIfTI file"),
    ("plane.nii", nifti(voxels(shape=(6, 7))), "not 3-D, its shape is (6, 7)"),
    ("four.nii", nifti(TWO), "not 3-D, its shape is (6, 7, 8, 2)"),
    ("flat.nii", nifti(voxels(shape=(6, 1, 8))), "empty or flat, its shape is (6, 1, 8)"),
    ("negative.nii", nifti(dim=[3, -6, 7, 8]), "dim = [3, -6, 7, 8"),
    ("huge.nii", nifti(dim=[3, 30000, 30000, 30000]), "header tells of 54000000000000 bytes"),
    ("rgb.nii", nifti(RGB), "RGB voxels, 3 values in each"),
    ("complex.nii", nifti(NOISE.astype(np.complex64)), "complex values (complex64)"),
    ("type.nii", nifti(datatype=77), "unknown data type code 77"),
    ("nan.nii", nifti(np.where(NOISE > 90, np.nan, NOISE)), "voxels are NaN or Inf"),
    ("inter.nii", nifti(scl_slope=2, scl_inter=np.inf), "the scale in its header is infinite; write it anew"),
    ("header.mgh", b"\0\0\0\2" + mgh()[4:], "it has no MGH header"),
    ("short.mgh", mgh()[:-100], "truncated: its header tells of 672 bytes of voxels, the data hold"),
    ("cut.mgz", gzip.compress(mgh())[:-5], "gzip data truncated or damaged"),
    ("constant.nii", nifti(np.full(SHAPE, 3, np.int16)), "constant image, every voxel is 3"),
    ("zero.nii", nifti(**ONLY_Q, pixdim=[1, 1, 0, 3]), "pixdim [1.0, 0.0, 3.0] must be positive numbers of mm"),
    ("quaternion.nii", nifti(**ONLY_Q, quatern_b=2), "cannot be read"),
    ("quaternan.nii", nifti(**ONLY_Q, quatern_b=np.nan), "a number of the qform is not finite"),
    ("qfac.nii", nifti(**ONLY_Q, pixdim=[0.5]), "qfac"),
    ("sform.nii", nifti(**ONLY_S, srow_x=[np.nan]), "must be finite"),
    ("singular.nii", nifti(**ONLY_S, srow_x=[1, 2], srow_y=[1, 2]), "singular"),
    ("shear.nii", nifti(**ONLY_S, srow_x=[1, 0.02]), "off a right angle or unit length by 0.009999,"),
    ("short.mha", metaimage(data=b"1234"), "truncated: its header tells of 672 bytes of voxels, the data hold 4"),
    ("huge.mha", metaimage(DimSize="60000 60000 60000"), "header tells of 432000000000000 bytes"),
    ("absent.mhd", metaimage(ElementDataFile="absent.raw"), "absent.raw does not exist; put it there"),
    ("cut.mha", packed(metaimage, zlib.compress, lambda d: d[:-3], **ZIPPED), "gzip data truncated or damaged"),
    ("holed.mha", packed(metaimage, zlib.compress, holed, **ZIPPED), "gzip data truncated or damaged"),
    ("stored.mha", packed(metaimage, lambda d: zlib.compress(d, 0), holed, **ZIPPED), "gzip data truncated or damaged"),
    ("fewer.mha", packed(metaimage, lambda d: zlib.compress(d[:-9]), **ZIPPED), "truncated: its header tells of 16000"),
    ("plane.mha", metaimage(NDims=2, DimSize="42 8", ElementSpacing="1 2", Offset="0 0", TransformMatrix="1 0 0 1"),
        "not 3-D, its shape is (42, 8)"),
    ("rgb.mha", metaimage(data=bytes(2016), ElementNumberOfChannels=3), "RGB or vector voxels, 3 values in each"),
    ("type.mha", metaimage(ElementType="MET_FOO"), "Unknown PixelType: unknown"),
    ("axes.mha", metaimage(NDims="x"), "NDims = x in its header is no number of axes"),
    ("word.mha", metaimage(ElementSpacing="1 mm 3"), "ElementSpacing = 1 mm 3 in its header must be 3 finite numbers"),
    ("singular.mha", metaimage(TransformMatrix="1 0 0 1 0 0 0 0 1"), "singular"),
    ("shear.mha", metaimage(TransformMatrix="1 0.01 0 0 1 0 0 0 1"), "off a right angle or unit length by 0.01,"),
    ("absent.nhdr", nrrd(data_file="absent.raw"), "absent.raw does not exist; put it there"),
    ("cut.nrrd", packed(nrrd, gzip.compress, lambda d: d[:-3], encoding="gzip"), "gzip data truncated or damaged"),
    ("rgb.nrrd", nrrd(dimension=4, sizes="3 2 7 8", space_directions="none (1,0,0) (0,2,0) (0,0,3)",
        kinds="vector domain domain domain"), "RGB or vector voxels, 3 values"),
    ("complex.nrrd", nrrd(dimension=4, sizes="2 3 7 8", space_directions="none (1,0,0) (0,2,0) (0,0,3)",
        kinds="complex domain domain domain"), "complex values"),
    ("size.nrrd", nrrd(sizes="0 7 8"), "axis 0 size is zero"),
    ("zero.nrrd", nrrd(space_directions="(1,0,0) (0,0,0) (0,0,3)"), "the spacing [1.0, 0.0, 3.0] must be positive"),
    ("vector.nrrd", nrrd(space_directions="(nan,0,0) (0,2,0) (0,0,3)"),
        "space directions (nan,0,0) (0,2,0) (0,0,3) in its header"),
    ("origin.nrrd", nrrd(space_origin="(inf,0,0)"), "space origin (inf,0,0) in its header must be finite"),
    ("encoding.nrrd", nrrd(encoding="quiet"), "cannot be read as an image"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data", "words"), BAD, ids=[case[0] for case in BAD])
def test_bad_file_is_named_in_one_line(tmp_path, capfd, name, data, words):
    path = put(tmp_path / name, data)
    with one_line(words, f"{path}: ", without=("ITK", "0x")):
        read_image(path)
    assert capfd.readouterr() == ("", "")


def test_a_file_without_permission(tmp_path, monkeypatch):
    path = put(tmp_path / "image.nii", nifti())

    def refuse(self, mode):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr("pathlib.Path.open", refuse)  # a mode of 0 would not stop the tests of root
    with pytest.raises(InputError, match=r"cannot be read as an image \(Permission denied\)"):
        read_image(path)


def label_file(tmp_path, array, affine=SFORM, name="label.nii"):
    return put(tmp_path / name, nifti(array, affine))


def shifted(mm):
    return SFORM + mm * np.outer(np.eye(4)[1], np.eye(4)[3])


def wider(mm):
    """An affine whose last corner lies ``mm`` off, though no entry differs by as much."""
    return SFORM + mm / (SHAPE[2] - 1) * np.diag((0, 0, 1, 0))


# values, type in memory; the last are constant
WHOLE = [(voxels(np.uint8), "u1"), (voxels(np.int64), "i8"), (voxels(np.float32), "i4"),
         (np.where(NOISE > 50, 2.0**40, 3), "i8"), (np.zeros(SHAPE, np.uint8), "u1")]  # fmt: skip


@pytest.mark.parametrize(("stored", "dtype"), WHOLE)
def test_labels_are_whole_numbers(tmp_path, stored, dtype):
    label = read_label(label_file(tmp_path, stored))
    np.testing.assert_array_equal(label.array, stored)
    assert label.array.dtype == dtype


# values of labels as something has written them, type on disk, slope
ROUNDED = {
    "slope of nibabel": (np.arange(6), "i2", 5 / 32767),  # 1 is read as 0.999969
    "slope of bytes": (np.arange(6), "u1", 5 / 255),
    "many labels": (np.arange(0, 2036, 5), "i2", 2035 / 32767),
    "one rounding, single": (np.nextafter(np.arange(1, 6, dtype=np.float32), 0), "f4", 1),
    "single in double": (np.nextafter(np.arange(1, 6, dtype=np.float32), 9).astype(np.float64), "f8", 1),
    "a third three times": (np.arange(6) * np.float32(0.1) * 10, "f4", 1),
    "large, single": (np.nextafter(np.array([1000, 35000], dtype=np.float32), 0), "f4", 1),
}


@pytest.mark.parametrize("name", ROUNDED)
def test_labels_that_rounding_left_are_whole(tmp_path, name):
    values, stored, slope = ROUNDED[name]
    array = np.resize(values, SHAPE)
    kept = np.rint(array / slope) if slope != 1 else array
    label = read_label(put(tmp_path / "label.nii", nifti(kept.astype(stored), SFORM, scl_slope=slope, scl_inter=0)))
    np.testing.assert_array_equal(label.array, np.rint(array))
    assert label.array.dtype == np.int32
    read = np.asarray(nib.load(label.path).dataobj)
    assert slope == 1 or (read != np.rint(read)).any()  # as nibabel reads it, too


@pytest.mark.parametrize(
    ("stored", "slope", "value"),
    [("u1", 0.5, 1), ("u1", 0.9, 1), ("u1", 0.01, 50), ("f4", 1, 0.999), ("f8", 1, 1000000.02), ("f4", 1, 3.00001)],
)
def test_fractions_are_no_labels(tmp_path, stored, slope, value):
    array = np.where(NOISE > 50, value, 0).astype(stored)
    path = put(tmp_path / "label.nii", nifti(array, SFORM, scl_slope=slope, scl_inter=0))
    for read, words in ((read_label, "is not an integer (1 such values)"), (read_mask, "is no mask: 1 of its values")):
        with one_line(words, path):
            read(path)


def test_an_image_given_as_a_mask_is_called_one(tmp_path):
    image = read_image(put(tmp_path / "image.nii", nifti(affine=SFORM)))
    noise = np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32)
    with pytest.raises(InputError, match=r"is no mask: \d+ of its values are not integers.*as of an image"):
        read_mask(put(tmp_path / "m.nii", nifti(noise)))
    with pytest.raises(InputError, match=r"label value .* \(\d+ such values, as of an image\)"):
        read_label(put(tmp_path / "m.nii", nifti(noise)))
    mask = read_mask(put(tmp_path / "m.nii", nifti(np.rint(1000 * noise).astype(np.int16))))
    assert len(mask.notes) == 1 and "different values, as an image" in mask.notes[0]
    mask = read_mask(label_file(tmp_path, voxels(np.int16) - 50), image)
    assert mask.notes == () and mask.array.dtype == bool and mask.frame.same_as(image.frame)
    np.testing.assert_array_equal(mask.array, voxels() != 50)


# reader, array, affine, words
BAD_LABELS = [
    (read_label, np.where(NOISE > 50, 1.5, 0), SFORM, "label value 1.5 is not an integer (1 such values)"),
    (read_label, np.where(NOISE > 50, 1e30, 0), SFORM, "label value 1e+30 is beyond 64 bits"),
    (read_label, voxels(shape=(6, 7, 9)), SFORM, "label shape (6, 7, 9) differs from (6, 7, 8) of "),
    (read_label, voxels(), shifted(0.03), "label affine differs by up to 0.03 mm"),
    (read_label, voxels(), wider(0.025), "label affine differs by up to 0.025 mm"),
    (read_mask, voxels(), shifted(1), "differs by up to 1 mm"),
    (read_mask, np.zeros(SHAPE, np.uint8), SFORM, "empty mask, every voxel is 0"),
    (read_mask, np.where(NOISE > 50, 0.5, 0), SFORM, "is no mask: 1 of its values are not integers, such as 0.5"),
]


@pytest.mark.parametrize(("reader", "array", "affine", "words"), BAD_LABELS)
def test_bad_label_is_named(tmp_path, reader, array, affine, words):
    image = read_image(put(tmp_path / "image.nii", nifti(affine=SFORM)))
    path = label_file(tmp_path, array, affine)
    with one_line(words, f"{path}: "):
        reader(path, image)


@pytest.mark.parametrize("affine", [shifted(0.0008), wider(0.0008)])
def test_label_almost_on_the_grid(tmp_path, affine):
    image = read_image(put(tmp_path / "image.nii", nifti(affine=SFORM)))
    assert read_label(label_file(tmp_path, voxels(), affine), image).frame.shape == SHAPE


def test_what_another_thread_logs_is_not_lost(tmp_path, capfd):
    screen = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    handler, done = logging.StreamHandler(screen), threading.Event()
    root = logging.getLogger()
    root.addHandler(handler)
    path = put(tmp_path / "image.mha", metaimage())

    def read():
        while not done.is_set():
            read_image(path)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        for number in range(300):
            root.warning("line %d", number)
    finally:
        done.set()
        thread.join()
        root.removeHandler(handler)
    assert capfd.readouterr().err.split("\n")[:-1] == [f"line {number}" for number in range(300)]
