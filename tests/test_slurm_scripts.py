"""The Slurm scripts with stand-ins for Slurm's commands: what they would start, and what they refuse."""

import ast
import os
import subprocess

import pytest
from monai.bundle import ConfigParser

import tiny_bundle as tiny

ROOT = tiny.BUNDLE.parent
SCRIPTS = ROOT / "integrations" / "slurm"
JOB = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "77"}
TRAIN = {**JOB, "SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "16", "SLURM_JOB_NUM_NODES": "2",
    "SLURM_JOB_NODELIST": "node[07-08]", "DATA": "/data/my knees", "RUN": "/runs/1"}  # fmt: skip
REGISTER = {**JOB, "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8", "PAIRS": "/data/p.csv", "OUT": "/out"}


def start(script, folder, **environment):
    """Run a script; returns the process and the words that it hands to srun."""
    for name, body in (
        ("srun", 'for word; do printf "%s\\n" "$word"; done; echo "RANK=$RANK of $WORLD_SIZE, OMP=$OMP_NUM_THREADS"'),
        ("scontrol", 'test "$*" = "show hostnames node[07-08]" && printf "node07\\nnode08\\n"'),
    ):
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    path = os.pathsep.join([str(folder), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", str(SCRIPTS / script)], env={"PATH": path, **environment}, capture_output=True, text=True, cwd=folder
    )
    return done, done.stdout.splitlines()


@pytest.mark.parametrize("configs", [None, "'configs/oai.json'", "'models/paper.json','configs/oai.json'"])
def test_train(tmp_path, configs):
    done, words = start("train.sbatch", tmp_path, **TRAIN, **({} if configs is None else {"CONFIGS": configs}))
    assert done.returncode == 0, done.stderr
    launcher, run = words[: words.index("monai.bundle")], words[words.index("monai.bundle") :]
    assert launcher[0] == f"{ROOT}/.venv/bin/python"
    for option in ("--nnodes=2", "--nproc_per_node=4", "--rdzv_endpoint=node07:29500", "--rdzv_id=77"):
        assert option in launcher
    assert run[run.index("--dataset_dir") + 1] == "/data/my knees" and run[run.index("--output_dir") + 1] == "/runs/1"
    files = ast.literal_eval(run[run.index("--config_file") + 1])
    assert files[0] == "configs/train.json" and files[-1] == "configs/multi_gpu_train.json"
    parser = ConfigParser()
    parser.read_config([str(tiny.BUNDLE / file) for file in files])
    assert run[2] in parser and "parallel_network" in parser and words[-1].endswith("OMP=4")


def test_register(tmp_path):
    done, words = start("register.sbatch", tmp_path, **REGISTER)
    assert done.returncode == 0, done.stderr
    assert words[:6] == [f"{ROOT}/.venv/bin/avsm", "register", "--pairs", "/data/p.csv", "--output", "/out"]
    assert "RANK=3 of 8" in words[-1]


@pytest.mark.parametrize(
    ("script", "settings", "missing"),
    [("train.sbatch", TRAIN, "DATA"), ("train.sbatch", TRAIN, "RUN")]
    + [("register.sbatch", REGISTER, name) for name in ("PAIRS", "OUT", "SLURM_ARRAY_TASK_ID")],
)
def test_what_is_not_set_is_named(tmp_path, script, settings, missing):
    done, words = start(script, tmp_path, **{key: value for key, value in settings.items() if key != missing})
    assert done.returncode != 0 and missing in done.stderr and not words
