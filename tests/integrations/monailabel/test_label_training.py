"""The MONAI Label app's training: on the datastore's pairs, stopped, and put to use."""

import json
from pathlib import Path

import pytest
from label_studies import LABELS

pytestmark = [pytest.mark.integrations, pytest.mark.timeout(3600)]


def test_stopped_training_leaves_no_process_and_no_weights(server):
    answer = server.request("POST", "/train/registration", json={"max_epochs": 900, "epoch_pairs": 2})
    assert answer.status_code == 200, answer.text
    # MONAI Label answers before its thread has marked the task as running: a second request is refused from then on.
    server.until(lambda: _processes("overrides.json", str(server.studies)))
    assert server.request("POST", "/train/registration", json={}).status_code == 429
    assert server.request("GET", "/train/?check_if_running=true").status_code == 200
    assert server.request("DELETE", "/train/").status_code == 200
    server.until(lambda: not _processes("overrides.json", str(server.studies)), 300)
    assert server.until(lambda: server.ended("/train/"))["status"] == "STOPPED"
    assert not (server.studies / "avsm" / "model.pt").exists()


def _processes(*words):
    """Numbers of processes whose command line holds all words."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = place.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if all(word in line for word in words):
            found.append(int(place.parent.name))
    return found


def test_training_on_the_datastore_is_what_later_tasks_register_with(server):
    before = server.infer("registration", "atlas", fixed="followup", save_label=False, report=False).json()
    answer = server.request("POST", "/train/registration", json={"max_epochs": 2, "epoch_pairs": 2})
    assert answer.status_code == 200, answer.text
    done = server.until(lambda: server.ended("/train/"))
    assert done["status"] == "DONE", done["details"]
    try:
        stats = server.request("GET", "/info/").json()["train_stats"]["registration"]
        assert stats["epoch"] == stats["total_epochs"] == 2
        assert stats["images"] == ["atlas", "followup", "other", "stranger"]
        assert stats["validation"] == ["atlas", "other"] and 0 < stats["best_metric"] < 1
        overrides = json.loads((server.studies / stats["run"] / "overrides.json").read_text())
        assert sum(phase["epochs"] for phase in overrides["phases"]) == 2 and overrides["labels"] == list(LABELS)
        after = server.infer("registration", "atlas", fixed="followup", save_label=False, report=False).json()
        assert after["weights"] == {"source": "trained", "sha256": stats["weights_sha256"]}
        assert after["weights"]["sha256"] != before["weights"]["sha256"]
        assert after["metrics"]["similarity"] != before["metrics"]["similarity"]
        asked = {"fixed": "followup", "save_label": False, "report": False, "weights": "bundle"}
        bundle = server.infer("registration", "atlas", **asked).json()
        assert bundle["weights"] == before["weights"]
        assert bundle["metrics"]["similarity"] == before["metrics"]["similarity"]
    finally:
        (server.studies / "avsm" / "model.pt").unlink(missing_ok=True)
