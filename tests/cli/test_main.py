"""The command ``avsm`` itself: help at once, one line for every mistake, and one name for every module."""

import errno
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

import scripts
from scripts.cli import main
from scripts.errors import InputError

BUNDLE = Path(__file__).resolve().parents[2] / "bundle"
module = sys.modules["scripts.cli.main"]


def python(*words, cwd=BUNDLE, **variables):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | variables
    return subprocess.run(
        [sys.executable, *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("words, folder", [(("-m", "scripts.cli"), BUNDLE), (("-m", "avsm.cli"), BUNDLE.parent)])
def test_help_answers_at_once_from_anywhere(words, folder):
    start = time.perf_counter()
    result = python(*words, "--help", cwd=folder)
    assert result.returncode == 0 and not result.stderr and time.perf_counter() - start < 2
    assert all(name in result.stdout for name in module.COMMANDS)


def test_a_process_ends_with_its_words_its_status_and_what_was_to_be_done_at_its_end():
    lines = ("import atexit, sys", "import scripts.cli", "atexit.register(print, 'later')", "print('now')")
    result = python("-c", "\n".join((*lines, "sys.modules['scripts.cli.main']._end(3)")))
    assert result.stdout.split() == ["now", "later"] and result.returncode == 3 and not result.stderr


def test_the_version_is_that_of_the_package():
    result = python("-m", "scripts.cli", "--version", cwd=BUNDLE)
    assert result.stdout.strip() == f"avsm {scripts.__version__}" and result.returncode == 0


@pytest.mark.parametrize("name", module.COMMANDS)
def test_each_help_says_direction_and_example(name, capsys):
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0 and "FIXED" in text and "MOVING" in text and f"\n  avsm {name} " in text


def test_help_brackets_nothing_that_is_required(capsys):
    with pytest.raises(SystemExit):
        main(["template", "--help"])
    text = capsys.readouterr().out
    assert " --output FOLDER " in text and "[--output" not in text


WRONG = {
    "no command": ([], "COMMAND; see avsm --help"),
    "unknown command": (["aply"], "'aply'"),
    "unknown option": (["jacobian", "--transform", "t.h5", "--reference", "r", "--output", "o", "--foo"], "--foo"),
    "shortened option": (["jacobian", "--trans", "t.h5", "--reference", "r", "--output", "o"], "--transform"),
    "missing option": (["jacobian", "--transform", "t.h5"], "--reference, --output; see avsm jacobian --help"),
    "positional": (["register", "a.nii", "b.nii", "out"],
        "arguments: a.nii b.nii out; give every file by its option, --f"),
    "long words": (["register", "--fixed", "f.nii", "x" * 9000], "arguments: xxxxxxx"),
    "bad number": (["apply", "--transform", "t", "--default-value", "nan"], "--default-value"),
}  # fmt: skip


@pytest.mark.parametrize(("words", "message"), WRONG.values(), ids=WRONG)
def test_usage_is_one_line_and_status_two(words, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    captured = capsys.readouterr()
    assert caught.value.code == 2 and not captured.out
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1 and message in captured.err
    assert len(captured.err) < 1000


def fail(error):
    def run(options):
        raise error

    return run


ENDS = {
    "input": (InputError("a.nii: is bad; mend it"), 1, "error: a.nii: is bad; mend it\n"),
    "full": (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left on device; free some space"),
    "denied": (PermissionError(errno.EACCES, "Permission denied", "/x/y"), 1, "/x/y: Permission denied; change its"),
    "no number": (FileNotFoundError("path: the folder\nof x"), 1, "error: path: the folder of x\n"),
    "interrupt": (KeyboardInterrupt(), 130, "error: interrupted"),
}


@pytest.mark.parametrize(("error", "status", "message"), ENDS.values(), ids=ENDS)
def test_errors_end_in_one_line(error, status, message, monkeypatch, capsys):
    monkeypatch.setattr(module, "_parse", lambda words: (SimpleNamespace(run=fail(error)), None))
    assert main([]) == status
    text = capsys.readouterr().err
    assert message in text and text.startswith("error: ") and text.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "label_weight: fixed_label is missing; labels drive",
            "--label-weight: --fixed-label is missing; labels drive",
        ),
        ("fixed_label=3: give a path", "--fixed-label=3: give a path"),
        ("/a/fixed_label.nii.gz: broken, as /b/label_weight", "/a/fixed_label.nii.gz: broken, as /b/label_weight"),
        ("no_option: stays", "no_option: stays"),
        ("grid=3: for the grid: give two", "--grid=3: for the grid: give two"),
    ],
)
def test_errors_call_settings_by_their_options(line, expected, monkeypatch, capsys):
    options = SimpleNamespace(fixed_label=None, label_weight=None, grid=None)
    monkeypatch.setattr(module, "_parse", lambda words: (SimpleNamespace(run=fail(InputError(line))), options))
    assert main([]) == 1 and capsys.readouterr().err == f"error: {expected}\n"


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(module, "_parse", lambda words: (SimpleNamespace(run=fail(KeyError("x"))), None))
    with pytest.raises(KeyError):
        main([])


def test_warnings_for_users_are_one_line(monkeypatch, capsys):
    def warn(options):
        warnings.warn("two\nlines", UserWarning, stacklevel=1)
        return 0

    monkeypatch.setattr(module, "_parse", lambda words: (SimpleNamespace(run=warn), None))
    assert main([]) == 0 and capsys.readouterr().err == "warning: two lines\n"
