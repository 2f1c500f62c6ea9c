"""``avsm register --bids``: which images go together, and results by the standard's names, resumed."""

import json
import shutil
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter

from scripts.cli import main
from scripts.data.bids import bids_pairs
from scripts.settings import BUNDLE

SHAPE = (20, 22, 18)


def dataset(folder, subjects=2, sessions=("1", "2")):
    """Generated bodies."""
    folder.mkdir()
    (folder / "dataset_description.json").write_text(json.dumps({"Name": "made", "BIDSVersion": "1.9.0"}))
    (folder / "README").write_text("Generated bodies for a test of a registration, of no people at all.\n")
    for subject in range(subjects):
        for number, session in enumerate(sessions):
            random = np.random.default_rng(subject)
            body = gaussian_filter(random.normal(size=SHAPE), 2) + 0.01 * np.random.default_rng(99).normal(size=SHAPE)
            name = f"sub-0{subject + 1}" + (f"_ses-{session}" if session else "")
            place = folder.joinpath(*name.split("_"), "anat")
            place.mkdir(parents=True)
            image = nib.Nifti1Image((1000 * np.roll(body, number, 0)).astype(np.float32), np.diag([2, 2, 2, 1]))
            image.header.set_xyzt_units("mm", "sec")
            nib.save(image, place / f"{name}_T1w.nii.gz")
    return folder


@pytest.mark.parametrize(
    ("sessions", "template", "names", "ends"),
    [
        (("1", "2", "3"), None, ["sub-01_ses-2", "sub-01_ses-3", "sub-02_ses-2", "sub-02_ses-3"], ("ses2", "ses1")),
        (("", ), "tpl-MNI_T1w.nii.gz", ["sub-01", "sub-02"], ("T1w", "MNI")),
        (("a", ), "my_own.nii", ["sub-01_ses-a", "sub-02_ses-a"], ("T1w", "myown")),
    ],
)  # fmt: skip
def test_what_goes_with_what(tmp_path, sessions, template, names, ends):
    pairs = bids_pairs(
        dataset(tmp_path / "in", sessions=sessions), tmp_path / "out", template=template and tmp_path / template
    )
    assert [pair["name"] for pair in pairs] == names
    assert (pairs[0]["from"], pairs[0]["to"]) == ends


def test_results_have_the_standards_names_and_are_resumed(tmp_path, monkeypatch):
    source, output = dataset(tmp_path / "in"), tmp_path / "out"
    words = ["register", "--bids", str(source), "--output", str(output), "--transform", "rigid", "--no-report"]
    assert main(words) == 0
    names = sorted(path.name for path in (output / "sub-01").rglob("*") if path.is_file())
    stem = "sub-01_ses-2_"
    assert names == [
        f"{stem}from-ses1_to-ses2_mode-image_xfm.h5",
        f"{stem}from-ses1_to-ses2_mode-image_xfm.json",
        f"{stem}from-ses2_to-ses1_mode-image_xfm.h5",
        f"{stem}from-ses2_to-ses1_mode-image_xfm.json",
        f"{stem}space-ses1_desc-avsm_T1w.json",
        f"{stem}space-ses1_desc-avsm_T1w.nii.gz",
    ]
    assert json.loads((output / "dataset_description.json").read_text())["DatasetType"] == "derivative"
    folder = output / "sub-01" / "ses-2" / "anat"
    there = sitk.ReadTransform(str(folder / names[2])).TransformPoint((-10.0, -10.0, 10.0))
    np.testing.assert_allclose(there, (-12.0, -10.0, 10.0), atol=0.3)  # ITK's: points of session 1 to session 2, LPS

    def never(*arguments, **options):
        raise AssertionError("registered again")

    monkeypatch.setattr("scripts.registration.registrar.Registrar.register", never)
    assert main(words) == 0
    assert sorted(path.name for path in (output / "sub-01").rglob("*") if path.is_file()) == names


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_six_subjects_killed_resumed_and_valid(tmp_path):
    """As a process that is killed after two pairs; then by each validator that is there, old and new.

    The old one, npm's, knows derivatives within their data set alone.
    """
    source = dataset(tmp_path / "in", subjects=6)
    output = source / "derivatives" / "avsm"
    code = "import sys; from scripts.cli import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", code, "register", "--bids", source, "--output", output, "--transform", "rigid"]
    how = {"cwd": BUNDLE, "stderr": subprocess.PIPE, "text": True}
    killed = subprocess.Popen(words, **how)
    done = []
    while len(done) < 2:
        assert killed.poll() is None, killed.stderr.read()
        time.sleep(0.05)
        done = list(output.glob("sourcedata/avsm/*/metrics.json"))
    killed.kill()
    killed.communicate()
    done = {path: path.stat().st_mtime_ns for path in output.glob("sourcedata/avsm/*/metrics.json")}
    assert 2 <= len(done) < 6
    resumed = subprocess.run(words, **how, check=False)
    assert resumed.returncode == 0, resumed.stderr
    assert {path: path.stat().st_mtime_ns for path in done} == done  # not done again
    assert len(list(output.glob("sub-*/ses-2/anat/*_from-ses2_to-ses1_mode-image_xfm.h5"))) == 6
    checks = {"bids-validator": [source], "bids-validator-deno": [source, output]}
    checks = {program: folders for name, folders in checks.items() if (program := shutil.which(name))}
    if not checks:
        pytest.skip("needs a validator of BIDS: npm install bids-validator, or pip install bids-validator-deno")
    for program, folders in checks.items():
        for folder in folders:
            said = subprocess.run([program, folder], capture_output=True, text=True, check=False)
            assert said.returncode == 0 and "[ERR" not in said.stdout, said.stdout + said.stderr


BAD = {
    "no data set": (["--bids", "."], "is no BIDS data set"),
    "no images": (["--bids", "in", "--suffix", "T2w"], "named sub-*/[ses-*/]anat/*_T2w.nii.gz"),
    "both": (["--bids", "in", "--fixed", "in/README"], "give one of the two"),
    "alone": (["--template", "in/README", "--fixed", "in/README", "--moving", "in/README"], "need --bids"),
    "onto itself": (["--bids", "in"], "in: is another data set"),
    "labels": (["--bids", "in", "--label-weight", "1"], "--label-weight: --bids has no label maps"),
    "missing": (["--bids", "in", "--template", "no.nii"], "no.nii: file does not exist"),
}


@pytest.mark.parametrize("name", BAD)
def test_refusals(tmp_path, monkeypatch, capsys, name):
    dataset(tmp_path / "in", 1)
    monkeypatch.chdir(tmp_path)
    words, message = BAD[name]
    output = "in" if name == "onto itself" else "out"
    try:
        status = main(["register", *words, "--output", output])
    except SystemExit as error:
        status = error.code
    error = capsys.readouterr().err
    assert status and message in error and error.count("\n") == 1
