"""torchrun with the multi-GPU configs, two processes on gloo: one run, as of one process with twice the batch."""

import csv
import json
import re
import signal
from pathlib import Path

import pytest
import torch

import tiny_bundle as tiny
from register_cases import write_pair

pytestmark = [pytest.mark.integrations, pytest.mark.timeout(1800)]

# At 16 voxels the deepest level has two: what instance normalisation makes of two hangs on rounding.
SIZES = {"train_pairs": 8, "epoch_pairs": 4, "val_pairs": 3, "grid": [24, 24, 24]}


def train(folder, processes=None, batch_size=1, options=(), handlers=(), **overrides):
    """A tiny training into ``folder/out``, its losses kept in ``folder``; returns the finished process."""
    folder.mkdir(exist_ok=True)
    handlers = [{"_target_": "tiny_bundle.Keep", "folder": str(folder)}, *handlers]
    options = ["--output_dir", folder / "out", *options]
    settings = {**SIZES, "batch_size": batch_size, "+train#handlers": handlers, **overrides}
    return tiny.call(tiny.command("train", folder, [], options, processes, **settings))


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """One process with two pairs an iteration."""
    folder = tmp_path_factory.mktemp("one") / "run"
    done = train(folder, batch_size=2)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two processes with one pair an iteration each, tracked by MLflow."""
    folder = tmp_path_factory.mktemp("two") / "run"
    done = train(folder, 2, options=["--tracking", tiny.CONFIGS / "tracking_mlflow.json"])
    assert done.returncode == 0, done.stderr
    (folder / "log").write_text(done.stdout + done.stderr)
    return folder


def differences(first, second):
    """The largest relative difference of each iteration's loss parts."""
    pairs = list(zip(first, second, strict=True))
    assert len(pairs) == 12 and all(a.keys() == b.keys() for a, b in pairs)
    return [max(abs(a[name] - b[name]) / max(abs(a["loss"]), 1e-6) for name in a) for a, b in pairs]


def weights_apart(first, second):
    """Mean absolute differences of the weights of two trainings, of the affine and of the momentum network."""
    apart = {"affine_net": [], "momentum_net": []}
    other = tiny.weights(second / "out")
    for name, value in tiny.weights(first / "out").items():
        # A bias before instance normalisation changes nothing; its gradient is rounding.
        if not name.startswith("vsvf") and not re.search(r"unit\d\.conv\.bias$", name):
            apart[name.split(".")[0]].append((value - other[name]).abs().flatten())
    return [float(torch.cat(parts).mean()) for parts in apart.values()]


def test_losses_are_those_of_one_process_with_the_doubled_batch(one, two):
    (single,), both = tiny.kept(one), tiny.kept(two)
    assert len(both) == 2 and both[0] == both[1]
    apart = differences(single, both[0])
    # Sums in another order differ by rounding, which grows from iteration to iteration, on some processors tenfold.
    assert max(apart[:4]) < 1e-6 and max(apart) < 1e-4
    # Every phase has changed the loss by far more than that.
    assert single[0]["loss"] != pytest.approx(single[2]["loss"], rel=1e-2)
    affine, momentum = weights_apart(one, two)
    # Adam makes rounding large where gradients are next to nothing, as below the momentum network's head at first.
    assert affine < 1e-6 and momentum < 5e-4


def test_validation_is_that_of_one_process(one, two):
    """Three pairs over two processes: none twice, none left out."""
    first, second = tiny.last(one / "out")["best"], tiny.last(two / "out")["best"]
    assert first["epoch"] == second["epoch"] and first["metric"] == pytest.approx(second["metric"], abs=1e-5)


def test_one_process_writes_and_speaks(two):
    out = two / "out"
    found = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    pictures = {f"pictures/validation_{epoch:04d}.png" for epoch in range(1, 7)}
    assert {name for name in found if not name.startswith("config_")} == {
        "checkpoint_last.pt",
        "model.pt",
        "mlflow_run_name.txt",
        "mlruns.db",
        *{name for name in found if name.startswith("mlruns/")},
        *pictures,
    }
    log = (two / "log").read_text()
    assert log.count("Phase vsvf:") == 1 and log.count("Epoch[6] Metrics") == 1


def test_killed_process_ends_the_run_which_resumes_exactly(two, tmp_path):
    killer = {"_target_": "tiny_bundle.KillOnce", "epochs": [3], "folder": str(tmp_path), "rank": 1}
    killed = train(tmp_path / "run", 2, handlers=[killer])
    assert killed.returncode != 0 and (tmp_path / "killed_in_3").exists()
    assert tiny.last(tmp_path / "run" / "out")["epoch"] == 2
    resumed = train(tmp_path / "run", 2, handlers=[killer])
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stderr.count("after epoch 2") == 1
    assert tiny.equal_weights(tiny.weights(two / "out"), tiny.weights(tmp_path / "run" / "out"))
    # As many processes as it began with: one alone would take other iterations.
    refused = train(tmp_path / "run")
    assert refused.returncode == 1 and "other settings (processes: 2 there, null here)" in refused.stderr


def test_more_processes_than_pairs_to_validate(tmp_path):
    done = train(tmp_path / "run", 2, val_pairs=1)
    assert done.returncode != 0
    assert "error: 1 pairs to validate or evaluate for 2 processes; list more pairs" in done.stderr


def test_evaluation_is_that_of_one_process(tmp_path):
    weights = tiny.save_weights(tmp_path / "model.pt")
    tables = []
    for processes in (None, 2):
        out = tmp_path / f"out_{processes}"
        options = ["--output_dir", out, "--ckpt_path", weights]
        done = tiny.call(tiny.command("evaluate", tmp_path, [], options, processes, phantom_count=5))
        assert done.returncode == 0, done.stderr
        with open(out / "pairs.csv", encoding="utf-8") as stream:
            tables.append([{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(stream)])
        assert json.loads((out / "summary.json").read_text())["pairs"] == 5
    assert tables[0] == tables[1] and len({row["name"] for row in tables[0]}) == 5


@pytest.fixture
def pairs(tmp_path):
    """Seven pairs of images, as a list."""
    files = write_pair(tmp_path, "alike")
    with open(tmp_path / "list.csv", "w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["name", "fixed", "moving"])
        for number in range(7):
            table.writerow([f"pair_{number}", files["fixed"].name, files["moving"].name])
    return tmp_path / "list.csv"


def times(output):
    return {path.parent.name: path.stat().st_mtime_ns for path in Path(output).glob("*/metrics.json")}


def test_list_of_pairs_survives_a_killed_process(pairs, tmp_path):
    weights = tiny.save_weights(tmp_path / "model.pt")
    out = tmp_path / "out"
    keep = {"_target_": "tiny_bundle.Keep", "folder": str(tmp_path), "what": "batch"}
    killer = {"_target_": "tiny_bundle.KillOnce", "epochs": [1], "folder": str(tmp_path), "rank": 1, "iteration": 2}
    options = ["--output_dir", out, "--ckpt_path", weights, "--dataset_dir", pairs]
    line = tiny.command("inference", tmp_path, [], options, 2, report=False, **{"+batch_handlers": [keep, killer]})
    killed = tiny.call(line)
    assert killed.returncode != 0 and "pair_1" in times(out) and (tmp_path / "killed_in_1").exists()
    assert f"Signal {signal.SIGKILL.value} (SIGKILL)" in killed.stderr
    before = times(out)
    assert len(before) < 7
    again = tiny.call(line)
    assert again.returncode == 0, again.stderr
    assert times(out).keys() == {f"pair_{number}" for number in range(7)}
    assert {name: time for name, time in times(out).items() if name in before} == before
    # Each process did its own pairs, each of them once over both runs, but for one that was being written when it died.
    done = tiny.kept(tmp_path)
    assert [sorted(set(indices)) for indices in done] == [[0, 2, 4, 6], [1, 3, 5]]
    assert len(done[0]) == 4 and len(done[1]) <= 4
    with open(out / "pairs.csv", encoding="utf-8") as stream:
        assert [row["name"] for row in csv.DictReader(stream)] == [f"pair_{number}" for number in range(7)]
    assert json.loads((out / "summary.json").read_text())["pairs"] == 7
