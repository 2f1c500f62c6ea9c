"""A real MLflow server: trainings log to it, lose it and find it again; a model is registered, loaded back and used."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nibabel as nib
import pytest

import tiny_bundle as tiny
from mlflow_cases import artifacts, history, runs_of
from register_cases import write_pair

pytestmark = [pytest.mark.integrations, pytest.mark.timeout(900)]
TRACKING = str(tiny.CONFIGS / "tracking_mlflow.json")
PHASES = [dict(tiny.PHASES[0], epochs=2), dict(tiny.PHASES[2], epochs=4)]
USE = """
import json, sys
import mlflow, pandas
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
found = model.predict(pandas.DataFrame(json.loads(sys.argv[3])), params={"report": False})
import scripts
print(json.dumps({"rows": found.to_dict("records"), "code": scripts.__file__}))
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "PYTHONPATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


class Server:
    """``make mlflow-server``, on a free port and a folder of its own."""

    def __init__(self, folder):
        self.folder = Path(folder)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self):
        # This interpreter's environment is the one to use; none is set up.
        values = ["READY=", f"PY={sys.executable}", f"MLFLOW_DATA={self.folder / 'data'}", f"MLFLOW_PORT={self.port}"]
        with open(self.folder / "server.log", "a", encoding="utf-8") as log:
            self.process = subprocess.Popen(["make", "mlflow-server", *values], cwd=tiny.BUNDLE.parent, stdout=log,
                stderr=log, start_new_session=True)  # fmt: skip
        end = time.monotonic() + 300
        while time.monotonic() < end:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=10) as answer:
                    assert answer.status == 200
                    return
            except OSError:
                assert self.process.poll() is None, (self.folder / "server.log").read_text()
                time.sleep(0.5)
        raise AssertionError((self.folder / "server.log").read_text())

    def kill(self):
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


def training(folder, server, **overrides):
    """Command line of a tracked training that registers its model."""
    options = ["--output_dir", folder / "out", "--tracking", TRACKING, "--tracking_uri", server.uri]
    options += ["--registered_model", "tiny"]
    return tiny.command("train", folder, ["training"], options, **{"phases": PHASES, **overrides})


def tracking_command(*words):
    """``python -m scripts.tracking``, as documented."""
    line = [sys.executable, "-m", "scripts.tracking", *map(str, words)]
    return subprocess.run(line, cwd=tiny.BUNDLE, capture_output=True, text=True, timeout=600)


def run_of(server, folder):
    """Client and the one run of a training's folder."""
    client, runs = runs_of(server.uri, (folder / "out" / "mlflow_run_name.txt").read_text().strip())
    (run,) = runs
    return client, run


def versions(client, run):
    return [version for version in client.search_model_versions("name = 'tiny'") if version.run_id == run.info.run_id]


def check_complete(server, folder):
    """A run of PHASES is there, whole and once, with its model."""
    client, run = run_of(server, folder)
    assert run.info.status == "FINISHED" and run.data.params["phases.vsvf.epochs"] == "4"
    assert sorted(history(client, run, "train_epoch/loss")) == [1, 2, 3, 4, 5, 6]
    assert sorted(history(client, run, "validation/val_mean_dice")) == [1, 2, 3, 4, 5, 6]
    assert sorted(history(client, run, "train/loss")) == [10]
    assert artifacts(client, run) == ["checkpoints", "config.json", "images", "validation.png"]
    assert len([name for name in artifacts(client, run, "images") if name.endswith(".png")]) == 6
    (version,) = versions(client, run)
    return client, run, version


@pytest.fixture(scope="module")
def resumed(server, tmp_path_factory):
    """A training that was killed and went on."""
    folder = tmp_path_factory.mktemp("resumed")
    kill = {"+train#handlers": [{"_target_": "tiny_bundle.KillOnce", "epochs": [3], "folder": str(folder)}]}
    first = tiny.call(training(folder, server, **kill), timeout=600)
    assert first.returncode == -signal.SIGKILL, first.stderr
    client, run = run_of(server, folder)
    assert run.info.status == "RUNNING" and sorted(history(client, run, "train_epoch/loss")) == [1, 2]
    second = tiny.call(training(folder, server, **kill), timeout=600)
    assert second.returncode == 0, second.stderr
    assert "warning: MLflow" not in first.stderr + first.stdout + second.stderr + second.stdout
    return folder


def test_training_that_is_killed_goes_on_in_its_run(server, resumed):
    check_complete(server, resumed)


def test_server_that_dies_midway(tmp_path, tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("dying"))
    try:
        server.start()
        with open(tmp_path / "log.txt", "w", encoding="utf-8") as log:
            tests = str(Path(tiny.__file__).parent)
            process = subprocess.Popen(training(tmp_path, server), cwd=tiny.BUNDLE,
                env={**os.environ, "PYTHONPATH": tests}, stdout=log, stderr=subprocess.STDOUT)  # fmt: skip
            wait_for_epoch(server, process)
            server.kill()
            assert process.wait(timeout=600) == 0
        text = (tmp_path / "log.txt").read_text()
        told = re.findall(r"warning: MLflow at .*", text)
        assert len(told) == 2 and "the run goes on" in told[0] and "send it later" in told[1], text
        assert tiny.last(tmp_path / "out")["epoch"] == 6
        failed = tracking_command("upload", tmp_path / "out", "--tracking-uri", server.uri)
        assert failed.returncode == 1 and failed.stderr.splitlines()[-1].startswith("error: ")

        server.start()
        done = tracking_command("upload", tmp_path / "out", "--tracking-uri", server.uri)
        assert done.returncode == 0, done.stderr
        _, run, _ = check_complete(server, tmp_path)
        assert run.info.run_id in done.stdout
        # Again changes nothing, nor does registering the same weights once more.
        assert tracking_command("upload", tmp_path / "out", "--tracking-uri", server.uri).returncode == 0
        again = tracking_command("register", "tiny", "--run", tmp_path / "out", "--tracking-uri", server.uri)
        assert again.returncode == 0 and again.stdout.splitlines()[-1] == "models:/tiny/1", again.stderr
        check_complete(server, tmp_path)
    finally:
        server.kill()


def wait_for_epoch(server, process):
    """Wait until the server knows of an epoch of the only run."""
    end = time.monotonic() + 300
    while time.monotonic() < end and process.poll() is None:
        try:
            client, runs = runs_of(server.uri)
            if runs and history(client, runs[0], "train_epoch/loss"):
                return
        except AttributeError:  # no experiment yet
            pass
        time.sleep(0.2)
    raise AssertionError("no epoch arrived")


def use(server, model, rows, folder):
    """Load a model in a process that knows of nothing but the installed packages, and register pairs."""
    folder.mkdir(exist_ok=True)
    line = [sys.executable, "-W", "ignore", "-c", USE, server.uri, model, json.dumps(rows)]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_model_is_loaded_back_and_registers_a_pair(server, resumed, tmp_path):
    client, run, version = check_complete(server, resumed)
    files = write_pair(tmp_path)
    row = {name: str(files[name]) for name in ("fixed", "moving", "fixed_label", "moving_label")}
    rows = [
        {**row, "output_dir": str(tmp_path / "a")},
        {**row, "moving": "none.nii", "output_dir": str(tmp_path / "b")},
    ]
    found = use(server, f"models:/tiny/{version.version}", rows, tmp_path / "elsewhere")
    good, bad = found["rows"]
    assert not found["code"].startswith(str(tiny.BUNDLE)), "the code must come with the model"
    assert good["error"] == "" and 0 < good["dice_final"] <= 1 and good["folds"] == 0
    assert nib.load(good["moved"]).shape == nib.load(files["fixed"]).shape
    assert Path(good["transform"]).is_file() and Path(good["inverse_transform"]).is_file()
    assert bad["error"].endswith("none.nii: file does not exist; correct the path") and bad["moved"] == ""
    settings = json.loads(Path(good["metrics"]).read_text(encoding="utf-8"))["settings"]
    network = settings["network"]
    assert settings["grid"] == tiny.GRID and (network["affine_steps"], network["vsvf_steps"]) == (2, 2)
    assert tiny.equal_weights(
        tiny.torch.load(resumed / "out" / "model.pt", weights_only=True),
        tiny.torch.load(client.download_artifacts(run.info.run_id, "checkpoints/model.pt"), weights_only=True),
    )
