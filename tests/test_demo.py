"""The demo's main path, as `make demo` goes it, with weights of the test's own."""

import json
import subprocess
import sys

import pytest
import torch

import tiny_bundle as tiny
from scripts import demo
from scripts.data.pairs import evaluation_pairs
from scripts.networks import network_from


@pytest.mark.timeout(300)
def test_demo(tmp_path, monkeypatch, capfd):
    torch.save(network_from(tiny.MODELS / "general.json", 5, 4).state_dict(), tmp_path / "model.pt")
    run, commands = subprocess.run, []

    def run_with_own_weights(command, **options):
        commands.append(command)
        return run([*command, "--ckpt_path", str(tmp_path / "model.pt"), "--threads", "1"], **options)

    monkeypatch.setattr(demo.subprocess, "run", run_with_own_weights)
    monkeypatch.setattr(sys, "argv", ["demo", "--output", str(tmp_path / "demo"), "--seed", "7"])
    demo.main()

    lines = capfd.readouterr().out.strip().splitlines()
    shown = json.loads(lines[-1])
    assert list(shown) == ["dice_before", "dice_affine", "dice_final", "folds", "seconds"]
    metrics = json.loads((tmp_path / "demo" / "result" / "metrics.json").read_text())
    assert {stage: shown[f"dice_{stage}"] for stage in ("before", "affine", "final")} == metrics["labels"]["mean"][
        "dice"
    ]
    assert 0 < shown["dice_before"] < 1 and shown["folds"] == 0 and shown["seconds"] > 0
    # Untrained weights take Newton steps, of the affine and of each voxel.
    assert shown["dice_affine"] > shown["dice_before"] + 0.1
    assert shown["dice_final"] > shown["dice_affine"] + 0.03
    assert len(commands) == 1 and commands[0][1:4] == ["-m", "monai.bundle", "run"]
    for name in ("moved.nii.gz", "moved_label.nii.gz", "transform.h5", "inverse_transform.h5", "report.html"):
        assert (tmp_path / "demo" / "result" / name).stat().st_size > 0
        assert f"  result/{name}" in lines


def test_demo_that_fails_says_so(tmp_path, capfd):
    dataset = tiny.phantom_dataset(tmp_path / "pair")
    (tmp_path / "result").touch()
    (pair,) = evaluation_pairs(dataset, limit=1)
    with pytest.raises(subprocess.CalledProcessError):
        demo.register({key: pair[key] for key in ("fixed", "moving")}, tmp_path / "result")
    assert f"error: {tmp_path / 'result'}: output_dir can't be created" in capfd.readouterr().err
