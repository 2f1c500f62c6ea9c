"""The bundle at a size at which whole runs take seconds: overrides, and ways to run it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import torch
from ignite.engine import Events
from monai.bundle import ConfigWorkflow

from scripts.errors import input_error
from scripts.layers import VSVF
from scripts.networks import AVSM, AffineNet, FeatureNet, MomentumNet
from scripts.processes import launched
from scripts.synthetic.phantom import write_phantom_pair

BUNDLE = Path(__file__).resolve().parents[1] / "bundle"
CONFIGS = BUNDLE / "configs"
MODELS = BUNDLE / "models"
GRID = [16, 16, 16]
NETWORK = {"network_def#affine_net#channels": [4, 4], "network_def#momentum_net#channels": [4, 4, 4, 4, 4]}
KERNEL = ([0.03, 0.06, 0.12, 0.2], [0.25] * 4)
"""Stds and weights of the configs' smoother."""
PHASES = [
    {"name": "affine_single_step", "stage": "affine", "epochs": 2, "affine_steps": 1, "learning_rate": 1e-3},
    {"name": "affine_multi_step", "stage": "affine", "epochs": 2, "affine_steps": 2, "learning_rate": 1e-3},
    {"name": "vsvf", "stage": "vsvf", "epochs": 2, "affine_steps": 2, "vsvf_steps": 2, "learning_rate": 1e-3},
]
TRAIN = {"threads": 1, "grid": GRID, "train_pairs": 3, "epoch_pairs": 2, "val_pairs": 2, "val_interval": 1,
    "phases": PHASES, **NETWORK}  # fmt: skip
WITH_FEATURES = {
    "network_def#features": {"_target_": "scripts.networks.FeatureNet", "classes": 4, "channels": [4, 4]},
    "label_weight": 1.0,
    "affine_label_weight": 1.0,
    "affine_target": 1.0,
    "pose": {"still": 0.2, "twins": 0.4, "flow": 0.5},
    "phases": [{"name": "features", "stage": "features", "epochs": 2, "affine_steps": 0, "learning_rate": 1e-3},
        {**PHASES[1], "epochs": 1}, {**PHASES[2], "epochs": 1}],
}  # fmt: skip
"""Overrides of a training in which everything takes part that knows of labels, poses and fields of view."""
EVALUATE = {"threads": 1, "grid": GRID, "affine_steps": 2, "vsvf_steps": 2, **NETWORK}


class KillOnce:
    """Kills its own process by a signal in an iteration of an epoch, once for each of the epochs in a folder.

    The last iteration unless another is named; of several processes, that of a rank.
    """

    def __init__(self, epochs, folder, rank=0, iteration=0, number=signal.SIGKILL):
        self.epochs, self.folder, self.rank, self.iteration, self.number = epochs, Path(folder), rank, iteration, number

    def attach(self, engine):
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine):
        mark = self.folder / f"killed_in_{engine.state.epoch}"
        now = engine.state.iteration % engine.state.epoch_length == self.iteration % engine.state.epoch_length
        mine = launched()[0] == self.rank
        if mine and now and engine.state.epoch in self.epochs and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), self.number)


class Keep:
    """Keeps the output of every iteration (or what it was about), a line of JSON each, in a file for each process."""

    def __init__(self, folder, what="output"):
        self.path, self.what = Path(folder) / f"rank_{launched()[0]}.jsonl", what

    def attach(self, engine):
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine):
        with open(self.path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(getattr(engine.state, self.what)) + "\n")


def kept(folder):
    """What `Keep` has kept: a list for each process, by rank."""
    files = sorted(Path(folder).glob("rank_*.jsonl"))
    return [[json.loads(line) for line in file.read_text().splitlines()] for file in files]


class FailAt:
    """Raises an error in the first iteration of an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def attach(self, engine):
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine):
        if engine.state.epoch == self.epoch:
            raise RuntimeError("the test's own failure")


def config_files(name, folder, **overrides):
    """The config files of a tiny workflow: the shipped ones, and a small override written into ``folder``."""
    small = TRAIN if name == "train" else {**EVALUATE, "preset": "fast"} if name == "inference" else EVALUATE
    path = Path(folder) / f"tiny_{name}.json"
    path.write_text(json.dumps({**small, **overrides}))
    return [str(CONFIGS / f"{name}.json"), str(BUNDLE / "models" / "general.json"), str(path)]


def workflow(name, folder, output_dir, extra=(), tracking=None, **overrides):
    """An initialised tiny workflow in this process."""
    found = ConfigWorkflow(config_file=[*config_files(name, folder, **overrides), *extra],
        meta_file=str(CONFIGS / "metadata.json"), logging_file=False,
        workflow_type="train" if name == "train" else "infer", tracking=tracking, bundle_root=str(BUNDLE),
        output_dir=str(output_dir))  # fmt: skip
    found.initialize()
    return found


def run(*arguments, **overrides):
    """Run a tiny workflow in this process, arguments as of `workflow`; returns it."""
    found = workflow(*arguments, **overrides)
    found.run()
    found.finalize()
    return found


def command(name, folder, run_id=(), options=(), processes=None, **overrides):
    """Command line of a tiny workflow; by torchrun and the multi-GPU config for a number of processes."""
    files = config_files(name, folder, **overrides)
    if processes is not None and (CONFIGS / f"multi_gpu_{name}.json").exists():
        files.insert(1, str(CONFIGS / f"multi_gpu_{name}.json"))
    line = [sys.executable, "-m", "monai.bundle", "run", *run_id, "--config_file", json.dumps(files)]
    line += ["--meta_file", str(CONFIGS / "metadata.json"), "--logging_file", str(CONFIGS / "logging.conf")]
    if processes is not None:
        start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        line[1:1] = start
    return [*line, *map(str, options)]


def call(line, timeout=900):
    """Run a command line from the bundle's folder."""
    tests = str(Path(__file__).resolve().parent)
    environment = {**os.environ, "PYTHONPATH": tests}
    with subprocess.Popen(
        line, cwd=BUNDLE, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            output, error = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            # A launcher ends its processes when it is asked to end; killed, it would leave them behind.
            process.terminate()
            output, error = process.communicate(timeout=60)
            raise TimeoutError(f"{line} took more than {timeout} s:\n{error[-3000:]}") from None
    return subprocess.CompletedProcess(line, process.returncode, output, error)


def tiny_network(*kernel, features=0):
    """A network as the tiny configs define it, with weights that move voxels; kernel: stds and weights of its own.

    With ``features``, a number of labels, it has a `FeatureNet` of so many classes, as `WITH_FEATURES` defines it.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        momentum_net = MomentumNet((4, 4, 4, 4, 4), stem="quarter", head_std=1e-2, force_windows=(9,))
        affine_net = AffineNet((4, 4), composition="residual", newton_window=7)
        feature_net = FeatureNet(features, (4, 4)) if features else None
        vsvf = VSVF(*(kernel or KERNEL))
        network = AVSM(
            affine_net, momentum_net, vsvf, affine_steps=2, vsvf_steps=2, features=feature_net, vsvf_factors=(4, 2, 1)
        )
        torch.nn.init.normal_(network.affine_net.head.weight, std=0.01)
        torch.nn.init.zeros_(momentum_net.head[1].conv.bias)
    return network.eval()


def save_weights(path, *kernel):
    """Weights for the tiny configs."""
    torch.save(tiny_network(*kernel).state_dict(), path)
    return Path(path)


def phantom_dataset(folder, shape=(20, 18, 16)):
    """A pair of knees as files; returns the folder."""
    return write_phantom_pair(folder, shape=shape, seed=3).parent


def last(output_dir):
    """The last checkpoint of a run."""
    return torch.load(Path(output_dir) / "checkpoint_last.pt", weights_only=True)


def weights(output_dir):
    """The last weights of a run."""
    return last(output_dir)["network"]


def equal_weights(first, second):
    """Whether two state dicts are equal in every bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def bad_input(error):
    """The `InputError` behind an exception of a config."""
    return input_error(error)
