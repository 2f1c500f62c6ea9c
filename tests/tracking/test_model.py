"""The network as an MLflow model: what is logged, and what the loaded one does."""

import json
import re
import tomllib

import mlflow
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

import tiny_bundle as tiny
from mlflow_cases import database, runs_of
from refusals import one_line
from register_cases import write_pair
from scripts.errors import InputError
from scripts.networks import weights_hash
from scripts.pyfunc import PairModel
from scripts.registration import Pair, Registrar
from scripts.tracking import inference_settings, read_settings, signature
from scripts.tracking.__main__ import main
from scripts.tracking.model import _PACKAGES, SETTINGS, WEIGHTS

FAST = {"report": False, "device": "cpu"}


def trained(**phase):
    return {
        "seed": 3, "grid": [8, 8, 8], "network_def": {"_target_": "Net", "affine_steps": 7, "vsvf_steps": 2},
        "phases": [{"name": "a", "stage": "affine", "epochs": 1, "affine_steps": 1},
        {"name": "b", "stage": "vsvf", "epochs": 2, "affine_steps": 3, "vsvf_steps": 1, **phase},
        {"name": "c", "stage": "vsvf", "epochs": 0, "affine_steps": 9, "vsvf_steps": 9}],
    }  # fmt: skip


@pytest.mark.parametrize(("phase", "steps"), [
    ({}, (3, 1)),
    ({"validation_affine_steps": 5}, (5, 1)),
    ({"validation_affine_steps": None, "validation_vsvf_steps": 4}, (3, 4)),
    ({"validation_affine_steps": 0}, (0, 1)),
])  # fmt: skip
def test_settings_of_a_training(phase, steps):
    found = inference_settings(trained(**phase))
    assert (found["affine_steps"], found["vsvf_steps"]) == steps
    assert found["network_def"] == {"_target_": "Net", "affine_steps": "@affine_steps", "vsvf_steps": "@vsvf_steps"}
    assert found["grid"] == [8, 8, 8] and set(found) == {"grid", "network_def", "affine_steps", "vsvf_steps"}


def test_settings_of_a_training_of_a_named_network():
    config = {**trained(), "bundle_root": "elsewhere", "model": "paper", "orientation": "LPS"}
    shipped = json.loads((tiny.CONFIGS / "train.json").read_text())
    config |= {name: shipped[name] for name in ("imports", "network_file", "network_def", "grid")}
    found = inference_settings(config)
    file = json.loads((tiny.BUNDLE / "models" / "paper.json").read_text())
    assert found["network_def"] == file["network_def"]
    assert found["grid"] == file["grid"] and found["orientation"] == "LPS" and found["vsvf_steps"] == 1


def test_settings_of_config_files(tmp_path):
    found = read_settings([tiny.CONFIGS / "hippocampus_labels.json", tiny.BUNDLE / "models" / "paper.json"])
    assert found["labels"] == [1, 2] and found["network_def"]["momentum_net"]["stem"] == "space_to_depth"
    assert not {"phases", "train_pairs", "sampling", "ckpt_path"} & set(found)
    for text in (None, "{"):
        if text:
            (tmp_path / "bad.json").write_text(text)
        with pytest.raises(InputError, match=r"bad\.json: not a readable config"):
            read_settings([tmp_path / "bad.json"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What MLflow hands to the loader."""
    path = tmp_path_factory.mktemp("model")
    tiny.save_weights(path / WEIGHTS)
    settings = {"grid": [48, 64, 48], "affine_steps": 2, "vsvf_steps": 2, **tiny.NETWORK}
    (path / SETTINGS).write_text(json.dumps(settings))
    return path


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("pair"))


def row(pair, output_dir, labels=False, **changes):
    names = ["fixed", "moving", *(["fixed_label", "moving_label"] if labels else [])]
    return {**{name: str(pair[name]) for name in names}, "output_dir": str(output_dir), **changes}


def test_model_does_what_the_bundle_does(folder, pair, tmp_path):
    table = pd.DataFrame([row(pair, tmp_path / "model #1", labels=True)])
    (found,) = PairModel(folder).predict(table, FAST).to_dict("records")
    assert found["error"] == "" and found["report"] == ""
    names = ("fixed", "moving", "fixed_label", "moving_label")
    registrar = Registrar(config_files=[folder / SETTINGS], preset="fast", ckpt_path=folder / WEIGHTS)
    registrar(Pair.read({name: pair[name] for name in names})).save(tmp_path / "command", report=False)
    metrics = json.loads((tmp_path / "command" / "metrics.json").read_text())
    for name in ("moved", "moved_label"):
        ours = nib.load(found[name])
        theirs = nib.load(tmp_path / "command" / f"{name}.nii.gz")
        np.testing.assert_allclose(ours.get_fdata(), theirs.get_fdata(), atol=1e-3)
        np.testing.assert_array_equal(ours.affine, theirs.affine)
    assert found["dice_final"] == pytest.approx(metrics["labels"]["mean"]["dice"]["final"], abs=1e-4)
    assert found["ncc_final"] == pytest.approx(metrics["similarity"]["ncc"]["final"], abs=1e-4)
    assert found["folds"] == metrics["folds"] and found["seconds"] > 0


def test_rows_and_their_errors(folder, pair, tmp_path):
    table = pd.DataFrame(
        [row(pair, tmp_path / "a"), row(pair, tmp_path / "b", moving=str(tmp_path / "none.nii.gz"))]
    ).assign(fixed_label=[None, np.nan])
    found = PairModel(folder).predict(table, {**FAST, "transform": "affine"})
    assert list(found.columns) == [column.name for column in signature().outputs]
    assert list(found["error"]) == ["", f"{tmp_path / 'none.nii.gz'}: file does not exist; correct the path"]
    assert (
        list(found["moved"]) == [str(tmp_path / "a" / "moved.nii.gz"), ""]
        and (tmp_path / "a" / "moved.nii.gz").is_file()
    )
    assert np.isnan(found["dice_final"]).all() and list(np.isnan(found["ncc_final"])) == [False, True]
    assert json.loads((tmp_path / "a" / "metrics.json").read_text())["settings"]["network"]["vsvf_steps"] == 0


@pytest.mark.parametrize(("change", "params", "message"), [
    ({"output_dir": ""}, {}, "row 0: output_dir='': give a path"),
    ({}, {"device": "abacus"}, "device=abacus: cannot be used"),
    ({}, {"initialisation": "luck"}, "initialisation='luck': give one of auto"),
    ({}, {"preset": "default"}, "preset=default: has no network, which this model is; give preset fast or"),
    ({}, {"transform": "bent"}, "transform='bent': give one of rigid, similarity, affine, deformable"),
    ({"output_dir": "/tmp/" + "x" * 300}, {}, "output_dir can't be created (File name too long)"),
    ({}, {"ckpt_path": "x.pt"}, "ckpt_path: no such parameter; give one of preset"),
])  # fmt: skip
def test_bad_requests(folder, pair, tmp_path, change, params, message):
    with one_line(message):
        PairModel(folder).predict(pd.DataFrame([{**row(pair, tmp_path / "a"), **change}]), {**FAST, **params})


@pytest.mark.parametrize("sign", ["$", "@", "%", " $"])
@pytest.mark.parametrize("name", ["device", "initialisation", "network_def", "fixed"])
def test_nothing_of_a_request_is_run(folder, pair, tmp_path, name, sign):
    """A request is data: an expression in it makes no file, a reference gives nothing."""
    mark = tmp_path / "mark"
    text = f"{sign}__import__('pathlib').Path({str(mark)!r}).touch()"
    change, params = ({name: text}, {}) if name == "fixed" else ({}, {name: text})
    with pytest.raises(InputError) as caught:
        PairModel(folder).predict(pd.DataFrame([{**row(pair, tmp_path / "a"), **change}]), {**FAST, **params})
    assert "\n" not in str(caught.value) and (text if change else name) in str(caught.value) and not mark.exists()


def test_two_rows_into_one_folder(folder, pair, tmp_path):
    rows = [row(pair, tmp_path / "a"), row(pair, tmp_path / "b" / ".." / "a")]
    with pytest.raises(InputError, match="output_dir of more than one row"):
        PairModel(folder).predict(pd.DataFrame(rows), FAST)


def test_weights_that_are_not_those_registered_are_refused(folder, tmp_path):
    settings = json.loads((folder / SETTINGS).read_text())
    (tmp_path / SETTINGS).write_text(json.dumps({**settings, "weights_sha256": weights_hash(folder / WEIGHTS)}))
    (tmp_path / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes())
    assert PairModel(tmp_path)
    torch.save(tiny.tiny_network().state_dict(), tmp_path / WEIGHTS, _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match="not the weights that were registered"):
        PairModel(tmp_path)


def test_a_model_asks_for_what_the_package_needs():
    project = tomllib.loads((tiny.BUNDLE.parent / "pyproject.toml").read_text())["project"]
    needed = {re.split(r"[<>=]", text)[0] for text in project["dependencies"]} - {"fire"}  # of monai.bundle run alone
    assert needed == set(_PACKAGES)
    # So do the environments of the integrations, which need no MLflow.
    for name in ("monailabel", "deploy"):
        text = (tiny.BUNDLE.parent / "integrations" / name / "requirements.txt").read_text()
        listed = {re.split(r"[<>=]", line)[0].lower() for line in text.splitlines()}
        assert {package.lower() for package in needed} - {"mlflow"} <= listed, name


def test_registered_weights_are_loaded_back(folder, pair, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = database(tmp_path / "store")
    weights = str(folder / WEIGHTS)
    words = ["register", "tiny", "--weights", weights, "--config-file", str(folder / SETTINGS), "--tracking-uri", uri]
    before = mlflow.get_tracking_uri()
    assert main(words) == 0 and capsys.readouterr().out.splitlines()[-1] == "models:/tiny/1"
    assert mlflow.get_tracking_uri() == before, "the process's own store must stay what it was"
    client, runs = runs_of(uri)
    assert runs == [] and client.get_model_version("tiny", "1").tags["weights_sha256"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    model = mlflow.pyfunc.load_model("models:/tiny/1")
    assert model.metadata.signature == signature()
    table = pd.DataFrame([row(pair, tmp_path / "out")])
    found = model.predict(table, params={"report": False, "transform": "affine"})
    assert found["error"][0] == "" and nib.load(found["moved"][0]).shape == nib.load(pair["fixed"]).shape
    with pytest.raises(mlflow.exceptions.MlflowException, match="missing inputs"):
        model.predict(table.drop(columns="moving"))
    assert model.metadata.flavors["python_function"]["loader_module"] == "scripts.pyfunc"


@pytest.mark.parametrize(("words", "message"), [
    (["upload", "nowhere"], "nowhere: holds no tracked run"),
    (["register", "n", "--weights", "nowhere.pt"], "nowhere.pt: weights file not found"),
])  # fmt: skip
def test_command_says_what_is_wrong_in_one_line(words, message, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
