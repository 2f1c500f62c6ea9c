"""Landmark files: what is written is read, and bad files are refused with the place of the fault."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from refusals import one_line
from scripts.errors import InputError
from scripts.formats.points import Points, read_points, write_points

EXAMPLE = np.array([[1.5, -2.25, 3.0], [0.1, 1e-7, -310.123456789], [0.0, 0.0, 0.0]])
NAMES = ("apex, left", "Größe", "")


@pytest.mark.parametrize("space", ["RAS", "LPS"])
@pytest.mark.parametrize("suffix", ["csv", "fcsv", "mrk.json", "vtk"])
@settings(max_examples=20, deadline=None)
@given(array=arrays(np.float64, st.tuples(st.integers(0, 5), st.just(3)), elements=st.floats(-1e6, 1e6)))
def test_round_trip(tmp_path_factory, suffix, space, array):
    path = tmp_path_factory.mktemp("points") / f"a.{suffix}"
    write_points(Points(array), path, space)
    again = read_points(path, space)
    np.testing.assert_array_equal(again.coordinates, array)
    assert again.names is None
    if suffix != "csv":
        np.testing.assert_array_equal(read_points(path).coordinates, array)


@pytest.mark.parametrize("suffix, kept", [("csv", True), ("fcsv", True), ("mrk.json", True), ("vtk", False)])
def test_names(tmp_path, suffix, kept):
    write_points(Points(EXAMPLE, NAMES), tmp_path / f"a.{suffix}", "LPS")
    assert read_points(tmp_path / f"a.{suffix}", "LPS").names == (NAMES if kept else None)


def test_spaces_differ_by_two_signs(tmp_path):
    (tmp_path / "a.csv").write_text("x,y,z\n1,2,3\n")
    np.testing.assert_array_equal(read_points(tmp_path / "a.csv", "RAS").coordinates, [[1, 2, 3]])
    np.testing.assert_array_equal(read_points(tmp_path / "a.csv", "LPS").coordinates, [[-1, -2, 3]])
    write_points(Points([[1, 2, 3]]), tmp_path / "b.mrk.json", "LPS")
    markup = json.loads((tmp_path / "b.mrk.json").read_text())["markups"][0]
    assert markup["coordinateSystem"] == "LPS" and markup["controlPoints"][0]["position"] == [-1, -2, 3]
    write_points(Points([[1, 2, 3]]), tmp_path / "c.csv", "LPS")
    assert (tmp_path / "c.csv").read_text() == "x,y,z\n-1.0,-2.0,3.0\n"
    write_points(Points(np.zeros((1, 3))), tmp_path / "d.csv", "LPS")
    assert (tmp_path / "d.csv").read_text() == "x,y,z\n0.0,0.0,0.0\n"


def test_table_of_ants(tmp_path):
    (tmp_path / "a.csv").write_text(
        "\ufeffX, Y ,z,t,label,comment\r\n1,2,3,0,4,none\r\n\r\n5,6,7,0,8,\r\n", encoding="utf-8"
    )
    points = read_points(tmp_path / "a.csv", "LPS")
    np.testing.assert_array_equal(points.coordinates, [[-1, -2, 3], [-5, -6, 7]])
    assert points.names == ("4", "8")


VTK = (
    "# vtk DataFile Version 3.0\nvtk output{}\nASCII\nDATASET POLYDATA\nPOINTS 3 float\n1 2 3 4 5 6 \n7 8 9\n"
    "VERTICES 3 6\n1 0\n1 1\n1 2\n"
)


def test_vtk_as_others_write_it(tmp_path):
    """Points run over line ends, and the title may say the space."""
    (tmp_path / "a.vtk").write_text(VTK.format(""))
    np.testing.assert_array_equal(read_points(tmp_path / "a.vtk", "RAS").coordinates, np.arange(1, 10).reshape(3, 3))
    (tmp_path / "b.vtk").write_text(VTK.format(" SPACE=LPS"))
    np.testing.assert_array_equal(read_points(tmp_path / "b.vtk").coordinates[0], [-1, -2, 3])


FCSV = (
    "# Markups fiducial file version = 4.11\n# CoordinateSystem = {}\n"
    "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n"
    'vtkMRMLMarkupsFiducialNode_0,1.5,-2,3,0,0,0,1,1,1,0,F-1,,\n1,4,5,6,0,0,0,1,1,1,0,"left, top",a,b\n'
)


@pytest.mark.parametrize(
    "said, first", [("RAS", [1.5, -2, 3]), ("LPS", [-1.5, 2, 3]), ("0", [1.5, -2, 3]), ("1", [-1.5, 2, 3])]
)
def test_fcsv_of_slicer(tmp_path, said, first):
    """Older ones number their worlds: 0 is RAS, 1 is LPS."""
    (tmp_path / "a.fcsv").write_text(FCSV.format(said))
    points = read_points(tmp_path / "a.fcsv")
    np.testing.assert_array_equal(points.coordinates[0], first)
    assert points.names == ("F-1", "left, top")


def test_fcsv_without_a_word_of_its_world_or_columns(tmp_path):
    text = "".join(line + "\n" for line in FCSV.splitlines() if not line.startswith("#"))
    (tmp_path / "a.fcsv").write_text(text)
    np.testing.assert_array_equal(read_points(tmp_path / "a.fcsv", "LPS").coordinates[1], [-4, -5, 6])
    (tmp_path / "b.fcsv").write_text("# columns = label,x,y,z,sel,vis\nA,1,2,3,1,1\n")
    points = read_points(tmp_path / "b.fcsv", "RAS")
    assert points.names == ("A",) and points.coordinates.tolist() == [[1, 2, 3]]


def markups(**change):
    control = {"label": "a", "position": [1, 2, 3], "positionStatus": "defined", **change.pop("control", {})}
    return json.dumps({"markups": [{"coordinateSystem": "RAS", "controlPoints": [control], **change}]})


BAD = {  # name -> suffix, text or bytes, space, message
    "empty": ("csv", "", "RAS", "is empty"),
    "two x": ("csv", "x,y,z,x\n", "RAS", "once each"),
    "not a number": ("csv", "x,y,z\n1,2,3\n1,two,3\n", "RAS", "line 3, y: .*'two'"),
    "short row": ("csv", "x,y,z\n1,2\n", "RAS", "line 2: need 3 cells"),
    "NaN": ("csv", "x,y,z\n1,nan,3\n", "RAS", "line 2, y"),
    "binary": ("csv", b"\xff\xfe\x00\x01", "RAS", "cannot be read as text"),
    "unknown space": ("csv", "x,y,z\n1,2,3\n", None, "give its space"),
    "not JSON": ("mrk.json", "{", None, "is not JSON"),
    "other JSON": ("mrk.json", "[1]", None, "one entry in its list 'markups'"),
    "two markups": ("mrk.json", '{"markups": [{}, {}]}', None, "one entry"),
    "no points": ("mrk.json", '{"markups": [{"coordinateSystem": "RAS"}]}', None, "controlPoints"),
    "metres": ("mrk.json", markups(coordinateUnits="m"), None, "coordinateUnits are 'm'"),
    "undefined": ("mrk.json", markups(control={"positionStatus": "undefined"}), None, r"controlPoints\[0\] \(a\)"),
    "IJK": ("mrk.json", markups(coordinateSystem="IJK"), None, "IJK"),
    "silent markups": ("mrk.json", markups(coordinateSystem=None), None, "give its space"),
    "contradicted": ("mrk.json", markups(), "LPS", "says that its points are RAS"),
    "odd label": ("mrk.json", markups(control={"label": [1] * 1000}), None, "its label is a list"),
    "grid": ("vtk", VTK.format("").replace("POLYDATA", "STRUCTURED_POINTS"), "RAS", "POLYDATA"),
    "endless count": ("vtk", VTK.format("").replace("POINTS 3", "POINTS " + "9" * 4000), "RAS", "cut off"),
    "no count": ("vtk", VTK.format("").replace("POINTS 3", "POINTS three"), "RAS", "three"),
    "not VTK": ("vtk", "x,y,z\n", "RAS", "legacy VTK"),
    "binary VTK": ("vtk", VTK.format("").replace("ASCII", "BINARY"), "RAS", "need ASCII"),
    "cut off": ("vtk", VTK.format("").split("7 8")[0], "RAS", "holds 6 numbers for '3' points"),
    "suffix": ("xyz", "x,y,z\n", "RAS", "must end with one of"),
    "very long cell": ("csv", "x,y,z\n1,2," + "3" * 200_000 + "\n", "RAS", "line 2: is no line of a table"),
    "open quote": ("csv", 'x,y,z,label\n1,2,3,"a\n4,5,6,b\n', "RAS", "line 3: is no line of a table"),
    "endless integer": ("mrk.json", markups().replace("[1, 2, 3]", f"[1, 2, {'9' * 10_000}]"), None,
        "is not JSON of Slicer"),
    "deep": ("mrk.json", "[" * 100_000, None, "is not JSON of Slicer"),
    "truth": ("mrk.json", markups(control={"position": [1, 2, True]}), None, "got a bool"),
    "surplus in VTK": ("vtk", VTK.format("").replace("POINTS 3", "POINTS 2"), "RAS",
        "announces 2 points, but '7' follows"),
    "IJK of fcsv": ("fcsv", FCSV.format("2"), None, "must be one of RAS, LPS, got '2'"),
    "fcsv silent": ("fcsv", FCSV.replace("CoordinateSystem", "Coordinates"), None, "give its space"),
    "fcsv short row": ("fcsv", FCSV.format("RAS") + "2,4,5\n", None, "line 6: need 14 cells as its columns say, got 3"),
    "fcsv columns": ("fcsv", FCSV.replace("columns = id,x", "columns = id,q"), "RAS", "must name x, y and z once each"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_file(tmp_path, name):
    suffix, content, space, message = BAD[name]
    path = tmp_path / f"points.{suffix}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with one_line(message, path):
        read_points(path, space)


@pytest.mark.timeout(20)
def test_what_is_no_file_or_endless(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.vtk").mkdir()
    with open(tmp_path / "sparse.mrk.json", "wb") as stream:
        stream.truncate(1 << 36)
    for name, message in (
        ("missing.csv", "no such points file"),
        ("pipe.csv", "is not a file"),
        ("folder.vtk", "is not a file"),
        ("sparse.mrk.json", "has 68719476736 bytes"),
        ("x" * 5000 + ".csv", "cannot be read as text|no such points file"),
    ):
        with one_line(message, tmp_path / name):
            read_points(tmp_path / name, "RAS")


def test_refusals(tmp_path):
    with pytest.raises(InputError, match="must end with"):
        write_points(Points(EXAMPLE), tmp_path / "a.txt", "RAS")
    with pytest.raises(InputError, match="'RIP'"):
        write_points(Points(EXAMPLE), tmp_path / "a.csv", "RIP")
    with pytest.raises(FileNotFoundError, match="create it first"):
        write_points(Points(EXAMPLE), tmp_path / "no" / "a.csv", "RAS")
    with pytest.raises(InputError, match="2 names"):
        Points(EXAMPLE, ("a", "b"))
    with pytest.raises(InputError, match="finite"):
        Points(EXAMPLE * np.nan)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.data
def test_real_vtk_landmarks():
    folder = Path(os.environ["AVSM_DATA"]) / "eth_liver_4dmri"
    for path, count in (("liver18_exhMasterLMliver.vtk", 32), ("liver19_cyc_1_6LMoutside.vtk", 20)):
        points = read_points(folder / path, "LPS").coordinates
        assert points.shape == (count, 3) and np.ptp(points, axis=0).min() > 10
    np.testing.assert_allclose(
        read_points(folder / "liver18_exhMasterLMliver.vtk", "LPS").coordinates[0], (-75.7609, -159.069, 84)
    )


@pytest.mark.data
def test_real_fcsv_landmarks():
    """Anatomical landmarks of three templates; the anterior commissure lies near the origin of each."""
    for name in ("Colin27", "MNI152NLin2009cAsym", "PD25"):
        points = read_points(Path(os.environ["AVSM_DATA"]) / "brain_templates" / f"{name}.fcsv")
        assert points.coordinates.shape == (32, 3) and len(points.names) == 32
        assert np.linalg.norm(points.coordinates[0]) < 8 and np.linalg.norm(points.coordinates[1] - [0, -25, -3]) < 5
