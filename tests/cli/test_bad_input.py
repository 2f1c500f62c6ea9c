"""Bad input of every kind ends at once, in one line that names it and its mend, and leaves nothing behind."""

import json
import sys

import nibabel as nib
import numpy as np
import pytest
import torch

import tiny_bundle as tiny

MOVING = "knee_cross_subject_3_moving.nii.gz"


@pytest.fixture(autouse=True)
def own_excepthook(monkeypatch):
    """`begin` of a run in this process must not change what later tests find."""
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)


@pytest.fixture
def data(tmp_path):
    return tiny.phantom_dataset(tmp_path / "data")


@pytest.fixture
def weights(tmp_path):
    return tiny.save_weights(tmp_path / "weights.pt")


def edit_list(data, change):
    path = data / "dataset.json"
    listing = json.loads(path.read_text())
    change(listing)
    path.write_text(json.dumps(listing))


def rewrite(data, change, folder="imagesTr"):
    """Replace the moving image (or label) by what `change` makes of its array."""
    path = data / folder / MOVING
    image = nib.load(path)
    nib.save(nib.Nifti1Image(change(np.asarray(image.dataobj)), image.affine), path)


def put(value):
    def change(array):
        array = array.astype(np.float32)
        array[3, 4, 5] = value
        return array

    return change


def truncate(data):
    path = data / "imagesTr" / MOVING
    path.write_bytes(path.read_bytes()[:-400])


def shift_label(data):
    path = data / "labelsTr" / MOVING
    image = nib.load(path)
    affine = image.affine.copy()
    affine[0, 3] += 2.0
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), path)


def drop_labels(data):
    for path in (data / "labelsTr").iterdir():
        path.unlink()
    edit_list(data, lambda listing: [entry.pop("label") for entry in listing["training"]])


# Of `evaluate`; every kind that is refused: tests/formats. A list under `inference` isolates such a pair.
FILES = [
    (truncate, "gzip data truncated or damaged"),
    (lambda data: rewrite(data, lambda a: a[:, :, :1]), "every axis needs at least 2 voxels"),
    (lambda data: rewrite(data, put(np.nan)), "1 of 5760 voxels are NaN or Inf"),
    (lambda data: rewrite(data, put(0.5), "labelsTr"), "label value 0.5 is not an integer"),
    (shift_label, "label affine differs by up to 2 mm"),
]

LISTS = [
    (lambda data: (data / "imagesTr" / MOVING).unlink(), MOVING, "does not exist; correct the entry or add the file"),
    (lambda data: edit_list(data, lambda d: d.update(pears=[])), "dataset.json", "unknown key 'pears'"),
    (lambda data: edit_list(data, lambda d: d.pop("registration_val")), "dataset.json", "absent or empty"),
    (lambda data: edit_list(data, lambda d: d["registration_val"][0].pop("fixed")), "dataset.json",
        "'fixed' is missing"),
    (lambda data: (data / "dataset.json").write_text("{"), "dataset.json", "not JSON"),
    (lambda data: (data / "dataset.json").unlink(), "data", "no dataset.json in this folder"),
]  # fmt: skip

SETTINGS = [
    ("evaluate", {"dataset_dir": "{data}/absent"}, "absent: data set folder does not exist"),
    ("evaluate", {"ckpt_path": "{data}/absent.pt"}, "absent.pt: weights file not found"),
    ("evaluate", {"network_def#momentum_net#channels": [4, 4, 4, 4, 8]}, "weights.pt: weights do not fit the network"),
    ("evaluate", {"output_dir": "{data}/dataset.json"}, "dataset.json: output_dir can't be created"),
    ("evaluate", {"pair_count": 0}, "limit=0; give a whole number of at least 1"),
    ("evaluate", {"section": "test"}, "section='test' lists images, not pairs"),
    ("evaluate", {"network_def#affine_net#composition": "sideways"}, "composition must be one of equation1, residual"),
    ("evaluate", {"network_def#vsvf#weights": [0.5, 0.6, 0.1, 0.1]}, "weights must be positive and sum to 1"),
    ("train", {"label_weight": -1.0}, "label_weight must not be negative"),
    ("evaluate", {"seed": -1}, "seed=-1: give a whole number"),
    ("evaluate", {"threads": 0}, "threads=0: give a whole number"),
    ("evaluate", {"sampling": {"_target_": "scripts.data.CentreOnGridd", "keys": ["image", "label"], "grid": "@grid"}},
        "voxels at the network's spacing do not fit its grid (16, 16, 16); enlarge grid or coarsen spacing"),
    ("train", {"train_pairs": 3}, "count=3 cross-subject pairs asked for but only 2 exist"),
    ("train", {"epoch_pairs": 3}, "pairs an epoch, but the list has 2; lower it or list more"),
    ("train", {"dataset_dir": None, "pair_mode": "sideways"}, "mode='sideways'; give"),
    ("train", {"dataset_dir": None, "train_pairs": None}, "the phantom has no end; give a number of pairs"),
    ("train", {"initial_weights": "{data}/absent.pt"}, "absent.pt: weights file not found"),
    ("train", {"phases": []}, "phases: the curriculum has no epoch"),
    ("train", {"phases": [{**tiny.PHASES[0], "pears": 1}]}, "unexpected keyword argument 'pears'"),
]  # fmt: skip


def refusal(name, tmp_path, capsys, overrides):
    """The standard error of a run that must end in one error line; checks that no file was written."""
    output_dir = overrides.pop("output_dir", tmp_path / "out")
    with pytest.raises(Exception) as caught:
        tiny.run(name, tmp_path, output_dir, **overrides)
    capsys.readouterr()
    sys.excepthook(caught.type, caught.value, caught.tb)
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1, text
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    return text


@pytest.mark.parametrize(("spoil", "message"), FILES)
def test_bad_file(tmp_path, data, weights, capsys, spoil, message):
    spoil(data)
    text = refusal("evaluate", tmp_path, capsys, {"dataset_dir": str(data), "ckpt_path": str(weights)})
    assert MOVING in text and message in text


@pytest.mark.parametrize("workflow", ["evaluate", "inference"])
@pytest.mark.parametrize(("spoil", "name", "message"), LISTS)
def test_bad_list(tmp_path, data, weights, capsys, workflow, spoil, name, message):
    spoil(data)
    text = refusal(workflow, tmp_path, capsys, {"dataset_dir": str(data), "ckpt_path": str(weights)})
    assert name in text and message in text


@pytest.mark.parametrize(("name", "overrides", "message"), SETTINGS)
def test_bad_setting(tmp_path, data, weights, capsys, name, overrides, message):
    settings = {"dataset_dir": str(data), "ckpt_path": str(weights)}
    if name == "train":
        settings.update(pair_mode="cross_subject", train_pairs=2, val_section="registration_val", val_pairs=1)
    settings.update(overrides)
    filled = {
        key: value.replace("{data}", str(data)) if isinstance(value, str) else value for key, value in settings.items()
    }
    assert message in refusal(name, tmp_path, capsys, filled)


def test_labels_needed_and_absent(tmp_path, data, capsys):
    drop_labels(data)
    settings = {"dataset_dir": str(data), "pair_mode": "cross_subject", "train_pairs": 2, "epoch_pairs": 2}
    settings.update(val_section="registration_val", val_pairs=1, phases=tiny.PHASES[2:])
    text = refusal("train", tmp_path, capsys, {**settings, "label_weight": 1.0})
    assert ".nii.gz: no label, but label_weight is above 0; list its label or set label_weight to 0" in text
    # Without the weight the same data are trained on.
    tiny.run("train", tmp_path, tmp_path / "out", **settings)
    assert tiny.last(tmp_path / "out")["epoch"] == 2


def test_other_errors_keep_their_traceback(tmp_path, weights, capsys):
    settings = {"ckpt_path": str(weights), "device": "$1 / 0"}
    with pytest.raises(Exception) as caught:
        tiny.run("evaluate", tmp_path, tmp_path / "out", **settings)
    capsys.readouterr()
    sys.excepthook(caught.type, caught.value, caught.tb)
    text = capsys.readouterr().err
    assert "Traceback" in text and "ZeroDivisionError" in text


def test_command_line(tmp_path, data, weights):
    """A process of its own says one line, ends with status 1 and leaves nothing."""
    options = ["--output_dir", tmp_path / "out", "--ckpt_path", weights, "--dataset_dir", "", "--moving", "absent.nii"]
    options += ["--fixed", data / "imagesTr" / MOVING.replace("moving", "fixed")]
    done = tiny.call(tiny.command("inference", tmp_path, [], options))
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1 and len(errors) == 1
    assert "absent.nii: file does not exist; correct the path" in errors[0]
    text = done.stderr + done.stdout
    assert not any(word in text for word in ("Traceback", "ERROR", "terminating due to"))
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_error_of_a_worker_process_is_one_line(capsys):
    from scripts.errors import InputError, one_line_errors

    class Broken(torch.utils.data.Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            raise InputError("a.nii.gz: bad; mend it")

    one_line_errors()
    with pytest.raises(InputError) as caught:
        next(iter(torch.utils.data.DataLoader(Broken(), num_workers=1)))
    sys.excepthook(caught.type, caught.value, caught.tb)
    assert capsys.readouterr().err == "error: a.nii.gz: bad; mend it\n"
