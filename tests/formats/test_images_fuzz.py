"""Whatever its bytes say, an image is read as another library reads it, or refused in one line.

Every input is made from a seed. What is read is held against nibabel (NIfTI, MGH), SimpleITK (all but MGH) and pydicom;
packed voxels that were damaged must not be read as others. Where SimpleITK and nibabel differ, a note must say so.
"""

import gzip
import time
import warnings
import zlib

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.pixels import apply_modality_lut

from image_files import SHAPE, metaimage, nifti, nrrd, series, voxels
from scripts.errors import InputError
from scripts.formats.images import read_image
from scripts.formats.nifti import GRID_TOLERANCE, corner_gap, in_mm
from scripts.spatial.frame import Frame

AFFINE = np.array([[0.9, -0.3, 0, 12], [0.3, 0.9, 0, -7], [0, 0, 2, 5], [0, 0, 0, 1]])
NUMBERS = (0, 1, -1, 2.5, -3, np.nan, np.inf, -np.inf, 1e-30, 1e30, 1e-3, 255, 1e-7)
SIZES = (-2, 0, 1, 2, 3, 6, 7, 8, 30000)
WORDS = ("", "none", "x", "1e400", "0x10", "1,2", "-", "1 2", *map(str, NUMBERS))
INPUTS = pytest.mark.parametrize("inputs", [160, pytest.param(2500, marks=pytest.mark.slow)])  # for each kind of file
LONGEST = 60  # seconds for one input


def damaged(rng, data, header):
    """Bytes of a file after one or two mishaps, mostly in its first ``header`` bytes."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 3)):
        kind = rng.integers(6)
        place = int(rng.integers(min(header, len(data)) if kind < 4 else len(data)))
        if kind in (0, 1, 4):
            data[place] ^= 1 << rng.integers(8)
        elif kind == 2:
            data[place] = rng.integers(256)
        elif kind == 3:
            data[place:place] = rng.bytes(int(rng.integers(1, 9)))
        else:
            del data[place:]
    return bytes(data) or b"\0"


def some(rng, choices, most):
    """A few of a dictionary's entries, each as one of its values."""
    names = rng.choice(list(choices), rng.integers(1, most + 1), replace=False)
    return {name: choices[name][rng.integers(len(choices[name]))] for name in names}


def rows(rng, words, least, most):
    return " ".join(str(words[rng.integers(len(words))]) for _ in range(rng.integers(least, most + 1)))


def read_or_refuse(path, capfd):
    """The image, or None; any exception but a one-line InputError, a noisy screen or a long wait fails the test."""
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            image = read_image(path)
        except InputError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error) and "; " in str(error), str(error)
            image = None
    assert time.perf_counter() - start < LONGEST
    assert capfd.readouterr() == ("", "")
    if image is not None:
        assert np.isfinite(image.frame.affine).all() and (image.frame.spacing > 0).all()
        assert image.array.shape == image.frame.shape and image.array.dtype.kind in "iuf"
        assert image.array.dtype.isnative and np.isfinite(image.array).all()
        assert not any("\n" in note for note in image.notes)
    return image


def same_values(one, other):
    return np.allclose(one, other, rtol=1e-5, atol=1e-9 * np.abs(other).max())


def same_place(frame, affine):
    gap = corner_gap(frame.shape, frame.affine, affine)
    # Not the smallest: one damaged to nothing leaves no room for the axes to be made square.
    return gap <= GRID_TOLERANCE * np.median(frame.spacing) + 1e-6 * np.abs(affine).max()


def by_nibabel(image):
    """Fails unless nibabel reads the same; it may refuse."""
    try:
        truth = nib.load(image.path)
        values = np.asarray(truth.dataobj)
    except Exception:
        return
    assert same_values(image.array, values.reshape(image.array.shape)), image.notes
    affine = in_mm(truth.header, truth.affine)[0] if isinstance(truth, nib.Nifti1Image) else truth.affine
    straightened = any("straight" in note for note in image.notes)
    assert same_place(image.frame, affine) or straightened, (image.frame.affine, affine, image.notes)


def by_simpleitk(image, note_needed=False):
    """Fails unless SimpleITK reads the same; with ``note_needed``, unless it does or a note tells of it."""
    try:
        truth = sitk.ReadImage(str(image.path))
        if truth.GetNumberOfComponentsPerPixel() != 1 or sitk.GetArrayViewFromImage(truth).size != image.array.size:
            return
        if truth.GetDimension() == 4:
            truth = truth[..., 0]
        frame = Frame.from_itk(truth)
    except (RuntimeError, InputError):
        return
    values = sitk.GetArrayFromImage(truth).reshape(image.array.shape[::-1]).transpose(2, 1, 0)
    alike = same_values(image.array, values) and same_place(image.frame, frame.affine)
    assert alike or (note_needed and image.notes), (image.frame.affine, frame.affine, image.notes)


NIFTI_FIELDS = {
    "dim": [[3, 6, 7, 8], [4, 6, 7, 8, 1], [5, 6, 7, 8, 1, 1], [3, 8, 7, 6], [3, 6, 7], [2, 42, 8],
        [3, 6, 7, 9]] + [[3, *(SIZES[(5 * i + 3 * k) % len(SIZES)] for k in range(3))] for i in range(9)],
    "pixdim": [[q, *(abs(NUMBERS[(3 * i + k) % len(NUMBERS)]) for k in range(3))] for i in range(9) for q in (1, -1,
        0)],
    "sform_code": list(range(-1, 6)),
    "qform_code": list(range(-1, 6)),
    "quatern_b": [*NUMBERS, 0.1, 0.5],
    "quatern_c": [*NUMBERS, 0.3],
    "qoffset_x": list(NUMBERS),
    "srow_x": [[1, 0, 0, 4], [0, 0, 1, 4], [1, 0.0005, 0, 4], [0, 1, 0, 0], [-1, 0, 0, 9]],
    "srow_y": [[n] for n in NUMBERS],
    "datatype": [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1280, 1536, 2304, 77],
    "bitpix": [0, 8, 16, 32, -16],
    "scl_slope": list(NUMBERS),
    "scl_inter": list(NUMBERS),
    "vox_offset": [0, 352, 353, 400, 10000, np.nan, -1, 1e30],
    "xyzt_units": [0, 1, 2, 3, 10, 255],
    "magic": [b"n+1", b"ni1", b"n+2", b"xxx"],
    "sizeof_hdr": [348, 540, 0],
    "cal_max": list(NUMBERS),
    "intent_code": [0, 1002, 1007, 2003],
}  # fmt: skip


def a_nifti(rng):
    kind = nib.Nifti2Image if rng.random() < 0.2 else nib.Nifti1Image
    dtype = rng.choice(["i2", "u1", "f4", "i4", "f8"])
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fields = {} if rng.random() < 0.3 else some(rng, NIFTI_FIELDS, 3)
        if kind is nib.Nifti2Image:
            fields.pop("vox_offset", None)  # an integer
        data = nifti(voxels(dtype), AFFINE, kind, **{**_QFORM, **fields})
    if rng.random() < 0.5:
        data = damaged(rng, data, 352)
    packed = rng.random() < 0.4
    return ("packed.nii.gz", gzip.compress(data, 1)) if packed else ("image.nii", data)


# A header whose forms agree.
_TURN = nib.Nifti1Image(np.zeros(SHAPE, np.int16), AFFINE)
_TURN.set_qform(AFFINE, 1)
_QFORM = {
    name: _TURN.header[name].item()
    for name in ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
} | {"pixdim": _TURN.header["pixdim"][:4].tolist(), "qform_code": 1, "sform_code": 1}

META_FIELDS = {
    "NDims": [3, 2, 4, 0, -1, 99, "x"],
    "ElementSpacing": None,
    "Offset": None,
    "TransformMatrix": ["1 0 0 0 1 0 0 0 1", "0 1 0 -1 0 0 0 0 1", "0.8 0.6 0 -0.6 0.8 0 0 0 1", "1 0 0 0 1 0 0 0",
        None],
    "DimSize": None,
    "ElementType": ["MET_SHORT", "MET_USHORT", "MET_CHAR", "MET_LONG_LONG", "MET_FLOAT", "MET_X", "MET_OTHER"],
    "ElementNumberOfChannels": [None, 1, 3, 0, "x"],
    "CompressedData": ["False", "True", "x"],
    "BinaryData": ["True", "False"],
    "BinaryDataByteOrderMSB": ["False", "True"],
    "ElementDataFile": ["LOCAL", "image.raw", "LIST", "%d.raw 1 3 1", ""],
    "HeaderSize": [0, 10, -1, 100000],
    "DistanceUnits": ["mm", "um", "?"],
    "ElementToIntensityFunctionSlope": [1, 2, "x"],
}  # fmt: skip
NRRD_FIELDS = {
    "dimension": [3, 2, 4, 0, 99, "x"],
    "sizes": None,
    "space_directions": ["(1,0,0) (0,2,0) (0,0,3)", "(0,1,0) (2,0,0) (0,0,3)", "none (1,0,0) (0,0,1)", "(1,0) (0,1)",
        None],
    "space_origin": ["(0,0,0)", "(nan,0,0)", "(1,2)", None],
    "space": ["left-posterior-superior", "RAS", "scanner-xyz", "3D-right-handed", "x", None],
    "type": ["short", "ushort", "float", "double", "uint8", "int8", "int64", "block", "x"],
    "encoding": ["raw", "gzip", "ascii", "bzip2", "x"],
    "endian": ["little", "big", None],
    "kinds": [None, "domain domain domain", "vector domain domain", "complex domain domain"],
    "spacings": None,
    "byte_skip": [0, 10, -1],
    "line_skip": [0, 1],
    "data_file": ["image.raw", "LIST", "%d.raw 1 3 1"],
    "space_units": ['"mm" "mm" "mm"', '"um" "mm" "mm"'],
}  # fmt: skip


def with_rows(rng, fields):
    """Odd rows of numbers where a field's values are not listed."""
    made = {"DimSize": SIZES, "sizes": SIZES}
    return {
        name: values or [rows(rng, made.get(name, WORDS), 2, 5), rows(rng, (1, 2, 3, 6, 7), 3, 3)]
        for name, values in fields.items()
    }


def a_text(make, fields, name):
    def one(rng):
        changed = {} if rng.random() < 0.3 else some(rng, with_rows(rng, fields), 2)
        data = make(**changed)
        return name, damaged(rng, data, data.index(voxels().tobytes(order="F")[:20])) if rng.random() < 0.5 else data

    return one


def an_mgh(rng):
    data = damaged(rng, nib.MGHImage(voxels(rng.choice(["i2", "u1", "f4"])), AFFINE).to_bytes(), 90)
    return ("image.mgz", gzip.compress(data, 1)) if rng.random() < 0.5 else ("image.mgh", data)


KINDS = {
    "NIfTI": (a_nifti, [by_nibabel, lambda image: by_simpleitk(image, note_needed=True)]),
    "MetaImage": (a_text(metaimage, META_FIELDS, "image.mha"), [by_simpleitk]),
    "NRRD": (a_text(nrrd, NRRD_FIELDS, "image.nrrd"), [by_simpleitk]),
    "MGH": (an_mgh, [by_nibabel]),
}


@INPUTS
@pytest.mark.parametrize("kind", KINDS)
def test_images(tmp_path, capfd, kind, inputs):
    make, oracles = KINDS[kind]
    (tmp_path / "image.raw").write_bytes(voxels().tobytes(order="F"))
    done = {True: 0, False: 0}
    for seed in range(inputs):
        name, data = make(np.random.default_rng(seed))
        (tmp_path / name).write_bytes(data)
        try:
            image = read_or_refuse(tmp_path / name, capfd)
            done[image is not None] += 1
            for oracle in oracles if image is not None else ():
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    oracle(image)
        except Exception as error:
            error.add_note(f"{kind}, seed {seed}")
            raise
        capfd.readouterr()  # of the other libraries
    assert min(done.values()) > 10  # both ends are reached


@pytest.mark.parametrize("name", ["image.nii.gz", "image.mha", "image.nrrd", "image.mgz"])
def test_damage_of_packed_voxels_is_never_read_as_other_values(tmp_path, capfd, name):
    array, raw = voxels(shape=(20, 21, 22)), voxels(shape=(20, 21, 22)).tobytes(order="F")
    data = {
        "image.nii.gz": lambda: gzip.compress(nifti(array)),
        "image.mgz": lambda: gzip.compress(nib.MGHImage(array, AFFINE).to_bytes()),
        "image.nrrd": lambda: nrrd(array, gzip.compress(raw), encoding="gzip"),
        "image.mha": lambda: metaimage(array, zlib.compress(raw), CompressedData="True"),
    }[name]()
    read = 0
    for seed in range(60):
        rng, spoiled = np.random.default_rng(seed), bytearray(data)
        start = len(data) // 10  # behind every header
        place = int(rng.integers(start, len(data)))
        if seed % 4 == 0:
            del spoiled[place:]
        else:
            spoiled[place] ^= 1 << rng.integers(8)
        (tmp_path / name).write_bytes(spoiled)
        if (image := read_or_refuse(tmp_path / name, capfd)) is not None:
            np.testing.assert_array_equal(image.array, array, err_msg=f"seed {seed}")
            read += 1
    assert read <= 3  # a bit that says nothing, such as of the time in a header of gzip


DICOM_TAGS = {
    (0x28, 0x02): [b"\1\0", b"\3\0", b"\0\0"],
    (0x28, 0x04): [b"MONOCHROME1 ", b"RGB ", b"PALETTE COLOR ", b""],
    (0x28, 0x08): [b"1 ", b"2 ", b"x "],
    (0x28, 0x10): [b"\7\0", b"\6\0", b"\x08\0", b"\0\0", b"\xff\xff"],
    (0x28, 0x11): [b"\6\0", b"\5\0", b"\x0c\0"],
    (0x28, 0x100): [b"\x10\0", b"\x08\0", b"\x20\0", b"\1\0", b"\0\0"],
    (0x28, 0x101): [b"\x10\0", b"\x0c\0", b"\0\0", b"\x20\0"],
    (0x28, 0x102): [b"\x0f\0", b"\x0b\0", b"\7\0"],
    (0x28, 0x103): [b"\0\0", b"\1\0"],
    (0x28, 0x1052): [b"-1024 ", b"0 ", b"nan ", b"1e400 ", b"x ", b"0.5 "],
    (0x28, 0x1053): [b"1 ", b"2 ", b"0.5 ", b"0 ", b"inf ", b"-1"],
    (0x28, 0x30): [b"1\\1 ", b"0\\1 ", b"1 ", b"x\\1 "],
    (0x20, 0x32): [b"1\\2\\3 ", b"1\\2 ", b"nan\\0\\0 "],
    (0x20, 0x37): [b"1\\0\\0\\0\\1\\0 ", b"0\\0\\0\\0\\1\\0 ", b"1\\0\\0\\0\\1 "],
}
VRS = {0x02: "US", 0x04: "CS", 0x08: "IS", 0x10: "US", 0x11: "US", 0x100: "US", 0x101: "US", 0x102: "US", 0x103: "US"}


def by_pydicom(image, files):
    """Fails unless pydicom's values of every slice, in the order of their places, are those of the image."""
    try:
        slices = [pydicom.dcmread(file, force=True) for file in files]
        rows = [np.reshape(np.array(item.ImageOrientationPatient, dtype=float), (2, 3)) for item in slices]
        places = np.array([item.ImagePositionPatient for item in slices], dtype=float)
        spacing = np.array(slices[0].PixelSpacing, dtype=float)[::-1]
        for item in slices:
            item.RescaleSlope, item.RescaleIntercept = item.get("RescaleSlope", 1), item.get("RescaleIntercept", 0)
        values = [apply_modality_lut(item.pixel_array, item) for item in slices]
    except Exception:  # it may refuse
        return
    for k, index in enumerate(np.argsort(places @ np.cross(*rows[0]))):
        assert same_values(image.array[..., k], values[index].T)
        np.testing.assert_allclose(image.frame.voxel_to_world((0, 0, k), "LPS"), places[index], atol=0.05)
    np.testing.assert_allclose(image.frame.spacing[:2], spacing)


@INPUTS
def test_dicom_series(tmp_path, capfd, inputs):
    done = {True: 0, False: 0}
    for seed in range(inputs):
        rng = np.random.default_rng(seed)
        folder = tmp_path / str(seed)
        odd = {} if rng.random() < 0.4 else some(rng, dict(enumerate(DICOM_TAGS.items())), 2)
        every = rng.random() < 0.6  # slices, or one
        tags = {}
        for key in odd:
            tag, values = list(DICOM_TAGS.items())[int(key)]
            tags[tag] = (VRS.get(tag[1], "DS") if tag[0] == 0x28 else "DS", values[rng.integers(len(values))])
        if every:
            tags.pop((0x20, 0x32), None)
        series(folder, voxels(shape=(6, 7, 3)), tags=lambda k, tags=tags, every=every: tags if every or k == 1 else {})
        files = sorted(folder.iterdir())
        if not tags or rng.random() < 0.3:
            files[1].write_bytes(damaged(rng, files[1].read_bytes(), 700))
        try:
            image = read_or_refuse(folder, capfd)
            done[image is not None] += 1
            if image is not None:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    by_pydicom(image, files)
        except Exception as error:
            error.add_note(f"seed {seed}: {tags}")
            raise
        capfd.readouterr()
    assert min(done.values()) > 10
