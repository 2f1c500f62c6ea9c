"""Bad requests to the MONAI Label app: each gets a 4xx and a reason, and leaves the datastore as it was."""

import re

import pytest

pytestmark = [pytest.mark.integrations, pytest.mark.timeout(1800)]

UNKNOWN = "'nobody' is not in the datastore"
INFER = {
    "image missing": ("registration", "", {"fixed": "other"}, 400, "image: is missing"),
    "image unknown": ("registration", "nobody", {"fixed": "other"}, 404, UNKNOWN),
    "model unknown": ("segmentation", "atlas", {}, 404, "there is no 'segmentation'; .*label_propagation"),
    "fixed missing": ("registration", "atlas", {}, 400, "fixed: is missing"),
    "fixed is moving": ("registration", "atlas", {"fixed": "atlas"}, 400, "moving image itself"),
    "parameter unknown": ("registration", "atlas", {"fixed": "other", "steps": 3}, 400, "steps: no such parameter"),
    "preset unknown": ("registration", "atlas", {"fixed": "other", "preset": "demons"}, 400, "preset='demons'"),
    "preset no text": ("registration", "atlas", {"fixed": "other", "preset": 3}, 400, "preset=3"),
    "weights for nothing": ("registration", "atlas", {"fixed": "other", "preset": "best", "weights": "bundle"}, 400,
        "weights=bundle: belong to a network, and preset best uses none"),
    "number for a truth": ("registration", "atlas", {"fixed": "other", "report": 1}, 400, "report=1: give true or"),
    "expression": ("registration", "atlas", {"fixed": "other", "initialisation": "$1 / 0"}, 400, "geometry, moments"),
    "result not made": ("registration", "atlas", {"fixed": "other", "result": "report", "report": False}, 400,
        "report is false"),
    "no label to move": ("registration", "stranger", {"fixed": "atlas", "result": "moved_label"}, 400,
        "no final label to move"),
    "weights not trained": ("registration", "atlas", {"fixed": "other", "weights": "trained"}, 400, "nothing has been"),
    "image in params": ("registration", "atlas", {"fixed": "other", "image": "stranger"}, 400, "image: cannot be"),
    "atlas without labels": ("label_propagation", "stranger", {"atlas": "followup"}, 400, "no final label"),
    "atlas is image": ("label_propagation", "atlas", {"atlas": "atlas"}, 400, "the image itself"),
    "annotator's tag": ("label_propagation", "stranger", {"label_tag": "final"}, 400, "an annotator has approved"),
    "kind unknown": ("label_propagation", "stranger", {"result_extension": ".png"}, 400, ".png"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def unchanged(server):
    before = server.objects()
    yield
    assert server.objects() == before


def refused(answer, status, reason):
    assert answer.status_code == status, answer.text[:300]
    detail = answer.json()["detail"]
    assert isinstance(detail, str) and "\n" not in detail
    assert re.search(reason, detail), detail


@pytest.mark.parametrize(("model", "image", "params", "status", "reason"), INFER.values(), ids=INFER)
def test_infer(server, model, image, params, status, reason):
    refused(server.infer(model, image, **params), status, reason)


@pytest.mark.parametrize(
    ("text", "reason"), [("{fixed", "not JSON"), ("[1]", "not a JSON object"), ('"atlas"', "not a JSON object")]
)
def test_infer_without_an_object(server, text, reason):
    files = {"params": (None, text)}
    refused(server.request("POST", "/infer/registration?image=atlas", files=files), 400, reason)


@pytest.mark.parametrize(("path", "body", "status", "reason"), [
    ("/train/segmentation", {}, 404, "there is no 'segmentation'"),
    ("/train/registration", {"max_epochs": "few"}, 400, "max_epochs='few': give a whole number"),
    ("/train/registration", [1], 400, "not a JSON object"),
    ("/train/", {"registration": {"max_epochs": "few"}}, 400, "whole number"),
    ("/activelearning/oracle", {}, 404, "there is no 'oracle'"),
    ("/activelearning/lowest_similarity", {"atlas": "nobody"}, 404, UNKNOWN),
    ("/activelearning/lowest_similarity", {"atlas": "stranger"}, 400, "no final label"),
    ("/batch/infer/segmentation", {}, 404, "there is no 'segmentation'"),
    ("/batch/infer/label_propagation", {"atlas": "stranger"}, 400, "no final label"),
    ("/batch/infer/label_propagation", {"images": ["/etc/hostname"]}, 400, "images: cannot be given"),
])  # fmt: skip
def test_background_tasks(server, path, body, status, reason):
    refused(server.request("POST", path, json=body), status, reason)


@pytest.mark.parametrize(("method", "path", "status", "reason"), [
    ("GET", "/datastore/image?image=nobody", 404, UNKNOWN),
    ("GET", "/datastore/label?label=stranger&tag=final", 404, "no label with tag 'final'"),
    ("DELETE", "/datastore/image?id=nobody", 404, UNKNOWN),
    ("DELETE", "/datastore/label?id=stranger&tag=final", 404, "no label with tag 'final'"),
    ("GET", "/model/registration", 404, "Not Found"),
    ("GET", "/session/1", 404, "Not Found"),
])  # fmt: skip
def test_addresses(server, method, path, status, reason):
    refused(server.request(method, path), status, reason)


@pytest.mark.parametrize(("name", "content", "reason"), [
    ("image.nii.gz", b"no gzip", "'new': cannot be read as an image"),
    ("image.nii", b"", "'new': file is empty"),
    ("image.png", b"1234", "not one of .nii.gz"),
])  # fmt: skip
def test_uploads(server, name, content, reason):
    answer = server.request("PUT", "/datastore/image?image=new", files={"file": (name, content)})
    refused(answer, 400, reason)
    assert "/tmp" not in answer.text
    answer = server.request("PUT", "/datastore/label?image=stranger", files={"label": (name, content)})
    refused(answer, 400, reason.replace("'new'", "'stranger'"))


def test_pages_of_other_sites_are_refused_on_every_route(server):
    routes = server.request("GET", "/openapi.json").json()["paths"]
    tried = 0
    for path, methods in routes.items():
        address = re.sub(r"{[^}]*}", "registration", path)
        for method in methods:
            for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
                answer = server.request(method.upper(), address, headers=headers, data={"params": "{}"})
                assert answer.status_code == 403, (method, path)
                assert method == "head" or "pages of other sites" in answer.json()["detail"]
                tried += 1
    assert tried > 40
    own = server.request("GET", "/datastore/", headers={"Origin": server.url})
    assert own.status_code == 200
