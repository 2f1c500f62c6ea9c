"""The application itself, as a user starts it: ``python app.py -i IN -o OUT -m models``."""

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from deploy_cases import APP, REPOSITORY, STUDY, knee_arrays, write_series, write_study
from dicom_reading import validate

from scripts.formats.images import read_image as read_volume
from scripts.formats.volumes import save_volume

pytestmark = pytest.mark.integrations

ITK_FILES = {"affine.tfm", "displacement.nii.gz", "inverse_transform.h5", "jacobian.nii.gz", "metrics.json",
    "moved.nii.gz", "transform.h5"}  # fmt: skip


def start(input_folder: Path, output: Path, models: Path, *options: str) -> subprocess.CompletedProcess:
    """Run the application from a folder that is not its own."""
    line = [sys.executable, APP / "app.py", "-i", input_folder, "-o", output, "-m", models, *options]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*map(str, line)], cwd=output.parent, env=env, capture_output=True, text=True, check=False)


def write_request(folder: Path, fixed: dict, moving: dict, **settings) -> None:
    rules = [{"name": "fixed", "conditions": fixed}, {"name": "moving", "conditions": moving}]
    (folder / "request.json").write_text(json.dumps({"selections": rules, "settings": settings}))


def write_knees(folder: Path) -> None:
    """A study of three series, of which the default rules mean two."""
    write_study(folder, "MR")
    ((array, where), _) = knee_arrays(seed=5)
    write_series(folder / "more", array, where, "MR", "localiser", 1)


def write_livers(folder: Path) -> None:
    """Two states of breathing of a real liver, in one frame of reference."""
    for role, state, number in (("fixed", "exhMaster", 3), ("moving", "cyc_3_10", 7)):
        image = read_volume(Path(os.environ["AVSM_DATA"], "eth_liver_4dmri", f"liver18_{state}.mha"))
        tags = {"BodyPartExamined": "LIVER", "Laterality": None, "frame_of_reference": f"{STUDY}.9"}
        write_series(folder, image.array, image.frame, "MR", role, number, **tags)


REAL = pytest.mark.skipif(not os.environ.get("AVSM_DATA"), reason="AVSM_DATA names the folder of the real data sets")


@pytest.fixture(scope="module", params=[write_knees, pytest.param(write_livers, marks=REAL)])
def run(request, tmp_path_factory, models):
    """A study, registered by the default settings."""
    folder = tmp_path_factory.mktemp("app")
    request.param(folder / "in")
    done = start(folder / "in", folder / "out", models)
    assert done.returncode == 0, done.stderr
    return folder, done


def test_results(run, models):
    folder, done = run
    out = folder / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "deformable_spatial_registration.dcm",
        "itk",
        "moved",
        "spatial_registration.dcm",
    ]
    assert {path.name for path in (out / "itk").iterdir()} >= ITK_FILES
    metrics = json.loads((out / "itk" / "metrics.json").read_text())
    outcome, values = metrics["verdict"]["outcome"], r"before 0\.\d+, affine 0\.\d+, final 0\.\d+"
    assert outcome in ("PASS", "CHECK", "FAIL")
    assert re.fullmatch(rf"{out}: {outcome}: NCC {values}; folds \d+(; .+)*", done.stdout.strip())
    assert metrics["similarity"]["ncc"]["final"] > metrics["similarity"]["ncc"]["before"] + 0.05
    assert metrics["settings"]["network"]["ckpt_path"] == str(models / "avsm" / "model.ts")
    if (folder / "in" / "more").exists():  # knees, which the weights know
        assert metrics["similarity"]["ncc"]["final"] > 0.8 and metrics["folds"] == 0


def test_dicom_results_are_valid(run):
    out = run[0] / "out"
    assert len(list((out / "moved").iterdir())) == len(list((run[0] / "in").glob("MR3*")))
    assert validate([*(out / "moved").iterdir(), *out.glob("*.dcm")]) == []


def test_no_second_result_in_one_folder(run, models):
    folder, _ = run
    before = {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*")}
    again = start(folder / "in", folder / "out", models)
    assert again.returncode == 1 and re.search(r"^error: .*a result is there already", again.stderr, re.MULTILINE)
    assert before == {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*")}


def test_two_files_and_settings(tmp_path, models):
    """NIfTI in: ITK files and nothing else out; the settings of the request decide."""
    (tmp_path / "in").mkdir()
    for role, (array, where) in zip(("fixed", "moving"), knee_arrays(), strict=True):
        save_volume(array, where.affine, tmp_path / "in" / f"{role}.nii.gz", np.float32)
    write_request(
        tmp_path / "in", {"File": "fixed.nii.gz"}, {"File": "moving.nii.gz"}, transform="affine", report=False
    )
    done = start(tmp_path / "in", tmp_path / "out", models)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["itk"]
    assert sitk.ReadTransform(str(tmp_path / "out" / "itk" / "transform.h5")).IsLinear()
    assert not (tmp_path / "out" / "itk" / "report.html").exists()


def bad_runs(folder: Path, models: Path):
    """Input folder, models folder and words of the line."""
    study = write_study(folder / "study")
    lone = folder / "lone"
    ((array, where), _) = knee_arrays()
    write_series(lone, array, where)
    wrong = write_study(folder / "wrong")
    write_request(wrong, {"SeriesInstanceUID": "1.2.3"}, {"SeriesInstanceUID": f"{STUDY}.7"})
    return {
        "models folder absent": (study, folder / "absent", ("absent", "--model does not exist")),
        "state dicts in it": (study, REPOSITORY / "bundle" / "models", ("holds no TorchScript avsm/model.ts",)),
        "single series": (lone, models, ("one image series only",)),
        "unknown UID": (wrong, models, ("no series for the fixed image", "1.2.3")),
    }


def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, models):
    for name, (where, model, words) in bad_runs(tmp_path, models).items():
        done = start(where, tmp_path / "out", model)
        assert done.returncode == 1, name
        lines = done.stderr.strip().splitlines()
        assert lines[-1].startswith("error: ") and all(word in lines[-1] for word in words), done.stderr
        assert len(lines) == 1 and not done.stdout, f"{name}: {done.stdout}{done.stderr}"
        assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir()), name


def test_pins_are_those_of_the_bundles_tests():
    """What both environments have is the same in both, and is what is installed here."""

    def pins(path: Path) -> dict[str, str]:
        lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
        return dict(line.split("==") for line in lines if "==" in line)

    ours, theirs = pins(APP / "requirements.txt"), pins(REPOSITORY / "constraints.txt")
    assert {name: theirs[name] for name in ours if name in theirs} == {n: v for n, v in ours.items() if n in theirs}
    # A wheel says for which machine it is built after a plus.
    assert ours == {name: metadata.version(name).split("+")[0] for name in ours}
