"""Whatever happened to a transform, field or points file: it is refused in one line, or means what an oracle says.

Oracles: the sound file, where the damage can be found; SimpleITK for transforms, of the files
that we took; nibabel for NIfTI fields, the raw bytes for other fields, pandas for points.
"""

import gzip
import io
import json
import re
import warnings
import zlib

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from image_files import metaimage, nifti, nrrd
from scripts.errors import InputError
from scripts.formats import read_field, read_points, read_transforms, write_transform
from scripts.spatial import Frame, WorldTransform, ras_to_lps
from transform_texts import GOOD_TEXTS
from world_cases import OBLIQUE, sitk_points

TRUTH = np.random.default_rng(7).normal(size=(5, 6, 7, 3)).astype(np.float32)
FRAME = Frame((5, 6, 7), OBLIQUE.affine)
POINTS = FRAME.voxel_to_world(np.random.default_rng(8).uniform(-1, 7, (30, 3)))
TOKENS = [*b"nan 1e400 - 1,5 0 # : [ ()".split(), b"", b" ", b"\n", b"1" * 400, b"\xff", b"\0", b'"']


def damaged(rng, data, how):
    """A file's bytes, damaged in one way of several."""
    data = bytearray(data)
    if how == "cut":
        return bytes(data[: rng.integers(len(data))])
    if how == "flip":
        for place in rng.integers(len(data), size=rng.integers(1, 3)):
            data[place] ^= 1 << rng.integers(8)
    elif how == "word":
        words = list(re.finditer(rb"[^\s,:]+", bytes(data)))
        word = words[rng.integers(len(words))]
        data[word.start() : word.end()] = TOKENS[rng.integers(len(TOKENS))]
    elif how == "line":
        lines = bytes(data).splitlines(keepends=True)
        line = rng.integers(len(lines))
        lines[line : line + 1] = [lines[line]] * 2 if rng.integers(2) else []
        return b"".join(lines)
    return bytes(data)


def took(read, path, data, capfd):
    """What a reader makes of these bytes; None if it refuses them properly. The screen stays empty."""
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", UserWarning)
        try:
            result = read(path)
        except InputError as error:
            assert str(error).startswith(str(path)), error
            assert "\n" not in str(error) and len(str(error)) < 700
            result = None
    assert capfd.readouterr() == ("", "")
    return result


def chain(parts, points=POINTS):
    for part in parts:
        points = part.apply(points)
    return points


def same_as_sitk(parts, path):
    np.testing.assert_allclose(chain(parts), sitk_points(sitk.ReadTransform(str(path)), POINTS), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("name", ["plain", "Euler", "composite"])
def test_text_transforms(tmp_path, capfd, name):
    """A single transform that is cut off is refused, or nothing is lost; all that is taken, SimpleITK takes so."""
    rng, path, taken = np.random.default_rng(1), tmp_path / "a.tfm", 0
    sound = GOOD_TEXTS[name].encode()
    path.write_bytes(sound)
    expected = sitk_points(sitk.ReadTransform(str(path)), POINTS)
    for turn in range(80):
        how = ("cut", "flip", "word", "line")[turn % 4]
        parts = took(read_transforms, path, damaged(rng, sound, how), capfd)
        if parts is None:
            continue
        taken += 1
        same_as_sitk(parts, path)
        if how == "cut" and name != "composite":
            np.testing.assert_allclose(chain(parts), expected, atol=1e-9)
    assert 0 < taken < 60


def test_mat_transforms(tmp_path, capfd):
    rng, path, taken = np.random.default_rng(2), tmp_path / "a.mat", 0
    affine = sitk.AffineTransform((1.1, 0.1, 0, -0.1, 0.9, 0.05, 0, 0, 1), (3, 4, 5), (10, 20, 30))
    sitk.WriteTransform(affine, str(path))
    sound = path.read_bytes()
    for turn in range(80):
        data = damaged(rng, sound, ("cut", "flip")[turn % 2])
        parts = took(read_transforms, path, data, capfd)
        if parts is not None:
            taken += 1
            assert len(data) == len(sound)
            same_as_sitk(parts, path)
    assert 0 < taken < 60


def test_our_hdf5_transforms_are_as_they_were_or_refused(tmp_path, capfd):
    """Every number has a checksum; what is not refused is unchanged."""
    rng, path, taken = np.random.default_rng(3), tmp_path / "a.h5", 0
    transform = WorldTransform(np.array([[1.1, 0, 0.1, 3], [0, 1, 0, 4], [0, 0.1, 0.9, 5], [0, 0, 0, 1]]), TRUTH, FRAME)
    write_transform(transform, path)
    sound, expected = path.read_bytes(), chain(read_transforms(path))
    for turn in range(120):
        parts = took(read_transforms, path, damaged(rng, sound, ("cut", "flip", "flip")[turn % 3]), capfd)
        if parts is not None:
            taken += 1
            np.testing.assert_array_equal(chain(parts), expected)
    assert 0 < taken < 100


def test_simpleitks_hdf5_transforms(tmp_path, capfd):
    """They have no checksums: a flipped number is one that SimpleITK reads as well; a cut is found."""
    rng, path = np.random.default_rng(4), tmp_path / "a.h5"
    image = sitk.GetImageFromArray(TRUTH.transpose(2, 1, 0, 3).astype(float), isVector=True)
    sitk.WriteTransform(sitk.DisplacementFieldTransform(image), str(path))
    sound = path.read_bytes()
    start = sound.index(TRUTH[0, 0, 0].astype(float).tobytes())
    for turn in range(60):
        data = bytearray(sound)
        if turn % 2:
            assert took(read_transforms, path, damaged(rng, sound, "cut"), capfd) is None
            continue
        data[start + rng.integers(TRUTH.size * 8)] ^= 1 << rng.integers(8)
        parts = took(read_transforms, path, bytes(data), capfd)
        if parts is not None:
            same_as_sitk(parts, path)


NUMBERS = [0.0, 1.0, -1.0, 2.5, np.nan, np.inf, -np.inf, 1e-30, 1e30, 1e-3]
FIELDS = {
    "dim": [[5, 5, 6, 7, 1, 3], [4, 5, 6, 7, 3], [5, 5, 6, 7, 3, 1], [5, 30000, 30000, 30000, 1, 3],
        [5, 0, 6, 7, 1, 3]],
    "pixdim": [[1, 1, 2, 3], [-1, 0.8, 1.6, 2.5], [1, 0, 1, 1], [1, np.nan, 1, 1], [0, 1, 1, 1e30]],
    "sform_code": [0, 1, 2, 4, -1],
    "qform_code": [0, 1, 2],
    "quatern_b": NUMBERS,
    "qoffset_x": NUMBERS,
    "srow_y": [[0, 1, 0, 3], [0, 0, 0, 0], [np.nan, 1, 0, 0], [0.0005, 1, 0, 0], [0.2, 1, 0, 0]],
    "datatype": [16, 64, 4, 512, 128, 1792, 77],
    "scl_slope": NUMBERS,
    "scl_inter": NUMBERS,
    "vox_offset": [352, 400, 1e9, np.nan, -352],
    "xyzt_units": [0, 1, 2, 3, 200],
    "intent_code": [1007, 1007, 1006, 0, 2006],
    "intent_name": [b"NREG_TRANS", b"Mapping", b"Velocity", b"x"],
    "intent_p1": [0, 1, 2, 5, np.nan],
}  # fmt: skip


@pytest.mark.parametrize("packed", [False, True])
def test_nifti_fields(tmp_path, capfd, packed):
    """The place and the numbers are nibabel's, in the meaning that the header gives them."""
    rng, path, taken = np.random.default_rng(5), tmp_path / f"a.nii{'.gz' * packed}", 0
    base = {"intent_code": 1007, "xyzt_units": 2, "sform_code": 1, "qform_code": 0}
    for turn in range(150):
        names = rng.choice(list(FIELDS), size=rng.integers(0, 3), replace=False)
        changes = {name: FIELDS[name][rng.integers(len(FIELDS[name]))] for name in names}
        with np.errstate(all="ignore"):
            data = nifti(TRUTH.reshape(5, 6, 7, 1, 3), FRAME.affine, **(base | changes))
        how = ("whole", "cut", "flip")[turn % 3]
        data = damaged(rng, gzip.compress(data, 1) if packed else data, how)
        part = took(read_field, path, data, capfd)
        if part is None:
            continue
        taken += 1
        check_field(part, path)
        if packed and how != "whole":
            assert gzip.decompress(path.read_bytes())  # its checksum holds
    assert 15 < taken < 140


def check_field(part, path):
    data = path.read_bytes()
    image = nib.Nifti1Image.from_bytes(gzip.decompress(data) if path.suffix == ".gz" else data)
    header, scale = image.header, {1: 1e3, 3: 1e-3}.get(int(image.header["xyzt_units"]) & 7, 1.0)
    affine = np.diag((scale, scale, scale, 1)) @ image.affine
    offset = np.abs(part.frame.affine - affine).max()
    assert offset < 1e-3 * max(1, np.abs(affine).max())
    numbers = np.asarray(image.dataobj, dtype=np.float64).reshape(part.displacement.shape)
    name, places = header["intent_name"].item(), part.frame.voxel_to_world(np.stack(np.indices(part.frame.shape), -1))
    meanings = {"LPS": ras_to_lps(numbers), "RAS": numbers, "points": numbers - places}
    if name == b"Mapping" or (name == b"NREG_TRANS" and header["intent_p1"] == 0):
        allowed = ["points"]
    elif name == b"NREG_TRANS" or header["intent_code"] == 1006:
        allowed = ["RAS"]
    else:
        allowed = ["LPS", "points"]
    size = max(1.0, np.abs(numbers).max(), np.abs(places).max())
    assert min(np.abs(meanings[meaning] - part.displacement).max() for meaning in allowed) < 1e-5 * size


def raw(kind, packed):
    """A MetaImage or NRRD field, its data packed or not; and how many bytes they take at the end."""
    if kind == "mha":
        data = TRUTH.transpose(3, 0, 1, 2).tobytes(order="F")
        data = zlib.compress(data) if packed else data
        fields = {"ElementNumberOfChannels": 3, "ElementType": "MET_FLOAT", "CompressedData": packed}
        fields |= {"CompressedDataSize": len(data)} if packed else {}
        return metaimage(TRUTH[..., 0], data, **fields), len(data)
    data = TRUTH.transpose(3, 0, 1, 2).tobytes(order="F")
    data = gzip.compress(data) if packed else data
    fields = {"dimension": 4, "sizes": "3 5 6 7", "type": "float", "kinds": "vector domain domain domain"}
    fields |= {"space_directions": "none (1,0,0) (0,2,0) (0,0,3)", "encoding": "gzip" if packed else "raw"}
    return nrrd(data=data, **fields), len(data)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["mha", "nrrd"])
def test_other_fields(tmp_path, capfd, kind, packed):
    """Damage behind the header: packed numbers are as they were or refused, others as the bytes say."""
    sound, size = raw(kind, packed)
    rng, path, taken = np.random.default_rng(6), tmp_path / f"a.{kind}", 0
    for turn in range(60):
        head, body = sound[:-size], sound[-size:]
        if turn % 3 == 0:
            data = head + damaged(rng, body, "cut")
        elif turn % 3 == 1:
            data = head + damaged(rng, body, "flip")
        else:
            data = damaged(rng, head, ("word", "line")[turn % 2]) + body
        part = took(read_field, path, data, capfd)
        if part is None:
            continue
        taken += 1
        if turn % 3 != 2:
            numbers = TRUTH if packed else np.frombuffer(data[-size:], "<f4").reshape(3, 5, 6, 7, order="F")
            numbers = numbers if packed else numbers.transpose(1, 2, 3, 0)
            np.testing.assert_array_equal(ras_to_lps(part.displacement), numbers)
        else:
            theirs = sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))
            points = part.frame.voxel_to_world(np.random.default_rng(8).uniform(-1, 7, (30, 3)))
            np.testing.assert_allclose(part.apply(points), sitk_points(theirs, points), rtol=1e-5, atol=1e-3)
    assert 0 < taken < 60


ROWS = [[1.5, -2.25, 3.0], [40.125, 5.5, -60.75], [7.0, 80.5, 9.25]]
FCSV = "# Markups fiducial file version = 4.11\n# CoordinateSystem = RAS\n# columns = id,x,y,z,label,desc\n"
LISTS = {
    "csv": "x,y,z,label\n" + "".join(f"{x},{y},{z},p{x}\n" for x, y, z in ROWS),
    "fcsv": FCSV + "".join(f"{i},{x},{y},{z},p{i},\n" for i, (x, y, z) in enumerate(ROWS)),
    "mrk.json": json.dumps({"markups": [{"coordinateSystem": "RAS",
        "controlPoints": [{"label": "a", "position": row} for row in ROWS]}]}),
    "vtk": "# vtk DataFile Version 3.0\npoints\nASCII\nDATASET POLYDATA\nPOINTS 3 float\n"
    + "".join(f"{x} {y} {z}\n" for x, y, z in ROWS)
    + "VERTICES 3 6\n1 0\n1 1\n1 2\n",
}  # fmt: skip


def oracle(suffix, text):
    """What other programs read."""
    if suffix == "mrk.json":
        return [control["position"] for control in json.loads(text)["markups"][0]["controlPoints"]]
    if suffix == "vtk":
        count, values = re.search(r"(?is)POLYDATA\s+POINTS\s+(\S+)\s+\S+\s+(.*)", text).groups()
        return np.array(values.split()[: 3 * int(count)], dtype=float).reshape(-1, 3)
    names = None
    if suffix == "fcsv":
        names = re.search("columns = (.*)", text)
        names = names[1].split(",") if names else ["id", "x", "y", "z", *"abcdefgh"]
        text = "".join(line + "\n" for line in text.split("\n") if line and not line.startswith("#"))
    table = pd.read_csv(io.StringIO(text), names=names, skipinitialspace=True, engine="python", index_col=False)
    table.columns = [str(name).strip().lower() for name in table.columns]
    return table[["x", "y", "z"]].dropna(how="all").to_numpy(dtype=float)


@pytest.mark.parametrize("suffix", LISTS)
def test_points(tmp_path, capfd, suffix):
    rng, path, taken = np.random.default_rng(9), tmp_path / f"a.{suffix}", 0
    for turn in range(80):
        data = damaged(rng, LISTS[suffix].encode(), ("cut", "flip", "word", "line")[turn % 4])
        points = took(lambda file: read_points(file, "RAS"), path, data, capfd)
        if points is None:
            continue
        taken += 1
        expected = np.asarray(oracle(suffix, data.decode("utf-8-sig")), dtype=float).reshape(-1, 3)
        np.testing.assert_allclose(points.coordinates, expected, rtol=1e-12)
    assert 0 < taken < 75
