"""The tests of the Deploy app, in an environment of their own: `make test-integrations-deploy`."""

import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Where they are not asked for they are not even imported: what they need is not installed there."""
    asked_for = "integrations" in (config.option.markexpr or "").replace("not integrations", "")
    return None if asked_for else True


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A models folder with the default weights."""
    from deploy_cases import export_model

    folder = tmp_path_factory.mktemp("models")
    export_model(folder)
    return folder


def pytest_configure(config: pytest.Config) -> None:
    """The app's folder goes on the path, as it does for ``python app.py``."""
    sys.path.insert(0, str(REPOSITORY / "integrations" / "deploy"))
