"""The MONAI Label app's fence: by no name, link or header is a file outside the studies folder read or written.

What must not be read is a named pipe: whoever opens it for reading waits for a writer, and is found out by one.
"""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

pytestmark = [pytest.mark.integrations, pytest.mark.timeout(1800)]


@pytest.fixture()
def secret(tmp_path):
    """A pipe outside; at the end nobody may have it open."""
    path = tmp_path / "secret.nii.gz"
    os.mkfifo(path)
    yield path
    with pytest.raises(OSError, match=os.strerror(errno.ENXIO)):
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))


@pytest.fixture()
def links(server):
    """Makes links in the studies folder that are gone at the end."""
    made: list[Path] = []

    def link(place, target):
        path = server.studies / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)
        made.append(path)
        return path

    yield link
    for path in made:
        path.unlink(missing_ok=True)
    # A file that comes makes the server look at the folder anew.
    copy = server.studies / "marker.nii.gz"
    copy.write_bytes((server.studies / "followup.nii.gz").read_bytes())
    server.until(lambda: "marker" in server.objects(), 300)
    server.request("DELETE", "/datastore/image", params={"id": "marker"})
    assert sorted(server.objects()) == ["atlas", "followup", "other", "stranger"]


def listed(server, name):
    """Whether an image is listed after the server has looked at the folder."""
    marker = server.studies / "seen.nii.gz"
    marker.write_bytes((server.studies / "followup.nii.gz").read_bytes())
    server.until(lambda: "seen" in server.objects(), 300)
    server.request("DELETE", "/datastore/image", params={"id": "seen"})
    return name in server.objects()


def names(path: Path, studies: Path) -> list[str]:
    """Names by which a file outside might be asked for."""
    bare = str(path).removesuffix(".nii.gz")
    relative = os.path.relpath(path, studies)
    return [str(path), bare, relative, relative.removesuffix(".nii.gz"), f"atlas/../{relative}", f"file://{path}"]


@pytest.mark.parametrize("number", range(6))
def test_names_of_files_outside(server, secret, number):
    name = names(secret, server.studies)[number]
    asked = [server.infer("registration", name, fixed="atlas"), server.infer("registration", "atlas", fixed=name),
        server.infer("label_propagation", name), server.infer("label_propagation", "stranger", atlas=name),
        server.request("GET", "/datastore/image", params={"image": name}),
        server.request("HEAD", "/datastore/image", params={"image": name}),
        server.request("GET", "/datastore/image/info", params={"image": name}),
        server.request("GET", "/datastore/label", params={"label": name, "tag": "final"}),
        server.request("GET", "/datastore/label", params={"label": "atlas", "tag": name}),
        server.request("DELETE", "/datastore/image", params={"id": name}),
        server.request("DELETE", "/datastore/label", params={"id": "atlas", "tag": name}),
        server.request("POST", "/activelearning/lowest_similarity", json={"atlas": name}),
        server.request("POST", "/batch/infer/registration", json={"fixed": name})]  # fmt: skip
    assert {answer.status_code for answer in asked} == {404} and secret.exists()


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a/b", "..", ".hidden", "a\\b", "a\0b", "x" * 200])
def test_names_to_write_to(server, name, tmp_path):
    content = (server.studies / "followup.nii.gz").read_bytes()
    label = (server.studies / "labels" / "final" / "atlas.nii.gz").read_bytes()
    before = set(server.studies.parent.rglob("*"))
    asked = [
        server.request("PUT", "/datastore/image", params={"image": name}, files={"file": ("a.nii.gz", content)}),
        server.request(
            "PUT", "/datastore/label", params={"image": "atlas", "tag": name}, files={"label": ("a.nii.gz", label)}
        ),
        server.infer("label_propagation", "stranger", label_tag=name),
    ]
    assert [answer.status_code for answer in asked] == [400] * 3, [answer.text for answer in asked]
    assert set(server.studies.parent.rglob("*")) == before


def test_link_of_an_image(server, secret, links):
    links("linked.nii.gz", secret)
    assert not listed(server, "linked") and server.infer("registration", "linked", fixed="atlas").status_code == 404
    assert server.request("GET", "/datastore/image", params={"image": "linked"}).status_code == 404


def test_image_that_becomes_a_link(server, secret, links):
    """The datastore knows the image; its file is replaced afterwards."""
    content = (server.studies / "followup.nii.gz").read_bytes()
    answer = server.request("PUT", "/datastore/image?image=turned", files={"file": ("a.nii.gz", content)})
    assert answer.status_code == 200
    (server.studies / "turned.nii.gz").unlink()
    links("turned.nii.gz", secret)
    asked = [
        server.infer("registration", "turned", fixed="atlas"),
        server.infer("registration", "atlas", fixed="turned"),
        server.infer("label_propagation", "turned"),
        server.request("GET", "/datastore/image", params={"image": "turned"}),
    ]
    assert {answer.status_code for answer in asked} <= {400, 404}
    told = server.request("POST", "/activelearning/lowest_similarity", json={})
    assert told.status_code == 200 and told.json()["id"] == "stranger"


def test_link_of_a_label(server, secret, links):
    links("labels/final/stranger.nii.gz", secret)
    assert not listed(server, "nothing") and "final" not in server.objects()["stranger"]["labels"]
    assert server.infer("label_propagation", "followup", atlas="stranger").status_code == 400


def test_link_of_a_folder_of_labels(server, secret, links, tmp_path):
    (tmp_path / "stranger.nii.gz").symlink_to(secret)
    links("labels/evil", tmp_path)
    assert not listed(server, "nothing") and "evil" not in server.objects()["stranger"]["labels"]
    label = (server.studies / "labels" / "final" / "atlas.nii.gz").read_bytes()
    query = {"image": "atlas", "tag": "evil"}
    answer = server.request("PUT", "/datastore/label", params=query, files={"label": ("a.nii.gz", label)})
    assert answer.status_code == 400 and "leads out of the studies folder" in answer.json()["detail"]
    assert server.infer("label_propagation", "stranger", label_tag="evil").status_code == 400
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret.nii.gz", "stranger.nii.gz"]


def detached(kind, data):
    """A header whose voxels are in another file."""
    if kind == ".nrrd":
        lines = ["NRRD0004", "type: uint8", "dimension: 3", "space: left-posterior-superior", "sizes: 4 4 4"]
        lines += ["space directions: (1,0,0) (0,1,0) (0,0,1)", "space origin: (0,0,0)", "encoding: raw"]
        return ("\n".join([*lines, f"data file: {data}"]) + "\n").encode()
    lines = ["ObjectType = Image", "NDims = 3", "BinaryData = True", "DimSize = 4 4 4", "ElementType = MET_UCHAR"]
    return ("\n".join([*lines, f"ElementDataFile = {data}"]) + "\n").encode()


@pytest.mark.parametrize("kind", [".nrrd", ".mha"])
def test_header_that_names_a_file_outside(server, secret, kind):
    for data in (secret, os.path.relpath(secret, "/tmp"), f"LIST\n{secret}"):
        for path, field in (("/datastore/image?image=new", "file"), ("/datastore/label?image=atlas", "label")):
            answer = server.request("PUT", path, files={field: (f"a{kind}", detached(kind, data))})
            assert answer.status_code == 400, answer.text
            assert "in another file" in answer.json()["detail"]
    place = server.studies / f"header{kind}"
    place.write_bytes(detached(kind, secret))
    try:
        server.until(lambda: "header" in server.objects(), 300)
        for answer in (
            server.infer("registration", "header", fixed="atlas"),
            server.infer("registration", "atlas", fixed="header"),
            server.infer("label_propagation", "header", atlas="atlas"),
            server.request("POST", "/train/registration", json={}),
        ):
            assert answer.status_code == 400 and "in another file" in answer.json()["detail"]
    finally:
        place.unlink()
        server.until(lambda: "header" not in server.objects(), 300)


def test_image_of_one_piece_in_nrrd_is_served(server):
    """The fence does not keep out what belongs in."""
    image = sitk.ReadImage(str(server.studies / "followup.nii.gz"))
    for kind in (".nrrd", ".mha"):
        place = server.studies.parent / f"whole{kind}"
        sitk.WriteImage(image, str(place))
        answer = server.request("PUT", "/datastore/image?image=whole", files={"file": (place.name, place.read_bytes())})
        assert answer.status_code == 200, answer.text
        told = server.infer("registration", "whole", fixed="followup", save_label=False, report=False)
        assert told.status_code == 200, told.text
        assert told.json()["metrics"]["similarity"]["ncc"]["before"] == pytest.approx(1, abs=1e-6)
        assert server.request("DELETE", "/datastore/image", params={"id": "whole"}).status_code == 200


def test_table_of_the_datastore_that_names_files_outside(server, secret):
    """Whoever can write the datastore's own table still gets nothing from elsewhere."""
    table = server.studies / "datastore_v2.json"
    before = table.read_text()
    content = json.loads(before)
    name = os.path.relpath(secret, server.studies).removesuffix(".nii.gz")
    content["objects"][name] = {"image": {"ext": ".nii.gz", "info": {}}, "labels": {}}
    try:
        table.write_text(json.dumps(content))
        server.until(lambda: name in server.objects(), 300)
        assert server.infer("registration", name, fixed="atlas").status_code == 400
        assert server.request("GET", "/datastore/image", params={"image": name}).status_code == 400
        assert server.request("DELETE", "/datastore/image", params={"id": name}).status_code == 400 and secret.exists()
    finally:
        table.write_text(before)
        server.until(lambda: name not in server.objects(), 300)
    assert np.all(sorted(server.objects()) == np.array(["atlas", "followup", "other", "stranger"]))
