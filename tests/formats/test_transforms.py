"""World transforms and their files: SimpleITK and ITK move points as the network's map does."""

import os
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from refusals import one_line
from scripts.errors import InputError
from scripts.formats.images import Image
from scripts.formats.transform_files import read_transforms, write_transform
from scripts.formats.transform_files import to_sitk as transform_to_sitk
from scripts.geometry import affine_map, compose, identity_map, warp
from scripts.spatial.frame import ras_to_lps
from scripts.spatial.transform import WorldTransform
from scripts.transform import Transform
from transform_texts import AFFINE_LINE, GOOD_TEXTS, HEAD, NUMBERS, VERSOR, WHOLE
from world_cases import (
    AFFINE,
    FRAMES,
    LOW,
    OBLIQUE,
    OTHER,
    SHAPE,
    displacement,
    frame,
    from_sitk,
    full_map,
    noise,
    sitk_points,
    some_points,
    to_sitk,
)


def make(name, with_field=True):
    fixed, moving = FRAMES[name]
    return fixed, moving, WorldTransform.from_network(fixed, moving, AFFINE, displacement() if with_field else None)


def map_points(fixed, moving, coordinates):
    """What a map of the network does to its voxel centres, RAS: from, to."""
    there = coordinates[0].permute(1, 2, 3, 0).double().numpy().reshape(-1, 3)
    here = np.stack(np.indices(fixed.shape), axis=-1).reshape(-1, 3)
    return fixed.voxel_to_world(here), moving.normalised_to_world(there)


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("with_field", [True, False])
def test_is_the_networks_map(name, with_field):
    fixed, moving, transform = make(name, with_field)
    here, there = map_points(fixed, moving, full_map() if with_field else affine_map(AFFINE, list(SHAPE)))
    assert transform.covers(here).all()
    np.testing.assert_allclose(transform.apply(here), there, atol=5e-5)


@pytest.mark.parametrize("name", FRAMES)
def test_written_file_moves_the_image_and_points_in_simpleitk(tmp_path, name):
    fixed, moving, transform = make(name)
    write_transform(transform, tmp_path / "transform.h5")
    theirs = sitk.ReadTransform(str(tmp_path / "transform.h5"))
    image = noise(moving.shape)
    moved = warp(torch.from_numpy(image)[None, None], full_map())[0, 0].numpy()
    reference = to_sitk(np.zeros(fixed.shape, np.float32), fixed)
    resampled = from_sitk(sitk.Resample(to_sitk(image, moving), reference, theirs, sitk.sitkLinear, 0.0))
    interior = (full_map()[0].abs() < 1 - 1e-4).all(dim=0).numpy()
    assert interior.mean() > 0.5 and np.ptp(moved[interior]) > 0.5
    assert np.abs(resampled - moved)[interior].max() < 1e-3
    here, there = map_points(fixed, moving, full_map())
    chosen = np.random.default_rng(0).choice(len(here), 60, replace=False)
    assert np.abs(sitk_points(theirs, here[chosen]) - there[chosen]).max() < 0.01
    between = some_points(fixed)
    np.testing.assert_allclose(sitk_points(theirs, between), transform.apply(between), atol=1e-6)
    (again,) = read_transforms(tmp_path / "transform.h5")
    np.testing.assert_allclose(again.linear, transform.linear, atol=1e-9)
    np.testing.assert_array_equal(again.displacement, transform.displacement.astype(np.float32))
    assert again.frame.same_as(transform.frame, 1e-9)
    np.testing.assert_allclose(sitk_points(theirs, between), again.apply(between), atol=1e-9)


@pytest.mark.parametrize("name", ["identity", "oblique, other size"])
@pytest.mark.parametrize("file", ["affine.tfm", "affine.txt", "affine.h5", "affine.hdf5"])
def test_affine_files(tmp_path, name, file):
    fixed, _, transform = make(name, with_field=False)
    write_transform(transform, tmp_path / file)
    points = some_points(fixed, margin=2)
    theirs = sitk.ReadTransform(str(tmp_path / file))
    np.testing.assert_allclose(sitk_points(theirs, points), transform.apply(points), atol=1e-9)
    (again,) = read_transforms(tmp_path / file)
    assert again.frame is None
    np.testing.assert_allclose(again.linear, transform.linear, atol=1e-9)


@pytest.mark.parametrize("name", ["anisotropic", "oblique, other size"])
def test_outside_the_field_as_in_itk(name):
    fixed, _, transform = make(name)
    composite = transform_to_sitk(transform)
    points = some_points(fixed, 300, margin=0.25)
    # Just within and just beyond half a voxel of the field's own grid, where ITK's field stops.
    edge = np.array([(-0.499, 5, 5), (-0.501, 5, 5), (5, LOW[1] - 0.501, 5), (5, LOW[1] - 0.499, 5), (4, 4, -3)])
    points = np.concatenate([points, transform.frame.voxel_to_world(edge)])
    np.testing.assert_allclose(transform.apply(points), sitk_points(composite, points), atol=1e-9)
    assert transform.covers(points)[-5:].tolist() == [True, False, True, False, False]
    outside = ~transform.covers(points)
    assert 50 < outside.sum() < 300
    np.testing.assert_allclose(
        transform.apply(points)[outside], transform.affine_part.apply(points)[outside], rtol=0, atol=0
    )


def test_covering_continues_the_face():
    fixed, moving, transform = make("oblique, other size")
    larger = fixed.padded((3, 0, 5))
    wide = transform.covering(larger)
    inside = some_points(fixed, 100)
    np.testing.assert_allclose(wide.apply(inside), transform.apply(inside), atol=1e-9)
    outside = some_points(larger, 400)
    outside = outside[~transform.covers(outside)]
    assert len(outside) > 20 and wide.covers(outside).all()
    # The network, looking beyond its grid, continues the displacement from the face.
    normalised = torch.from_numpy(fixed.world_to_normalised(outside)).T.reshape(1, 3, -1, 1, 1)
    psi = compose(identity_map(list(LOW), dtype=torch.float64) + displacement().double(), normalised)
    there = WorldTransform.from_network(fixed, moving, AFFINE).apply(
        fixed.normalised_to_world(psi.reshape(3, -1).T.numpy())
    )
    np.testing.assert_allclose(wide.apply(outside), there, atol=1e-6)
    assert transform.covering(fixed) is transform
    assert transform.affine_part.covering(larger).frame is None


def test_composite_order_and_kinds(tmp_path):
    """Parts come back in the order in which they act, whatever the kinds of linear transform."""
    fixed, _, transform = make("oblique, other size")
    first = sitk.Euler3DTransform((5, -3, 80), 0.1, -0.2, 0.05, (1, 2, 3))
    scale = sitk.ScaleTransform(3, (1.1, 0.9, 1.05))
    shift = sitk.TranslationTransform(3, (4.0, -5.0, 6.0))
    write_transform(transform, tmp_path / "one.h5")
    ours = sitk.CompositeTransform(sitk.ReadTransform(str(tmp_path / "one.h5")))
    field = sitk.DisplacementFieldTransform(ours.GetNthTransform(1))
    # Acts as: shift, field, first, scale.
    several = sitk.CompositeTransform([scale, first, field, shift])
    sitk.WriteTransform(several, str(tmp_path / "several.h5"))
    parts = read_transforms(tmp_path / "several.h5")
    assert [part.frame is None for part in parts] == [True, False]
    points = some_points(fixed, margin=0.1)
    result = points
    for part in parts:
        result = part.apply(result)
    np.testing.assert_allclose(result, sitk_points(several, points), atol=1e-8)
    np.testing.assert_allclose(parts[0].apply(points) - points, np.tile(ras_to_lps(np.array([4.0, -5, 6])), (40, 1)))
    for kind in (first, scale, shift, sitk.Transform(3, sitk.sitkIdentity), sitk.CompositeTransform([first, shift])):
        sitk.WriteTransform(kind, str(tmp_path / "kind.tfm"))
        (part,) = read_transforms(tmp_path / "kind.tfm")
        np.testing.assert_allclose(part.apply(points), sitk_points(kind, points), atol=1e-9)


@pytest.mark.parametrize("suffix", [".h5", ".tfm"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_b_splines_as_elastix_leaves_them(tmp_path, order, suffix):
    """A composite of a rigid transform and a B-spline: points, an image, and the file that we write of it."""
    fixed, moving = FRAMES["oblique, other size"]
    domain = to_sitk(np.zeros(fixed.shape, np.float32), fixed)
    spline = sitk.BSplineTransformInitializer(domain, (3, 4, 5), order)
    spline.SetParameters(np.random.default_rng(order).normal(0, 3, len(spline.GetParameters())).tolist())
    shift = ras_to_lps(moving.centre - fixed.centre).tolist()
    rigid = sitk.Euler3DTransform(ras_to_lps(fixed.centre).tolist(), 0.1, -0.05, 0.02, shift)
    theirs = sitk.CompositeTransform([rigid, spline])
    sitk.WriteTransform(theirs, str(tmp_path / f"elastix{suffix}"))
    read = Transform.read(tmp_path / f"elastix{suffix}")
    points = some_points(fixed, 200, margin=0.2)
    with pytest.warns(UserWarning, match="of 200 points lie outside its displacement field"):
        np.testing.assert_allclose(read.points(points), sitk_points(theirs, points), atol=1e-7)
    read.save(tmp_path / "again.h5")
    again = sitk.ReadTransform(str(tmp_path / "again.h5"))
    np.testing.assert_allclose(sitk_points(again, points), sitk_points(theirs, points), atol=1e-7)
    image = to_sitk(noise(moving.shape), moving)
    expected = from_sitk(sitk.Resample(image, domain, theirs, sitk.sitkLinear, 0.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        moved = read.warp(Image(from_sitk(image), moving, Path("m")), fixed)
    close = np.abs(moved - expected) < 1e-4
    assert close.mean() > 0.99 and np.ptp(expected) > 0.3  # at the faces of both domains rounding decides


GRID = frame((4, 4, 4))


@pytest.mark.parametrize("name", GOOD_TEXTS)
def test_texts_as_simpleitk_reads_them(tmp_path, name):
    (tmp_path / "a.tfm").write_bytes(GOOD_TEXTS[name].encode())
    (part,) = read_transforms(tmp_path / "a.tfm")
    theirs = sitk.ReadTransform(str(tmp_path / "a.tfm"))
    points = some_points(OBLIQUE)
    np.testing.assert_allclose(part.apply(points), sitk_points(theirs, points), atol=1e-9)


BAD_TEXTS = {
    "empty": ("", "is empty"),
    "junk": ("hello\nworld: 3\n", "line 1, 'hello'"),
    "after its type": (HEAD + AFFINE_LINE, "no line FixedParameters and Parameters"),
    "in a number": (WHOLE[:-2], "as if it were cut off"),
    "before the second": (WHOLE + "#Transform 1\n", "ends where a transform should follow"),
    "too few": (WHOLE.replace(" 6 7", ""), "10 parameters and 3 fixed ones, not 12 and 3"),
    "word": (WHOLE.replace("6", "six"), "'six' is not a number"),
    "NaN": (WHOLE.replace("6", "nan"), "'nan' is not a number"),
    "misspelt": (WHOLE.replace("Parameters: 1.1", "Qarameters: 1.1"), "'Qarameters"),
    "twice": (WHOLE.replace(NUMBERS, NUMBERS * 2), "line 5, 'Parameters: 1.1"),
    "no versor": (VERSOR.format("0.9 0.9 0.3"), "make no such transform"),
    "singular": (WHOLE.replace("0.9", "0"), "singular"),
    "unknown": (WHOLE.replace("Affine", "Teleport"), "holds a TeleportTransform, which is not read"),
    "unknown type": (WHOLE.replace("_double_3_3", ""), "unknown type 'AffineTransform'"),
    "2-D": (WHOLE.replace("_3_3", "_2_2"), "from 2-D to 2-D"),
    "two": (WHOLE + WHOLE[len(HEAD) :], "holds 2 transforms"),
    "empty composite": (HEAD + "Transform: CompositeTransform_double_3_3\n", "without parts"),
    "binary": ("\xff\xfe" + WHOLE, "no text"),
    "Greedy cut": ("1 0 0 0 \n0 1 0 0 \n0 0 1 0 \n0 0 0 1", "cut off"),
    "Greedy singular": ("1 0 0 0 \n0 0 0 0 \n0 0 1 0 \n0 0 0 1 \n", "singular"),
    "last row": ("1 0 0 0 \n0 1 0 0 \n0 0 1 0 \n0 0 1 1 \n", "no matrix of an affine"),
    "FSL": ("1  0  0  0.5  \n0  1  0  0  \n0  0  1  0  \n0  0  0  1  \n", "FSL's FLIRT.*avsm convert .* --fixed FIXED"),
    "plain matrix": ("1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n", "does not say what it means.*-oitk.*avsm convert"),
    "elastix": ('(Transform "BSplineTransform")\n(NumberOfParameters 3)\n', "has no line .GridDirection"),
}


@pytest.mark.parametrize("name", BAD_TEXTS)
def test_bad_texts(tmp_path, name):
    """Many of these ITK reads, as other transforms."""
    text, message = BAD_TEXTS[name]
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode("latin-1"))
    with one_line(message, path):
        read_transforms(path)


def rewritten(source, target, change):
    """A copy of an HDF5 file, changed by a function of the open file."""
    target.write_bytes(source.read_bytes())
    with h5py.File(target, "r+") as file:
        change(file)
    return target


def replace(name, values, **how):
    def change(file):
        del file[name]
        file.create_dataset(name, data=values, **how)

    return change


FIELD, FIXED = "TransformGroup/2/TransformParameters", "TransformGroup/2/TransformFixedParameters"
GRID_OF = [4, 4, 4, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 0, 1]
BAD_HDF5 = {
    "no group": (lambda file: file.__delitem__("TransformGroup"), "truncated, damaged or no transform"),
    "too few": (replace(FIELD, np.zeros(191)), "191 parameters and 18 fixed ones, not 192 and 18"),
    "NaN": (replace(FIELD, np.full(192, np.nan)), "not finite"),
    "no shape": (replace(FIXED, np.zeros(17)), "192 parameters, not 64 at most"),
    "spacing 0": (replace(FIXED, [float(v) for v in GRID_OF[:8]] + [0.0] + GRID_OF[9:]),
        "spacing must be three positive"),
    "size 1e11": (replace(FIXED, [1e11, *GRID_OF[1:]]), "192 parameters and 18 fixed ones, not"),
    "shear": (replace(FIXED, [float(v) for v in GRID_OF[:10]] + [0.5] + GRID_OF[11:]), "right angle"),
    "billions of nothing": (lambda file: (file.__delitem__(FIELD), file.create_dataset(FIELD, (1 << 36,), "f4",
        chunks=(1 << 20,))), "tells of 68719476736 numbers and holds 0 bytes"),
    "much more than its grid": (replace(FIELD, np.zeros(1 << 24, np.float32), compression="gzip"),
        "it has 16777216 parameters, not 192 at most"),
    "elsewhere": (lambda file: (file.__delitem__(FIELD), file.__setitem__(FIELD, h5py.ExternalLink("other.h5", "/x"))),
        "truncated, damaged"),
    "a gap": (lambda file: file.move("TransformGroup/1", "TransformGroup/7"), "truncated, damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_HDF5)
def test_bad_hdf5(tmp_path, name):
    change, message = BAD_HDF5[name]
    field = np.random.default_rng(0).normal(size=(4, 4, 4, 3)).astype(np.float32)
    write_transform(WorldTransform(np.diag((1.1, 1, 1, 1)), field, GRID), tmp_path / "sound.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.zeros(192, np.float32)
    path = rewritten(tmp_path / "sound.h5", tmp_path / "a.h5", change)
    with one_line(message, path):
        read_transforms(path)


def test_names_of_itk_4_are_read(tmp_path):
    """ITK 4 spelled TransformParameters without an s."""
    transform = make("oblique")[2]
    write_transform(transform, tmp_path / "new.h5")

    def older(file):
        for index in (1, 2):
            for name in ("Parameters", "FixedParameters"):
                file.move(f"TransformGroup/{index}/Transform{name}", f"TransformGroup/{index}/Tranform{name}")

    (part,) = read_transforms(rewritten(tmp_path / "new.h5", tmp_path / "old.h5", older))
    points = some_points(OBLIQUE)
    np.testing.assert_allclose(part.apply(points), transform.apply(points), atol=1e-5)
    np.testing.assert_allclose(sitk_points(sitk.ReadTransform(str(tmp_path / "old.h5")), points), part.apply(points))


def test_what_is_no_transform(tmp_path):
    (tmp_path / "junk.h5").write_bytes(b"nonsense" * 40)
    (tmp_path / "odd.xyz").write_text("1")
    (tmp_path / "a.lta").write_text("1")
    os.mkfifo(tmp_path / "pipe.tfm")
    sitk.WriteTransform(sitk.TranslationTransform(2, (1, 2)), str(tmp_path / "flat.h5"))
    sitk.WriteTransform(sitk.AffineTransform(3), str(tmp_path / "cut.mat"))
    write_transform(make("oblique")[2], tmp_path / "cut.h5")
    for name, size in (("cut.mat", -5), ("cut.h5", 3000)):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:size])
    (tmp_path / "sparse.tfm").write_text(WHOLE)
    os.truncate(tmp_path / "sparse.tfm", 1 << 36)
    for name, message in (
        ("missing.h5", "no such transform file"),
        ("pipe.tfm", "is not a file"),
        ("junk.h5", "not a sound HDF5 file"),
        ("cut.h5", "truncated, damaged"),
        ("cut.mat", "truncated, damaged"),
        ("odd.xyz", "must end with one of"),
        ("a.lta", "is no LTA of FreeSurfer"),
        ("flat.h5", "2-D"),
        ("sparse.tfm", "68719476736 bytes"),
    ):
        with one_line(message, tmp_path / name):
            read_transforms(tmp_path / name)


def test_writing_refusals_leave_nothing(tmp_path):
    transform = make("oblique")[2]
    for name, error, message in (
        ("a.tfm", InputError, "holds an affine only"),
        ("a.nii.gz", InputError, "must end with .h5"),
        ("no/a.h5", FileNotFoundError, "create it first"),
    ):
        with pytest.raises(error, match=message):
            write_transform(transform, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["transform.h5", "affine.tfm"])
def test_failed_write_leaves_the_earlier_file(tmp_path, monkeypatch, name):
    def full(*_arguments, **_options):
        raise OSError("No space\nleft")

    monkeypatch.setattr(h5py.Group, "create_dataset", full)
    monkeypatch.setattr(Path, "write_text", full)
    (tmp_path / name).write_bytes(b"earlier")
    with pytest.raises(OSError, match=r"could not write it \(No space left\)"):
        write_transform(make("oblique", with_field=False)[2], tmp_path / name)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"earlier"]


BAD = {
    "no frame": (lambda: WorldTransform(np.eye(4), np.zeros((4, 4, 4, 3))), "needs its frame"),
    "other shape": (lambda: WorldTransform(np.eye(4), np.zeros((4, 4, 5, 3)), GRID), "must be that of its frame"),
    "NaN field": (lambda: WorldTransform(np.eye(4), np.full((4, 4, 4, 3), np.nan), GRID), "NaN"),
    "NaN affine": (lambda: WorldTransform(np.eye(4) * np.nan), "finite 4x4"),
    "zero affine": (lambda: WorldTransform(np.diag((0.0, 1, 1, 1))), "singular"),
    "flat affine": (lambda: WorldTransform.from_network(OBLIQUE, OTHER, torch.zeros(3, 4)), "singular"),
    "two affines": (lambda: WorldTransform.from_network(OBLIQUE, OTHER, AFFINE.repeat(2, 1, 1)), "one affine"),
    "two maps": (lambda: WorldTransform.from_network(OBLIQUE, OTHER, AFFINE, full_map().repeat(2, 1, 1, 1, 1)),
        "need one"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    build, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        build()


def test_one_point_is_carried_as_many_are():
    transform = Transform([WorldTransform(np.diag([2.0, 1, 1, 1]))])
    assert transform.points([1.0, 2, 3]).tolist() == transform.points([[1.0, 2, 3]])[0].tolist() == [2, 2, 3]
