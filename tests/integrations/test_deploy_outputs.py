"""The Deploy app's outputs and request, as far as they need none of the SDK."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from scripts.errors import InputError
from scripts.report.verdict import judge
from scripts.storage import output_folder


@pytest.fixture(autouse=True)
def app(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "integrations" / "deploy"))


def test_a_folder_that_another_run_has_is_refused(tmp_path):
    """Slices of two runs in one folder would be taken for one series."""
    from avsm_deploy.outputs import staged

    refused = pytest.raises(InputError, match="another run is writing to it")
    with output_folder(tmp_path), ThreadPoolExecutor(1) as another, refused:
        another.submit(staged(tmp_path).__enter__).result()


@pytest.mark.parametrize(("measures", "said"), [
    ({}, "PASS: NCC before 0.500, affine unknown, final 0.900; folds 0"),
    ({"missed": 0.5}, "CHECK: .*; folds 0; At its own size the moving image would miss 50% of the .*"),
    ({"rival": 2.0, "settled": 0.1}, "FAIL: .*; folds 0; In another orientation .*; In 90% of the content .*"),
])  # fmt: skip
def test_the_line_of_a_result_begins_with_the_verdict(tmp_path, measures, said):
    from avsm_deploy.outputs import ITK, METRICS, summary

    good = {"settled": 0.7, "rival": 0.5, "mirror": 0.4, "missed": 0.1, "outside": 0, "stretch": 1.1, "agreement": 0.1}
    metrics = {
        "similarity": {"ncc": {"before": 0.5, "affine": None, "final": 0.9}},
        "folds": 0,
        "verdict": judge(good | measures, {}).facts,
    }
    (tmp_path / ITK).mkdir()
    (tmp_path / ITK / METRICS).write_text(json.dumps(metrics))
    line = summary(tmp_path)
    assert re.fullmatch(f"{tmp_path}: {said}", line) and "\n" not in line


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


@pytest.mark.parametrize(("content", "words"), [
    (b"\xef\xbb\xbf" + json.dumps({"selections": CONDITIONS}).encode(), None),
    (b"[" * 100_000, "nested too deeply"),
    (b'{"selections": ' + b"9" * 5000 + b"}", "is not JSON"),
    (b"\xff\xfe", "is not JSON"),
    (json.dumps({"selections": CONDITIONS, "settings": {"seed": 10**400}}).encode(), "seed="),
    (json.dumps({"selections": CONDITIONS, "settings": {"device": "x" * 9000}}).encode(), "device="),
], ids=["byte-order mark", "deep", "huge", "bytes", "seed", "long"])  # fmt: skip
def test_requests_of_any_kind(tmp_path, content, words):
    from avsm_deploy.request import load_request

    (tmp_path / "request.json").write_bytes(content)
    if words is None:
        assert load_request(tmp_path).settings == {"preset": "fast"}
        return
    with pytest.raises(InputError, match=words) as caught:
        load_request(tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
