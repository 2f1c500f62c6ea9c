"""The weights that are shipped: they fit the configs, and register knees that they were not trained on."""

import json
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

import tiny_bundle as tiny
from scripts.cli.register import models
from scripts.networks import load_weights, weights_hash

WEIGHTS = tiny.BUNDLE / "models" / "model.pt"
MODELS = models()


def inference(**settings):
    """``inference.json`` with other settings."""
    parser = ConfigParser()
    parser.read_config(str(tiny.CONFIGS / "inference.json"))
    parser.update({"bundle_root": str(tiny.BUNDLE), "preset": "fast", **settings})
    return parser


def test_every_weights_file_has_a_name():
    names = {Path(inference(model=name).get_parsed_content("ckpt_path")).name for name in MODELS}
    assert names == {path.name for path in WEIGHTS.parent.glob("*.pt")}


@pytest.mark.parametrize("name", MODELS)
def test_weights_of_networks_by_name_fit_their_configs(name):
    parser = inference(model=name)
    load_weights(parser.get_parsed_content("network_def"), parser.get_parsed_content("ckpt_path"))


@pytest.mark.timeout(300)
def test_registers_unseen_knees(tmp_path):
    workflow = tiny.ConfigWorkflow(workflow_type="infer", config_file=str(tiny.CONFIGS / "evaluate.json"),
        meta_file=str(tiny.CONFIGS / "metadata.json"), logging_file=False, bundle_root=str(tiny.BUNDLE),
        output_dir=str(tmp_path), phantom_count=6, seed=77, threads=None)  # fmt: skip
    workflow.initialize()
    workflow.run()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["pairs"] == 6 and summary["weights_sha256"] == weights_hash(WEIGHTS)
    # Half of the pairs are longitudinal, which begin nearly aligned.
    assert summary["dice_final"] > summary["dice_before"] + 0.1 and summary["dice_final"] > summary["dice_affine"]
    assert summary["folds"] == 0


@pytest.mark.timeout(300)
def test_demo_as_shipped(tmp_path, monkeypatch, capfd):
    from scripts import demo

    monkeypatch.setattr("sys.argv", ["demo", "--output", str(tmp_path)])
    demo.main()
    shown = json.loads(capfd.readouterr().out.strip().splitlines()[-1])
    assert list(shown) == ["dice_before", "dice_affine", "dice_final", "folds", "seconds"]
    assert shown["dice_final"] >= shown["dice_before"] + 0.15
    assert shown["dice_final"] > shown["dice_affine"] > shown["dice_before"] and shown["folds"] == 0 < shown["seconds"]
    metrics = json.loads((tmp_path / "result" / "metrics.json").read_text())["labels"]["mean"]["dice"]
    assert {stage: shown[f"dice_{stage}"] for stage in metrics} == metrics
    for name in ("moved.nii.gz", "moved_label.nii.gz", "transform.h5", "inverse_transform.h5", "report.html"):
        assert (tmp_path / "result" / name).stat().st_size > 0
