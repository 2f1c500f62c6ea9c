"""How the MONAI Label app refuses to start: at once, with a line that says why."""

import json
import os
import subprocess

import pytest
from label_studies import APP, PYTHON, ROOT

pytestmark = [pytest.mark.integrations, pytest.mark.timeout(1800)]


def start(*arguments, python=PYTHON):
    environment = {**os.environ, "AVSM_LABEL_PYTHON": python, "PORT": "1"}
    command = [str(APP / "start.sh"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)


def test_without_a_folder(tmp_path):
    for arguments in ((), (tmp_path / "absent",)):
        result = start(*arguments)
        assert result.returncode == 2 and "not a folder" in result.stderr


BAD_SETTINGS = {
    "labels={femur: not JSON": {"labels": "{femur"},
    "whole numbers above 0": {"labels": '{"femur": "3"}'},
    "absent.json: config file does not exist": {"config_files": "oai.json, absent.json"},
    "models: no such setting": {"models": "x"},
}


def test_bad_settings(tmp_path):
    code = """
import json, sys
from avsm_label.app import AVSMApp
from scripts.errors import InputError
for conf in json.loads(sys.argv[2]):
    try:
        AVSMApp("", sys.argv[1], conf)
    except InputError as error:
        print(error)
for studies in ("http://127.0.0.1:1/dicom-web",):
    try:
        AVSMApp("", studies, {})
    except InputError as error:
        print(error)
"""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'bundle'}:{APP}"}
    command = [PYTHON, "-c", code, str(tmp_path), json.dumps(list(BAD_SETTINGS.values()))]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900, check=True)
    lines = result.stdout.strip().splitlines()
    for reason, line in zip([*BAD_SETTINGS, "DICOMweb is not served"], lines, strict=True):
        assert reason in line


def test_with_a_folder_of_labels_that_leads_out(tmp_path):
    (tmp_path / "studies").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "studies" / "labels").symlink_to(tmp_path / "elsewhere")
    result = start(tmp_path / "studies")
    assert result.returncode == 1
    assert "labels: leads out of the studies folder" in result.stderr.strip().splitlines()[-1]
    assert not list((tmp_path / "elsewhere").iterdir())
