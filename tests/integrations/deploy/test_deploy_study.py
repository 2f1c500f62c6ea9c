"""Which images a request means, and the one line for input that cannot be used."""

import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
from avsm_deploy.pair import find_pair
from avsm_deploy.request import load_request
from deploy_cases import STUDY, write_series
from pydicom.uid import SecondaryCaptureImageStorage, SpatialRegistrationStorage

from scripts.errors import InputError
from scripts.formats.images import read_image
from scripts.formats.volumes import save_volume
from world_cases import frame

pytestmark = pytest.mark.integrations

WHERE = frame((4, 5, 3), spacing=(1, 2, 3))
ARRAY = np.arange(60, dtype=float).reshape(4, 5, 3)
FIXED, MOVING, THIRD = (f"{STUDY}.{n}" for n in (1, 2, 3))


def study(folder: Path, **moving) -> Path:
    """A small study of a fixed and a moving series."""
    write_series(folder / "a", ARRAY, WHERE, "MR", "T1 FIXED", 1)
    options = {"kind": "CT", "description": "moving", "number": 2, "slope": 1, **moving}
    write_series(folder / "b" / "c", ARRAY, WHERE, **options)
    return folder


def ask(folder: Path, fixed=None, moving=None, **rest):
    """The pair of a request that is written into the folder."""
    selections = [
        {"name": role, "conditions": conditions}
        for role, conditions in (("fixed", fixed), ("moving", moving))
        if conditions is not None
    ]
    (folder / "request.json").write_text(json.dumps({"selections": selections, **rest}))
    return find_pair(folder, load_request(folder))


def test_default_rules_find_series_anywhere_below(tmp_path):
    (tmp_path / "notes.txt").write_text("no DICOM")
    pair = find_pair(study(tmp_path), load_request(tmp_path))
    assert (pair.fixed.uid, pair.moving.uid) == (FIXED, MOVING) and pair.is_dicom and len(pair.study) == 2


CONDITIONS = [
    {"SeriesInstanceUID": MOVING}, {"SeriesDescription": "^MOV"}, {"Modality": "ct"}, {"SeriesNumber": 2},
    {"ImageType": ["PRIMARY", "AXIAL"]}, {"KVP": 120, "SeriesDescription": "moving|other"},
]  # fmt: skip


@pytest.mark.parametrize("conditions", CONDITIONS, ids=str)
def test_rules(tmp_path, conditions):
    assert ask(study(tmp_path), {"SeriesInstanceUID": FIXED}, conditions).moving.uid == MOVING


def test_series_as_the_bundle_reads_it(tmp_path):
    """Links to nothing but the series' own files, whatever lies beside them."""
    write_series(tmp_path, ARRAY, WHERE, "MR", "fixed", 1, backwards=True)
    write_series(tmp_path, ARRAY + 1, WHERE, "MR", "moving", 2)
    pair = find_pair(tmp_path, load_request(tmp_path))
    for path, expected in zip(pair.paths(tmp_path / "work"), (ARRAY, ARRAY + 1), strict=True):
        image = read_image(path)
        np.testing.assert_array_equal(image.array, expected)
        assert image.frame.same_as(WHERE)
    heights = [float(header.ImagePositionPatient[2]) for header in pair.fixed.in_order().headers]
    assert heights == sorted(heights) and len(heights) == 3


def test_files(tmp_path):
    for name in ("fixed.nii.gz", "moving.nii", "other.nii.gz"):
        save_volume(ARRAY, WHERE.affine, tmp_path / name, np.float32)
    pair = find_pair(tmp_path, load_request(tmp_path))
    assert (pair.fixed.name, pair.moving.name) == ("fixed.nii.gz", "moving.nii") and not pair.is_dicom
    assert pair.paths(tmp_path / "work") == (pair.fixed, pair.moving)
    assert ask(tmp_path, {"File": "other.nii.gz"}, {"File": "fixed.nii.gz"}).fixed.name == "other.nii.gz"


def third(folder: Path, **tags) -> Path:
    write_series(folder / "d", ARRAY, WHERE, **{"description": "moving again", "number": 3, **tags})
    return folder


def damage(folder: Path) -> Path:
    path = sorted((folder / "a").iterdir())[0]
    path.write_bytes(path.read_bytes()[:400])
    return folder


def both(folder: Path, *names: str) -> Path:
    for name in names:
        save_volume(ARRAY, WHERE.affine, folder / name, np.float32)
    return folder


UID = "SeriesInstanceUID"
RULES = ({"SeriesDescription": "fixed"}, {"SeriesDescription": "moving"})
# name → (what makes the input of a study's folder, fixed and moving conditions, words of the line)
BAD = {
    "no series meets the rule": (study, ({"SeriesDescription": "T2"}, RULES[1]), ("no series for the fixed", "T2",
        FIXED)),
    "two candidates": (lambda f: third(study(f)), RULES, ("2 series may be the moving", MOVING, THIRD, UID)),
    "unknown UID": (study, ({UID: "1.2.3"}, {UID: MOVING}), ("no series for the fixed", "1.2.3", FIXED)),
    "one series for both": (study, ({UID: FIXED}, {"Modality": "MR"}), ("both the fixed and the moving",)),
    "single series": (lambda f: write_series(f, ARRAY, WHERE) and f, RULES, ("one image series only", "'fixed'",
        FIXED)),
    "empty folder": (lambda f: f, RULES, ("no DICOM images",)),
    "other patient": (lambda f: study(f, PatientID="P-2"), RULES, ("different patients", "P-1", "P-2")),
    "no frame of reference": (lambda f: study(f, FrameOfReferenceUID=None), RULES, ("moving series",
        "FrameOfReferenceUID")),
    "secondary capture": (lambda f: study(f, SOPClassUID=SecondaryCaptureImageStorage), RULES, ("Secondary Capture",
        "CT and MR")),
    "no series UID": (lambda f: study(f, SeriesInstanceUID=""), RULES, ("CT2_000", "without SeriesInstanceUID")),
    "file cut off": (lambda f: damage(study(f)), RULES, ("MR1_000", "damaged")),
    "files beside a study": (lambda f: both(study(f), "fixed.nii.gz"), RULES, ("fixed.nii.gz", "beside DICOM")),
    "one file": (lambda f: both(f, "fixed.nii.gz"), RULES, ("no moving.nii.gz",)),
    "named file outside": (lambda f: both(f, "a.nii"), ({"File": "a.nii"}, {"File": "../../etc/passwd"}),
        ("lies outside",)),
    "no conditions": (study, ({}, RULES[1]), ("fixed", "no conditions")),
    "unknown keyword": (study, ({"Description": "x"}, RULES[1]), ("Description", "no keyword")),
    "bad expression": (study, ({"SeriesDescription": "("}, RULES[1]), ("no regular expression",)),
}  # fmt: skip


@pytest.mark.parametrize("name", list(BAD))
def test_bad_input_is_one_line(tmp_path, name):
    spoil, (fixed, moving), words = BAD[name]
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "rules").mkdir()
    where = spoil(folder)
    with pytest.raises(InputError) as caught:
        selections = [{"name": r, "conditions": c} for r, c in (("fixed", fixed), ("moving", moving)) if c is not None]
        (tmp_path / "rules" / "request.json").write_text(json.dumps({"selections": selections}))
        find_pair(where, load_request(tmp_path / "rules"))
    line = str(caught.value)
    assert "\n" not in line and all(word in line for word in words), line


@pytest.mark.parametrize("text", ["{", "[1]", '{"selections": [], "more": 1}', '{"selections": 5}'])
def test_requests_of_another_shape(tmp_path, text):
    (tmp_path / "request.json").write_text(text)
    with pytest.raises(InputError, match=r"request\.json: ") as caught:
        load_request(tmp_path)
    assert "\n" not in str(caught.value)


def test_registration_objects_are_no_images(tmp_path):
    """What an earlier run wrote into the study does not count as a candidate."""
    folder = study(tmp_path)
    ds = pydicom.dcmread(next((folder / "a").iterdir()))
    for keyword in ("Rows", "Columns", "PixelData"):
        delattr(ds, keyword)
    ds.SeriesInstanceUID, ds.SeriesDescription = THIRD, "moving, registered"
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = SpatialRegistrationStorage
    ds.save_as(folder / "reg.dcm")
    assert find_pair(folder, load_request(folder)).moving.uid == MOVING
