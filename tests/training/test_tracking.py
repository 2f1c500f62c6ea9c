"""MLflow runs as they are found in the store afterwards."""

import json
from pathlib import Path

import pytest

import tiny_bundle as tiny
from mlflow_cases import artifacts, database, history, runs_of
from scripts.synthetic.phantom import write_phantom_pair
from scripts.tracking import sqlite_uri

TRACKING = str(tiny.CONFIGS / "tracking_mlflow.json")
PHASES = [dict(tiny.PHASES[0], epochs=1), dict(tiny.PHASES[2], epochs=1)]


def stored(output_dir):
    """Client and the runs of a folder's own store."""
    return runs_of(sqlite_uri(output_dir))


def name_of(output_dir):
    return (output_dir / "mlflow_run_name.txt").read_text().strip()


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """A tracked training, through the command line with a plain path."""
    folder = tmp_path_factory.mktemp("tracked")
    database(folder / "out")
    options = ["--output_dir", folder / "out", "--tracking", TRACKING]
    done = tiny.call(tiny.command("train", folder, ["training"], options, phases=PHASES))
    assert done.returncode == 0, done.stderr
    return folder


def test_training_run_is_complete(tracked):
    client, runs = stored(tracked / "out")
    assert len(runs) == 1
    run = runs[0]
    assert run.info.status == "FINISHED" and run.info.run_name == name_of(tracked / "out")
    assert run.info.run_name.startswith("out_2")
    expected = {"seed": "0", "grid": "[16, 16, 16]", "train_pairs": "3", "epoch_pairs": "2", "max_epochs": "2"}
    expected |= {"phases.vsvf.learning_rate": "0.001", "phases.affine_single_step.stage": "affine"}
    expected |= {"network_def.affine_net.channels": "[4, 4]"}
    assert expected.items() <= run.data.params.items() and "torch" in run.data.params and "device" in run.data.params
    assert not any(name.startswith("_meta_") or value.startswith("$") for name, value in run.data.params.items())
    # Where a run lies is no parameter: it would be what runs differ in.
    assert not {"output_dir", "bundle_root", "tracking_uri", "run_name"} & set(run.data.params)
    assert run.data.tags["output_dir"] == str(tracked / "out") and run.data.tags["mlflow.source.name"] == "training"

    last = tiny.last(tracked / "out")
    for part in ("loss", "similarity", "regularisation", "symmetry", "learning_rate"):
        assert sorted(history(client, run, f"train_epoch/{part}")) == [1, 2]
    assert history(client, run, "train_epoch/learning_rate") == {1: 1e-3, 2: 1e-3}
    names = [f"validation/{name}" for name in ("val_mean_dice", "dice_before", "folds", "loss_similarity")]
    for name in (*names, "validation_labels/dice_final_1"):
        assert sorted(history(client, run, name)) == [1, 2], name
    assert history(client, run, "validation/val_mean_dice")[last["best"]["epoch"]] == last["best"]["metric"]
    assert artifacts(client, run) == ["checkpoints", "config.json", "images", "validation.png"]
    assert artifacts(client, run, "checkpoints") == ["checkpoint_last.pt", "model.pt"]
    pictures = [name for name in artifacts(client, run, "images") if name.endswith(".png")]
    assert [name.split("+timestamp")[0] for name in pictures] == ["validation+step+1", "validation+step+2"]
    newest = Path(client.download_artifacts(run.info.run_id, "validation.png"))
    assert newest.read_bytes() == (tracked / "out" / "pictures" / "validation_0002.png").read_bytes()
    logged = json.loads(Path(client.download_artifacts(run.info.run_id, "config.json")).read_text(encoding="utf-8"))
    assert logged["grid"] == tiny.GRID and logged["output_dir"] == str(tracked / "out")


def test_run_that_dies_is_failed_and_goes_on_when_resumed(tmp_path):
    database(tmp_path / "out")
    phases = [dict(tiny.PHASES[0], epochs=5)]
    settings = {"phases": phases, "epoch_pairs": 2}
    fail = {"+train#handlers": [{"_target_": "tiny_bundle.FailAt", "epoch": 2}]}
    with pytest.raises(RuntimeError, match="evaluate"):
        tiny.run("train", tmp_path, tmp_path / "out", tracking=TRACKING, **settings, **fail)
    client, (run,) = stored(tmp_path / "out")
    assert run.info.status == "FAILED" and tiny.last(tmp_path / "out")["epoch"] == 1

    tiny.run("train", tmp_path, tmp_path / "out", tracking=TRACKING, **settings)
    client, runs = stored(tmp_path / "out")
    assert [item.info.run_id for item in runs] == [run.info.run_id] and runs[0].info.status == "FINISHED"
    assert sorted(history(client, run, "train_epoch/loss")) == [1, 2, 3, 4, 5]
    # Every tenth iteration, of two an epoch.
    assert sorted(history(client, run, "train/loss")) == [10]
    assert artifacts(client, run, "checkpoints") == ["checkpoint_last.pt", "model.pt"]


def test_training_goes_on_without_a_server_and_its_log_is_sent_when_asked_for_again(tmp_path, caplog):
    settings = {"phases": [dict(tiny.PHASES[0], epochs=2)]}
    away = {"tracking_uri": "http://127.0.0.1:9", "registered_model": "tiny"}
    tiny.run("train", tmp_path, tmp_path / "out", tracking=TRACKING, **settings, **away)
    assert tiny.last(tmp_path / "out")["epoch"] == 2
    told = [record.message for record in caplog.records if "MLflow at" in record.message]
    assert len(told) == 2 and "the run goes on" in told[0] and "scripts.tracking upload" in told[1]
    _, (own,) = stored(tmp_path / "out")
    assert own.info.status == "FINISHED"

    uri = database(tmp_path / "store")
    tiny.run("train", tmp_path, tmp_path / "out", tracking=TRACKING, **settings, tracking_uri=uri)
    client, (run,) = runs_of(uri)
    assert run.info.status == "FINISHED" and run.info.run_name == name_of(tmp_path / "out")
    assert sorted(history(client, run, "validation/val_mean_dice")) == [1, 2]
    (version,) = client.search_model_versions("name = 'tiny'")
    assert version.run_id == run.info.run_id


@pytest.mark.parametrize("name", ["evaluate", "inference"])
def test_evaluation_is_a_closed_run_of_its_own(tmp_path, name):
    database(tmp_path / "out")
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
    client, runs = stored(tmp_path / "out")
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"]
    assert runs[0].info.run_name != runs[1].info.run_name
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    for run in runs:
        assert run.data.metrics["evaluation/dice_final"] == summary["dice_final"]
        assert run.data.metrics["evaluation/folds"] == summary["folds"]
        assert artifacts(client, run) == ["config.json", "pairs.csv", "summary.json"]


def test_other_ranks_have_no_tracker(tmp_path):
    found = tiny.workflow("train", tmp_path, tmp_path / "out", tracking=TRACKING, phases=PHASES, is_not_rank0=True)
    names = [type(handler).__name__ for handler in found.parser.get_parsed_content("train#handlers")]
    assert "Checkpoints" in names and "TrainingTracker" not in names and not (tmp_path / "out" / "mlruns.db").exists()
