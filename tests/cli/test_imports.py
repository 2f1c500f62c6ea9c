"""What each command loads: one that only uses a transform waits for no library of training and registration."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli_cases import make_pair

BUNDLE = Path(__file__).resolve().parents[2] / "bundle"
HEAVY = {"torch", "monai", "itk", "ignite", "mlflow", "matplotlib", "pandas"}
T, R = ("--transform", "transform.h5"), ("--reference", "fixed.nii.gz")
LABELS = ("--fixed-label", "fixed_seg.nii.gz", "--moved-label", "moved_seg.nii.gz")
POINTS = ("--fixed-points", "fixed.csv", "--moving-points", "moving.csv", "--space", "LPS")
COMMANDS = {  # name -> words, status
    "help": (["--help"], 0),
    "help of register": (["register", "--help"], 0),
    "version": (["--version"], 0),
    "wrong word": (["apply", "--foo"], 2),
    "wrong file": (["apply", *T, *R, "--input", "no.nii", "--output", "o.nii"], 1),
    "wrong file to register": (["register", "--fixed", "no.nii", "--moving", "moving.nii.gz", "--output", "o"], 1),
    "bad file": (["apply", "--transform", "fixed.csv", *R, "--input", "seg.nii.gz", "--output", "o.nii"], 1),
    "apply": (["apply", *T, *R, "--input", "moving.nii.gz", "--output", "o.nii.gz"], 0),
    "apply, inverse": (["apply", *T, *R, "--inverse", "--input", "fixed.nii.gz", "--output", "i.nii.gz"], 0),
    "apply, labels": (["apply", *T, *R, "--label", "--input", "seg.nii.gz", "--output", "o.mha"], 0),
    "apply, affine": (["apply", "--transform", "affine.tfm", *R, "--input", "moving.nii.gz", "--output", "o.nrrd"], 0),
    "apply, points": (["apply", *T, "--input", "fixed.csv", "--space", "LPS", "--output", "o.csv"], 0),
    "jacobian": (["jacobian", *T, *R, "--output", "j.nii.gz"], 0),
    "evaluate, labels": (["evaluate", *LABELS, "--output", "m.json"], 0),
    "evaluate": (["evaluate", *LABELS, *POINTS, *T, *R, "--fixed", "fixed.nii.gz", "--moved", "moved.nii.gz"], 0),
}
FUNCTIONS = """
import scripts as avsm
transform = avsm.load_transform("transform.h5")
avsm.apply(transform, "moving.nii.gz", "fixed.nii.gz")
avsm.jacobian(transform, "fixed.nii.gz")
avsm.evaluate(fixed_label="fixed_seg.nii.gz", moved_label="moved_seg.nii.gz")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("pair")
    make_pair(path, moved=True)
    return path


def loaded(code, folder):
    """The packages that a process has imported after some lines of Python."""
    code += "\nimport sys\nprint('LOADED', *{name.split('.')[0] for name in sys.modules})"
    environment = os.environ | {"PYTHONPATH": str(BUNDLE)}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split("LOADED")[1].split())


def command(words):
    """Lines of Python that run the command and tell its exit status."""
    lines = "from scripts.cli import main\ntry: status = main({})\nexcept SystemExit as error: status = error.code\n"
    return lines.format(words)


@pytest.mark.parametrize(("words", "status"), COMMANDS.values(), ids=COMMANDS)
def test_commands_load_nothing_heavy(words, status, folder):
    assert not loaded(command(words) + f"assert status == {status}, status", folder) & HEAVY


def test_functions_load_nothing_heavy(folder):
    assert not loaded(FUNCTIONS, folder) & HEAVY


def test_errors_about_files_load_no_library_at_all(folder):
    """They answer before the libraries that would read the files are there."""
    for name in ("help", "version", "wrong file"):
        assert not loaded(command(COMMANDS[name][0]), folder) & {"scipy", "nibabel", "SimpleITK", "h5py"}


def test_register_loads_what_it_uses(folder):
    """Registering needs PyTorch and parts of MONAI, not what trains, tracks, draws or wraps ITK."""
    words = ["register", "--fixed", "fixed.nii.gz", "--moving", "moving.nii.gz", "--output", "out", "--no-report"]
    found = loaded(command([*words, "--grid", "16", "16", "16"]) + "assert status == 0, status", folder)
    assert not found & {"ignite", "mlflow", "matplotlib", "itk", "pandas"}
