"""The optimisers as methods of the tool: by the command, the bundle's config and Python, without weights."""

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
from scripts.cli import main
from scripts.errors import InputError
from scripts.formats.images import read_image
from scripts.networks import AVSM
from scripts.registration import Pair, Registrar
from scripts.settings import BUNDLE
from scripts.transform import Transform

METHODS = ("affine-opt", "vsvf-opt", "engine")
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
    """Output folder and metrics of each twin, by the command."""
    folder = tmp_path_factory.mktemp("out")
    return {
        method: (folder / method, register(files, folder / method, "--method", method, "--grid", *map(str, GRID)))
        for method in METHODS
    }


@pytest.mark.parametrize("method", METHODS)
def test_files_and_metrics(by_command, files, method):
    out, metrics = by_command[method]
    names = {path.name for path in out.iterdir()}
    assert {"transform.h5", "inverse_transform.h5", "affine.tfm", "moved.nii.gz", "report.html"} <= names
    assert nib.load(out / "moved.nii.gz").shape == nib.load(files["fixed"]).shape
    for values in metrics["similarity"].values():
        assert values["before"] < values["affine"] < values["final"] + 1e-6
    # Similarity is what is sought; with voxels of 5 to 8 mm Dice need not follow it. It is measured all the same.
    assert 0 < metrics["labels"]["mean"]["dice"]["final"] <= 1
    assert metrics["folds"] == 0 and metrics["inverse_consistency_mm"]["mean"] < 0.1
    assert metrics["seconds"]["optimise"] > 0 and "network" not in metrics["seconds"]


def test_metrics_say_what_was_done(by_command):
    for method in METHODS:
        metrics = by_command[method][1]
        settings, found = metrics["settings"], metrics["optimisation"]
        assert settings["method"] == method and settings["grid"] == GRID
        assert metrics["weights_sha256"] is None and settings["network"] is None
        assert found["affine_after"] < found["affine_before"]
        assert metrics["affine"]["steps_kept"] == sum(found["affine_steps"])
    affine, whole, _ = (by_command[method][1] for method in METHODS)
    assert affine["settings"]["optimiser"]["name"] == "AffineOptimiser" and affine["settings"]["optimiser"]["kernel"]
    assert affine["jacobian"]["std_log"] < 1e-4
    assert affine["similarity"]["ncc"]["final"] < whole["similarity"]["ncc"]["final"]
    alone = {name: value for name, value in affine["settings"]["optimiser"].items() if name != "kernel"}
    assert whole["settings"]["optimiser"]["affine_optimiser"] == alone
    assert whole["settings"]["optimiser"]["kernel"]["stds"] == [[s] * 3 for s in (0.03, 0.06, 0.12, 0.2)]
    assert whole["optimisation"]["after"] < whole["optimisation"]["before"]
    assert len(whole["optimisation"]["evaluations"]) == len(whole["settings"]["optimiser"]["scales"])


@pytest.mark.parametrize("method", METHODS)
def test_config_without_weights_is_the_same_as_the_command(by_command, files, tmp_path, method, no_weights):
    roles = ("fixed", "moving", "fixed_label", "moving_label")
    workflow = ConfigWorkflow(
        str(tiny.CONFIGS / "inference.json"),
        str(tiny.CONFIGS / "metadata.json"),
        logging_file=False,
        workflow_type="infer",
        bundle_root=str(tiny.BUNDLE),
        output_dir=str(tmp_path),
        ckpt_path=str(tmp_path / "there_is_none.pt"),
        method=method,
        grid=GRID,
        threads=1,
        report=False,
        **{role: str(files[role]) for role in roles},
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    workflow.run()
    again = json.loads((tmp_path / "metrics.json").read_text())
    assert again["similarity"] == by_command[method][1]["similarity"]
    assert again["settings"] == by_command[method][1]["settings"]


@pytest.mark.parametrize("method", METHODS)
def test_python_gives_the_transforms_of_the_command(by_command, files, method, no_weights):
    torch.set_num_threads(1)
    found = Registrar(method=method, grid=GRID, device="cpu")(Pair.read({r: files[r] for r in ("fixed", "moving")}))
    out = by_command[method][0]
    points = read_image(files["fixed"]).frame.corners * 0.8
    for ours, name in ((found.transform, "transform.h5"), (found.inverse, "inverse_transform.h5")):
        np.testing.assert_allclose(ours.points(points), Transform.read(out / name).points(points), atol=1e-2)
    assert found.metrics["settings"]["method"] == method and found.metrics["seconds"]["optimise"] > 0


def test_python_registers_by_the_network_too(files):
    registrar = Registrar(grid=GRID, optimisation_steps=1, device="cpu")
    roles = ("fixed", "moving", "fixed_mask", "moving_mask")
    found = registrar(Pair.read({role: files[role] for role in roles}))
    assert found.metrics["instance_optimisation"]["steps"] == 1
    assert registrar.settings["network"]["vsvf_steps"] == 4
    assert len(found.accepted.registration.velocities) == 4 and len(found.inverse.parts) == 2


def test_settings_of_an_optimiser_can_be_overridden():
    registrar = Registrar(
        method="vsvf-opt",
        **{
            "affine_opt#optimiser": "sgd",
            "affine_opt#rate": 1e-4,
            "vsvf_opt#optimiser": "lbfgs",
            "vsvf_opt#scales": [0.5, 1.0],
            "vsvf_opt#iterations": [5, 2],
            "bare_network#stds": [0.1],
            "bare_network#weights": [1.0],
        },
    )
    settings = registrar.settings["optimiser"]
    assert settings["optimiser"] == "lbfgs" and settings["scales"] == [0.5, 1.0] and settings["iterations"] == [5, 2]
    assert (settings["affine_optimiser"]["optimiser"], settings["affine_optimiser"]["rate"]) == ("sgd", 1e-4)
    assert settings["kernel"] == {"stds": [[0.1] * 3], "weights": [1.0]}
    assert json.loads(json.dumps(registrar.settings)) is not None


def test_the_model_or_the_field_of_view_chooses_the_grid():
    assert [Registrar(method=method).sampling.options[0] for method in ("avsm", *METHODS)] == [None] * 4
    assert Registrar("phantom").sampling.options[0] == [48, 64, 48]
    knee = Registrar(config_files=[BUNDLE / "models" / "knee.json"])
    assert knee.sampling.options[0] == [40, 96, 96] and knee.settings["network"]["vsvf_steps"] == 2


@pytest.mark.parametrize(
    "settings",
    [
        {"initialisation": "$print('run')"},
        {"device": "@seed"},
        {"interpolation": "%configs/train.json::grid"},
        {"affine_opt": {"_target_": "builtins.print"}},
        {"grid": ["$1"]},
    ],
)
def test_no_setting_is_run_as_code(settings, capsys):
    with pytest.raises(InputError, match=next(iter(settings))):
        Registrar(**settings)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--method", "demons"), "argument --method: invalid choice: 'demons'"),
        (("--method", ""), "argument --method: '' is no name; correct it"),
        (("--method", "vsvf-opt", "--weights", "w.pt"), "--weights: is the network's; --method vsvf-opt has none"),
        (("--method", "affine-opt", "--optimisation-steps", "5"), "--optimisation-steps: is the network's"),
        (("--method", "affine-opt", "--affine-steps", "0"), "--affine-steps: is the network's"),
        (("--method", "vsvf-opt", "--vsvf-steps", "2"), "--vsvf-steps: is the network's"),
        (("--method", "vsvf-opt", "--affine-only"), "--affine-only: vsvf-opt is deformable; give --method affine-opt"),
    ],
)
def test_command_refuses(files, tmp_path, words, line, capsys):
    pair = ("--fixed", str(files["fixed"]), "--moving", str(files["moving"]), "--output", str(tmp_path / "out"))
    with pytest.raises(SystemExit) as caught:
        main(["register", *pair, *words])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.startswith(f"error: {line}") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"method": "demons"}, "method=demons: must be one of avsm, engine, affine-opt, vsvf-opt"),
        ({"method": "vsvf-opt", "affine_only": True}, "affine_only: vsvf-opt is deformable"),
        ({"method": "affine-opt", "optimisation_steps": 5}, "optimisation_steps=5: goes on from a network"),
    ],
)
def test_config_refuses_in_one_line(files, tmp_path, arguments, line):
    pair = {"fixed": str(files["fixed"]), "moving": str(files["moving"])}
    with pytest.raises(Exception) as caught:
        workflow = ConfigWorkflow(
            str(tiny.CONFIGS / "inference.json"),
            logging_file=False,
            workflow_type="infer",
            bundle_root=str(tiny.BUNDLE),
            output_dir=str(tmp_path / "out"),
            **pair,
            **arguments,
        )
        workflow.initialize()
    error = tiny.bad_input(caught.value)
    assert isinstance(error, InputError) and str(error).startswith(line) and "\n" not in str(error)
