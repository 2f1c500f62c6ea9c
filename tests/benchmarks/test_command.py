"""The benchmark of the command: it measures processes, makes and finds pairs, and its limits can be missed."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import command

main = importlib.import_module("scripts.cli.main")


BUNDLE = ROOT / "bundle"
BUSY = "import time\nblock = b'x' * 400_000_000\nwhile time.process_time() < 0.5: pass"


@pytest.fixture
def options(tmp_path):
    return command.parse(["--output", str(tmp_path / "bench"), "--before", "none", "--data", str(tmp_path / "data")])


def test_a_process_is_measured_alone(tmp_path, options):
    variables = command.environment(BUNDLE, options)
    busy = command.run([sys.executable, "-c", BUSY], tmp_path, variables)
    idle = command.run([sys.executable, "-c", "import time; time.sleep(0.5)"], tmp_path, variables)
    assert 0.5 <= busy["cpu"] < 5 and busy["peak"] > 400 and idle["cpu"] < 0.4 and idle["wall"] >= 0.5


def test_words_are_those_of_the_command(tmp_path):
    """Every command line is one that the subcommands' parsers take."""
    (tmp_path / "moved_label.nii.gz").touch()
    for name, words in command.COMMANDS.items():
        if name != "help":
            module, _ = main._parse(words(tmp_path, tmp_path, 1))
            assert module.__name__.split(".")[-1] == name.split(",")[0] or "register" in module.__name__
    assert (tmp_path / "pairs3.csv").read_text().count("\n") == 4


def rows(cpu, beside=0.1):
    """Measures of a machine on which everything takes the same, but a list of 3 ``beside`` s beside the method."""
    row = {"cpu": [9.0, cpu, 0.0], "wall": [cpu] * 3, "peak": [100.0] * 3, "files": [1.0] * 3, "beside": [0.1] * 3}
    found = {("hippocampus", name, side): row for name in command.COMMANDS for side in ("ours", "before")}
    found["hippocampus", "list of 3", "ours"] = {**row, "beside": [9.0, beside, 0.0]}
    return found | {("hippocampus", "register", peer): {**row, "cpu": [0.25]} for peer in ("ants", "greedy")}


def test_limits_can_be_kept_and_missed():
    kept = {name: value <= limit for name, value, limit in command.limits(rows(0.25))}
    assert len(kept) == 17 and [name for name, good in kept.items() if not good] == [
        "hippocampus: register ÷ before, processor"
    ]
    missed = {name for name, value, limit in command.limits(rows(2.0)) if value > limit}
    assert missed > {"help, processor s", "hippocampus: apply, processor s"}
    (further,) = [value for name, value, _ in command.limits(rows(0.25, 1.3)) if "further" in name]
    assert further == pytest.approx(0.6)


def test_time_beside_the_method_is_wall_less_wall(tmp_path, options, monkeypatch):
    def registered(words, folder, variables, status):
        output = Path(words[words.index("--output") + 1])
        for number in range(3):
            (output / f"pair{number}").mkdir()
            seconds = {"network": 0.5, "optimise": 1.0, "transform": 7.0}
            (output / f"pair{number}" / "metrics.json").write_text(json.dumps({"seconds": seconds}))
        return {"cpu": 3.0, "wall": 6.0, "peak": 1.0}

    monkeypatch.setattr(command, "run", registered)
    assert command.measure("list of 3", "ours", tmp_path, BUNDLE, options)["beside"] == pytest.approx(1.5)


def test_from_end_to_end(tmp_path):
    words = [
        "--cases", "demo", "--commands", "help", "--runs", "2", "--before", "none", "--peers", "--output",
        str(tmp_path),
    ]  # fmt: skip
    script = [sys.executable, str(ROOT / "benchmarks" / "command.py")]
    result = subprocess.run([*script, *words, "--check"], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    (row,) = json.loads((tmp_path / "command.json").read_text())["rows"]
    assert row["side"] == "ours" and len(row["cpu"]) == 2 and 0 < min(row["cpu"]) < 2
    # At its start a process's peak is that of its parent: the benchmark itself must stay small.
    assert max(row["peak"]) < 40 and "| demo | help | ours |" in result.stdout


def test_a_process_that_fails_ends_the_benchmark(tmp_path, options):
    with pytest.raises(SystemExit, match=r"(?s)ended with 1.*no such thing"):
        command.run([sys.executable, "-c", "raise ValueError('no such thing')"], tmp_path, {})
