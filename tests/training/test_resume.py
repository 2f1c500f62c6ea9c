"""The whole training, three phases at a tiny size: killed and resumed, repeated, refused."""

import signal

import pytest

import tiny_bundle as tiny
from scripts.errors import InputError


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Output folder of a run of all phases, in a process of its own, by the run id `training`."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    done = tiny.call(tiny.command("train", folder, ["training"], ["--output_dir", folder / "out"]))
    assert done.returncode == 0, done.stderr
    return folder / "out"


def test_run_goes_through_all_phases(uninterrupted):
    last = tiny.last(uninterrupted)
    assert last["epoch"] == 6 and last["best"]["phase"] == "vsvf" and 0 < last["best"]["metric"] < 1
    start = tiny.workflow("train", uninterrupted.parent, uninterrupted.parent / "start").network_def.state_dict()
    trained = {name for name in start if not start[name].equal(last["network"][name])}
    assert any(name.startswith("affine_net.") for name in trained)
    assert any(name.startswith("momentum_net.") for name in trained)
    assert all((uninterrupted / "pictures" / f"validation_{epoch:04d}.png").stat().st_size for epoch in range(1, 7))


@pytest.mark.timeout(300)
def test_killed_in_every_phase_and_resumed_ends_with_the_same_weights(uninterrupted, tmp_path):
    killer = {"_target_": "tiny_bundle.KillOnce", "epochs": [2, 3, 6], "folder": str(tmp_path)}
    line = tiny.command("train", tmp_path, [], ["--output_dir", tmp_path / "out"], **{"+train#handlers": [killer]})
    for epoch in (1, 2, 5):
        killed = tiny.call(line)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert tiny.last(tmp_path / "out")["epoch"] == epoch
    resumed = tiny.call(line)
    assert resumed.returncode == 0, resumed.stderr
    assert "Resuming the run" in resumed.stderr and "after epoch 5" in resumed.stderr
    first, second = tiny.last(uninterrupted), tiny.last(tmp_path / "out")
    assert tiny.equal_weights(first["network"], second["network"])
    assert first["best"] == second["best"] and first["epoch"] == second["epoch"]
    for key, state in first["optimizer"]["state"].items():
        assert all(value.equal(second["optimizer"]["state"][key][name]) for name, value in state.items())
    assert (tmp_path / "out" / "model.pt").read_bytes() == (uninterrupted / "model.pt").read_bytes()


def test_seed_decides(uninterrupted, tmp_path):
    tiny.run("train", tmp_path, tmp_path / "same")
    assert tiny.equal_weights(tiny.weights(uninterrupted), tiny.weights(tmp_path / "same"))
    tiny.run("train", tmp_path, tmp_path / "other", seed=1)
    first, other = tiny.weights(uninterrupted), tiny.weights(tmp_path / "other")
    assert first.keys() == other.keys() and not tiny.equal_weights(first, other)


def test_finished_run_does_nothing(uninterrupted, caplog):
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*") if path.is_file()}
    with caplog.at_level("INFO", "scripts"):
        tiny.run("train", uninterrupted.parent, uninterrupted)
    assert "is complete (6 epochs): nothing to do" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*") if path.is_file()} == before


OTHER_RUNS = [
    ({"resume": False}, "a run is already there; give another output_dir"),
    ({"seed": 7}, "other settings (seed: 0 there, 7 here)"),
    ({"grid": [16, 16, 20]}, "other settings (grid: [16, 16, 16] there, [16, 16, 20] here)"),
    ({"phases::2::learning_rate": 0.5}, "phase vsvf: learning_rate 0.001 there, 0.5 here"),
    ({"network_def#affine_net#channels": [4, 6]}, "the run there has another network"),
]


@pytest.mark.parametrize(("overrides", "message"), OTHER_RUNS)
def test_run_of_other_settings_is_refused(uninterrupted, tmp_path, overrides, message):
    found = tiny.workflow("train", tmp_path, uninterrupted, **overrides)
    with pytest.raises(Exception) as caught:
        found.run()
    error = tiny.bad_input(caught.value)
    assert isinstance(error, InputError) and str(uninterrupted / "checkpoint_last.pt") in str(error)
    assert message in str(error) and "\n" not in str(error)


def test_damaged_checkpoint_is_refused(tmp_path):
    (tmp_path / "checkpoint_last.pt").write_bytes(b"nothing of the kind")
    with pytest.raises(Exception) as caught:
        tiny.run("train", tmp_path, tmp_path)
    assert "checkpoint_last.pt: not a checkpoint of this project" in str(tiny.bad_input(caught.value))
