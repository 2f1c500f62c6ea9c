"""The local log of a run."""

import json

import pytest

from scripts.tracking import Journal


@pytest.fixture
def journal(tmp_path):
    return Journal.create(tmp_path, "a run", "experiment", {"tag": "value"})


def records(journal):
    return [record for record, _ in journal.read()]


def test_header(journal, tmp_path):
    assert journal.path == tmp_path / "tracking" / "a_run.jsonl"
    (header,) = records(journal)
    assert header["run_name"] == "a run" and header["experiment_name"] == "experiment"
    assert header["tags"] == {"tag": "value"} and header["time"] > 1e12 and len(header["id"]) == 32
    assert journal.header == header and journal.output_dir == tmp_path and not journal.finished


def test_records_in_order(journal, tmp_path):
    journal.log_status("RUNNING")
    journal.log_params({"rate": 1e-3, "grid": [1, 2]})
    journal.log_metrics({"loss": 2}, 1)
    journal.log_image(tmp_path / "pictures" / "a.png", "validation", 1)
    journal.log_artifact(tmp_path / "c.json", "folder", "config.json")
    journal.log_model(tmp_path / "model.pt", "name", {"grid": [4, 4, 4]})
    found = [{key: value for key, value in record.items() if key != "time"} for record in records(journal)[1:]]
    assert found == [
        {"kind": "status", "status": "RUNNING"},
        {"kind": "params", "values": {"rate": "0.001", "grid": "[1, 2]"}},
        {"kind": "metrics", "values": {"loss": 2.0}, "step": 1},
        {"kind": "image", "path": "pictures/a.png", "key": "validation", "step": 1},
        {"kind": "artifact", "path": "c.json", "folder": "folder", "name": "config.json"},
        {"kind": "model", "path": "model.pt", "name": "name", "settings": {"grid": [4, 4, 4]}},
    ]


def test_read_from_a_byte(journal):
    for step in range(3):
        journal.log_metrics({"loss": step}, step)
    ends = [end for _, end in journal.read()]
    assert ends[-1] == journal.path.stat().st_size
    assert [record["step"] for record, _ in journal.read(ends[1])] == [1, 2]
    assert list(journal.read(ends[-1])) == []


def test_resumed_run_repeats_nothing(journal, tmp_path):
    journal.log_params({"seed": 0})
    for step in (1, 2, 3):
        journal.log_metrics({"train/loss": step}, step)
    journal.log_image(tmp_path / "a.png", "validation", 3)
    before = records(journal)
    again = Journal.find(tmp_path, "a run")
    assert again.path == journal.path and again.header == journal.header
    again.log_params({"seed": 1})
    again.log_metrics({"train/loss": 2}, 2)
    again.log_image(tmp_path / "a.png", "validation", 3)
    assert records(again) == before
    again.log_params({"seed": 1, "device": "cpu"})
    again.log_metrics({"train/loss": 4, "other": 1}, 4)
    again.log_metrics({"train/loss": 4, "late": 1}, 4)
    new = records(again)[len(before) :]
    assert [record["values"] for record in new] == [{"device": "cpu"}, {"train/loss": 4, "other": 1}, {"late": 1}]


def test_line_cut_short_is_left_out_and_takes_no_other_with_it(journal, tmp_path):
    journal.log_metrics({"loss": 1}, 1)
    with open(journal.path, "a") as stream:
        stream.write('{"kind": "metrics", "val')
    again = Journal.find(tmp_path, "a run")
    again.log_metrics({"loss": 2}, 2)
    again.log_metrics({"loss": 3}, 3)
    assert [record["step"] for record in records(again)[1:]] == [1, 2, 3]


def test_runs_of_one_name_have_logs_of_their_own(tmp_path):
    assert Journal.find(tmp_path, "a") is None
    first = Journal.create(tmp_path, "a", "experiment")
    first.log_status("FINISHED")
    assert Journal.find(tmp_path, "a").finished
    paths = [Journal.create(tmp_path, "a", "experiment").path for _ in range(10)]
    assert [path.name for path in paths[:2]] == ["a~2.jsonl", "a~3.jsonl"]
    assert Journal.find(tmp_path, "a").path.name == "a~11.jsonl"
    Journal.create(tmp_path, "a~b", "experiment")
    assert Journal.find(tmp_path, "a").path.name == "a~11.jsonl"


def test_status_can_change(journal, tmp_path):
    for status, finished in (("RUNNING", False), ("FAILED", False), ("RUNNING", False), ("FINISHED", True)):
        journal.log_status(status)
        assert Journal.find(tmp_path, "a run").finished is finished


def test_file_outside_of_the_run_is_an_error(journal, tmp_path):
    with pytest.raises(ValueError, match="elsewhere"):
        journal.log_artifact(tmp_path.parent / "elsewhere.json")


def test_values_that_are_no_numbers(journal):
    journal.log_metrics({"a": float("nan"), "b": float("inf")}, 1)
    values = records(journal)[-1]["values"]
    assert values["a"] != values["a"] and values["b"] == float("inf")
    assert json.loads(journal.path.read_text().splitlines()[-1])["step"] == 1
