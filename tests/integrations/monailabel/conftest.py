"""One server for all tests of the MONAI Label app: it takes a while to start."""

import pytest
from label_studies import Server, write_studies


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("label")
    (folder / "studies").mkdir()
    # A network registers the studies in a second.
    options = ("--conf", "model", "general")
    server = Server(write_studies(folder / "studies"), folder / "server.log", *options)
    try:
        server.wait()
        yield server
    finally:
        server.stop()


@pytest.fixture()
def clean(server):
    """Pre-annotations are removed at the end."""
    yield
    for image, entry in server.objects().items():
        if "original" in entry["labels"]:
            server.request("DELETE", "/datastore/label", params={"id": image, "tag": "original"})
