"""The Deploy app's outputs and request, as far as they need none of the SDK."""

from __future__ import annotations

import json
import multiprocessing
import random
import time
from pathlib import Path

import pytest

from scripts.errors import InputError

FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def app(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "integrations" / "deploy"))


def stand_in(folder, mark, wait, told, together):
    """What the operators do, without registering: folders and files of a run."""
    from avsm_deploy.outputs import staged

    together.wait(30)
    time.sleep(wait)
    try:
        with staged(folder) as stage:
            for name in ("itk", "moved"):
                (stage / name).mkdir()
                (stage / name / "file").write_text(mark)
                time.sleep(0.01)
    except InputError as error:
        told.put((mark, str(error)))
    else:
        told.put((mark, None))


def test_concurrent_runs_are_whole_or_refused(tmp_path):
    """Slices of two runs in one folder would be taken for one series."""
    import avsm_deploy.outputs  # noqa: F401, imported once for all processes

    chance, running = random.Random(3), 0
    for trial in range(10):
        folder, told, together = tmp_path / f"{trial}", FORK.SimpleQueue(), FORK.Barrier(3)
        runs = [FORK.Process(target=stand_in, args=(folder, n, chance.uniform(0, 0.02), told, together)) for n in "abc"]
        for run in runs:
            run.start()
        outcomes = dict(told.get() for _ in runs)
        for run in runs:
            run.join(30)
        (whole,) = [mark for mark, line in outcomes.items() if line is None]
        assert sorted(path.name for path in folder.iterdir()) == ["itk", "moved"]
        assert {path.read_text() for path in folder.glob("*/file")} == {whole}
        lines = [line for line in outcomes.values() if line is not None]
        assert all("another run is writing to it" in line or "a result is there already" in line for line in lines)
        running += sum("another run" in line for line in lines)
    assert running


CONDITIONS = [
    {"name": role, "conditions": {"SeriesInstanceUID": f"1.2.{n}"}} for n, role in enumerate(("fixed", "moving"))
]


@pytest.mark.parametrize("sign", ["$", "@", "%", " $"])
@pytest.mark.parametrize("name", ["device", "initialisation", "extent", "grid", "report", "network_def", "_target_"])
def test_nothing_of_a_request_is_run(tmp_path, name, sign):
    from avsm_deploy.request import load_request

    mark = tmp_path / "mark"
    text = f"{sign}__import__('pathlib').Path({str(mark)!r}).touch()"
    for value in (text, {"_target_": text}, [text] * 3):
        (tmp_path / "request.json").write_text(json.dumps({"selections": CONDITIONS, "settings": {name: value}}))
        with pytest.raises(InputError) as caught:
            load_request(tmp_path)
        assert "\n" not in str(caught.value) and name in str(caught.value)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xef\xbb\xbf" + json.dumps({"selections": CONDITIONS}).encode(), None),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"selections": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (json.dumps({"selections": CONDITIONS, "settings": {"seed": 10**400}}).encode(), "seed="),
        (json.dumps({"selections": CONDITIONS, "settings": {"device": "x" * 9000}}).encode(), "device="),
    ],
    ids=["byte-order mark", "deep", "huge", "bytes", "seed", "long"],
)
def test_requests_of_any_kind(tmp_path, content, words):
    from avsm_deploy.request import load_request

    (tmp_path / "request.json").write_bytes(content)
    if words is None:
        assert load_request(tmp_path).settings == {"preset": "fast"}
        return
    with pytest.raises(InputError, match=words) as caught:
        load_request(tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
