"""Motion of a series that is known is found, told and taken away; interrupted runs go on; memory does not grow."""

import csv
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import affine_transform

from motion_cases import FIXED, head, motion
from refusals import one_line
from scripts.api import series
from scripts.cli import main
from scripts.registration import series as module

MOTIONS = [motion((0.8, -0.5, 0.3), (0.4, -0.6, 0.2)), motion((0.2, 0.4, -0.6), (-0.2, 0.3, 0.7)), np.eye(4),
    motion((-1.5, 2.0, 1.0), (2.0, -1.0, 1.5)), motion((-1.2, 1.8, 1.4), (1.5, -1.2, 1.8))]  # fmt: skip
OPTIONS = {"device": "cpu", "threads": 1}


def volumes(motions=MOTIONS):
    """The head of another grid after each motion, with noise, ``(D, H, W, N)``."""
    random, found = np.random.default_rng(0), []
    for matrix in motions:
        voxels = np.linalg.inv(FIXED.affine) @ np.linalg.inv(matrix) @ FIXED.affine
        moved = affine_transform(head(), voxels[:3, :3], voxels[:3, 3], order=3)
        found.append(np.abs(moved + random.normal(0, 0.01, FIXED.shape)).astype(np.float32))
    return np.stack(found, axis=-1)


def save(path, array):
    image = nib.Nifti1Image(array, FIXED.affine)
    image.header.set_zooms((*image.header.get_zooms()[:3], 2.5))
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, path)
    return path


@pytest.fixture(scope="module")
def moving(tmp_path_factory):
    return save(tmp_path_factory.mktemp("series") / "moving.nii.gz", volumes())


@pytest.fixture(scope="module")
def folder(moving, tmp_path_factory):
    folder = tmp_path_factory.mktemp("result") / "out"
    assert main(["series", "--moving", str(moving), "--output", str(folder), "--device", "cpu"]) == 0
    return folder


def off(found, truth):
    points = FIXED.voxel_to_world(np.argwhere(head() > 0.1)[::20])
    return np.linalg.norm(found.points(points) - (points @ truth[:3, :3].T + truth[:3, 3]), axis=1).mean()


def test_known_motion_is_found(folder):
    found = module.Series.read(folder)
    errors = [off(transform, truth) for transform, truth in zip(found.transforms, MOTIONS, strict=True)]
    assert np.mean(errors) < 0.1 and max(errors) < 0.15


def test_parameters_are_those_of_the_transforms(folder):
    """Shifts and turns by SimpleITK's reading of the files, framewise displacement by its definition."""
    with open(folder / "motion.tsv", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    centre, before = FIXED.centre * (-1, -1, 1), None
    for number, row in enumerate(rows):
        transform = sitk.ReadTransform(str(folder / f"transforms/{number:04d}.tfm"))
        assert transform.GetName() == "Euler3DTransform"
        shift = (np.array(transform.TransformPoint(centre.tolist())) - centre) * (-1, -1, 1)
        np.testing.assert_allclose([float(row[f"trans_{axis}_mm"]) for axis in "xyz"], shift, atol=1e-5)
        matrix = np.array(transform.GetMatrix()).reshape(3, 3) * np.outer((-1, -1, 1), (-1, -1, 1))
        turns = [
            np.arctan2(matrix[2, 1], matrix[2, 2]),
            -np.arcsin(matrix[2, 0]),
            np.arctan2(matrix[1, 0], matrix[0, 0]),
        ]
        degrees = [float(row[f"rot_{axis}_deg"]) for axis in "xyz"]
        np.testing.assert_allclose(degrees, np.degrees(turns), atol=1e-4)
        now = np.concatenate([shift, 50 * np.array(turns)])
        expected = "n/a" if before is None else pytest.approx(np.abs(now - before).sum(), abs=1e-4)
        displacement = row["framewise_displacement_mm"]
        assert (displacement if before is None else float(displacement)) == expected
        before = now


def test_moved_volumes_are_those_of_simpleitk(folder, moving):
    result, source = nib.load(folder / "moved.nii.gz"), nib.load(moving)
    assert result.shape == source.shape and result.header.get_zooms()[3] == 2.5
    assert result.header.get_xyzt_units() == ("mm", "sec")
    np.testing.assert_allclose(result.affine, source.affine)
    image = sitk.ReadImage(str(moving), sitk.sitkFloat32)
    size = [*image.GetSize()[:3], 0]
    for number in range(len(MOTIONS)):
        volume = sitk.Extract(image, size, [0, 0, 0, number])
        transform = sitk.ReadTransform(str(folder / f"transforms/{number:04d}.tfm"))
        lowest = float(sitk.GetArrayViewFromImage(volume).min())
        expected = sitk.GetArrayFromImage(sitk.Resample(volume, volume, transform, sitk.sitkLinear, lowest)).T
        np.testing.assert_allclose(result.dataobj[..., number], expected, atol=1e-4)
    mean = nib.load(folder / "mean.nii.gz").get_fdata()
    still = np.asarray(source.dataobj)[..., 2]
    inner = head() > 0.1
    before = np.std(np.asarray(source.dataobj), axis=-1)[inner].mean()
    assert np.std(np.asarray(result.dataobj), axis=-1)[inner].mean() < 0.6 * before
    assert np.corrcoef(mean[inner], still[inner])[0, 1] > 0.97


def test_files_of_volumes_onto_a_fixed_image(tmp_path):
    """Each volume a file; the fixed image lies elsewhere, and a similarity has a column for its scale."""
    files = []
    for number, array in enumerate(np.moveaxis(volumes(MOTIONS[:2]), -1, 0)):
        files.append(tmp_path / f"{number}.nii.gz")
        nib.save(nib.Nifti1Image(array, motion((3, 0, 5), (10, -5, 3)) @ FIXED.affine), files[-1])
    nib.save(nib.Nifti1Image(head(), FIXED.affine), tmp_path / "fixed.nii.gz")
    found = series(files, tmp_path / "out", fixed=tmp_path / "fixed.nii.gz", transform="similarity", **OPTIONS)
    for transform, truth in zip(found.transforms, MOTIONS[:2], strict=True):
        assert off(transform, motion((3, 0, 5), (10, -5, 3)) @ truth) < 0.2
    np.testing.assert_allclose(found.motion["scale"], 1, atol=0.01)


def test_an_interrupted_run_goes_on(moving, folder, tmp_path, monkeypatch):
    """What was found is not sought again, and the result is that of a run in one go; a run that is done is read."""
    count, search = [], module._Search.__call__

    def stopping(self, *arguments):
        count.append(1)
        if len(count) == 8:
            raise KeyboardInterrupt
        return search(self, *arguments)

    monkeypatch.setattr(module._Search, "__call__", stopping)
    with pytest.raises(KeyboardInterrupt):
        series(moving, tmp_path / "out", device="cpu", seed=0)
    assert not (tmp_path / "out/metrics.json").exists()
    series(moving, tmp_path / "out", device="cpu", seed=0)
    assert len(count) == 1 + 2 * len(MOTIONS)
    assert (tmp_path / "out/motion.tsv").read_text() == (folder / "motion.tsv").read_text()
    assert not (tmp_path / "out/unfinished").exists()
    again = series(moving, tmp_path / "out", device="cpu", seed=0)
    assert len(count) == 1 + 2 * len(MOTIONS) and len(again.transforms) == len(MOTIONS)


def test_memory_does_not_grow_with_volumes(tmp_path, monkeypatch):
    monkeypatch.setattr(module._Search, "__call__", lambda self, *arguments: np.eye(4))
    peaks, size = {}, head().nbytes
    for run, count in enumerate((3, 3, 40, 40)):  # the first loads what is loaded once; threads of others may allocate
        path = save(tmp_path / f"{count}.nii.gz", np.repeat(volumes(MOTIONS[:1]), count, axis=-1))
        tracemalloc.start()
        series(path, tmp_path / f"out{run}", **OPTIONS)
        peak = tracemalloc.get_traced_memory()[1]
        peaks[count] = peak if run < 2 else min(peak, peaks.get(count, peak))
        tracemalloc.stop()
    assert peaks[40] < peaks[3] + 2 * size


REFUSED = {
    "one volume": ({"moving": "one.nii.gz"}, "not 4-D, its shape is (40, 46, 36)"),
    "a series of one": ({"moving": "single.nii.gz"}, "a series of 1 volumes; give 2 at least"),
    "no file": ({"moving": []}, "moving: a series of 0 volumes"),
    "nothing": ({"moving": "absent.nii.gz"}, "absent.nii.gz: file does not exist"),
    "no series": ({"moving": "text.txt"}, "give a 4-D .nii.gz or several volumes"),
    "cut off": ({"moving": "cut.nii.gz"}, "truncated"),
    "constant": ({"moving": "constant.nii.gz"}, "volume 1: constant"),
    "over itself": ({"moving": "out/moved.nii.gz", "output": "out"}, "would be overwritten by the result"),
    "a place": ({"initialisation": "moments"}, "initialisation: without a fixed image"),
    "bent": ({"transform": "deformable"}, "give one of rigid, similarity, affine"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, moving, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nib.save(nib.Nifti1Image(head(), FIXED.affine), "one.nii.gz")
    save("single.nii.gz", volumes(MOTIONS[:1]))
    constant = volumes(MOTIONS[:2])
    constant[..., 1] = 3
    save("constant.nii.gz", constant)
    (tmp_path / "text.txt").write_text("none")
    (tmp_path / "cut.nii.gz").write_bytes(moving.read_bytes()[:200_000])
    (tmp_path / "out").mkdir()
    (tmp_path / "out/moved.nii.gz").write_bytes(moving.read_bytes())
    options, words = REFUSED[name]
    with one_line(words):
        series(options.pop("moving", moving), options.pop("output", "result"), **OPTIONS, **options)
