"""The optimisation twins as methods of the tool: by the command, the bundle's config and Python, without weights."""

import json
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow

import scripts.networks
import scripts.registration.options as options_module
import tiny_bundle as tiny
from register_cases import register, write_pair
from scripts.cli import main
from scripts.errors import InputError
from scripts.formats.images import read_image, read_mask
from scripts.formats.transform_files import read_transforms
from scripts.networks import AVSM
from scripts.optimize import AffineOptimiser, InstanceOptimiser, VSVFOptimiser, bare_network
from scripts.registration.options import METHODS, method_settings, method_twin
from scripts.registration.pair import PairRegistrar
from scripts.registration.update import PairUpdate

TWINS = ("affine-opt", "vsvf-opt")
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
    monkeypatch.setattr(options_module, "load_weights", fail)
    monkeypatch.setattr(AVSM, "register", fail)


@pytest.fixture(scope="module")
def by_command(files, tmp_path_factory):
    """Output folder and metrics of each twin, by the command."""
    folder = tmp_path_factory.mktemp("out")
    return {
        method: (folder / method, register(files, folder / method, "--method", method, "--grid", *map(str, GRID)))
        for method in TWINS
    }


@pytest.mark.parametrize("method", TWINS)
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
    for method in TWINS:
        metrics = by_command[method][1]
        settings, found = metrics["settings"], metrics["optimisation"]
        assert settings["method"] == method and settings["grid"] == GRID
        assert metrics["weights_sha256"] is None and not {"ckpt_path", "affine_steps"} & settings.keys()
        assert found["affine_after"] < found["affine_before"]
        assert metrics["affine"]["steps_kept"] == sum(found["affine_steps"])
    affine, whole = (by_command[method][1] for method in TWINS)
    assert affine["settings"]["optimiser"]["name"] == "AffineOptimiser" and "kernel" not in affine["settings"]
    assert affine["jacobian"]["std_log"] < 1e-4
    assert affine["similarity"]["ncc"]["final"] < whole["similarity"]["ncc"]["final"]
    assert whole["settings"]["optimiser"]["affine_optimiser"] == affine["settings"]["optimiser"]
    assert whole["settings"]["kernel"]["stds"] == [0.03, 0.06, 0.12, 0.2]
    assert whole["optimisation"]["after"] < whole["optimisation"]["before"]
    assert len(whole["optimisation"]["evaluations"]) == len(whole["settings"]["optimiser"]["scales"])


@pytest.mark.parametrize("method", TWINS)
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


@pytest.mark.parametrize("method", TWINS)
def test_python_gives_the_transforms_of_the_command(by_command, files, method, no_weights):
    torch.set_num_threads(1)
    registrar = PairRegistrar(method, grid=GRID, device="cpu")
    found = registrar(read_image(files["fixed"]), read_image(files["moving"]))
    out = by_command[method][0]
    points = read_image(files["fixed"]).frame.corners * 0.8
    for ours, name in (([found.transform], "transform"), (found.inverse, "inverse_transform"), ([found.affine], None)):
        theirs = read_transforms(out / f"{name}.h5" if name else out / "affine.tfm")
        first = second = points
        for part in ours:
            first = part.apply(first)
        for part in theirs:
            second = part.apply(second)
        np.testing.assert_allclose(first, second, atol=1e-2)
    assert registrar.settings["method"] == method and found.registered.seconds["optimise"] > 0


def test_python_registers_by_the_network_too(files):
    registrar = PairRegistrar(grid=GRID, optimisation_steps=1, device="cpu")
    masks = [read_mask(files[f"{role}_mask"], read_image(files[role])) for role in ("fixed", "moving")]
    found = registrar(read_image(files["fixed"]), read_image(files["moving"]), *masks)
    assert found.registered.refinement is not None and registrar.settings["vsvf_steps"] == 4
    assert len(found.registered.registration.velocities) == 4 and len(found.inverse) == 2
    whole, less = (found.registered.shorter(factor, "to fit") for factor in (1.0, 0.5))
    for short, long in zip(less.registration.momenta, whole.registration.momenta, strict=True):
        assert torch.equal(short, 0.5 * long)
    assert less.refinement.after.item() != whole.refinement.after.item()
    assert less.notes[:-1] == whole.notes[:-1] and less.notes[-1].endswith("shortened to 0.5 of its length, to fit")
    assert less.similarity["affine"] == whole.similarity["affine"]


@pytest.mark.parametrize(
    ("options", "has_flow"), [({}, True), ({"vsvf_steps": 1}, True), ({"affine_only": True}, False)]
)
def test_the_networks_own_flow_can_be_shortened(files, options, has_flow):
    found = PairRegistrar(grid=GRID, device="cpu", **options)(read_image(files["fixed"]), read_image(files["moving"]))
    shorter = found.registered.shorter
    assert (shorter is not None) == has_flow
    if has_flow:
        whole, less = (shorter(factor, "to fit") for factor in (1.0, 0.5))
        assert less.refinement is None and torch.equal(less.registration.affine, whole.registration.affine)
        for short, long in zip(less.registration.momenta, whole.registration.momenta, strict=True):
            assert torch.equal(short, 0.5 * long) and long.abs().max() > 0
        # What came is the whole, or a part of it that says so.
        notes = [note for note in found.notes if "shortened to" in note]
        came = (
            found.registered if not notes else shorter(float(notes[-1].split("shortened to ")[1].split()[0]), "again")
        )
        torch.testing.assert_close(came.registration.map, found.registered.registration.map)
        torch.testing.assert_close(came.registration.inverse_map, found.registered.registration.inverse_map)


def test_settings_of_a_twin_can_be_overridden():
    registrar = PairRegistrar(
        "vsvf-opt",
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
    twin = registrar.update.twin
    assert (twin.optimiser, twin.rate, twin.scales, twin.iterations) == ("lbfgs", 1.0, (0.5, 1.0), (5, 2))
    assert (twin.affine_optimiser.optimiser, twin.affine_optimiser.rate) == ("sgd", 1e-4)
    assert registrar.settings["kernel"] == {"stds": [0.1], "weights": [1.0], "integrator": "scaling_squaring"}
    assert registrar.settings["optimiser"]["affine_optimiser"]["rate"] == 1e-4
    assert json.loads(json.dumps(registrar.settings)) is not None


def test_field_of_view_chooses_the_grid():
    assert [PairRegistrar(method).sampling.options["grid"] for method in METHODS] == [None] * 3
    phantom = PairRegistrar(config_files=[tiny.BUNDLE / "models" / "phantom.json"])
    assert phantom.sampling.options["grid"] == [48, 64, 48]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--method", "demons"), "argument --method: invalid choice: 'demons'"),
        (("--method", ""), "argument --method: invalid choice: ''"),
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
        ({"method": "demons"}, "method=demons: must be one of avsm, affine-opt, vsvf-opt"),
        ({"method": None}, "method=None: must be one of"),
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


def test_twin_of_a_method():
    affine, whole = AffineOptimiser(), VSVFOptimiser()
    assert [method_twin(method, affine, whole) for method in METHODS] == [None, affine, whole]
    assert method_twin("affine-opt", affine, whole, affine_only=True) is affine


def test_settings_of_functions_and_lists_are_plain():
    def likeness(moved, fixed, mask=None):
        return (moved - fixed).square().flatten(1).mean(1)

    twin = AffineOptimiser((0.5, 1.0), (1, 1), [likeness, VSVFOptimiser().similarities[0]])
    found = method_settings("affine-opt", {"ckpt_path": "x"}, bare_network(), twin, grid=None)
    assert found["optimiser"]["similarities"][0] == "likeness"
    assert found["optimiser"]["similarities"][1]["windows"] == [9, 21]
    assert "ckpt_path" not in found and json.dumps(found)


def test_instance_optimisation_needs_the_network():
    with pytest.raises(ValueError, match="give it or a twin"):
        PairUpdate(InstanceOptimiser(steps=1), twin=AffineOptimiser())
