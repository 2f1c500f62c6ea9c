"""Presets as the tool has them: by the command, the bundle's config and Python, with and without weights."""

import json
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow

import scripts.networks
import scripts.registration.methods as methods_module
import tiny_bundle as tiny
from register_cases import register, write_pair
from scripts.errors import InputError
from scripts.formats.images import read_image
from scripts.networks import AVSM
from scripts.registration import Pair, Registrar
from scripts.registration.progress import REGISTER, WRITE
from scripts.settings import PRESETS
from scripts.transform import Transform

GRID = [24, 32, 24]  # too coarse for the labels of thin cartilage


@pytest.fixture(autouse=True)
def own_excepthook(monkeypatch):
    """`begin` of a run in this process must not change what later tests find."""
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("pair"), "other sizes, spacings and axes")


@pytest.fixture
def no_weights(monkeypatch):
    """Weights are not looked for, and no network is asked."""

    def fail(*arguments, **options):
        raise AssertionError("the network or its weights were asked for")

    monkeypatch.setattr(scripts.networks, "weights_hash", fail)
    monkeypatch.setattr(methods_module, "load_weights", fail)
    monkeypatch.setattr(AVSM, "register", fail)


@pytest.fixture(scope="module")
def by_command(files, tmp_path_factory):
    """Output folder and metrics of each preset, by the command."""
    folder = tmp_path_factory.mktemp("out")
    return {
        preset: (folder / preset, register(files, folder / preset, "--preset", preset, "--grid", *map(str, GRID)))
        for preset in PRESETS
    }


@pytest.mark.parametrize("preset", PRESETS)
def test_files_and_metrics(by_command, files, preset):
    out, metrics = by_command[preset]
    names = {path.name for path in out.iterdir()}
    assert {"transform.h5", "inverse_transform.h5", "affine.tfm", "moved.nii.gz", "report.html"} <= names
    assert nib.load(out / "moved.nii.gz").shape == nib.load(files["fixed"]).shape
    for values in metrics["similarity"].values():
        assert values["before"] < values["affine"] < values["final"] + 1e-6
    # Similarity is what is sought; with voxels of 5 to 8 mm Dice need not follow it. It is measured all the same.
    assert 0 < metrics["labels"]["mean"]["dice"]["final"] <= 1
    assert metrics["folds"] == 0 and metrics["inverse_consistency_mm"]["mean"] < 0.1
    assert metrics["affine"]["found_by"] in PRESETS[preset].affines
    settings, found = metrics["settings"], metrics["optimisation"]
    assert settings["preset"] == preset and settings["grid"] == GRID and found["affine_after"] < found["affine_before"]
    network = PRESETS[preset].network
    assert (settings["network"] is not None, metrics["weights_sha256"] is not None) == (network, network)
    assert set(metrics["seconds"]) >= {"optimise"} and ("network" in metrics["seconds"]) == network
    assert settings["method"]["stages"] == list(PRESETS[preset].stages)
    deformed = metrics["jacobian"]["std_log"] > 1e-4
    assert deformed == bool(PRESETS[preset].stages)
    if "engine" in PRESETS[preset].stages:
        assert found["after"] < found["before"]
        assert len(found["evaluations"]) >= len(settings["method"]["engine"]["iterations"])


def test_presets_share_their_stages(by_command):
    of = {preset: metrics for preset, (_, metrics) in by_command.items()}
    # The engine goes on from the network's result where that is the better start, and ends no worse than it.
    assert of["instance"]["similarity"]["mk_lncc"]["final"] >= of["fast"]["similarity"]["mk_lncc"]["final"]
    assert of["vsvf-opt"]["affine"] == of["default"]["affine"]


@pytest.mark.parametrize("preset", ["default", "affine-opt"])
def test_config_without_weights_is_the_same_as_the_command(by_command, files, tmp_path, preset, no_weights):
    roles = ("fixed", "moving", "fixed_label", "moving_label")
    workflow = ConfigWorkflow(
        str(tiny.CONFIGS / "inference.json"),
        str(tiny.CONFIGS / "metadata.json"),
        logging_file=False,
        workflow_type="infer",
        bundle_root=str(tiny.BUNDLE),
        output_dir=str(tmp_path),
        preset=preset,
        grid=GRID,
        threads=1,
        report=False,
        **{role: str(files[role]) for role in roles},
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    workflow.run()
    again = json.loads((tmp_path / "metrics.json").read_text())
    assert all(again[part] == by_command[preset][1][part] for part in ("similarity", "labels", "settings"))


def test_python_gives_the_transforms_of_the_command(by_command, files, no_weights):
    torch.set_num_threads(1)
    found = Registrar(grid=GRID, device="cpu")(Pair.read({r: files[r] for r in ("fixed", "moving")}))
    out = by_command["default"][0]
    points = read_image(files["fixed"]).frame.corners * 0.8
    for ours, name in ((found.transform, "transform.h5"), (found.inverse, "inverse_transform.h5")):
        np.testing.assert_allclose(ours.points(points), Transform.read(out / name).points(points), atol=1e-2)


def test_default_builds_no_network(no_weights, monkeypatch):
    monkeypatch.setattr(scripts.networks.files, "network_from", None)
    registrar = Registrar(device="cpu")
    assert registrar.settings["preset"] == "default" and registrar.settings["network"] is None
    assert not list(registrar.method.network.parameters())


def test_python_registers_by_the_network_with_masks(files):
    registrar = Registrar(preset="fast", grid=GRID, device="cpu")
    roles = ("fixed", "moving", "fixed_mask", "moving_mask")
    found = registrar(Pair.read({role: files[role] for role in roles}))
    assert registrar.settings["network"]["vsvf_steps"] == 4
    assert len(found.accepted.registration.velocities) == 4 and len(found.inverse.parts) == 1


def test_settings_of_the_engine_can_be_overridden():
    changes = {"engine#optimiser": "sgd", "engine#iterations": [5, 2], "affine_engine#optimiser": "lbfgs"}
    settings = Registrar(preset="vsvf-opt", **changes).settings["method"]
    assert (settings["engine"]["optimiser"], settings["engine"]["iterations"]) == ("sgd", [5, 2])
    assert settings["affine_engine"]["optimiser"] == "lbfgs" and json.loads(json.dumps(settings)) == settings


def test_a_config_or_the_field_of_view_chooses_the_grid(tmp_path):
    assert [Registrar(preset=preset).sampling.options[0] for preset in PRESETS] == [None] * len(PRESETS)
    (tmp_path / "own.json").write_text(json.dumps({"grid": [40, 96, 96], "vsvf_steps": 2}))
    own = Registrar(config_files=[tmp_path / "own.json"], preset="fast")
    assert own.sampling.options[0] == [40, 96, 96] and own.settings["network"]["vsvf_steps"] == 2


def test_progress_tells_stages_and_levels(files):
    told = []
    registrar = Registrar(grid=GRID, device="cpu")
    registrar.register({"pair": Pair.read({r: files[r] for r in ("fixed", "moving")})}, lambda *one: told.append(one))
    parts, words = zip(*told, strict=True)
    assert words[0] == REGISTER and words[-1] == WRITE and "level 1 of 3" in words and "level 3 of 3" in words
    assert list(parts[1:-1]) == sorted(parts[1:-1]) and 0 < parts[1] < parts[-2] <= 1


@pytest.mark.parametrize("settings", [
    {"initialisation": "$print('run')"},
    {"device": "@seed"},
    {"interpolation": "%configs/train.json::grid"},
    {"engine": {"_target_": "builtins.print"}},
    {"grid": ["$1"]},
])  # fmt: skip
def test_no_setting_is_run_as_code(settings, capsys):
    with pytest.raises(InputError, match=next(iter(settings))):
        Registrar(**settings)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("arguments", "line"), [
    ({"preset": "demons"}, "preset='demons': give one of fast, default, best"),
    ({"vsvf_steps": 2}, "vsvf_steps: belongs to a network, and preset default uses none; give preset fast or"),
    ({"ckpt_path": "model.pt", "preset": "best"}, "ckpt_path: belongs to a network, and preset best uses none"),
])  # fmt: skip
def test_config_refuses_in_one_line(files, tmp_path, arguments, line):
    pair = {"fixed": str(files["fixed"]), "moving": str(files["moving"])}
    with pytest.raises(Exception) as caught:
        workflow = ConfigWorkflow(str(tiny.CONFIGS / "inference.json"), logging_file=False, workflow_type="infer",
            bundle_root=str(tiny.BUNDLE), output_dir=str(tmp_path / "out"), **pair, **arguments)  # fmt: skip
        workflow.initialize()
    error = tiny.bad_input(caught.value)
    assert isinstance(error, InputError) and str(error).startswith(line) and "\n" not in str(error)
