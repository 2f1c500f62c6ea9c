"""Two hundred command lines of every kind, none of which names files that exist: one line each, status 1 or 2, no work.

Values are strange, options foreign, doubled or in another tool's order. No line may end in a traceback, take long, or
leave a file.
"""

import random

import pytest

from refusals import within
from scripts.cli import main

COMMANDS = {
    "register": ["--fixed", "--moving", "--fixed-label", "--moving-mask", "--pairs", "--output", "--section",
        "--weights", "--preset", "--model", "--initialisation", "--affine-steps", "--vsvf-steps", "--grid", "--seed",
        "--grid-voxels", "--threads", "--device", "--dtype", "--interpolation", "--transform", "--no-report"],
    "apply": ["--transform", "--reference", "--input", "--output", "--list", "--label", "--dtype", "--default-value"],
    "jacobian": ["--transform", "--reference", "--output", "--log", "--without-affine"],
    "evaluate": ["--fixed-label", "--moved-label", "--labels", "--fixed-points", "--space", "--transform", "--output"],
}  # fmt: skip
FOREIGN = ["-f", "-m", "-o", "-i", "-r", "-t", "--fix", "--transform=", "--", "-", "-d3", "--verbose", "-1"]
VALUES = [
    "absent.nii.gz", "absent.h5", "absent.csv", "absent.mrk.json", "absent/", "", " ", "~nobody_x/a.nii.gz",
    "/" + "x" * 5000, "y/" * 3000 + "a.nii.gz", "a\nb.nii.gz", "\udcff.nii.gz",
    "$__import__('os').system('touch marker')", "@output_dir", "%a.json", "0", "-1", "1e9", "9" * 5000, "100000", "nan",
    "4 4 4", "cpu", "general", "int16", "LPS", "-",
]  # fmt: skip


def line(chance):
    """A command line, more or less."""
    command = chance.choice([*COMMANDS, "register"])
    words = []
    for _ in range(chance.randrange(8)):
        words.append(chance.choice(COMMANDS[command] * 3 + FOREIGN))
        words += [chance.choice(VALUES) for _ in range(chance.choice([0, 1, 1, 1, 2, 3]))]
    if chance.random() < 0.3:
        words += ["--output", "out", "--fixed", "absent.nii.gz", "--moving", "absent.nii.gz"]
    if chance.random() < 0.05:
        command = chance.choice(["", "regster", "--pairs", "-"])
    return [command, *words]


@pytest.mark.parametrize("number", range(4))
def test_fuzzed_arguments(tmp_path, monkeypatch, capfd, number):
    monkeypatch.chdir(tmp_path)

    for turn in range(50):
        words = line(random.Random(f"{number} {turn}"))
        try:
            with within(60):
                status = main(words)
        except SystemExit as ended:
            status = ended.code
        told = capfd.readouterr().err
        assert status in (1, 2), (words, status)
        errors = [text for text in told.splitlines() if not text.startswith("warning: ")]
        assert len(errors) == 1 and errors[0].startswith("error: "), (words, told)
        assert len(told) < 1500, (words, len(told))
    assert list(tmp_path.iterdir()) == []
