"""The documents: links lead somewhere, commands are understood, examples run and give what the text says."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from monai.bundle import ConfigParser

import tiny_bundle as tiny
from register_cases import register, write_pair
from scripts.cli import main

ROOT = tiny.BUNDLE.parent
FILES = [*ROOT.glob("*.md"), *sorted(tiny.BUNDLE.glob("docs/**/*.md")), *sorted(ROOT.glob("benchmarks/**/*.md"))]
DOCS = {str(path.relative_to(ROOT)): path for path in FILES}
TUTORIAL, HOWTO, SPACE, METHODS = (
    f"bundle/docs/{name}.md" for name in ("tutorial", "howto", "physical_space", "methods")
)
COMMANDS = sys.modules["scripts.cli.main"].COMMANDS
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
# Options of `monai.bundle run` itself, of MLflow, pip and the exporter.
OTHER_OPTIONS = {"no-deps", "shape", "config_file", "meta_file", "logging_file", "tracking", "backend-store-uri"}
SLICER = "slicer."  # only runs inside of Slicer


def text_of(name):
    return DOCS[name].read_text()


def prose(name):
    """A document without its fenced blocks."""
    return FENCE.sub("", text_of(name))


def blocks(name, *languages):
    return [body for _, language, body in FENCE.findall(text_of(name)) if language in languages]


def lines_with(words, names=tuple(DOCS)):
    """Command lines in fenced or indented blocks that hold some words, as (document, line)."""
    found = []
    for name in names:
        indented = "\n".join(re.findall(r"^ {4}(\S.*|    .*)$", prose(name), re.MULTILINE))
        for body in (*blocks(name, "", "bash"), indented):
            lines = body.replace("\\\n", " ").splitlines()
            found += [(name, " ".join(line.split())) for line in lines if re.search(words, line)]
    return found


AVSM = lines_with(rf"\bavsm ({'|'.join(COMMANDS)}) ")
BUNDLE_RUNS = lines_with(r"-m monai\.bundle run")


def slug(heading):
    """GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("name", DOCS)
def test_links_and_names_of_files(name):
    """Both lead somewhere in this repository, and no path of a machine stands there."""
    assert not re.findall(r"(?<![\w.])/(?:work|home|root|tmp|Users|mnt)/", text_of(name))
    for path in re.findall(r"\b(?:configs|scripts|models|tests)/[\w/.]+\.(?:json|py|pt|conf)\b", text_of(name)):
        assert "NAME" in path or (tiny.BUNDLE / path).exists() or (ROOT / path).exists(), path
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(name)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = DOCS[name].parent / path if path else DOCS[name]
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", FENCE.sub("", file.read_text()), re.MULTILINE)
            assert anchor in map(slug, headings), target


@pytest.mark.parametrize(("name", "line"), AVSM)
def test_avsm_lines_are_understood(name, line, monkeypatch):
    seen = []
    for command in COMMANDS:
        monkeypatch.setattr(import_module(f"scripts.cli.{command}"), "run", lambda options: seen.append(options) or 0)
    words = shlex.split(line, comments=True)
    words = words[words.index("avsm") + 1 :]
    assert main(words[: words.index("&")] if "&" in words else words) == 0 and seen


def option_values(words):
    """Option → value of a command line of `monai.bundle run`."""
    return {
        word[2:]: value
        for word, value in zip(words, [*words[1:], ""], strict=True)
        if word.startswith("--") and not value.startswith("--")
    }


@pytest.mark.parametrize(("name", "line"), BUNDLE_RUNS)
def test_ids_of_bundle_runs_exist(name, line):
    words = shlex.split(re.sub(r"[\[\]](?=--|\s|$)", " ", line), comments=True)
    # What comes before are torchrun's options.
    options = option_values(words[words.index("run") :])
    # BUNDLE stands for the bundle's folder.
    files = options["config_file"].replace("BUNDLE/", "")
    parser = ConfigParser()
    if "$" in files:
        pytest.skip("needs the shell's variables")
    names = ast.literal_eval(files) if "[" in files else [files]
    # What CONTRIBUTING has the reader write.
    names = [one for one in names if one not in ("loss.json", "integrator.json")]
    parser.read_config([str(tiny.BUNDLE / file) for file in names])
    run = words[words.index("run") + 1]
    assert run.startswith("--") or run in parser, run
    tracking = json.loads((tiny.BUNDLE / options["tracking"]).read_text())["configs"] if "tracking" in options else {}
    for option in options.keys() - OTHER_OPTIONS:
        assert option in parser or option in tracking, option


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """A folder as the how-to assumes it."""
    folder = tmp_path_factory.mktemp("howto")
    files = write_pair(folder, "other sizes, spacings and axes")
    metrics = register(files, folder / "result", "--preset", "instance", "--learn2reg", "--no-report")
    moving = nib.load(folder / "moving.nii.gz")
    twice = np.repeat(np.asarray(moving.dataobj)[..., None], 2, axis=-1)
    nib.save(nib.Nifti1Image(twice, moving.affine), folder / "fmri.nii.gz")
    for name in ("ab", "bc"):
        (folder / name).symlink_to(folder / "result")
    return folder, metrics


SNIPPETS = [body for name in (HOWTO, SPACE, METHODS) for body in blocks(name, "python")]


@pytest.mark.parametrize("code", SNIPPETS)
def test_snippets_run_and_agree(code, result, monkeypatch, capsys):
    if SLICER in code:
        compile(code, "snippet", "exec")
        return
    if "import ants" in code:
        pytest.importorskip("ants")
    folder, _ = result
    monkeypatch.chdir(folder)
    exec(compile(code, "snippet", "exec"), {})
    printed = capsys.readouterr().out
    moving = sitk.GetArrayFromImage(sitk.ReadImage("moving.nii.gz"))
    for found in re.findall(r"largest difference (\S+)", printed):
        assert float(found) < 1e-4 * np.ptp(moving)
    for found in re.findall(r"there and back, mm (.*)", printed):
        assert np.abs(ast.literal_eval(found)).max() < 0.2


NUMBER = r"-?\d+\.\d+(?:e-?\d+)?"


def says(expected, line):
    """Whether an output line is what the text shows: "..." stands for anything, decimals may differ a little."""
    pattern = "".join(
        ".*" if part == "..." else f"({NUMBER})" if re.fullmatch(NUMBER, part) else re.escape(part)
        for part in re.split(rf"(\.\.\.|{NUMBER})", expected.strip())
    )
    found = re.fullmatch(pattern, line.strip())
    shown = [float(number) for number in re.findall(NUMBER, expected)]
    return found is not None and [float(g) for g in found.groups()] == pytest.approx(shown, rel=0.05, abs=0.02)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_tutorial_as_printed(tmp_path):
    """Every command of the tutorial, in order, in a folder of its own; its outputs are those in the text."""
    parts = [(language, body) for _, language, body in FENCE.findall(text_of(TUTORIAL))]
    (tmp_path / "bundle").symlink_to(tiny.BUNDLE)
    script = ["exec 2>&1"]
    for number, (language, body) in enumerate(parts):
        if language == "bash":
            script += [f"echo @@@{number}", body]
    text = "\n".join(script)
    for there, here in (("make demo", "PYTHONPATH=bundle python -m scripts.demo --output demo"), ("source ", ": ")):
        assert text.count(there) == 1
        text = text.replace(there, here)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(["bash", "-e", "-c", text], cwd=tmp_path, env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE, encoding="utf-8", timeout=1700)  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    outputs = {}
    for piece in done.stdout.split("@@@")[1:]:
        number, _, output = piece.partition("\n")
        # A bar that is drawn anew leaves several lines in one.
        outputs[int(number)] = re.split(r"[\r\n]", output)
    checked = 0
    for number, (language, body) in enumerate(parts):
        if language == "text":
            for expected in body.splitlines():
                assert any(says(expected, line) for line in outputs[number - 1]), (expected, outputs[number - 1])
                checked += 1
    assert checked > 40
