"""A list of pairs in one run: resumed, isolated, split over processes, summed up."""

import csv
import json
import os
import shutil
from collections import Counter

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter

from image_files import series
from register_cases import GRID, write_pair
from scripts.cli import main
from scripts.registration import PairWriter, batch


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    files = write_pair(folder, "alike")
    keys = ("fixed", "moving", "fixed_label", "moving_label", "fixed_mask")
    rows = [
        {"name": "first", **{key: files[key].name for key in keys}},
        {"name": "second", "fixed": files["moving"].name, "moving": files["fixed"].name},
        {"name": "third", "fixed": files["fixed"].name, "moving": files["fixed"].name},
    ]
    with open(folder / "pairs.csv", "w", encoding="utf-8", newline="") as stream:
        table = csv.DictWriter(stream, ["name", *keys], restval="")
        table.writeheader()
        table.writerows(rows)
    return folder / "pairs.csv"


def arguments(pairs, output, *options):
    line = ["register", "--pairs", str(pairs), "--output", str(output), "--threads", "1", "--no-report", *GRID]
    return [*line, *options]


def times(output):
    return {path.parent.name: path.stat().st_mtime_ns for path in output.glob("*/metrics.json")}


def test_list_is_registered_summed_up_and_not_done_twice(pairs, tmp_path, capsys):
    assert main(arguments(pairs, tmp_path)) == 0
    first = times(tmp_path)
    assert set(first) == {"first", "second", "third"}
    with open(tmp_path / "pairs.csv", encoding="utf-8") as stream:
        rows = {row["name"]: row for row in csv.DictReader(stream)}
    assert float(rows["first"]["dice_final"]) > float(rows["first"]["dice_before"])
    assert rows["second"]["dice_final"] == "" and float(rows["second"]["ncc_final"]) > 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["pairs"] == 3 and summary["folds"] == 0
    assert summary["dice_final"] == pytest.approx(float(rows["first"]["dice_final"]))
    found = Counter(row["verdict"] for row in rows.values())
    assert summary["verdicts"] == {outcome: found[outcome] for outcome in ("PASS", "CHECK", "FAIL")}
    assert found["PASS"] >= 2 and not found["FAIL"]
    doubts = [entry["doubt"] for entry in summary["by_doubt"]]
    assert doubts == sorted(doubts, reverse=True) and summary["by_doubt"][-1]["name"] == "third"
    assert float(rows["third"]["doubt"]) == doubts[-1]
    # The same again does nothing; a pair that is missing, or another setting, is done anew.
    assert main(arguments(pairs, tmp_path)) == 0 and times(tmp_path) == first
    shutil.rmtree(tmp_path / "second")
    assert main(arguments(pairs, tmp_path)) == 0
    second = times(tmp_path)
    assert second["first"] == first["first"] and second["third"] == first["third"]
    assert second["second"] > first["second"] and main(arguments(pairs, tmp_path, "--transform", "affine")) == 0
    assert all(value > second[name] for name, value in times(tmp_path).items())


def test_strict_ends_with_its_own_status_where_a_verdict_is_fail(pairs, tmp_path, capsys):
    """A pair of noise is registered and written as any other, and found again when there is nothing to do."""
    files = shutil.copytree(pairs.parent, tmp_path / "list")
    shape, affine = (image := nib.load(files / "moving.nii.gz")).shape, image.affine
    noise = gaussian_filter(np.random.default_rng(0).normal(size=shape), 1.5)
    nib.save(nib.Nifti1Image(noise.astype(np.float32), affine), files / "noise.nii.gz")
    (files / "two.csv").write_text(
        "name,fixed,moving\nnoise,fixed.nii.gz,noise.nii.gz\nsame,fixed.nii.gz,fixed.nii.gz\n"
    )
    out = tmp_path / "out"
    line = arguments(files / "two.csv", out, "--uncertainty")
    for _ in range(2):
        assert main([*line, "--strict"]) == 3 and "verdict FAIL of noise; see the report" in capsys.readouterr().err
    assert main(line) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert [entry["name"] for entry in summary["by_doubt"]] == ["noise", "same"]
    verdict = json.loads((out / "noise" / "metrics.json").read_text())["verdict"]
    assert verdict["outcome"] == "FAIL" and verdict["reasons"] and verdict["advice"] and verdict["least_sure"]
    maps = [nib.load(out / name / "uncertainty.nii.gz") for name in ("same", "noise")]
    fixed = nib.load(files / "fixed.nii.gz")
    assert all(one.shape == fixed.shape and np.allclose(one.affine, fixed.affine) for one in maps)
    same, other = (np.median(one.get_fdata()) for one in maps)
    assert 0 <= same < other


def test_failing_pair_does_not_stop_the_others(pairs, tmp_path, capsys):
    spoiled = tmp_path / "list"
    shutil.copytree(pairs.parent, spoiled)
    text = (spoiled / "pairs.csv").read_text().replace("second,moving.nii.gz", "second,broken.nii.gz")
    (spoiled / "pairs.csv").write_text(text)
    (spoiled / "broken.nii.gz").write_bytes((spoiled / "moving.nii.gz").read_bytes()[:2000])
    out = tmp_path / "out"
    assert main(arguments(spoiled / "pairs.csv", out)) == 1
    shown = capsys.readouterr().err
    assert "second: failed: " in shown and "broken.nii.gz" in shown and "1 of 3 pairs failed" in shown
    assert set(times(out)) == {"first", "third"} and not (out / "second").exists()
    failed = json.loads((out / "failed.json").read_text())
    assert list(failed) == ["second"] and "broken.nii.gz" in failed["second"]["error"]
    # Mended, the same command does what is missing, and forgets the failure.
    before = times(out)
    shutil.copy(spoiled / "moving.nii.gz", spoiled / "broken.nii.gz")
    assert main(arguments(spoiled / "pairs.csv", out)) == 0
    assert {name: value for name, value in times(out).items() if name in before} == before
    assert "second" in times(out) and not (out / "failed.json").exists()


@pytest.mark.parametrize("world", [2, 5])
def test_processes_share_a_list(pairs, tmp_path, monkeypatch, world):
    """What torchrun tells each process; more processes than pairs are no fault."""
    done = []
    for rank in range(world):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(world))
        assert main(arguments(pairs, tmp_path, "--preset", "affine-opt")) == 0
        new = set(times(tmp_path)) - set(done)
        done += sorted(new)
        assert len(new) == len(range(rank, 3, world))
    assert sorted(done) == ["first", "second", "third"]
    assert json.loads((tmp_path / "summary.json").read_text())["pairs"] == 3


def kinds(folder):
    """A pair of each kind of image whose voxels are in several files or elsewhere; name → entry, file to change."""
    volume = np.arange(6 * 7 * 8, dtype=np.int16).reshape(8, 7, 6)
    image = sitk.GetImageFromArray(volume)
    for name in ("a.mhd", "b.nhdr", "c.nii.gz"):
        sitk.WriteImage(image, str(folder / name))
    series(folder / "dicom")
    plain = {"fixed": folder / "c.nii.gz", "moving": folder / "c.nii.gz"}
    slices = sorted((folder / "dicom").iterdir())
    return {
        "mhd": ({**plain, "fixed": folder / "a.mhd"}, folder / "a.raw"),
        "nhdr": ({**plain, "moving": folder / "b.nhdr"}, next(folder.glob("b.raw*"))),
        "dicom": ({**plain, "moving": folder / "dicom"}, slices[1]),
        "label": ({**plain, "fixed_label": folder / "a.mhd"}, folder / "a.raw"),
        "mask": ({**plain, "moving_mask": folder / "b.nhdr"}, next(folder.glob("b.raw*"))),
        "plain": (plain, folder / "c.nii.gz"),
    }


def batch_of(entry, folder, **facts):
    data = [{"name": "a", **{key: str(path) for key, path in entry.items()}}]
    return batch.Batch(None, data, PairWriter(folder / "out"), facts)


@pytest.mark.parametrize("kind", ["mhd", "nhdr", "dicom", "label", "mask", "plain"])
def test_a_request_is_of_every_file_that_holds_voxels(tmp_path, kind):
    """Size and time of change, whichever file they are of."""
    entry, file = kinds(tmp_path)[kind]
    whole = batch_of(entry, tmp_path)
    first = whole._request(0)
    assert whole._request(0) == first
    state = file.stat()
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    second = whole._request(0)
    assert second != first
    with open(file, "ab") as stream:
        stream.write(b"0")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert whole._request(0) not in (first, second)


def test_a_request_is_of_slices_that_come_and_of_the_weights(tmp_path):
    entry, file = kinds(tmp_path)["dicom"]
    first = batch_of(entry, tmp_path)._request(0)
    shutil.copy(file, file.with_name("another.dcm"))
    assert batch_of(entry, tmp_path)._request(0) != first
    (file.with_name("another.dcm")).unlink()
    assert batch_of(entry, tmp_path)._request(0) == first
    assert batch_of(entry, tmp_path, weights_sha256="0")._request(0) != first
