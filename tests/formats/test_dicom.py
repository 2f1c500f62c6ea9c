"""A folder with one DICOM series: its volume, and the one line for a folder that holds none or a broken one."""

import shutil
import struct

import numpy as np
import pytest
import SimpleITK as sitk

from image_files import SHAPE, decimals, dicom, series, voxels
from scripts.errors import InputError
from scripts.formats.images import read_image, read_label
from scripts.spatial.frame import Frame
from world_cases import FRAMES, from_sitk

SERIES, POSITION, ORIENTATION, SPACING = (0x20, 0x0E), (0x20, 0x32), (0x20, 0x37), (0x28, 0x30)
SLOPE, INTERCEPT = (0x28, 0x1053), (0x28, 0x1052)
TURNED = np.diag((-1.0, -1.0, 1.0)) @ FRAMES["oblique"][0].direction  # LPS, right-handed


def by_simpleitk(folder):
    """Array and frame as SimpleITK reads the series."""
    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    return from_sitk(image), Frame.from_itk(image)


@pytest.mark.parametrize("direction", [np.eye(3), TURNED], ids=["straight", "oblique"])
@pytest.mark.parametrize("at", [range(8), range(7, -1, -1), (3, 1, 0, 2, 7, 5, 6, 4)], ids=["up", "down", "mixed"])
def test_slices_are_put_in_their_places(tmp_path, direction, at):
    stored = voxels()
    folder = series(tmp_path / "series", stored, direction, at=list(at))
    image = read_image(folder)
    np.testing.assert_array_equal(image.array, stored[:, :, np.argsort(at)])
    frame = Frame.from_parts(SHAPE, (0.7, 1.1, 2.5), (-10, 20, 30), direction, "LPS")
    assert image.frame.same_as(frame)
    array, other = by_simpleitk(folder)
    np.testing.assert_array_equal(image.array, array)
    assert image.frame.same_as(other)
    assert image.path == folder
    assert image.array.dtype == np.int16
    assert image.array.flags.c_contiguous


def test_names_of_files_do_not_matter(tmp_path):
    folder = series(tmp_path / "series")
    for number, path in enumerate(sorted(folder.iterdir(), reverse=True)):
        path.rename(folder / f"IM{number}")
    np.testing.assert_array_equal(read_image(folder).array, voxels())


# slope and intercept of slice k, type in memory
RESCALES = [
    (lambda k: (1, 0), np.int16),
    (lambda k: (1, -1024), np.int32),
    (lambda k: (0.25, 3), np.float32),
    (lambda k: (1 + k, 0), np.int32),
    (lambda k: (1 if k == 0 else 0.3 * k, k), np.float32),  # the first alone would not tell of fractions
]


@pytest.mark.parametrize(("rescale", "dtype"), RESCALES)
def test_each_slice_is_rescaled_by_its_own_slope(tmp_path, rescale, dtype):
    stored = voxels()
    folder = series(
        tmp_path, stored, tags=lambda k: {SLOPE: decimals([rescale(k)[0]]), INTERCEPT: decimals([rescale(k)[1]])}
    )
    image = read_image(folder)
    slope, intercept = np.array([rescale(k) for k in range(SHAPE[2])], dtype=float).T
    np.testing.assert_allclose(image.array, stored * slope + intercept, rtol=1e-6)
    if dtype == np.float32:
        assert image.array.dtype == dtype
    else:
        assert image.array.dtype.kind == "i"


def test_unsigned_bytes(tmp_path):
    image = read_image(series(tmp_path, voxels(np.uint8)))
    assert image.array.dtype == np.uint8
    np.testing.assert_array_equal(image.array, voxels())


def test_other_files_of_a_folder_are_ignored(tmp_path):
    folder = series(tmp_path / "series")
    (folder / "notes.txt").write_text("hello")
    (folder / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(500))
    (folder / "empty").touch()
    (folder / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (folder / ".hidden.dcm").write_bytes(b"x")
    series(folder / "deeper", uid="1.2.3.4.6")
    np.testing.assert_array_equal(read_image(folder).array, voxels())


def test_small_jitter_of_places_is_allowed(tmp_path):
    rng = np.random.default_rng(0)
    folder = series(tmp_path, at=np.arange(8) + rng.uniform(-0.003, 0.003, 8))
    assert read_image(folder).frame.spacing == pytest.approx((0.7, 1.1, 2.5), abs=0.01)


def test_checks_and_labels_take_a_folder(tmp_path):
    image, label = series(tmp_path / "image"), series(tmp_path / "label")
    assert read_image(image).frame.shape == SHAPE
    assert read_label(label, read_image(image)).array.dtype == np.int16


def with_file(folder, name, data):
    (series(folder) / name).write_bytes(data)


def spoiled(folder, cut):
    path = series(folder) / "s003.dcm"
    path.write_bytes(path.read_bytes()[:-cut])


def two_series(folder):
    series(folder)
    series(folder, voxels(shape=(6, 7, 3)), uid="1.2.3.4.6", name="t")


def many_series(folder):
    for number in range(7):
        series(folder, voxels(shape=(6, 7, 2)), uid=f"1.2.{number}", name=f"t{number}")


def one_tag(tag, value, number=None):
    """Writer of a series where one slice, or every one, has another tag."""
    return lambda folder: series(folder, tags=lambda k: {tag: value} if number in (None, k) else {})


def without_slice(folder):
    (series(folder) / "s003.dcm").unlink()


def other_size(folder):
    shutil.copy(series(folder.parent / "wide", voxels(shape=(7, 7, 8))) / "s003.dcm", series(folder) / "s003.dcm")


def tilted(folder):
    places = [decimals((-10, 20 + 0.1 * k, 30 + 2.5 * k)) for k in range(8)]
    series(folder, tags=lambda k: {POSITION: places[k]})


def aside(folder):
    series(folder, tags=lambda k: {POSITION: decimals((-9, 20, 30 + 2.5 * k))} if k == 4 else {})


def multi_frame(folder):
    frames = voxels(shape=(42, 8))
    count = {(0x28, 0x08): ("IS", "6"), (0x28, 0x10): ("US", struct.pack("<H", 7)), SERIES: ("UI", "1.2.3")}
    folder.mkdir()
    (folder / "frames.dcm").write_bytes(dicom(frames, count, "1.2.840.10008.5.1.4.1.1.481.2"))


def colour(folder):
    folder.mkdir()
    (folder / "s.dcm").write_bytes(dicom(voxels(np.uint8, (7, 6, 3)), {SERIES: ("UI", "1.2.3")}))


# name, writer, words of the message
BAD = [
    ("empty", lambda f: f.mkdir(), "not a file, and as a folder without DICOM images"),
    ("deeper", lambda f: series(f / "series"), "not a file, and as a folder without DICOM images"),
    ("text", lambda f: (f.mkdir(), (f / "notes.txt").write_text("hello")), "without DICOM images"),
    ("two", two_series, "2 DICOM series, 'series 1.2.3.4.5' (1.2.3.4.5, 8 files), 'series 1.2.3.4.6' (1.2.3.4.6, 3"),
    ("many", many_series, "and 2 more; give a folder with the files of one"),
    ("missing", without_slice, "5 mm between s002.dcm and s004.dcm, 2.5 mm between most slices; a slice is missing"),
    ("uneven", lambda f: series(f, at=[0, 1, 2, 3.02, 4, 5, 6, 7]), "2.55 mm between s002.dcm and s003.dcm"),
    ("twice", lambda f: series(f, at=[0, 1, 2, 2, 3, 4, 5, 6]), "s002.dcm and s003.dcm lie in one place (1 such"),
    ("times", lambda f: series(f, at=[0, 0, 1, 1, 2, 2, 3, 3]), "lie in one place (4 such neighbours of 8 slices)"),
    ("still", lambda f: series(f, at=[0] * 8), "lie in one place (7 such neighbours"),
    ("turned", one_tag(ORIENTATION, decimals((0, 1, 0, 0, 0, 1)), 5), "s005.dcm: Image Orientation (0020,0037)"),
    ("spaced", one_tag(SPACING, decimals((1, 1)), 5), "s005.dcm: Pixel Spacing (0028,0030) [1.0, 1.0] differs from"),
    ("size", other_size, "s003.dcm: (7, 7) pixels, but (6, 7) in s000.dcm"),
    ("one", lambda f: series(f, voxels(shape=(6, 7, 1))), "empty or flat, its shape is (6, 7, 1)"),
    ("colour", colour, "RGB or vector voxels, 3 values"),
    ("frames", multi_frame, "frames.dcm: multi-frame DICOM is not supported; convert it to NIfTI"),
    ("tilted", tilted, "off a right angle or unit length by 0.03997"),
    ("aside", aside, "s004.dcm: lies 0.869 mm off the line of the slices"),
    ("cut", lambda f: spoiled(f, 10), "s003.dcm: a DICOM file, but its pixels take 74 bytes where its header tells of 84"),
    ("cut short", lambda f: spoiled(f, 300), "s003.dcm: a DICOM file, but damaged"),
    ("named", lambda f: with_file(f, "x.dcm", b"hello"), "x.dcm: a DICOM file, but damaged or without an image"),
    ("marked", lambda f: with_file(f, "x", bytes(128) + b"DICM" + bytes(50)), "x: a DICOM file, but damaged"),
    ("position", one_tag(POSITION, None), "s000.dcm: Image Position (0020,0032) is absent, not 3 numbers"),
    ("places", one_tag(POSITION, decimals((1, 2)), 5), "s005.dcm: Image Position (0020,0032) is '1\\2', not 3 numbers"),
    ("orientation", one_tag(ORIENTATION, None), "Image Orientation (0020,0037) is absent"),
    ("spacing", one_tag(SPACING, None), "Pixel Spacing (0028,0030) is absent"),
    ("word", one_tag(SPACING, ("DS", "nan\\1")), "Pixel Spacing (0028,0030) is 'nan\\1', not 2 numbers"),
    ("zero", one_tag(SPACING, decimals((0, 1))), "Pixel Spacing (0028,0030) [0.0, 1.0] must be positive numbers of mm"),
    ("minus", one_tag(SPACING, decimals((-1, 1))), "Pixel Spacing (0028,0030) [-1.0, 1.0] must be positive"),
    ("parallel", one_tag(ORIENTATION, decimals((1, 0, 0, 1, 0, 0))), "is not two perpendicular unit vectors"),
    ("slanted", one_tag(ORIENTATION, decimals((1, 0, 0, 0.02, 0.9998, 0))), "is not two perpendicular unit vectors"),
    ("constant", lambda f: series(f, np.full(SHAPE, 7, np.int16)), "constant image, every voxel is 7"),
]


@pytest.mark.parametrize(("name", "write", "words"), BAD, ids=[case[0] for case in BAD])
def test_bad_folder_is_named_in_one_line(tmp_path, capfd, name, write, words):
    write(tmp_path / name)
    with pytest.raises(InputError) as caught:
        read_image(tmp_path / name)
    message = str(caught.value)
    assert words in message
    assert message.startswith(str(tmp_path / name))
    assert ";" in message
    assert "\n" not in message
    assert "ITK" not in message
    assert capfd.readouterr() == ("", "")
