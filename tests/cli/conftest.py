"""A pair's files, with moved image and label map, in the current folder."""

import pytest

from cli_cases import make_pair


@pytest.fixture
def pair(tmp_path, monkeypatch):
    """The pair's transform."""
    monkeypatch.chdir(tmp_path)
    return make_pair(tmp_path, moved=True)
