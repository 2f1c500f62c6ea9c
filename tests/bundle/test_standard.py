"""The folder as the model zoo has it, its metadata, and the command from any folder."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from monai.bundle import ConfigWorkflow, verify_metadata

import tiny_bundle as tiny
from scripts.synthetic.phantom import write_phantom_pair

META = tiny.CONFIGS / "metadata.json"
SCHEMA = tiny.BUNDLE.parent / "tests" / "metadata_schema.json"
ZOO_FILES = (
    "LICENSE", "configs/metadata.json", "configs/train.json", "configs/evaluate.json", "configs/inference.json",
    "configs/inference_trt.json", "configs/multi_gpu_train.json", "configs/multi_gpu_evaluate.json",
    "configs/logging.conf", "docs/README.md", "docs/data_license.txt", "models/model.pt",
)  # fmt: skip
# What is added to another workflow: config → the ids that it changes there, which must stand for what it means.
MULTI_GPU = {"multi_gpu_train": "train", "multi_gpu_evaluate": "evaluate"}


def read(name):
    return json.loads((tiny.CONFIGS / f"{name}.json").read_text())


def verify(meta, tmp_path):
    """MONAI's own check; a schema that is there is not downloaded."""
    schema = tmp_path / "schema.json"
    shutil.copy(SCHEMA, schema)
    verify_metadata(meta_file=str(meta), filepath=str(schema))


def test_metadata_is_verified(tmp_path):
    verify(META, tmp_path)


def test_layout():
    assert [name for name in ZOO_FILES if not (tiny.BUNDLE / name).is_file()] == []
    files = [path for path in tiny.BUNDLE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    large = [path.name for path in files if path.stat().st_size > 25e6 and "eval" not in path.parts]
    # The zoo wants a list of files above 25 MB, large_files.yml; there are none.
    assert large == [] and not list(tiny.BUNDLE.glob("large_file*"))
    assert "Apache License" in (tiny.BUNDLE / "LICENSE").read_text()


@pytest.mark.integrations
def test_the_zoos_checks_of_a_submitted_bundle(tmp_path):
    """Metadata, shapes and TorchScript as the zoo's ci/verify_bundle.py asks for them: from its root, no network."""
    root = tmp_path / "models" / "avsm"
    shutil.copytree(tiny.BUNDLE, root, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(SCHEMA, tmp_path / "schema.json")
    call = f"""
from monai.bundle import ckpt_export, verify_metadata, verify_net_in_out
files = dict(meta_file="{root}/configs/metadata.json", config_file="{root}/configs/inference.json")
verify_metadata(meta_file=files["meta_file"], filepath="schema.json")
verify_net_in_out("network_def", bundle_root="{root}", **files)
ckpt_export("network_def", filepath="model.ts", ckpt_file="{root}/models/model.pt", bundle_root="{root}", **files)
"""
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", call], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model.ts").stat().st_size > 1e6


def test_versions_are_those_that_are_tested():
    pinned = dict(
        line.split("==") for line in (tiny.BUNDLE.parent / "constraints.txt").read_text().split() if "==" in line
    )
    meta = read("metadata")
    assert (meta["monai_version"], meta["pytorch_version"], meta["numpy_version"]) == (
        pinned["monai"],
        pinned["torch"],
        pinned["numpy"],
    )
    for package, version in meta["required_packages_version"].items():
        assert pinned[package] == version, package


@pytest.mark.parametrize(("override", "name"), MULTI_GPU.items())
def test_properties_under_the_multi_gpu_configs(override, name, tmp_path, monkeypatch):
    """A group of one process, without a launcher: the property check asks for ids and references."""
    for key, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "0")):
        monkeypatch.setenv(key, value)
    weights = tiny.save_weights(tmp_path / "model.pt")
    files = tiny.config_files(name, tmp_path)
    files.insert(1, str(tiny.CONFIGS / f"{override}.json"))
    workflow = ConfigWorkflow(files, str(META), logging_file=False,
        workflow_type="train" if name == "train" else "infer", bundle_root=str(tiny.BUNDLE),
        output_dir=str(tmp_path / "out"), **({} if name == "train" else {"ckpt_path": str(weights)}))  # fmt: skip
    workflow.initialize()
    try:
        assert workflow.check_properties() == []
        parser = workflow.parser
        if name == "train":
            network = parser.get_parsed_content("train#trainer").network
            assert type(network).__name__ == "DistributedDataParallel"
            assert network.module.network is parser.get_parsed_content("network")
        loader = parser.get_parsed_content("validate#dataloader" if name == "train" else "dataloader")
        assert type(loader.sampler).__name__ == "DistributedSampler"
    finally:
        workflow.finalize()


@pytest.mark.parametrize("processes", ["training", "evaluating"])
def test_multi_gpu_config_without_torchrun_is_refused(processes, tmp_path, monkeypatch):
    for key in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(key, raising=False)
    name = {"training": "train", "evaluating": "evaluate"}[processes]
    extra = [str(tiny.CONFIGS / f"multi_gpu_{name}.json")]
    with pytest.raises(Exception) as caught:
        tiny.workflow(name, tmp_path, tmp_path / "out", extra=extra)
    assert "RANK is not set" in str(tiny.bad_input(caught.value)) and "torchrun" in str(tiny.bad_input(caught.value))


def test_bundle_runs_from_any_folder(tmp_path):
    """As the README says: the bundle's folder on PYTHONPATH, and its root by option."""
    folder = write_phantom_pair(tmp_path / "pair", shape=tiny.GRID).parent / "imagesTr"
    fixed, moving = sorted(folder.iterdir())
    (tmp_path / "elsewhere").mkdir()
    line = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(tiny.CONFIGS / "inference.json")]
    line += ["--meta_file", str(META), "--bundle_root", str(tiny.BUNDLE), "--output_dir", "out", "--threads", "1"]
    line += ["--fixed", str(fixed), "--moving", str(moving), "--preset", "fast", "--report", "False"]
    done = subprocess.run(line, cwd=tmp_path / "elsewhere", env={**os.environ, "PYTHONPATH": str(tiny.BUNDLE)},
        capture_output=True, text=True, timeout=900)  # fmt: skip
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "elsewhere" / "out" / "metrics.json").read_text())
    # The shipped weights were found by the root, not in the current folder.
    assert metrics["weights_sha256"] == read("metadata")["weights"]["models/model.pt"]["sha256"]
