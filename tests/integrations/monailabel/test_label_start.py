"""How the MONAI Label app refuses to start: at once, with a line that says why."""

from __future__ import annotations

import os
import subprocess

import pytest
from label_studies import APP, PYTHON

pytestmark = [pytest.mark.integrations, pytest.mark.timeout(1800)]


def start(*arguments, python=PYTHON):
    environment = {**os.environ, "AVSM_LABEL_PYTHON": python, "PORT": "1"}
    command = [str(APP / "start.sh"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)


def test_without_a_folder(tmp_path):
    for arguments in ((), (tmp_path / "absent",)):
        result = start(*arguments)
        assert result.returncode == 2
        assert "not a folder" in result.stderr


def test_without_its_environment(tmp_path):
    result = start(tmp_path, python=str(tmp_path / "python"))
    assert result.returncode == 2
    assert "make label-env" in result.stderr


@pytest.mark.parametrize(
    ("conf", "reason"),
    [
        (("labels", "{femur"), "labels={femur: not JSON"),
        (("labels", '{"femur": "3"}'), "whole numbers above 0"),
        (("config_files", "absent.json"), "absent.json: config file does not exist"),
        (("threads", "none"), "threads none: give a whole number"),
        (("models", "x"), "models: no such setting"),
    ],
)
def test_with_a_bad_setting(tmp_path, conf, reason):
    result = start(tmp_path, "--conf", *conf)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert reason in last
    assert "Traceback" not in result.stdout + result.stderr


def test_with_a_folder_of_labels_that_leads_out(tmp_path):
    (tmp_path / "studies").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "studies" / "labels").symlink_to(tmp_path / "elsewhere")
    result = start(tmp_path / "studies")
    assert result.returncode == 1
    assert "labels: leads out of the studies folder" in result.stderr.strip().splitlines()[-1]
    assert not list((tmp_path / "elsewhere").iterdir())
