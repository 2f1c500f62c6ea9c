"""Small weights, and the folder of a small pair, for tests of whole commands."""

import pytest

import tiny_bundle as tiny
from bad_files import shrink, write_images


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    return str(tiny.save_weights(tmp_path_factory.mktemp("weights") / "weights.pt"))


@pytest.fixture
def pair(tmp_path, monkeypatch):
    """The folder of a pair's files, which is the current one; ``avsm register`` is made small."""
    shrink(monkeypatch)
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path)
    return tmp_path
