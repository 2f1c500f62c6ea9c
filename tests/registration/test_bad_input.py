"""What is wrong in a user's files or options is said in one line that names it, before any work, and leaves nothing.

Every case runs ``avsm register`` in this process and looks at its exit status, its whole screen (what C code writes
there, too) and every file in the folder. The network may not run. Every kind of image that is
refused: tests/formats; files that cannot be written: test_disk.py; the other commands: tests/cli.
"""

import gzip
import json
import os

import numpy as np
import pytest

from bad_files import (
    FOUR_D,
    NO_SPACING,
    OUT,
    PAIR,
    RGB,
    SHEAR,
    another_network,
    earlier,
    edited,
    moved_by,
    own_table,
    put,
    refusal,
    two_series,
    value,
)
from image_files import nifti, voxels
from scripts.cli import main
from scripts.networks import AVSM

FAST = ("--preset", "fast")


@pytest.fixture
def idle(monkeypatch):
    """No case may come as far as the network."""

    def register(*words, **options):
        raise AssertionError("the network was asked before its input was checked")

    monkeypatch.setattr(AVSM, "register", register)


IMAGES = {  # name -> what makes the file, its name (given as the moving image), words of the line
    "missing": (None, "no.nii.gz", "file does not exist; correct the path"),
    "truncated": (put("t.nii.gz", gzip.compress(nifti())[:-400]), "t.nii.gz", "gzip data truncated or damaged"),
    "NaN": (edited("m.nii.gz", value(np.nan), "t.nii.gz"), "t.nii.gz", "1 of 1188 voxels are NaN or Inf; replace"),
    "beyond float32": (edited("m.nii.gz", value(-1e300), "t.nii.gz", dtype=np.float64), "t.nii.gz",
        "of value -1e+300 are beyond 1e+37"),
    "constant": (edited("m.nii.gz", np.ones_like, "t.nii.gz"), "t.nii.gz", "constant image, every voxel is 1"),
    "4-D": (put("t.nii", FOUR_D), "t.nii", "not 3-D, its shape is (10, 12, 9, 2)"),
    "one slice": (put("t.nii", nifti(voxels(shape=(6, 7, 1)))), "t.nii", "every axis needs at least 2 voxels"),
    "RGB": (put("t.nii", nifti(RGB)), "t.nii", "RGB voxels, 3 values in each; save an image of one value per voxel"),
    "spacing 0, qform": (put("t.nii", NO_SPACING), "t.nii", "pixdim [0.0, 2.0, 3.0] must be positive numbers of mm"),
    "direction with shear": (put("t.nii", nifti(affine=SHEAR)), "t.nii",
        "off a right angle or unit length by 0.1961, more than 0.001; resam"),
    "two DICOM series": (two_series, "dicom", "2 DICOM series, 'series 1.2.3.4.5' (number"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "file", "words"), IMAGES.values(), ids=IMAGES)
def test_image(pair, weights, idle, capfd, caplog, make, file, words):
    if make is not None:
        make(pair)
    line = refusal(["register", *PAIR[:3], file, *OUT, "--preset", "fast", "--weights", weights], pair, capfd, caplog)
    assert file in line and words in line


LABEL = ("--moving-label", "t.nii.gz")
FILES = {  # name -> what makes a file, words after the pair and the output, words of the line
    "label on another grid": (None, ["--fixed-label", "m_label.nii.gz"], "label shape (11, 9, 12) differs from (10, 1"),
    "label elsewhere": (moved_by("m_label.nii.gz", 2, "t.nii.gz"), LABEL, "t.nii.gz: label affine differs by up to 2"),
    "label with fractions": (edited("m_label.nii.gz", lambda array: array / 2, "t.nii.gz"), LABEL,
        "t.nii.gz: label value 0.5 is not an inte"),
    "mask empty": (edited("f_mask.nii.gz", np.zeros_like, "t.nii.gz"), ["--fixed-mask", "t.nii.gz"],
        "t.nii.gz: empty mask, every"),
    "no overlap": (moved_by("m.nii.gz", 500, "far.nii.gz"), ["--moving", "far.nii.gz", "--initialisation", "header"],
        "far.nii.gz: its field of view does not overlap that of"),
    "type of the result": (None, ["--dtype", "uint8"],
        "m.nii.gz: output_dtype=uint8 cannot hold its values 0 to 1000; choose a wider type"),
    "over the moving image": (earlier("moved.nii.gz"), ["--moving", "out/moved.nii.gz"],
        "moved.nii.gz: would be overwritten by the result; w"),
    "over a mask": (earlier("moved_label.nii.gz"),
        ["--fixed", "m.nii.gz", "--fixed-mask", "./out/../out/moved_label.nii.gz"],
        "moved_label.nii.gz: would be overwritten by the result; write to another folder"),
    "output is a file": (None, ["--output", "f.nii.gz"], "f.nii.gz: output_dir can't be created"),
    "weights missing": (None, [*FAST, "--weights", "no.pt"], "no.pt: weights file not found"),
    "weights of another network": (another_network, [*FAST, "--weights", "other.pt"],
        "other.pt: weights do not fit the network (missing affine_net.",),
    "device absent": (None, ["--device", "cuda:97"], "device=cuda:97: cannot be used ("),
    "device without numbers": (None, ["--device", "meta"], "device=meta: cannot be used ("),
    "grid too large": (None, ["--grid", *["900"] * 3], "grid=[900, 900, 900]: has more than 134217728 voxels; give"),
    "grid voxels": (None, ["--grid-voxels", "999999999"], "--grid-voxels=999999999: give a number from 4096 to"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "options", "words"), FILES.values(), ids=FILES)
def test_file_or_setting(pair, weights, idle, capfd, caplog, make, options, words):
    if make is not None:
        make(pair)
    line = refusal(["register", *PAIR, *OUT, "--preset", "fast", "--weights", weights, *options], pair, capfd, caplog)
    assert words in line


USAGE = {  # words after `avsm register --output out`, words of the line
    "preset": ([*PAIR, "--preset", "demons"], "argument --preset: invalid choice: 'demons'"),
    "preset of no name": ([*PAIR, "--preset", ""], "argument --preset: '' is no name; correct it"),
    "model of no network": ([*PAIR, "--model", "general"],
        "--model: belongs to a network, and preset default uses none; give preset fast or"),
    "weights of none": ([*PAIR, "--preset", "best", "--weights", "w.pt"],
        "--weights: belongs to a network, and preset best uses none"),
    "affine steps of none": ([*PAIR, "--preset", "affine-opt", "--affine-steps", "0"], "--affine-steps: belongs to"),
    "steps of none": ([*PAIR, "--preset", "vsvf-opt", "--vsvf-steps", "2"], "--vsvf-steps: belongs to a network"),
    "no image": ([], "give --fixed and --moving, or --pairs"),
    "pair and list": ([*PAIR, "--pairs", "list.csv"], "--fixed: --pairs is given as well; give one of the two"),
    "section of no list": ([*PAIR, "--section", "training"], "--section needs --pairs"),
    "unknown option": ([*PAIR, "--sideways"], "unrecognized arguments: --sideways"),
    "shortened option": ([*PAIR, "--affine"], "unrecognized arguments: --affine"),
    "misspelt option": ([*PAIR, "--presett", "best"], "unrecognized arguments: --presett best; --preset perhaps"),
    "empty path": (["--fixed", "", "--moving", "m.nii.gz"], "argument --fixed/-f: is empty; give a path"),
    "unknown home": ([*PAIR[:3], "~nobody.at.home/m.nii"],
        "argument --moving/-m: '~nobody.at.home/m.nii': there is no such"),
    "extent": ([*PAIR, "--extent", "all"], "--extent: invalid choice: 'all'"),
    "dtype of the parser": ([*PAIR, "--dtype", "@grid"], "--dtype: '@grid' is no name"),
    "seed": ([*PAIR, "--seed", "-1"], "--seed: '-1' is not a whole number from 0 to 4294967295"),
    "long number": ([*PAIR, "--threads", "9" * 5000], "... is not a whole number"),
    "long path": ([*PAIR[:3], "/" + "x" * 5000], "is too long for a path; correct it"),
    "positional": (
        ["f.nii.gz", "m.nii.gz"],
        "unrecognized arguments: f.nii.gz m.nii.gz; give every file by its option, --fixed FILE --moving FILE --output",
    ),
    "seed no number": ([*PAIR, "--seed", "one"], "--seed: 'one' is not a whole number from 0 to 4294967295"),
    "grid small": ([*PAIR, "--grid", "16", "2", "16"], "--grid: '2' is not a whole number from 4 to 10000"),
    "grid of two": ([*PAIR, "--grid", "16", "16"], "--grid: expected 3 arguments"),
    "grid twice": ([*PAIR, "--grid", "8", "8", "8", "--grid-voxels", "5000"],
        "--grid-voxels: grid is given as well; give one"),
}  # fmt: skip


@pytest.mark.parametrize(("words", "message"), USAGE.values(), ids=USAGE)
def test_usage(pair, idle, capfd, caplog, words, message):
    line = refusal(["register", *OUT, *words], pair, capfd, caplog, status=2)
    assert message in line and "see avsm register --help" in line


GOOD = "f.nii.gz,m.nii.gz"
LISTS = {  # name -> text of list.csv, or what makes the list; words of the line
    "missing": (lambda folder: None, "list.csv: list of pairs does not exist; correct the path"),
    "no pair": ("fixed,moving\n", "list.csv: the list holds no pair; add at least one"),
    "absent file": (f"fixed,moving\n{GOOD}\nf.nii.gz,no.nii\n", "no.nii does not exist; correct the entry or add the"),
    "names twice": (f"fixed,moving,name\n{GOOD},a\n{GOOD},a\n", "list.csv: pair name 'a' occurs twice; make the names"),
    "over the list": (own_table, "pairs.csv: a list of pairs, which the table of results would overwrite; write elsew"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "words"), LISTS.values(), ids=LISTS)
def test_list(pair, weights, idle, capfd, caplog, make, words):
    (put("list.csv", make) if isinstance(make, str) else make)(pair)
    file = "out/pairs.csv" if make is own_table else "list.csv"
    assert words in refusal(
        ["register", "--pairs", file, *OUT, "--preset", "fast", "--weights", weights], pair, capfd, caplog
    )


FIRST = {  # what is said although the weights are missing
    "output": ([*PAIR, "--output", "f.nii.gz"], "output_dir can't be created"),
    "list": (["--pairs", "no.csv", *OUT], "no.csv: list of pairs does not exist"),
    "device": ([*PAIR, *OUT, "--device", "gpu"], "device=gpu: cannot be used"),
}


@pytest.mark.parametrize(("words", "message"), FIRST.values(), ids=FIRST)
def test_what_takes_no_time_is_looked_at_before_the_weights(pair, capfd, caplog, words, message):
    assert message in refusal(["register", *words, "--preset", "fast", "--weights", "no.pt"], pair, capfd, caplog)


@pytest.mark.parametrize("exists", [False, True])
def test_output_not_writable(pair, weights, idle, capfd, caplog, monkeypatch, exists):
    """As root every folder can be written to, so the system's answer is put on."""
    if exists:
        (pair / "out").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    line = refusal(["register", *PAIR, *OUT, "--preset", "fast", "--weights", weights], pair, capfd, caplog)
    assert "out: output_dir is not writable; give a folder to write to" in line


@pytest.mark.parametrize("name", ["a#1", "a@b", "$a", "%a", "a b", "a,[1]", "ä"])
def test_odd_names_are_names(pair, weights, name):
    """MONAI's config parser has a meaning for some of these characters."""
    (pair / f"{name}.nii.gz").write_bytes((pair / "m.nii.gz").read_bytes())
    words = ["--fixed", "f.nii.gz", "--moving", f"{name}.nii.gz", "--output", f"{name}/{name}"]
    assert main(["register", *words, "--preset", "fast", "--weights", weights, "--no-report"]) == 0
    assert json.loads((pair / name / name / "metrics.json").read_text())["moving"]["path"].endswith(f"{name}.nii.gz")
