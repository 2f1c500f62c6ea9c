"""Whole registrations by ``avsm register``: what is written, what others read of it, and what it says."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from register_cases import GRIDS, register, write_pair
from scripts.cli import main
from scripts.formats.images import read_image
from scripts.formats.transform_files import read_transforms

FILES = (
    "affine.tfm", "displacement.nii.gz", "inverse_transform.h5", "jacobian.nii.gz", "metrics.json", "moved.nii.gz",
    "moved_label.nii.gz", "pairs.csv", "report.html", "report.png", "summary.json", "transform.h5",
)  # fmt: skip


@pytest.fixture(scope="module", params=[name for name in GRIDS if name != "alike"])
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    files = write_pair(folder, request.param)
    metrics = register(files, folder / "out", "--preset", "instance", "--initialisation", "geometry")
    return files, folder / "out", metrics


def sitk_moved(files, transform, fill):
    fixed, moving = (sitk.ReadImage(str(files[role]), sitk.sitkFloat64) for role in ("fixed", "moving"))
    moved = sitk.Resample(moving, fixed, transform, sitk.sitkLinear, fill, sitk.sitkFloat64)
    return sitk.GetArrayFromImage(moved).transpose(2, 1, 0)


def interior(shape, margin=2):
    return tuple(slice(margin, -margin) for _ in shape)


def points(files, count=200, centres=False):
    """Points inside the fixed image, RAS mm; ``centres``: of its voxels."""
    where = read_image(files["fixed"]).frame
    index = np.random.default_rng(0).uniform(0.1, 0.9, (count, 3)) * (np.asarray(where.shape) - 1)
    return where.voxel_to_world(np.rint(index) if centres else index)


def test_files_and_grid(run):
    files, out, metrics = run
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    fixed = nib.load(files["fixed"])
    for name in ("moved", "moved_label", "jacobian"):
        image = nib.load(out / f"{name}.nii.gz")
        assert image.shape == fixed.shape
        np.testing.assert_allclose(image.affine, fixed.affine, atol=1e-5)
    assert nib.load(out / "moved.nii.gz").get_data_dtype() == np.float32
    field = nib.load(out / "displacement.nii.gz")
    assert field.shape == (*fixed.shape, 1, 3) and int(field.header["intent_code"]) == 1007
    assert set(np.unique(np.asarray(nib.load(out / "moved_label.nii.gz").dataobj))) <= set(range(9))
    assert metrics["folds"] == 0


def test_registration_improves_and_says_so(run):
    _, _, metrics = run
    for values in (metrics["similarity"]["ncc"], metrics["similarity"]["mk_lncc"], metrics["labels"]["mean"]["dice"]):
        assert values["before"] < values["final"] <= 1
    assert metrics["optimisation"]["after"] <= metrics["optimisation"]["before"]
    assert metrics["inverse_consistency_mm"]["mean"] < 0.1 and metrics["inverse_consistency_mm"]["p99"] < 0.3
    assert set(metrics["labels"]["mean"]) == {"dice", "hd95", "assd"}
    assert metrics["seconds"]["total"] > 0 and metrics["settings"]["grid"] == [48, 64, 48]
    assert metrics["weights_sha256"] and metrics["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize("name", ["transform.h5", "displacement.nii.gz"])
def test_simpleitk_moves_the_image_as_we_do(run, name):
    files, out, _ = run
    if name.endswith(".h5"):
        transform = sitk.ReadTransform(str(out / name))
    else:
        transform = sitk.DisplacementFieldTransform(sitk.ReadImage(str(out / name), sitk.sitkVectorFloat64))
    ours = nib.load(out / "moved.nii.gz").get_fdata()
    moving = nib.load(files["moving"]).get_fdata()
    theirs = sitk_moved(files, transform, float(moving.min()))
    inner = interior(ours.shape)
    assert np.abs(ours - theirs)[inner].max() < 1e-3 * np.ptp(moving)
    # The field of the fixed grid is the transform at its voxels; between them it is interpolated.
    ours = points(files, centres=not name.endswith(".h5"))
    for point, expected in zip(ours, read_transforms(out / "transform.h5")[0].apply(ours), strict=True):
        lps = transform.TransformPoint((-point[0], -point[1], point[2]))
        np.testing.assert_allclose(lps, expected * (-1, -1, 1), atol=1e-2)


def test_ants_moves_the_image_as_we_do(run):
    ants = pytest.importorskip("ants")
    files, out, _ = run
    fixed, moving = (ants.image_read(str(files[role])) for role in ("fixed", "moving"))
    ours = nib.load(out / "moved.nii.gz").get_fdata()
    inner = interior(ours.shape)
    for name in ("transform.h5", "displacement.nii.gz"):
        theirs = ants.apply_transforms(
            fixed, moving, [str(out / name)], interpolator="linear", defaultvalue=float(moving.min())
        ).numpy()
        assert np.abs(ours - theirs)[inner].max() < 1e-3 * np.ptp(moving.numpy()), name
    import pandas

    lps = points(files) * (-1, -1, 1)
    table = pandas.DataFrame(lps, columns=["x", "y", "z"])
    theirs = ants.apply_transforms_to_points(3, table, [str(out / "transform.h5")])[["x", "y", "z"]].to_numpy()
    expected = read_transforms(out / "transform.h5")[0].apply(points(files)) * (-1, -1, 1)
    np.testing.assert_allclose(theirs, expected, atol=1e-2)


def test_inverse_brings_points_back(run):
    files, out, _ = run
    forward, back = (sitk.ReadTransform(str(out / f"{name}transform.h5")) for name in ("", "inverse_"))
    start = points(files) * (-1, -1, 1)
    error = [np.linalg.norm(np.subtract(back.TransformPoint(forward.TransformPoint(p)), p)) for p in start]
    assert np.mean(error) < 0.1 and np.max(error) < 1.0  # mm, a third of the finest voxel


def test_avsm_apply_makes_the_same_moved_image(run, tmp_path):
    files, out, _ = run
    line = ["apply", "--transform", out / "transform.h5", "--reference", files["fixed"], "--input", files["moving"]]
    minimum = nib.load(files["moving"]).get_fdata().min()
    line += ["--output", tmp_path / "again.nii.gz", "--default-value", minimum]
    assert main([str(word) for word in line]) == 0
    ours, again = (nib.load(path).get_fdata() for path in (out / "moved.nii.gz", tmp_path / "again.nii.gz"))
    assert np.abs(ours - again).max() < 1e-5 * np.ptp(ours)


def test_jacobian_image_is_that_of_the_transform(run, tmp_path):
    files, out, metrics = run
    line = ["jacobian", "--transform", out / "transform.h5", "--reference", files["fixed"], "--output"]
    assert main([str(word) for word in [*line, tmp_path / "j.nii.gz"]]) == 0
    ours, again = (nib.load(path).get_fdata() for path in (out / "jacobian.nii.gz", tmp_path / "j.nii.gz"))
    np.testing.assert_allclose(ours, again, atol=2e-3)
    assert metrics["jacobian"]["min"] == pytest.approx(ours.min(), abs=1e-5)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("pair"), "other sizes, spacings and axes")


def test_options(files, tmp_path):
    options = [
        "--preset", "fast", "--transform", "affine", "--dtype", "int16", "--learn2reg", "--no-report",
        "--initialisation", "moments",
    ]  # fmt: skip
    metrics = register(files, tmp_path, *options, "--interpolation", "bspline", masks=True)
    assert metrics["jacobian"]["std_log"] < 1e-4 and metrics["settings"]["network"]["vsvf_steps"] == 0
    assert metrics["initialisation"]["method"] == "moments" and not (tmp_path / "report.html").exists()
    assert nib.load(tmp_path / "moved.nii.gz").get_data_dtype() == np.int16
    assert sitk.ReadTransform(str(tmp_path / "transform.h5")).GetName() == "CompositeTransform"
    # Learn2Reg: the moving image looked up at index + displacement is the moved image.
    field = nib.load(tmp_path / "displacement_voxel.nii.gz").get_fdata()
    fixed, moving = (read_image(files[role]).frame for role in ("fixed", "moving"))
    index = (10, 12, 20)
    world = read_transforms(tmp_path / "transform.h5")[0].apply(fixed.voxel_to_world(index))
    np.testing.assert_allclose(field[index] + index, moving.world_to_voxel(world), atol=1e-3)


def test_own_extent_is_the_papers_normalisation(files, tmp_path):
    metrics = register(files, tmp_path, "--extent", "own", "--preset", "affine-opt", "--no-report")
    assert metrics["initialisation"]["method"] == "own field of view"
    # The initialisation maps box onto box, so it scales; it is part of the affine, which is all of this transform.
    np.testing.assert_allclose(
        np.asarray(metrics["affine"]["matrix_ras"]), read_transforms(tmp_path / "transform.h5")[0].linear, atol=1e-5
    )


def test_mask_limits_the_similarity(files, tmp_path):
    scores = [
        register(files, tmp_path / str(masks), "--transform", "affine", "--no-report", labels=False, masks=masks)[
            "similarity"
        ]
        for masks in (True, False)
    ]
    masked, unmasked = (score["mk_lncc"]["before"] for score in scores)
    assert masked != pytest.approx(unmasked, abs=1e-4)
