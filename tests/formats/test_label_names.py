"""ITK-SNAP's label descriptions, as its version 4 writes them: names in tables, JSON and the report."""

import json

import nibabel as nib
import numpy as np
import pytest

from scripts.cli import main
from scripts.errors import InputError
from scripts.formats import read_label_names
from scripts.report.numbers import make_tables

WRITTEN = """\
################################################
# ITK-SnAP Label Description File
# File format:
# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL
################################################
    0     0    0    0        0  0  0    "Clear Label"
    1   255    0    0        1  1  1    "Hippocampus, head"
    2     0  255    0     0.75  1  0    "Hippocampus \\"tail\\""
"""


def test_names_are_those_of_the_file(tmp_path):
    file = tmp_path / "labels.txt"
    file.write_text(WRITTEN)
    assert read_label_names(file) == {0: "Clear Label", 1: "Hippocampus, head", 2: 'Hippocampus \\"tail\\"'}


BAD = {
    "": "holds no labels",
    "1 2 3\n": "line 1: '1 2 3' is no label of ITK-SNAP",
    WRITTEN + '1 0 0 0 1 1 1 "other"\n': "line 9: label 1 has two names",
}


@pytest.mark.parametrize("text", BAD)
def test_refusals(tmp_path, text):
    file = tmp_path / "labels.txt"
    file.write_text(text)
    with pytest.raises(InputError, match=BAD[text]):
        read_label_names(file)


def test_evaluate_names_its_labels(tmp_path, capsys):
    (tmp_path / "labels.txt").write_text(WRITTEN)
    label = np.zeros((8, 9, 10), np.uint8)
    label[2:5, 2:5, 2:5], label[5:7, 5:7, 5:7], label[0, 0, 0] = 1, 2, 7
    nib.save(nib.Nifti1Image(label, np.eye(4)), tmp_path / "label.nii.gz")
    words = ["evaluate", "--output", str(tmp_path / "out.json"), "--label-names", str(tmp_path / "labels.txt")]
    for role in ("fixed", "moved"):
        words += [f"--{role}-label", str(tmp_path / "label.nii.gz")]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[0] == "1" and lines[1].endswith("Hippocampus, head") and lines[3].endswith("0.000")
    assert json.loads((tmp_path / "out.json").read_text())["label_names"]["1"] == "Hippocampus, head"


def test_the_report_names_labels_and_marks_the_worse():
    labels = {name: {"dice": {"before": 0.9, "affine": 0.8, "final": 0.7}} for name in ("1", "mean")}
    (table, *_) = make_tables({"labels": labels, "label_names": {"1": "head"}})
    assert [row[0] for row in table.rows] == ["mean", "1 head"] and table.worse == ["1 head"]
