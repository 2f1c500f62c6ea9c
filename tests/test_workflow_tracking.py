"""MLflow runs as they are found in the store afterwards."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

import tiny_bundle as tiny
from scripts.data import write_phantom_pair
from scripts.workflow import sqlite_uri
from scripts.workflow.tracking import flat_parameters

TRACKING = str(tiny.CONFIGS / "tracking_mlflow.json")
PHASES = [dict(tiny.PHASES[0], epochs=1), dict(tiny.PHASES[2], epochs=1)]


def stored(uri, run_name=None):
    """Client and the runs of the store, oldest first."""
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("avsm")
    runs = client.search_runs(experiment.experiment_id, order_by=["attributes.start_time ASC"])
    return client, [run for run in runs if run_name is None or run.info.run_name == run_name]


def artifacts(client, run, folder=None):
    return sorted(Path(item.path).name for item in client.list_artifacts(run.info.run_id, folder))


def name_of(output_dir):
    return (output_dir / "mlflow_run_name.txt").read_text().strip()


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """A tracked training, through the command line with a plain path."""
    folder = tmp_path_factory.mktemp("tracked")
    options = ["--output_dir", folder / "out", "--tracking", TRACKING]
    done = tiny.call(tiny.command("train", folder, ["training"], options, phases=PHASES))
    assert done.returncode == 0, done.stderr
    return folder


def test_training_run_is_complete(tracked):
    client, runs = stored(sqlite_uri(tracked / "out"))
    assert len(runs) == 1
    run = runs[0]
    assert run.info.status == "FINISHED" and run.info.run_name == name_of(tracked / "out")
    expected = {"seed": "0", "grid": "[16, 16, 16]", "train_pairs": "3", "epoch_pairs": "2"}
    expected |= {"phases": json.dumps(PHASES), "network_def.affine_net.channels": "[4, 4]"}
    assert expected.items() <= run.data.params.items()
    assert "torch" in run.data.params and "device" in run.data.params
    assert not any(name.startswith("_meta_") or value.startswith("$") for name, value in run.data.params.items())

    def history(name):
        return {item.step: item.value for item in client.get_metric_history(run.info.run_id, name)}

    last = tiny.last(tracked / "out")
    for part in ("loss", "similarity", "regularisation", "symmetry", "learning_rate"):
        assert sorted(history(f"train_epoch/{part}")) == [1, 2]
    assert history("train_epoch/learning_rate") == {1: 1e-3, 2: 1e-3}
    for name in ("val_mean_dice", "dice_before", "dice_vsvf_1", "folds", "std_log_jacobian", "loss_similarity"):
        assert sorted(history(f"validation/{name}")) == [1, 2], name
    assert history("validation/val_mean_dice")[last["best"]["epoch"]] == last["best"]["metric"]
    assert artifacts(client, run, "checkpoints") == ["checkpoint_last.pt", "model.pt"]
    assert artifacts(client, run, "pictures") == ["validation_0001.png", "validation_0002.png"]
    (config,) = artifacts(client, run, "config")
    logged = json.loads(Path(client.download_artifacts(run.info.run_id, f"config/{config}")).read_text())
    assert logged["grid"] == tiny.GRID and logged["output_dir"] == str(tracked / "out")


def test_finished_run_asked_for_again_adds_nothing(tracked):
    tiny.run("train", tracked, tracked / "out", tracking=TRACKING, phases=PHASES)
    _, runs = stored(sqlite_uri(tracked / "out"))
    assert [run.info.status for run in runs] == ["FINISHED"]


def test_second_run_in_the_same_store_is_its_own(tracked, tmp_path):
    uri = sqlite_uri(tracked / "out")
    tiny.run("train", tmp_path, tmp_path / "out", tracking=TRACKING, phases=PHASES[:1], tracking_uri=uri)
    assert name_of(tmp_path / "out") != name_of(tracked / "out")
    for output_dir, epochs in ((tracked / "out", 2), (tmp_path / "out", 1)):
        client, runs = stored(uri, name_of(output_dir))
        assert [run.info.status for run in runs] == ["FINISHED"]
        assert len(client.get_metric_history(runs[0].info.run_id, "train_epoch/loss")) == epochs


def test_run_that_dies_is_failed_and_goes_on_when_resumed(tmp_path):
    phases = [dict(tiny.PHASES[0], epochs=5)]
    settings = {"phases": phases, "epoch_pairs": 2}
    fail = {"+train#handlers": [{"_target_": "tiny_bundle.FailAt", "epoch": 2}]}
    with pytest.raises(RuntimeError, match="evaluate"):
        tiny.run("train", tmp_path, tmp_path / "out", tracking=TRACKING, **settings, **fail)
    client, (run,) = stored(sqlite_uri(tmp_path / "out"))
    assert run.info.status == "FAILED"
    assert tiny.last(tmp_path / "out")["epoch"] == 1

    tiny.run("train", tmp_path, tmp_path / "out", tracking=TRACKING, **settings)
    client, runs = stored(sqlite_uri(tmp_path / "out"))
    assert [item.info.run_id for item in runs] == [run.info.run_id]
    assert runs[0].info.status == "FINISHED"
    steps = [item.step for item in client.get_metric_history(run.info.run_id, "train_epoch/loss")]
    assert steps == [1, 2, 3, 4, 5]
    # Every tenth iteration, of two an epoch.
    assert [item.step for item in client.get_metric_history(run.info.run_id, "train/loss")] == [10]
    assert artifacts(client, run, "checkpoints") == ["checkpoint_last.pt", "model.pt"]


@pytest.mark.parametrize("name", ["evaluate", "inference"])
def test_evaluation_is_a_closed_run_of_its_own(tmp_path, name):
    weights = tiny.save_weights(tmp_path / "model.pt")
    arguments = (name, tmp_path, tmp_path / "out")
    options = {"tracking": TRACKING, "ckpt_path": str(weights)}
    if name == "evaluate":
        options["pair_count"] = 2
    else:
        folder = write_phantom_pair(tmp_path / "pair", shape=tiny.GRID).parent
        for kind, key in (("images", ""), ("labels", "_label")):
            for role, path in zip(("fixed", "moving"), sorted((folder / f"{kind}Tr").iterdir()), strict=True):
                options[role + key] = str(path)
    tiny.run(*arguments, **options)
    tiny.run(*arguments, **options)
    client, runs = stored(sqlite_uri(tmp_path / "out"))
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"]
    assert runs[0].info.run_name != runs[1].info.run_name
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    for run in runs:
        dice = "dice_vsvf" if name == "evaluate" else "dice_final"
        assert run.data.metrics[f"evaluation/{dice}"] == summary[dice]
        assert run.data.metrics["evaluation/folds"] == summary["folds"]
        assert artifacts(client, run) == ["config", "pairs.csv", "summary.json"]


def test_other_ranks_have_no_tracker(tmp_path):
    found = tiny.workflow("train", tmp_path, tmp_path / "out", tracking=TRACKING, phases=PHASES, is_not_rank0=True)
    names = [type(handler).__name__ for handler in found.parser.get_parsed_content("train#handlers")]
    assert "Checkpoints" in names and "TrainingTracker" not in names
    assert not (tmp_path / "out" / "mlruns.db").exists()


def test_flat_parameters():
    config = {
        "seed": 3,
        "grid": [1, 2],
        "_meta_": {"version": "1"},
        "network": {"_target_": "Net", "width": 4, "inner": {"name": "a"}},
        "loss": "@other",
        "device": "$torch.device('cpu')",
        "macro": "%run",
        "handlers": [{"_target_": "Handler"}],
        "run": ["$1 + 1"],
        "absent": None,
        "long": "x" * 7000,
    }
    assert flat_parameters(config) == {
        "seed": "3",
        "grid": "[1, 2]",
        "network.width": "4",
        "network.inner.name": "a",
        "absent": "None",
        "long": "x" * 6000,
    }
