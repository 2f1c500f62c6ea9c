"""`make export` as a user runs it: the shipped weights, both formats, and the proof that they are the module."""

import json
import re
import subprocess
import sys
import zipfile

import onnx
import pytest

import tiny_bundle as tiny

ROOT = tiny.BUNDLE.parent
pytestmark = [pytest.mark.integrations, pytest.mark.timeout(1800)]


def test_make_export(tmp_path):
    # The set-up is that of this process: make finds it done.
    prefix = tmp_path / "venv"
    (prefix / "bin").mkdir(parents=True)
    (prefix / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (prefix / "bin" / "python").chmod(0o755)
    for mark in (".ready", ".dev"):
        (prefix / mark).touch()
    shown = subprocess.run(["make", "--no-print-directory", "--dry-run", "export", f"VENV={prefix}"], cwd=ROOT,
        capture_output=True, text=True, check=True).stdout  # fmt: skip
    assert "-m scripts.export --output_dir ../export" in shown and "pip" not in shown, shown
    done = subprocess.run(
        shown.replace("../export", str(tmp_path / "export")), shell=True, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^  (\w+) at .*: moved image (\S+), map (\S+)$", done.stdout, re.MULTILINE)
    assert [name for name, *_ in found] == ["TorchScript", "TorchScript", "ONNX"]
    assert all(float(moved) <= 1e-3 and float(mapped) <= 1e-4 for _, moved, mapped in found)
    with zipfile.ZipFile(tmp_path / "export" / "model.ts") as archive:
        names = {re.sub("^[^/]*/", "", name) for name in archive.namelist()}
    assert {"extra/inference.json", "extra/metadata.json"} <= names
    model = onnx.load(str(tmp_path / "export" / "model.onnx"))
    config = json.loads({item.key: item.value for item in model.metadata_props}["inference.json"])
    shape = [item.dim_value for item in model.graph.input[0].type.tensor_type.shape.dim]
    assert shape == [1, 2, 48, 64, 48]  # of the network that is exported
    assert config["network_def"]["_target_"] == "scripts.networks.AVSM"
