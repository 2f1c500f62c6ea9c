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
from scripts.geometry import identity_affine
from scripts.networks import AVSM, bare_network
from scripts.registration import Pair, Registrar
from scripts.registration.grids import NetworkGrids
from scripts.registration.methods import Method
from scripts.registration.progress import REGISTER, WRITE
from scripts.registration.sampling import SampledPair
from scripts.settings import PRESETS
from scripts.spatial import Frame
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


@pytest.mark.parametrize(("name", "mend"), [
    ("label_weight", "give overlap_weight"),  # the option's name, not the id
    ("grid_voxel", "give grid_voxels"),
    ("engin#regularisation", "give engine"),
    ("nothing_like_it", "see configs/inference.json"),
])  # fmt: skip
def test_an_id_that_nothing_reads_is_refused(name, mend):
    with pytest.raises(InputError, match=f"^{name}: nothing in the config has this id; {mend}$"):
        Registrar(**{name: 4})


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


class Scripted:
    """A stage whose affines of either kind are known; a deformation is worth ``after``."""

    name, clock = "engine", "optimise"

    def __init__(self, after=0.5, **shifts):
        self.after, self.shifts, self.calls = after, shifts, 0

    def affines(self, pair, found):
        affine = identity_affine(1, "cpu")
        affine[0, 0, 3] = self.shifts[pair.grids.kind]
        found.facts["affine_after"] = self.shifts[pair.grids.kind]
        return [(affine, 3)]

    def deform(self, pair, found, tell):
        tell(0.5, "level 1 of 1")
        self.calls += 1
        found.facts |= {"before": 1.0, "after": self.after if self.calls > 1 else 0.6}
        return found.registration

    def settings(self, affine, deform):
        return {}


@pytest.mark.parametrize(("settled", "shifts", "after", "kept"), [
    (0.8, {"affine": 0.4, "rigid": 0.0}, 0.5, True),  # a lost affine
    (0.8, {"affine": 0.4, "rigid": 0.0}, 2.0, False),  # the second's objective is above that of the affine
    (0.98, {"affine": 0.06, "rigid": 0.4}, 0.5, False),  # both are lost, the rigid motion more
    (0.8, {"affine": 0.0, "rigid": 0.4}, 0.5, None),  # settled at once
    (1.01, {"affine": 0.0, "rigid": 0.4}, 0.5, False),  # always
    (0.0, {"affine": 0.4, "rigid": 0.0}, 0.5, None),  # never
])  # fmt: skip
def test_a_lost_affine_is_begun_again_from_a_rigid_motion(settled, shifts, after, kept):
    noise = torch.rand(1, 1, 34, 34, 34, generator=torch.Generator().manual_seed(0))
    image = torch.nn.functional.avg_pool3d(noise, 3, 1)
    frame = Frame((32, 32, 32), np.eye(4))
    pair = SampledPair(NetworkGrids(frame, frame, "header"), image, image, None, None, torch.ones_like(image))
    stage, told = Scripted(after, **shifts), []
    method = Method(bare_network(), [stage], [stage], "lncc", keep_best_affine=False, settled=settled)
    found = method(pair, lambda *one: told.append(one))
    assert stage.calls == (1 if kept is None else 2)
    assert found.registration.affine[0, 0, 3] == pytest.approx(shifts["rigid" if kept else "affine"])
    assert found.facts["affine_after"] == shifts["rigid" if kept else "affine"]
    assert [part for part, _ in told] == sorted(part for part, _ in told)
    if kept is None:
        assert "begun_again" not in found.facts
    else:
        first, second = found.facts["begun_again"]["settled"]
        assert found.facts["begun_again"]["kept"] == kept and (second > first or not kept)


def test_what_labels_drive_is_not_begun_again(files):
    roles = ("fixed", "moving", "fixed_label", "moving_label")
    registrar = Registrar(preset="best", grid=GRID, device="cpu", overlap_weight=4)
    found = registrar(Pair.read({role: files[role] for role in roles}))
    assert "begun_again" not in found.metrics["optimisation"]
    plain = Registrar(preset="best", grid=GRID, device="cpu")
    found = plain(Pair.read({role: files[role] for role in roles[:2]}))
    assert "begun_again" in found.metrics["optimisation"]
