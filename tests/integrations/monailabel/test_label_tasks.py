"""The MONAI Label app's tasks: the real server on real volumes, driven by HTTP."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from label_studies import LABELS, PYTHON, voxels

pytestmark = [pytest.mark.integrations, pytest.mark.timeout(1800)]


def truth(server, name):
    return server.studies.parent / "truth" / f"{name}.nii.gz"


def nearest(label: Path, fixed: Path, transform: Path) -> np.ndarray:
    """A label map pulled onto a fixed image by SimpleITK."""
    args = sitk.ReadTransform(str(transform)), sitk.sitkNearestNeighbor, 0
    return sitk.GetArrayFromImage(sitk.Resample(sitk.ReadImage(str(label)), sitk.ReadImage(str(fixed)), *args))


def test_listens_on_loopback_only(server):
    listening = Path("/proc/net/tcp").read_text(encoding="utf-8") + Path("/proc/net/tcp6").read_text(encoding="utf-8")
    port = f"{server.port:04X}"
    hosts = {line.split()[1].split(":")[0] for line in listening.splitlines() if line.split()[1].endswith(f":{port}")}
    assert hosts == {"0100007F"}


def test_other_names_of_this_machine_are_refused(server):
    answer = server.request("GET", "/info/", headers={"Host": "rebound.example"})
    assert answer.status_code == 400


@pytest.fixture(scope="module")
def registered(server, tmp_path_factory):
    """Atlas registered to the stranger; the answer, and every stored result by its kind."""
    answer = server.infer("registration", "atlas", fixed="stranger")
    assert answer.status_code == 200, answer.text
    told, folder, files = answer.json(), tmp_path_factory.mktemp("registered"), {}
    for kind, tag in told["stored"].items():
        stored = server.label("atlas", tag)
        assert stored.status_code == 200
        name = stored.headers["content-disposition"].split("filename=")[1].strip('"')
        files[kind] = folder / f"{kind}.{name.split('.', 1)[1]}"
        files[kind].write_bytes(stored.content)
    return told, files


def test_registration_stores_what_the_command_writes(server, registered):
    told, files = registered
    assert set(files) == {
        *("moved", "moved_label", "transform", "inverse_transform", "affine", "displacement", "jacobian"),
        *("report", "metrics"),
    }
    assert told["metrics"]["similarity"]["mk_lncc"]["final"] > told["metrics"]["similarity"]["mk_lncc"]["before"] + 0.1
    assert told["weights"]["source"] == "bundle"
    metrics = json.loads(files["metrics"].read_text())
    assert metrics["weights_sha256"] == told["weights"]["sha256"]
    assert metrics["verdict"] == told["verdict"] and told["verdict"]["outcome"] in ("PASS", "CHECK", "FAIL")
    assert b"<html" in files["report"].read_bytes()[:2000]
    assert set(server.objects()["atlas"]["labels"]) == {"final", *told["stored"].values()}


def test_registration_transform_is_the_worlds(server, registered):
    """SimpleITK, with the stored transform alone, makes the stored images of the files in the studies folder."""
    _, files = registered
    fixed = sitk.ReadImage(str(server.studies / "stranger.nii.gz"), sitk.sitkFloat64)
    moving = sitk.ReadImage(str(server.studies / "atlas.nii.gz"), sitk.sitkFloat64)
    transform = sitk.ReadTransform(str(files["transform"]))
    outside = float(sitk.GetArrayViewFromImage(moving).min())
    moved = sitk.GetArrayFromImage(sitk.Resample(moving, fixed, transform, sitk.sitkLinear, outside))
    # A point may lie on the very edge of the moving image, where rounding decides.
    assert np.count_nonzero(np.abs(moved - voxels(files["moved"])) > 0.05) <= 2
    inverse = sitk.ReadTransform(str(files["inverse_transform"]))
    centre = fixed.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in fixed.GetSize()])
    back = inverse.TransformPoint(transform.TransformPoint(centre))
    assert np.linalg.norm(np.subtract(back, centre)) < 0.1
    label = nearest(truth(server, "atlas"), server.studies / "stranger.nii.gz", files["transform"])
    assert (label != voxels(files["moved_label"])).mean() < 1e-4


def test_registration_returns_the_file_asked_for(server, registered, tmp_path):
    answer = server.infer("registration", "atlas", "image", fixed="followup", result="transform", report=False)
    assert answer.status_code == 200, answer.text[:300]
    (tmp_path / "transform.h5").write_bytes(answer.content)
    transform = sitk.ReadTransform(str(tmp_path / "transform.h5"))
    assert transform.GetDimension() == 3 and "report_to_followup" not in server.objects()["atlas"]["labels"]


@pytest.mark.usefixtures("clean")
def test_propagated_labels_are_those_of_the_transform(server, registered, tmp_path):
    _, files = registered
    answer = server.infer("label_propagation", "stranger", atlas="atlas")
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert told["atlas"] == "atlas" and told["stored"] == {"label": "original"}
    # The atlas is the moving image either way, so that this is the registration of before.
    assert told["verdict"]["measures"] == registered[0]["verdict"]["measures"]
    assert told["label_names"] == {f"label_{value}": value for value in LABELS}
    stored = server.studies / "labels" / "original" / "stranger.nii.gz"
    assert stored.read_bytes() == server.label("stranger", "original").content
    expected = nearest(truth(server, "atlas"), server.studies / "stranger.nii.gz", files["transform"])
    assert (voxels(stored) != expected).mean() < 1e-4
    image, label = sitk.ReadImage(str(server.studies / "stranger.nii.gz")), sitk.ReadImage(str(stored))
    for field in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert np.allclose(getattr(image, field)(), getattr(label, field)(), atol=1e-4), field


def test_next_image_is_the_least_similar_and_remembered(server):
    first = server.request("POST", "/activelearning/lowest_similarity", json={})
    assert first.status_code == 200, first.text
    told = first.json()
    assert told["id"] == "stranger" and set(told["similarities"]) == {"followup", "stranger"}
    assert told["similarity"] == told["similarities"]["stranger"] < told["similarities"]["followup"]
    file = server.studies / "avsm" / "similarities.json"
    before = file.stat().st_mtime_ns
    again = server.request("POST", "/activelearning/lowest_similarity", json={}).json()
    assert again["similarities"] == told["similarities"] and file.stat().st_mtime_ns == before
    # Another content under the same name is registered anew.
    image = server.studies / "followup.nii.gz"
    content = image.read_bytes()
    try:
        image.write_bytes((server.studies / "other.nii.gz").read_bytes())
        other = server.request("POST", "/activelearning/lowest_similarity", json={"atlas": "other"}).json()
        assert other["similarities"]["followup"] > 0.99
    finally:
        image.write_bytes(content)


@pytest.mark.usefixtures("clean")
def test_session_of_slicers_plugin(server, tmp_path):
    client = Path(__file__).with_name("label_client.py")
    environment = {"PATH": "/usr/bin:/bin"}
    try:
        result = subprocess.run(
            [PYTHON, str(client), server.url, str(tmp_path)], capture_output=True, text=True, env=environment
        )
        assert result.returncode == 0, result.stderr[-2000:]
        told = json.loads(result.stdout.splitlines()[-1])
        assert told["models"] == ["label_propagation"] and told["strategy"] == "lowest_similarity"
        assert told["sample"]["id"] == "stranger"
        assert told["told"]["label_names"] == {f"label_{value}": value for value in LABELS} and told["running"] is False
        assert told["file"].endswith(".nrrd") and sitk.ReadImage(told["file"]).GetPixelID() == sitk.sitkUInt8
        assert (voxels(told["file"]) == voxels(told["original"])).all()
        assert told["labels"] == {"label_1": 1, "label_2": 2, "femur": 3, "tibia": 4}
        assert "final" in server.objects()["stranger"]["labels"]
    finally:
        server.request("DELETE", "/datastore/label", params={"id": "stranger", "tag": "final"})


@pytest.mark.usefixtures("clean")
def test_batch_labels_what_has_no_label_and_survives_a_bad_image(server):
    flat = sitk.ReadImage(str(server.studies / "followup.nii.gz")) * 0
    sitk.WriteImage(flat, str(server.studies / "flat.nii.gz"))
    try:
        server.until(lambda: "flat" in server.objects(), 300)
        told = server.request("POST", "/activelearning/lowest_similarity", json={}).json()
        assert told["id"] == "stranger" and "constant image" in told["failed"]["flat"]
        # The parameters that MONAI Label's own form gives by default.
        answer = server.request("POST", "/batch/infer/label_propagation?images=all", json=None)
        assert answer.status_code == 200, answer.text
        done = server.until(lambda: server.ended("/batch/infer"))
        assert done["status"] == "DONE", done["details"]
        labelled = {image for image, entry in server.objects().items() if "original" in entry["labels"]}
        assert labelled == {"followup", "stranger"}
        # The task's log; the folder's watcher writes into it when it likes.
        assert any("constant image" in line for line in done["details"])
    finally:
        assert server.request("DELETE", "/datastore/image", params={"id": "flat"}).status_code == 200
    assert not (server.studies / "flat.nii.gz").exists() and "flat" not in server.objects()


def test_uploaded_image_and_label_are_kept(server):
    content = (server.studies / "followup.nii.gz").read_bytes()
    upload = {"file": ("knee.nii.gz", content)}
    try:
        answer = server.request("PUT", "/datastore/image", params={"image": "uploaded"}, files=upload)
        assert answer.status_code == 200, answer.text
        assert (server.studies / "uploaded.nii.gz").read_bytes() == content
        again = server.request("PUT", "/datastore/image", params={"image": "uploaded"}, files=upload)
        assert again.status_code == 409
        label = {"label": ("label.nii.gz", truth(server, "followup").read_bytes())}
        answer = server.request("PUT", "/datastore/label", params={"image": "uploaded"}, files=label)
        assert answer.status_code == 200, answer.text
        assert "uploaded" in server.request("GET", "/info/").json()["models"]["label_propagation"]["config"]["atlas"]
        label = {"label": ("label.nii.gz", truth(server, "stranger").read_bytes())}
        answer = server.request("PUT", "/datastore/label", params={"image": "uploaded"}, files=label)
        assert answer.status_code == 400 and "shape" in answer.json()["detail"]
    finally:
        server.request("DELETE", "/datastore/image", params={"id": "uploaded"})
    assert "uploaded" not in server.objects()
