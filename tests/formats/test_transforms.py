"""World transforms and their files: SimpleITK and ITK move points as the network's map does."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import itk
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from scripts.errors import InputError
from scripts.formats.displacement import save_world_displacement
from scripts.formats.transform_files import (
    from_itk,
    read_transforms,
    to_itk,
    write_transform,
)
from scripts.geometry import affine_map, compose, identity_map, warp
from scripts.spatial.frame import ras_to_lps
from scripts.spatial.transform import WorldTransform
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
    assert np.abs(sitk_points(theirs, between) - transform.apply(between)).max() < 1e-6


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


@pytest.mark.parametrize("name", FRAMES)
def test_read_back(tmp_path, name):
    fixed, _, transform = make(name)
    write_transform(transform, tmp_path / "transform.h5")
    (again,) = read_transforms(tmp_path / "transform.h5")
    np.testing.assert_allclose(again.linear, transform.linear, atol=1e-9)
    np.testing.assert_array_equal(again.displacement, transform.displacement)
    assert again.frame.same_as(transform.frame, 1e-9)
    (composite,) = itk.transformread(str(tmp_path / "transform.h5"))
    points = some_points(fixed, 10)
    theirs = [np.asarray(composite.TransformPoint(p.tolist())) for p in ras_to_lps(points)]
    np.testing.assert_allclose(ras_to_lps(np.array(theirs)), transform.apply(points), atol=1e-9)


@pytest.mark.parametrize("name", ["anisotropic", "oblique, other size"])
def test_outside_the_field_as_in_itk(name):
    fixed, _, transform = make(name)
    composite = to_itk(transform)
    points = some_points(fixed, 300, margin=0.25)
    # Just within and just beyond half a voxel of the field's own grid, where ITK's field stops.
    edge = np.array([(-0.499, 5, 5), (-0.501, 5, 5), (5, LOW[1] - 0.501, 5), (5, LOW[1] - 0.499, 5), (4, 4, -3)])
    points = np.concatenate([points, transform.frame.voxel_to_world(edge)])
    theirs = ras_to_lps(np.array([composite.TransformPoint(p.tolist()) for p in ras_to_lps(points)]))
    np.testing.assert_allclose(transform.apply(points), theirs, atol=1e-9)
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


def test_nested_composites():
    outer = itk.CompositeTransform[itk.D, 3].New()
    outer.AddTransform(to_itk(WorldTransform(np.diag((2.0, 1, 1, 1)))))
    outer.AddTransform(to_itk(make("oblique")[2]))
    (flat,) = from_itk(outer)
    points = some_points(OBLIQUE, 5)
    theirs = ras_to_lps(np.array([outer.TransformPoint(p.tolist()) for p in ras_to_lps(points)]))
    np.testing.assert_allclose(flat.apply(points), theirs, atol=1e-9)
    (empty,) = from_itk(itk.CompositeTransform[itk.D, 3].New())
    np.testing.assert_array_equal(empty.linear, np.eye(4))


@pytest.mark.parametrize("writer", ["ours", "SimpleITK"])
def test_displacement_field_files(tmp_path, writer):
    fixed, _, transform = make("oblique, other size")
    path = tmp_path / "field.nii.gz"
    field = ras_to_lps(transform.displacement)
    if writer == "ours":
        save_world_displacement(field, transform.frame.affine, path)
    else:
        image = sitk.GetImageFromArray(field.transpose(2, 1, 0, 3), isVector=True)
        image.CopyInformation(to_sitk(np.zeros(LOW), transform.frame))
        sitk.WriteImage(image, str(path))
    (part,) = read_transforms(path)
    theirs = sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))
    points = some_points(fixed)
    np.testing.assert_allclose(part.apply(points), sitk_points(theirs, points), atol=1e-3)
    np.testing.assert_allclose(
        part.apply(points), WorldTransform(np.eye(4), transform.displacement, transform.frame).apply(points), atol=1e-4
    )


def test_ants_affine_mat(tmp_path):
    affine = sitk.AffineTransform(3)
    affine.SetMatrix((1.1, 0.1, 0, -0.1, 0.9, 0.05, 0, 0, 1))
    affine.SetTranslation((3, 4, 5))
    affine.SetCenter((10, 20, 30))
    sitk.WriteTransform(affine, str(tmp_path / "0GenericAffine.mat"))
    (part,) = read_transforms(tmp_path / "0GenericAffine.mat")
    points = some_points(OBLIQUE)
    np.testing.assert_allclose(part.apply(points), sitk_points(affine, points), atol=1e-9)


def test_float_transform(tmp_path):
    text = "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_float_3_3\n"
    (tmp_path / "a.tfm").write_text(text + "Parameters: 1 0 0 0 2 0 0 0 1 0.5 0 0\nFixedParameters: 0 0 0\n")
    (part,) = read_transforms(tmp_path / "a.tfm")
    np.testing.assert_allclose(part.linear, [[1, 0, 0, -0.5], [0, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def bad_files(folder):
    """Write files that are not what they seem; return name -> expected message."""
    (folder / "junk.h5").write_bytes(b"nonsense" * 40)
    (folder / "empty.h5").write_bytes(b"")
    (folder / "junk.tfm").write_text("hello\nworld: 3\n")
    (folder / "empty.tfm").write_text("")
    (folder / "junk.nii.gz").write_bytes(b"nonsense" * 40)
    (folder / "odd.xyz").write_text("1")
    sitk.WriteTransform(sitk.TranslationTransform(2, (1, 2)), str(folder / "flat.tfm"))
    sitk.WriteTransform(sitk.BSplineTransform(3), str(folder / "spline.h5"))
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.float32), np.eye(4)), folder / "image.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4, 1, 3), np.float32), np.eye(4)), folder / "intent.nii.gz")
    field = np.zeros((4, 4, 4, 3))
    save_world_displacement(field, np.eye(4), folder / "cut.nii")
    (folder / "cut.nii").write_bytes((folder / "cut.nii").read_bytes()[:-100])
    save_world_displacement(field * np.nan, np.eye(4), folder / "nan.nii.gz")
    text = "#Insight Transform File V1.0\n#Transform 0\nTransform: {}\nParameters: {}\nFixedParameters: 0 0 0\n"
    (folder / "singular.tfm").write_text(text.format("AffineTransform_double_3_3", "1 0 0 0 1 0 0 0 0 0 0 0"))
    (folder / "unknown.tfm").write_text(text.format("TeleportTransform_double_3_3", "1 2 3"))
    two = text.format("AffineTransform_double_3_3", "1 0 0 0 1 0 0 0 1 0 0 0")
    (folder / "two.tfm").write_text(
        two + "\n".join(two.splitlines()[1:]).replace("#Transform 0", "#Transform 1") + "\n"
    )
    return {
        "missing.h5": "no such transform file",
        "junk.h5": "not an HDF5 file",
        "empty.h5": "not an HDF5 file",
        "junk.tfm": "cannot read it as a transform",
        "empty.tfm": "cannot read it as a transform",
        "junk.nii.gz": "displacement field",
        "odd.xyz": "must end with one of",
        "flat.tfm": "2-D",
        "spline.h5": "BSplineTransform, which is neither",
        "image.nii.gz": r"\(X, Y, Z, 1, 3\)",
        "intent.nii.gz": "intent",
        "cut.nii": "displacement field",
        "nan.nii.gz": "NaN",
        "singular.tfm": "singular",
        "unknown.tfm": "cannot read it",
        "two.tfm": "2 transforms",
    }


def test_bad_files(tmp_path):
    for name, message in bad_files(tmp_path).items():
        with pytest.raises(InputError, match=message):
            read_transforms(tmp_path / name)


def test_cut_off_composite(tmp_path):
    write_transform(make("oblique")[2], tmp_path / "a.h5")
    (tmp_path / "a.h5").write_bytes((tmp_path / "a.h5").read_bytes()[:3000])
    with pytest.raises(InputError, match="cannot read it"):
        read_transforms(tmp_path / "a.h5")


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


def test_failed_write_leaves_the_earlier_file(tmp_path, monkeypatch):
    def full(_transforms, path):
        with open(path, "wb") as stream:
            stream.write(b"half")
        raise RuntimeError("itkHDF5TransformIO.cxx:462:\nITK ERROR: H5Dclose failed")

    monkeypatch.setattr(itk, "transformwrite", full)
    (tmp_path / "transform.h5").write_bytes(b"earlier")
    with pytest.raises(OSError, match=r"could not write it \(ITK ERROR: H5Dclose failed\)"):
        write_transform(make("oblique")[2], tmp_path / "transform.h5")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"earlier"]


@pytest.mark.slow
def test_full_disk_leaves_the_earlier_file(tmp_path):
    pytest.importorskip("resource")  # not on Windows
    script = """
        import os, resource, sys
        import numpy as np
        from scripts.spatial.frame import Frame
        from scripts.spatial.transform import WorldTransform
        from scripts.formats.transform_files import write_transform
        field = np.random.default_rng(0).normal(size=(12, 12, 12, 3))
        transform = WorldTransform(np.eye(4), field, Frame((12, 12, 12), np.eye(4)))
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
        try:
            write_transform(transform, sys.argv[1])
        except OSError as error:
            print("refused:", error, flush=True)
        os._exit(0)  # HDF5 may crash when it is torn down with a file that it could not close
    """
    target = tmp_path / "transform.h5"
    target.write_bytes(b"earlier")
    paths = [p for p in sys.path if p]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(target)],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(paths), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert "refused:" in done.stdout and str(target) in done.stdout, done.stderr[-2000:]
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"earlier"]


GRID = frame((4, 4, 4))
BAD = {
    "no frame": (lambda: WorldTransform(np.eye(4), np.zeros((4, 4, 4, 3))), "needs its frame"),
    "other shape": (lambda: WorldTransform(np.eye(4), np.zeros((4, 4, 5, 3)), GRID), "must be that of its frame"),
    "NaN field": (lambda: WorldTransform(np.eye(4), np.full((4, 4, 4, 3), np.nan), GRID), "NaN"),
    "NaN affine": (lambda: WorldTransform(np.eye(4) * np.nan), "finite 4x4"),
    "zero affine": (lambda: WorldTransform(np.diag((0.0, 1, 1, 1))), "singular"),
    "flat affine": (lambda: WorldTransform.from_network(OBLIQUE, OTHER, torch.zeros(3, 4)), "singular"),
    "two affines": (lambda: WorldTransform.from_network(OBLIQUE, OTHER, AFFINE.repeat(2, 1, 1)), "one affine"),
    "two maps": (
        lambda: WorldTransform.from_network(OBLIQUE, OTHER, AFFINE, full_map().repeat(2, 1, 1, 1, 1)),
        "need one",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    build, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        build()
