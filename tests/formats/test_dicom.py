"""A folder with one DICOM series: its volume, and the one line for a folder that holds none or a broken one."""

import locale
import shutil
import struct

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.pixels import apply_modality_lut
from scipy.spatial.transform import Rotation

from image_files import SHAPE, decimals, dicom, series, voxels
from refusals import one_line
from scripts.errors import InputError
from scripts.formats.images import read_image, read_label
from scripts.spatial.frame import Frame
from scripts.storage import is_there
from world_cases import FRAMES, from_sitk

SERIES, POSITION, ORIENTATION, SPACING = (0x20, 0x0E), (0x20, 0x32), (0x20, 0x37), (0x28, 0x30)
SLOPE, INTERCEPT = (0x28, 0x1053), (0x28, 0x1052)
TURNED = np.diag((-1.0, -1.0, 1.0)) @ FRAMES["oblique"][0].direction  # LPS, right-handed


def US(number):
    return "US", struct.pack("<H", number)


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
    assert image.path == folder and image.array.dtype == np.int16 and image.array.flags.c_contiguous


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
    assert image.array.dtype == dtype if dtype == np.float32 else image.array.dtype.kind == "i"


def test_other_files_of_a_folder_are_ignored(tmp_path):
    folder = series(tmp_path / "series")
    (folder / "notes.txt").write_text("hello")
    (folder / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(500))
    (folder / "empty").touch()
    (folder / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (folder / ".hidden.dcm").write_bytes(b"x")
    series(folder / "deeper", uid="1.2.3.4.6")
    np.testing.assert_array_equal(read_image(folder).array, voxels())


def test_a_misspelt_file_beside_a_series_is_no_series(tmp_path):
    folder = series(tmp_path / "series")
    (folder / "damaged.dcm").write_bytes(bytes(128) + b"DICM" + bytes(7))
    with pytest.raises(InputError, match=r"fixd\.nii\.gz: file does not exist; correct the path"):
        read_image(folder / "fixd.nii.gz")
    assert not is_there(folder / "fixd.nii.gz") and is_there(folder / "1")  # refused before long work


MODALITY = {  # values stored, further tags
    "plain": (np.uint16, {}),
    "CT": (np.uint16, {SLOPE: decimals([1]), INTERCEPT: decimals([-1024])}),
    "PET": (np.int16, {SLOPE: decimals([0.31]), INTERCEPT: decimals([0])}),
    "falling": (np.uint8, {SLOPE: decimals([-2]), INTERCEPT: decimals([100])}),
    "12 bits, above them another's": (np.uint16, {(0x28, 0x101): US(12), (0x28, 0x102): US(11)}),
    "12 bits, signed": (np.int16,
        {(0x28, 0x101): US(12), (0x28, 0x102): US(11), SLOPE: decimals([1]), INTERCEPT: decimals([5])}),
}  # fmt: skip


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("name", MODALITY)
def test_values_are_those_of_the_modality_lut(tmp_path, name, photometric):
    """What pydicom says; SimpleITK turns MONOCHROME1 round, the largest number of the stored bits less each value."""
    dtype, tags = MODALITY[name]
    stored = voxels(dtype) * (600 if name.startswith("12") else 1)
    folder = series(tmp_path, stored, tags=lambda k: {**tags, (0x28, 0x04): ("CS", photometric)})
    image = read_image(folder)
    for k, path in enumerate(sorted(folder.iterdir())):
        dataset = pydicom.dcmread(path)
        truth = apply_modality_lut(dataset.pixel_array, dataset).T
        np.testing.assert_allclose(image.array[..., k], truth, rtol=1e-6)
        if (name, photometric) != ("12 bits, signed", "MONOCHROME1"):  # which SimpleITK refuses
            shown = from_sitk(sitk.ReadImage(str(path)))[..., 0]
            assert np.allclose(shown, truth, rtol=1e-6) == (photometric == "MONOCHROME2")
    assert len(image.notes) == (photometric == "MONOCHROME1")
    assert all("MONOCHROME1" in note for note in image.notes)


def test_a_table_as_modality_lut(tmp_path):
    table = pydicom.Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [100, 0, 16], "US"
    table.add_new("LUTData", "US", [(7 * n * n) % 5000 for n in range(100)])
    folder = series(tmp_path, voxels(np.uint16))
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.ModalityLUTSequence = [table]
        dataset.save_as(path)
    np.testing.assert_array_equal(read_image(folder).array, np.array(table.LUTData)[voxels()])


def pydicoms(name):
    """One of the files that pydicom's package brings along."""
    return pydicom.data.get_testdata_file(name, download=False)


def two_slices(folder, name, change=lambda dataset: None):
    """A series of one of pydicom's files, twice."""
    folder.mkdir()
    for k in range(2):
        dataset = pydicom.dcmread(pydicoms(name))
        dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 2 * k], [1, 0, 0, 0, 1, 0]
        change(dataset)
        dataset.save_as(folder / f"{k}.dcm")
    return folder


SYNTAXES = ("implicit", "bigendian", "expb", "padded", "RLE", "jp2klossless", "jpeg_ls_lossless")


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_every_transfer_syntax_gives_the_same_values(tmp_path, syntax, photometric):
    def change(dataset):
        dataset.PhotometricInterpretation = photometric

    image = read_image(two_slices(tmp_path / "series", f"MR_small_{syntax}.dcm", change))
    truth = pydicom.dcmread(pydicoms("MR_small.dcm")).pixel_array
    np.testing.assert_array_equal(image.array, np.stack([truth.T, truth.T], axis=-1))
    assert image.array.dtype == truth.dtype


@pytest.mark.parametrize("compressor", ["JPEG", "JPEG2000"])
def test_compressed_by_itk(tmp_path, compressor):
    stored = voxels(np.uint16, (48, 40, 3))
    folder = series(tmp_path, stored)
    characters = locale.setlocale(locale.LC_CTYPE)
    for path in sorted(folder.iterdir()):
        writer = sitk.ImageFileWriter()
        writer.SetImageIO("GDCMImageIO")
        writer.UseCompressionOn()
        writer.KeepOriginalImageUIDOn()
        writer.SetCompressor(compressor)
        writer.SetFileName(str(path))
        writer.Execute(sitk.ReadImage(str(path)))
        locale.setlocale(locale.LC_CTYPE, characters)  # which the writer turns to "C", for all that come after
        dataset = pydicom.dcmread(path)
        assert dataset.file_meta.TransferSyntaxUID.is_compressed
        dataset.RescaleSlope, dataset.RescaleIntercept = 2, -5
        dataset.save_as(path)
    np.testing.assert_array_equal(read_image(folder).array, 2 * stored.astype(int) - 5)


def named(count, bytes_):
    return f"its pixels take {count} bytes where its header tells of {bytes_}"


def resized(**tags):
    def change(dataset):
        for name, value in tags.items():
            setattr(dataset, name, value)

    return change


def cut_stream(count):
    def change(dataset):
        frame = next(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1))
        dataset.PixelData = pydicom.encaps.encapsulate([frame[:count]])

    return change


# Pixels and header do not fit: file, change, words.
MISFITS = {
    "more rows": ("MR_small.dcm", resized(Rows=65), named(8192, 8320)),
    "wider": ("MR_small.dcm", resized(BitsAllocated=32), named(8192, 16384)),
    "pixels absent": ("MR_small.dcm", lambda dataset: dataset.pop("PixelData"), "a DICOM file, but without pixels"),
    "no pixels": ("MR_small.dcm", resized(PixelData=b""), named(0, 8192)),
    "run lengths": ("MR_small_RLE.dcm", resized(Rows=65), "its pixels are truncated or damaged"),
    "JPEG 2000 cut": ("MR_small_jp2klossless.dcm", cut_stream(2000), "its compressed pixels are cut off, or not"),
    "JPEG-LS": ("MR_small_jpeg_ls_lossless.dcm", resized(Columns=65), "are cut off, or not (65, 64)"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_pixels_that_do_not_fit_the_header_are_refused(tmp_path, capfd, name):
    source, change, words = MISFITS[name]
    folder = two_slices(tmp_path / "series", source, change)
    with one_line(words, folder / "0.dcm"):
        read_image(folder)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("step", "digits", "slices"),
    [(1.25, 1, 40), (0.625, 1, 60), (2.5, 1, 30), (3.3333, 1, 25), (0.6, 2, 300), (4.5, 0, 30), (1.25, 1, 4)],
)
@pytest.mark.parametrize("turned", [False, True])
def test_positions_may_be_rounded(tmp_path, step, digits, slices, turned):
    direction = TURNED if turned else np.eye(3)
    places = np.array((-10.03, 20.27, 30.11)) + np.arange(slices)[:, None] * step * direction[:, 2]
    stored = voxels(shape=(6, 7, slices))

    def tags(k):
        return {POSITION: ("DS", "\\".join(f"{v:.{digits}f}" for v in places[k]))}

    folder = series(tmp_path / "series", stored, direction, tags=tags)
    image = read_image(folder)
    np.testing.assert_array_equal(image.array, stored)
    truth = Frame.from_parts(stored.shape, (0.7, 1.1, step), places[0], direction, "LPS")
    off = np.linalg.norm(image.frame.corners - truth.corners, axis=1).max()
    assert off < 2 * 10.0**-digits
    # A slice that is not there is found all the same, in the middle and next to the end.
    for gone in (slices // 2, slices - 2):
        (folder / f"s{gone:03d}.dcm").rename(tmp_path / "gone")
        with pytest.raises(InputError, match="a slice is missing"):
            read_image(folder)
        (tmp_path / "gone").rename(folder / f"s{gone:03d}.dcm")


@pytest.mark.parametrize("digits", [3, 4, 6])
@pytest.mark.parametrize("seed", range(2))
def test_directions_may_be_rounded(tmp_path, seed, digits):
    """To three decimals; the grid is then the one that ITK makes of the series, so that a label drawn there fits."""
    rng = np.random.default_rng(seed)
    direction = Rotation.from_euler("xyz", rng.uniform(-60, 60, 3), degrees=True).as_matrix()
    rounded = ("DS", "\\".join(f"{v:.{digits}f}" for v in direction[:, :2].T.ravel()))
    stored = voxels(shape=(20, 20, 30))
    folder = series(tmp_path / "series", stored, direction, tags=lambda k: {ORIENTATION: rounded})
    image = read_image(folder)
    np.testing.assert_array_equal(image.array, stored)
    truth = Frame.from_parts(stored.shape, (0.7, 1.1, 2.5), (-10, 20, 30), direction, "LPS")
    far = np.linalg.norm(truth.extent)
    assert np.linalg.norm(image.frame.corners - truth.corners, axis=1).max() < 10.0**-digits * far
    assert image.frame.same_as(by_simpleitk(folder)[1], 1e-4)


@pytest.mark.parametrize("seed", range(2))
def test_a_label_drawn_by_itk_on_a_series_fits_it(tmp_path, seed):
    """Positions have two decimals, so the grids differ by some micrometres."""
    rng = np.random.default_rng(seed)
    direction = Rotation.from_euler("xyz", rng.uniform(-60, 60, 3), degrees=True).as_matrix()
    places = rng.uniform(-200, 200, 3) + np.arange(60)[:, None] * 1.2 * direction[:, 2]
    folder = series(
        tmp_path / "series",
        voxels(shape=(40, 40, 60)),
        direction,
        tags=lambda k: {POSITION: ("DS", "\\".join(f"{v:.2f}" for v in places[k]))},
    )
    drawn = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))) > 50
    image = read_image(folder)
    for name in ("label.nii.gz", "label.nrrd", "label.mha"):
        sitk.WriteImage(drawn, str(tmp_path / name))
        label = read_label(tmp_path / name, image)
        assert label.frame is image.frame
        np.testing.assert_array_equal(label.array, voxels(shape=(40, 40, 60)) > 50)
    half = drawn[:]
    half.SetOrigin(drawn.TransformContinuousIndexToPhysicalPoint((0.5, 0, 0)))
    sitk.WriteImage(half, str(tmp_path / "half.nrrd"))
    with pytest.raises(InputError, match=r"label affine differs by up to 0\.35"):
        read_label(tmp_path / "half.nrrd", image)


def enhanced(folder, stored, at, compress=None, frames=None):
    """One enhanced file of slices at places, with a slope of its own each; orientation and spacing are shared."""

    def item(**tags):
        found = pydicom.Dataset()
        for name, value in tags.items():
            setattr(found, name, value)
        return found

    whole = pydicom.dcmread(series(folder.parent / f"{folder.name}_slices", stored) / "s000.dcm")
    for tag in (POSITION, ORIENTATION, SPACING):
        del whole[tag]
    orientation = item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    measures = item(PixelSpacing=[1.1, 0.7], SliceThickness=9)
    shared = item(PlaneOrientationSequence=[orientation], PixelMeasuresSequence=[measures])
    own = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=[-10, 20, 30 + 2.5 * place])],
            PixelValueTransformationSequence=[item(RescaleIntercept=-5, RescaleSlope=1 + k, RescaleType="US")],
        )
        for k, place in enumerate(at)
    ]
    whole.SharedFunctionalGroupsSequence, whole.PerFrameFunctionalGroupsSequence = [shared], own[:frames]
    whole.NumberOfFrames, whole.PixelData = len(own), stored.transpose(2, 1, 0).tobytes()
    whole.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    if compress:
        whole.compress(compress, encoding_plugin="pydicom")
    folder.mkdir()
    whole.save_as(folder / "e.dcm", enforce_file_format=True)
    return folder / "e.dcm"


@pytest.mark.parametrize("compress", [None, pydicom.uid.RLELossless])
def test_frames_of_an_enhanced_image_are_put_in_their_places(tmp_path, compress):
    stored, at = voxels(), (3, 1, 0, 2, 7, 5, 6, 4)
    file = enhanced(tmp_path / "series", stored, at, compress)
    image = read_image(file)
    np.testing.assert_array_equal(image.array, (stored * np.arange(1, 9) - 5)[:, :, np.argsort(at)])
    assert image.frame.same_as(Frame.from_parts(SHAPE, (0.7, 1.1, 2.5), (-10, 20, 30), np.eye(3), "LPS"))
    np.testing.assert_array_equal(read_image(file.parent).array, image.array)


def test_jpeg_frames_of_an_enhanced_image(tmp_path):
    from pydicom.encaps import encapsulate, generate_frames

    folder = two_slices(tmp_path / "single", "MR_small_jp2klossless.dcm")
    expected = read_image(folder)
    whole = pydicom.dcmread(folder / "0.dcm")
    frame = next(generate_frames(whole.PixelData, number_of_frames=1))
    whole.NumberOfFrames, whole.PixelData = 2, encapsulate([frame, frame])
    places = []
    for k in range(2):
        places.append(pydicom.Dataset())
        place = pydicom.Dataset()
        place.ImagePositionPatient = [0, 0, 2 * k]
        places[-1].PlanePositionSequence = [place]
    whole.PerFrameFunctionalGroupsSequence = places
    whole.save_as(tmp_path / "two.dcm")
    image = read_image(tmp_path / "two.dcm")
    np.testing.assert_array_equal(image.array, expected.array)
    assert image.frame.same_as(expected.frame)


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
    ("two", two_series, "2 DICOM series, 'series 1.2.3.4.5' (number none, 1.2.3.4.5, 8 files), 'series 1.2."),
    ("many", many_series, "and 2 more; name one by its number or UID"),
    ("missing", lambda f: (series(f) / "s003.dcm").unlink(), "5 mm between s002.dcm and s004.dcm.* a slice is missing"),
    ("uneven", lambda f: series(f, at=[0, 1, 2, 3.02, 4, 5, 6, 7]), "2.55 mm between s002.dcm and s003.dcm"),
    ("twice", lambda f: series(f, at=[0, 1, 2, 2, 3, 4, 5, 6]), "s002.dcm and s003.dcm lie in one place (1 such"),
    ("turned", one_tag(ORIENTATION, decimals((0, 1, 0, 0, 0, 1)), 5), "s005.dcm: Image Orientation (0020,0037)"),
    ("spaced", one_tag(SPACING, decimals((1, 1)), 5), "s005.dcm: Pixel Spacing (0028,0030) [1.0, 1.0] differs from"),
    ("size", other_size, "s003.dcm: (7, 7) pixels, but (6, 7) in s000.dcm"),
    ("one", lambda f: series(f, voxels(shape=(6, 7, 1))), "empty or flat, its shape is (6, 7, 1)"),
    ("colour", colour, "RGB or vector voxels, 3 values"),
    ("frames", multi_frame, "frames.dcm: multi-frame DICOM that tells no frame's place; convert it"),
    ("uneven frames", lambda f: enhanced(f, voxels(), [0, 1, 2, 3, 5, 6, 7, 8]),
        "5 mm between frame 4 of e.dcm and frame 5 of e.dcm.* a slice is missing"),
    ("frames twice", lambda f: enhanced(f, voxels(), [0, 1, 2, 3, 0, 1, 2, 3]),
        "frame 1 of e.dcm and frame 5 of e.dcm lie in one place (4 such"),
    ("frames lost", lambda f: enhanced(f, voxels(), range(8), frames=6),
        "e.dcm: a DICOM file, but it tells of the places of 6 frames and has 8"),
    ("tilted", tilted, "off a right angle or unit length by 0.03997"),
    ("aside", aside, "s004.dcm: lies 0.869 mm off the line of the slices"),
    ("cut", lambda f: spoiled(f, 10),
        "s003.dcm: a DICOM file, but its pixels take 74 bytes where its header tells of 84"),
    ("cut short", lambda f: spoiled(f, 300), "s003.dcm: a DICOM file, but damaged"),
    ("marked", lambda f: (series(f) / "x").write_bytes(bytes(128) + b"DICM" + b"x"), "x: a DICOM file, but damaged"),
    ("position", one_tag(POSITION, None), "s000.dcm: Image Position (0020,0032) is absent, not 3 numbers"),
    ("word", one_tag(SPACING, ("DS", "nan\\1")), "Pixel Spacing (0028,0030) is 'nan\\1', not 2 numbers"),
    ("zero", one_tag(SPACING, decimals((0, 1))), "Pixel Spacing (0028,0030) [0.0, 1.0] must be positive numbers of mm"),
    ("slanted", one_tag(ORIENTATION, decimals((1, 0, 0, 0.02, 0.9998, 0))), "is not two perpendicular unit vectors"),
    ("slope", one_tag(SLOPE, decimals([0])), "s000.dcm: Rescale Slope (0028,1053) is 0; export the series again"),
    ("palette", one_tag((0x28, 0x04), ("CS", "PALETTE COLOR")), "RGB or vector voxels"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "write", "words"), BAD, ids=[case[0] for case in BAD])
def test_bad_folder_is_named_in_one_line(tmp_path, capfd, name, write, words):
    write(tmp_path / name)
    with one_line(words, tmp_path / name, without=("ITK",)):
        read_image(tmp_path / name)
    assert capfd.readouterr() == ("", "")
