"""Beginning of a workflow, names of runs, progress, and what happens to exceptions."""

import random
import sys

import numpy as np
import pytest
import torch

from scripts.errors import InputError
from scripts.training.tracking import forget_run, run_name
from scripts.workflow import begin


@pytest.fixture(autouse=True)
def own_state(monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    yield
    torch.set_num_threads(threads)


def test_begin_seeds_everything():
    def draw():
        # The global generator is what libraries draw from.
        return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002

    begin(3, 1)
    first = draw()
    begin(3)
    assert draw() == first
    begin(4)
    assert all(a != b for a, b in zip(draw(), first, strict=True)) and torch.get_num_threads() == 1


def test_hook_is_set_once_and_hands_on_other_errors(capsys):
    calls = []
    sys.excepthook = lambda *arguments: calls.append(arguments)
    begin()
    hook = sys.excepthook
    begin()
    assert sys.excepthook is hook
    other = KeyError("other")
    hook(KeyError, other, None)
    assert calls == [(KeyError, other, None)]
    hook(InputError, InputError("a.nii: bad; mend it"), None)
    assert capsys.readouterr().err == "error: a.nii: bad; mend it\n" and len(calls) == 1
    hook(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert capsys.readouterr().err == "error: interrupted; what was not finished is removed\n" and len(calls) == 1


def test_run_name(tmp_path, monkeypatch):
    first = run_name(tmp_path / "a")
    assert run_name(tmp_path / "b") != first
    # A run that was killed goes on; one that has ended without a checkpoint is followed by a new one.
    assert run_name(tmp_path / "a") == first
    forget_run(tmp_path / "a")
    second = run_name(tmp_path / "a")
    assert second != first
    (tmp_path / "a" / "checkpoint_last.pt").touch()
    forget_run(tmp_path / "a")
    assert run_name(tmp_path / "a") == second
    # Another process of the run leaves the name alone.
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run_name(tmp_path / "a") != second and run_name(tmp_path / "c") and not (tmp_path / "c").exists()
    monkeypatch.setenv("RANK", "0")
    assert run_name(tmp_path / "a") == second
