"""The tests of the Deploy app, in an environment of their own: `make test-integrations-deploy`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Where they are not asked for they are not even imported: what they need is not installed there."""
    asked_for = "integrations" in (config.option.markexpr or "").replace("not integrations", "")
    return None if asked_for else True


NAMED = "['configs/inference.json','models/phantom.json']"


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A models folder with the weights that know the generated knees, exported as the README says."""
    folder = tmp_path_factory.mktemp("models")
    file = folder / "avsm" / "model.ts"
    file.parent.mkdir()
    line = ["-m", "monai.bundle", "ckpt_export", "network_def", "--filepath", file, "--ckpt_file", "models/phantom.pt"]
    line += ["--meta_file", "configs/metadata.json", "--config_file", NAMED]
    subprocess.run([sys.executable, *map(str, line)], cwd=REPOSITORY / "bundle", check=True, capture_output=True)
    return folder


def pytest_configure(config: pytest.Config) -> None:
    """The app's folder goes on the path, as it does for ``python app.py``."""
    sys.path.insert(0, str(REPOSITORY / "integrations" / "deploy"))
