"""The registration benchmark: what it measures, that it goes on where it stopped, and what it makes of its rows."""

import json
import math
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

import tiny_bundle as tiny
from register_cases import write_pair

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import benchmark
from registration.cases import Case, PairSet
from registration.datasets import Places, data_sets
from registration.method import Answer
from registration.ours import Ours
from registration.rows import Store
from registration.runner import Runner

from registration import ablate, learn2reg, measures, tables
from scripts.formats import Image, read_image, read_label
from scripts.spatial import Frame, WorldTransform

SIZE = (20, 20, 16)


def frame(shape=(16, 18, 20), spacing=(2.0, 1.5, 1.0)):
    affine = np.diag((*spacing, 1.0))
    affine[:3, 3] = (-7, 5, 30)
    return Frame(shape, affine)


def shift(*mm):
    affine = np.eye(4)
    affine[:3, 3] = mm
    return WorldTransform(affine)


def boxes(grid, corner=(4, 4, 4)):
    """Two labels, one on the other."""
    label = np.zeros(grid.shape, np.uint8)
    d, h, w = corner
    label[d : d + 6, h : h + 6, w : w + 4] = 1
    label[d : d + 6, h : h + 6, w + 4 : w + 8] = 2
    return Image(label, grid, Path("label.nii.gz"))


def case(name="one", grid=None, moved=(0, 0, 0), true_map=None):
    """A pair whose moving label lies some voxels off."""
    grid = grid or frame()
    image = Image(np.random.default_rng(0).random(grid.shape).astype(np.float32), grid, Path("image.nii.gz"))
    return Case(name, image, image, boxes(grid), boxes(grid, tuple(4 + n for n in moved)), true_map)


class Pairs(PairSet):
    """Pairs that are made in an instant, the moving labels a voxel off along the first axis."""

    family, mode, labels, title = "boxes", "longitudinal", {1: "one", 2: "two"}, "boxes"

    def __init__(self, count=3, name="boxes", mode="longitudinal", reason=None):
        self.count, self.name, self.mode, self.reason, self.version = count, name, mode, reason, 1
        self.made = Counter()

    def missing(self):
        return self.reason

    def parameters(self):
        return {"set": self.name}

    def names(self):
        return [f"pair{n}" for n in range(self.count)]

    def fingerprint(self, index):
        return [self.names()[index], self.version]

    def case(self, index):
        self.made[index] += 1
        return case(self.names()[index], moved=(1, 0, 0))


class Move:
    """A method that moves by a constant; can fail, be absent, or end the run."""

    deterministic = True

    def __init__(self, mm=(2.0, 0, 0), name="move", fails=(), reason=None, ends_at=None):
        self.mm, self.name, self.fails, self.reason, self.ends_at = mm, name, fails, reason, ends_at
        self.calls = 0

    def missing(self):
        return self.reason

    def parameters(self):
        return {"mm": self.mm}

    def __call__(self, fixed, moving, threads=1):
        self.calls += 1
        if self.ends_at is not None and self.calls > self.ends_at:
            raise KeyboardInterrupt
        if self.calls in self.fails:
            raise RuntimeError("the engine gave up\nat length")
        back = shift(*(-n for n in self.mm))
        return Answer([shift(*self.mm)], 0.25, [back], [shift(*self.mm)], extra={"threads": threads})


def runner(folder, **options):
    return Runner(Store(folder), **{"symmetry": False, "quiet": True, **options})


# What is measured.


def test_measures_of_a_known_shift():
    pair = case(moved=(1, 0, 0))
    exact = Answer([shift(2.0, 0, 0)], 1.0, [shift(-2.0, 0, 0)], [shift(0, 0, 0)])
    found = measures.measure(pair, exact, [1, 2], Answer([shift(-2.0, 0, 0)], 1.0))
    assert found["dice"] == 1 and found["hd95"] == 0 and found["folds"] == found["folds_central"] == 0
    assert found["dice_affine"] == pytest.approx(5 / 6)
    assert found["inverse_consistency_mm"] < 1e-9 and found["symmetry_mm"] < 1e-9 and found["symmetry_ln"] < -60
    assert found["std_log_jacobian"] < 1e-5


def test_symmetry_is_figure_7s():
    there, back, grid = [shift(3.0, 0, 0)], [shift(-1.0, 0, 1.0)], frame()
    found = measures.symmetry(there, back, grid, grid)
    # What is left of the round trip, as parts of the extent along each axis.
    expected = (2.0 / (15 * 2.0)) ** 2 + (1.0 / (19 * 1.0)) ** 2
    assert found["symmetry_ln"] == pytest.approx(math.log(expected))
    assert found["symmetry_mm"] == pytest.approx(math.hypot(2, 1))
    # The margin of a grid smaller than the paper's: an eighth of 16, on 16, 18, 20.
    assert found["symmetry_points"] == 12 * 14 * 16
    assert measures.margin_of(Frame((80, 192, 192), np.eye(4))) == measures.PAPER_MARGIN


def test_map_error_is_the_distance_from_the_true_map():
    sets = data_sets(Places(None, SIZE, count=1))
    pair = sets["phantom_cross"].case(0)
    truth = pair.moving.frame.normalised_to_world(np.moveaxis(pair.true_map, 0, -1))
    grid = pair.fixed.frame
    field = truth - grid.voxel_to_world(np.stack(np.indices(grid.shape), axis=-1))
    answers = [
        Answer([WorldTransform(np.eye(4), f.astype(np.float32), grid)], 1.0) for f in (field, np.add(field, (0, 3, 4)))
    ]
    exact, off = (measures.measure(pair, answer, [3, 4]) for answer in answers)
    assert exact["map_error_mm"] == pytest.approx(0, abs=1e-4) and off["map_error_mm"] == pytest.approx(5, abs=1e-4)
    assert exact["dice"] > off["dice"] and exact["dice"] > 0.6


# The runner.


def test_killed_run_goes_on(tmp_path):
    """A process that dies by SIGKILL in its third registration leaves two rows, which are not measured again."""
    code = f"""
import os, signal, sys
sys.path[:0] = {[str(ROOT / "benchmarks"), str(ROOT / "bundle"), str(ROOT / "tests"), str(Path(__file__).parent)]!r}
import test_registration as t
class Deadly(t.Move):
    def __call__(self, fixed, moving, threads=1):
        if self.calls == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(fixed, moving, threads)
t.runner({str(tmp_path)!r}).run({{"move": Deadly()}}, {{"boxes": t.Pairs(4)}})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    assert len(Store(tmp_path).rows()) == 2
    method, pairs = Move(), Pairs(4)
    outcome = runner(tmp_path).run({"move": method}, {"boxes": pairs})
    assert (outcome.measured, outcome.kept, method.calls) == (2, 2, 2) and set(pairs.made) == {2, 3}
    assert runner(tmp_path).run({"move": method}, {"boxes": pairs}).measured == 0
    rows = Store(tmp_path).rows()
    assert [row["pair"] for row in rows] == pairs.names()
    assert all(row["dice"] == 1 and row["seconds"] == 0.25 and row["threads"] == 1 for row in rows)


@pytest.mark.parametrize(("method", "version", "options", "again"), [
    (Move(), 1, {}, 0),
    (Move(mm=(1.0, 0, 0)), 1, {}, 3),
    (Move(), 2, {}, 3),
    (Move(), 1, {"threads": 2}, 3),
    (Move(), 1, {"symmetry": True}, 3),
], ids=["the same", "parameters", "files", "threads", "symmetry"])  # fmt: skip
def test_rows_of_other_settings_are_measured_again(method, version, options, again, tmp_path):
    runner(tmp_path).run({"move": Move()}, {"boxes": Pairs()})
    pairs = Pairs()
    pairs.version = version
    assert runner(tmp_path, **options).run({"move": method}, {"boxes": pairs}).measured == again


def test_failure_is_a_row_and_the_others_go_on(tmp_path):
    methods = {"move": Move(), "weak": Move(name="weak", fails=(2,))}
    outcome = runner(tmp_path).run(methods, {"boxes": Pairs()})
    assert (outcome.measured, outcome.failed) == (6, 1)
    failed = [row for row in Store(tmp_path).rows() if row["status"] == "failed"]
    assert [(row["method"], row["pair"], row["error"]) for row in failed] == [
        ("weak", "pair1", "RuntimeError: the engine gave up")
    ]
    again = runner(tmp_path).run(methods, {"boxes": Pairs()})
    assert (again.measured, again.failed) == (0, 1)
    assert runner(tmp_path, retry_failed=True).run(methods, {"boxes": Pairs()}).measured == 1
    assert all(row["status"] == "done" for row in Store(tmp_path).rows())


def test_verify_repeats_deterministic_rows(tmp_path):
    runner(tmp_path, symmetry=True).run({"move": Move()}, {"boxes": Pairs()})
    before = [path.read_bytes() for path in sorted(tmp_path.rglob("*.json"))]
    assert runner(tmp_path, symmetry=True, verify=True).run({"move": Move()}, {"boxes": Pairs()}).differing == []

    class Drifts(Move):
        """Gives another answer than its parameters promise."""

        def __call__(self, fixed, moving, threads=1):
            return replace(super().__call__(fixed, moving, threads), transform=[shift(0, 0, 0)])

    lines = runner(tmp_path, symmetry=True, verify=True).run({"move": Drifts()}, {"boxes": Pairs()}).differing
    assert any("dice 1 before, now 0.83333" in line for line in lines)
    # What a second measurement leaves out does not differ.
    assert runner(tmp_path, verify=True).run({"move": Move()}, {"boxes": Pairs()}).differing == []
    honest = Drifts()
    honest.deterministic = False
    assert runner(tmp_path, symmetry=True, verify=True).run({"move": honest}, {"boxes": Pairs()}).differing == []
    assert [path.read_bytes() for path in sorted(tmp_path.rglob("*.json"))] == before


# Tables.


def cells(text, name):
    """Cells of a Markdown table's line."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


# Learn2Reg.


def written_out(fixed, moved, spacing):
    """Dice and HD95 of two masks from their definitions: counts, and all distances of surface voxels."""
    points = []
    for mask in (fixed, moved):
        index = np.argwhere(mask)
        inside = {tuple(one) for one in index}
        steps = [tuple(s) for s in np.concatenate([np.eye(3, dtype=int), -np.eye(3, dtype=int)])]
        rim = [one for one in inside if any(tuple(np.add(one, step)) not in inside for step in steps)]
        points.append(np.array(rim) * spacing)
    dice = 2 * np.logical_and(fixed, moved).sum() / (fixed.sum() + moved.sum())
    directed = [np.percentile(cKDTree(b).query(a)[0], 95) for a, b in (points, points[::-1])]
    return dice, max(directed)


def compare_with_learn2reg(pair, answer, folder, labels):
    """Our measures and those from the written file."""
    path = learn2reg.write_field(pair, answer, folder)
    return measures.measure(pair, answer, labels), learn2reg.official_measures(
        path, pair.fixed_label, pair.moving_label, labels
    )


def test_learn2reg_measures_are_as_defined(tmp_path):
    pair = case(moved=(1, 0, 0))
    answer = Answer([shift(0.4, 0.1, -2.0)], 1.0)
    ours, theirs = compare_with_learn2reg(pair, answer, tmp_path, [2])
    # A shift by two voxels of the last axis; the others are below half a voxel.
    moved = np.roll(pair.moving_label.array, 2, axis=2)
    dice, hd95 = written_out(pair.fixed_label.array == 2, moved == 2, pair.fixed.frame.spacing)
    assert ours["dice"] == pytest.approx(dice) and theirs["dice"] == pytest.approx(dice)
    assert ours["hd95"] == pytest.approx(hd95) and theirs["hd95"] == pytest.approx(hd95)
    assert theirs["sdlogj"] == pytest.approx(0, abs=1e-6)


def test_spread_of_the_log_jacobian_of_a_known_map():
    d, _, _ = np.indices((12, 10, 10)).astype(float)
    field = np.zeros((12, 10, 10, 3))
    # Along the first axis x -> x + x²/100: |J| = 1 + x/50, and central differences are exact.
    field[..., 0] = d**2 / 100
    slopes = 1 + np.arange(2, 10) / 50
    assert learn2reg.log_jacobian_spread(field) == pytest.approx(np.log(slopes).std())
    assert learn2reg.log_jacobian_spread(field, 3.0) == pytest.approx(np.log(slopes + 3).std())


# Data sets.


def test_generated_pairs_are_held_out_and_the_same_every_time():
    first, second = (data_sets(Places(None, SIZE, count=n))["phantom_longitudinal"] for n in (2, 3))
    assert second.names()[:2] == first.names() and all(entry["seed"] >= 2**62 for entry in second.entries)
    one, two = first.case(0), second.case(0)
    assert one.fixed.frame.shape == (16, 20, 20)
    np.testing.assert_array_equal(one.fixed.array, two.fixed.array)
    other = data_sets(Places(None, SIZE, seed=1, count=2))["phantom_longitudinal"]
    assert not set(other.names()) & set(first.names())


# Our methods.


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny.save_weights(tmp_path_factory.mktemp("weights") / "model.pt")


def tiny_ours(weights, **overrides):
    return Ours("AVSM", overrides={**tiny.NETWORK, "grid": [48, 64, 48], "ckpt_path": str(weights), **overrides})


def test_ours_is_avsm_register(weights, tmp_path):
    files = write_pair(tmp_path)
    config = tmp_path / "tiny.json"
    config.write_text(json.dumps(tiny.NETWORK))
    fixed, moving = read_image(files["fixed"]), read_image(files["moving"])
    method = tiny_ours(weights)
    answer = method(fixed, moving)
    again = Ours("AVSM", overrides={"grid": [48, 64, 48], "ckpt_path": str(weights)}, files=[config])(fixed, moving)
    points = fixed.frame.voxel_to_world(np.random.default_rng(0).random((200, 3)) * (np.array(fixed.frame.shape) - 1))
    there = measures.carry(points, answer.transform)
    np.testing.assert_array_equal(there, measures.carry(points, again.transform))
    back = measures.carry(there, answer.inverse)
    assert np.linalg.norm(there - points, axis=1).max() > 1 and np.linalg.norm(back - points, axis=1).mean() < 0.5
    assert 0 < answer.extra["seconds"]["network"] < answer.seconds
    one = Case("one", fixed, moving, read_label(files["fixed_label"]), read_label(files["moving_label"]))
    assert 0 <= measures.measure(one, answer, [])["dice_affine"] <= 1


def test_parameters_tell_settings_apart(weights, tmp_path):
    base = tiny_ours(weights).parameters()
    assert json.loads(json.dumps(base)) == base and base == tiny_ours(weights).parameters()
    assert base != tiny_ours(weights, vsvf_steps=5).parameters()
    assert base != tiny_ours(weights, **{"affine_engine#angles": [5.0]}).parameters()
    other = torch.load(weights)
    other["affine_net.head.weight"] += 1
    torch.save(other, tmp_path / "other.pt")
    changed = tiny_ours(tmp_path / "other.pt").parameters()
    assert base["weights_sha256"] != changed["weights_sha256"]
    # Weights that a config file names count as those of an override.
    config = tmp_path / "other.json"
    config.write_text(json.dumps({**tiny.NETWORK, "ckpt_path": str(tmp_path / "other.pt")}))
    named = Ours("AVSM", overrides={"grid": [48, 64, 48]}, files=[config])
    assert named.weights == tmp_path / "other.pt" and named.parameters() == changed


# The ablation.


def test_rows_of_the_ablation_add_one_part_each():
    settings = {}
    for name in tables.ABLATION_ROWS:
        content = json.loads((ablate.ROWS / f"{name}.json").read_text())
        phases = content["phases"]
        settings[name] = (content.get("affine_regularisation", 10.0) > 0, content["affine_steps"] > 1,
            content.get("affine_symmetry", 10.0) > 0, "affine_similarity" not in content,
            content["transform"] == "deformable",
            content["transform"] == "deformable" and "vsvf_similarity" not in content, content.get("vsvf_steps", 0) > 1,
            content["transform"] == "deformable" and content.get("vsvf_symmetry", 295.0) > 0)  # fmt: skip
        last = phases[-1]
        assert last["affine_steps"] > 1 or not settings[name][1]
        assert last.get("vsvf_steps", 0) == content.get("vsvf_steps", 0)
        assert content["keep_best_affine"] is False and content["fold_weight"] == 0
        assert sum(phase["epochs"] for phase in phases) == 20
    # A row that starts from V has V's affine stage, whatever its own file leaves unsaid.
    for number, name in enumerate(tables.ABLATION_ROWS):
        assert settings[name] == tuple(part < number for part in range(8)), name


def small_ablation(folder, minutes=0.002):
    overrides = {"grid": [16, 16, 16], "train_pairs": 48, "val_pairs": 1, **tiny.NETWORK}
    return ablate.Ablation("phantom", None, folder, minutes, overrides=overrides)


def test_ablation_trains_once_and_is_measured(tmp_path, monkeypatch):
    work = small_ablation(tmp_path)
    methods = work.methods(["VI", "V"])
    assert list(methods) == ["ablation-V", "ablation-VI"]
    affine, deformable = (methods[f"ablation-{name}"] for name in ("V", "VI"))
    assert "from row V" in deformable.training and "pairs" in affine.training
    states = [torch.load(method.weights, weights_only=True)["network"] for method in (affine, deformable)]
    same = {name: torch.equal(states[0][name], states[1][name]) for name in states[0]}
    assert all(value for name, value in same.items() if name.startswith("affine_net"))
    assert not all(value for name, value in same.items() if name.startswith("momentum_net"))

    monkeypatch.setattr(ablate.Ablation, "_run", lambda *arguments: pytest.fail("trained again"))
    assert list(small_ablation(tmp_path).methods(["V"])) == ["ablation-V"]
    pairs = data_sets(Places(None, SIZE, count=1))["phantom_cross"]
    runner(tmp_path / "out").run(methods, {"phantom_cross": pairs})
    rows = Store(tmp_path / "out").rows()
    assert [one["status"] for one in rows] == ["done", "done"], rows
    text = tables.table2(rows)
    assert cells(text, "VI")[-1] == deformable.training
    assert "dice_affine" in rows[1] and rows[0]["dice"] == pytest.approx(rows[0]["dice_affine"])


# The command.


def run(folder, *options):
    words = ["--output", str(folder), "--size", "20x20x16", "--dataset", "phantom_*", "--only", "header,centres"]
    return benchmark.main(["run", *words, "--archive", str(folder / "none"), "--count", "2", *options])


def test_command_measures_reports_and_goes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("AVSM_DATA", raising=False)
    assert run(tmp_path / "out", "--publish", str(tmp_path / "docs"), "--learn2reg") == 0
    assert "8 rows measured, 0 kept, 0 failed" in capsys.readouterr().err
    for folder in ("out", "docs"):
        names = {path.name for path in (tmp_path / folder).iterdir() if path.is_file()}
        assert {"table1_phantom.md", "figure5_phantom.png", "learn2reg_phantom.md"} <= names
        assert ("pairs_phantom.csv" in names) == (folder == "out")
    assert (tmp_path / "docs" / "table1_phantom.md").read_text() == (tmp_path / "out" / "table1_phantom.md").read_text()
    assert len(list((tmp_path / "out" / "learn2reg").rglob("disp_*.nii.gz"))) == 4
    assert run(tmp_path / "out", "--verify") == 0 and run(tmp_path / "out", "--pairs", "1") == 0
    assert "0 rows measured, 4 kept, 0 failed" in capsys.readouterr().err
    assert benchmark.main(["report", "--output", str(tmp_path / "out"), "--archive", str(tmp_path / "none")]) == 0
    assert "table1_phantom.md" in capsys.readouterr().out
    # What has been published counts as measured where nothing else is left, and gives the same tables.
    assert run(tmp_path / "later", "--archive", str(tmp_path / "docs" / "rows")) == 0
    assert "0 rows measured, 8 kept, 0 failed" in capsys.readouterr().err
    table = tmp_path / "later" / "table1_phantom.md"
    assert table.read_text() == (tmp_path / "docs" / "table1_phantom.md").read_text()


@pytest.mark.parametrize(("options", "line"), [
    (("--size", "9x9"), "error: size=9x9"),
    (("--only", "magic"), "error: only=magic: not known"),
    (("--dataset", "brains"), "error: dataset=brains: not known"),
    (("--data", "/nowhere/at/all"), "no such folder"),
])  # fmt: skip
def test_command_tells_bad_input_in_a_line(options, line, tmp_path, capsys):
    assert run(tmp_path, *options) == 1
    errors = capsys.readouterr().err
    assert line in errors and len(errors.strip().splitlines()) == 1 and not (tmp_path / "rows").exists()
