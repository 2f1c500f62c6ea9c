"""Real pairs end to end; ``AVSM_DATA`` names the folder of the data sets; figures: benchmarks/results/real_pairs.md.

Nothing here is training data of the shipped weights, save that `knee` was trained on other warps of the knee.
What is measured is the tool as it comes, with its default preset.
"""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from monai.bundle import ConfigWorkflow

from scripts.cli import main
from scripts.formats.images import read_image
from scripts.formats.transform_files import read_transforms
from scripts.spatial.inversion import NumericalInverse
from world_cases import sitk_points

pytestmark = [pytest.mark.data, pytest.mark.timeout(1800)]
BUNDLE = Path(__file__).resolve().parents[2] / "bundle"
# Mean landmark error in mm of SimpleITK's affine and then demons, as the project was given it.
DEMONS = {"18": 3.7, "19": 1.8}


def data(*parts):
    path = Path(os.environ["AVSM_DATA"], *parts)
    if not path.exists():
        pytest.skip(f"{path} does not exist")
    return str(path)


def register(fixed, moving, output, *options):
    assert main(["register", "--fixed", fixed, "--moving", moving, "--output", str(output), *options]) == 0
    return json.loads((Path(output) / "metrics.json").read_text())


def undo_each_other(metrics, tolerance=0.1):
    """Whether transform and inverse do nearly everywhere, and the tool tells of a worst point where they do not."""
    consistency = metrics["inverse_consistency_mm"]
    voxel = min(min(metrics[role]["spacing"]) for role in ("fixed", "moving"))
    told = any("more than half a voxel" in note for note in metrics["warnings"])
    return consistency["p99"] <= tolerance and told == (consistency["max"] > voxel / 2)


def landmark_error(subject, state, transform, tmp_path, where="liver"):
    fixed, moving = (data("eth_liver_4dmri", f"liver{subject}_{s}LM{where}.vtk") for s in ("exhMaster", state))
    line = ["evaluate", "--fixed-points", fixed, "--moving-points", moving, "--space", "LPS"]
    assert main([*line, "--transform", str(transform), "--output", str(tmp_path / "tre.json")]) == 0
    return json.loads((tmp_path / "tre.json").read_text())["tre"]["mean"]


@pytest.mark.parametrize(("subject", "states"), [("18", ["cyc_3_10"]), ("19", ["cyc_1_6", "cyc_1_9"])])
def test_livers_beat_demons_without_folds(tmp_path, subject, states):
    errors = []
    for state in states:
        fixed, moving = (data("eth_liver_4dmri", f"liver{subject}_{name}.mha") for name in ("exhMaster", state))
        metrics = register(fixed, moving, tmp_path / state)
        assert metrics["folds"] == 0 and undo_each_other(metrics)
        errors.append(landmark_error(subject, state, tmp_path / state / "transform.h5", tmp_path))
    assert np.mean(errors) < DEMONS[subject]


def test_wrong_slice_spacing_is_made_visible(tmp_path):
    fixed, moving = (data("eth_liver_4dmri", f"liver18_{name}.mha") for name in ("exhMaster", "cyc_1_10"))
    metrics = register(fixed, moving, tmp_path)
    assert any("4 and 5 mm along axis 2" in note for note in metrics["warnings"]) and metrics["folds"] == 0


def test_the_files_of_a_brain_are_small_and_the_inverse_is_exact_at_its_voxels(tmp_path):
    fixed, moving = (data("brain_templates", f"{name}_brain.nii.gz") for name in ("mni2009c", "colin27"))
    register(fixed, moving, tmp_path, "--no-report")
    files = [tmp_path / f"{name}transform.h5" for name in ("", "inverse_")]
    assert all(file.stat().st_size < 40e6 for file in files)
    (transform,), frame = read_transforms(files[0]), read_image(moving).frame
    points = frame.voxel_to_world(np.random.default_rng(0).integers(0, frame.shape, (3000, 3)))
    exact, error = NumericalInverse(transform, 1e-4).solve(points)
    inside = read_image(fixed).frame.contains_voxel(read_image(fixed).frame.world_to_voxel(exact))
    off = np.linalg.norm(sitk_points(sitk.ReadTransform(files[1]), points) - exact, axis=1)[inside]
    assert error.max() < 1e-4 and off.size > 2000 and off.max() < 0.05


@pytest.mark.parametrize("contrast", ["T1W", "FLAIR"])
def test_longitudinal_brain(tmp_path, contrast):
    fixed, moving = (data("open_ms_longitudinal", f"patient01_study{n}_{contrast}.nii.gz") for n in (1, 2))
    metrics = register(fixed, moving, tmp_path)
    ncc = metrics["similarity"]["ncc"]
    assert ncc["before"] < ncc["affine"] < ncc["final"] and metrics["folds"] == 0 and undo_each_other(metrics)


@pytest.mark.parametrize(("words", "least"), [((), 0.72), (("--preset", "fast", "--model", "hippocampus_labels"), 0.8)])
def test_hippocampi_on_their_own_grids(tmp_path, words, least):
    dataset = data("Task04_Hippocampus")
    pairs = json.loads((Path(dataset) / "dataset.json").read_text())["registration_val"][:3]
    rows = [
        {
            role + kind: str(Path(dataset, pair[role].replace("images", folder)))
            for role in ("fixed", "moving")
            for kind, folder in (("", "images"), ("_label", "labels"))
        }
        for pair in pairs
    ]
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    assert main(["register", "--pairs", str(tmp_path / "pairs.json"), "--output", str(tmp_path / "out"), *words]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["dice_before"] < summary["dice_affine"] < summary["dice_final"] and summary["folds"] == 0
    assert summary["dice_final"] > least


def test_labels_that_drive_meet(tmp_path):
    """Pairs of training data; figures of twenty: bundle/docs/methods.md."""
    dice = []
    for fixed, moving in (("011", "123"), ("068", "249"), ("095", "011")):
        names = {"fixed": fixed, "moving": moving}
        images, labels = (
            {r: data("Task04_Hippocampus", f, f"hippocampus_{n}.nii.gz") for r, n in names.items()}
            for f in ("imagesTr", "labelsTr")
        )
        words = ["--fixed-label", labels["fixed"], "--moving-label", labels["moving"], "--label-weight", "32"]
        metrics = register(*images.values(), tmp_path / fixed, *words, "--no-report")
        assert metrics["folds"] == 0
        dice.append(metrics["labels"]["mean"]["dice"]["final"])
    assert min(dice) >= 0.97 and np.mean(dice) > 0.975


def test_knees_of_a_real_label_map(tmp_path):
    """Pairs that no training drew, at half the paper's size; the cartilages are labels 1 and 2."""
    labels = data("knee_labels", "pymskt_dess_right_label.nrrd")
    for mode in ("cross_subject", "longitudinal"):
        workflow = ConfigWorkflow(workflow_type="infer", config_file=str(BUNDLE / "configs" / "evaluate.json"),
            meta_file=str(BUNDLE / "configs" / "metadata.json"), logging_file=False, bundle_root=str(BUNDLE),
            output_dir=str(tmp_path / mode), dataset={"_target_": "scripts.data.generated_dataset",
            "kind": "knee_labels", "path": labels, "grid": "@grid", "count": 4, "mode": mode, "split": "held_out",
            "fresh": False, "seed": 11})  # fmt: skip
        workflow.initialize()
        workflow.run()
        measures = workflow.parser.get_parsed_content("evaluator").state.metrics
        rows = list(csv.DictReader((tmp_path / mode / "pairs.csv").open()))
        before, dice = (np.mean([[float(row[f"dice_{stage}_{label}"]) for label in (1, 2)] for row in rows])
            for stage in ("before", "final"))  # fmt: skip
        assert len(rows) == 4 and all(float(row["folds"]) == 0 for row in rows) and dice > before + 0.02
        assert measures["mean_dice"] > np.mean([float(row["dice_affine"]) for row in rows])
