"""The page of one registration shows what it was given, needs no other file, and survives odd input."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from report_cases import KINDS, METRICS, ODD, SHAPE, SPACING, VERDICT, block, example, index, labelled, stages
from scripts.geometry import fold_mask
from scripts.report import make_pictures, report_page, write_report

VOID = {"meta", "img", "input", "br"}
RED = (0xFF, 0x33, 0x55)


class Page(HTMLParser):
    """Elements, text and faults of the page of a registration."""

    def __init__(self, data):
        super().__init__()
        self.source = report_page(data, make_pictures(data))
        self.stack, self.elements, self.texts, self.faults = [], [], [], []
        self.feed(self.source)
        self.close()
        assert not self.faults and not self.stack, (self.faults, self.stack)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attributes):
        if len({name for name, _ in attributes}) != len(attributes):
            self.faults.append(f"{tag}: an attribute twice")
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if not self.stack or self.stack.pop() != tag:
            self.faults.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data):
        if not {"style", "script"} & set(self.stack):
            self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def pixels(attributes):
    """The RGB pixels of an inlined image."""
    data = base64.b64decode(attributes["src"].removeprefix("data:image/png;base64,"), validate=True)
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def points(page, name):
    """The subpaths of a layer of lines, each ``(points, 2)``, in units."""
    (data,) = [path["d"] for path in page.all("path") if path["id"] == name]
    result, here = [], np.zeros(2, dtype=int)
    for part in data.split("m")[1:]:
        steps = np.array([int(number) for number in part.split()]).reshape(-1, 2)
        result.append(here + np.cumsum(steps, axis=0))
        here = result[-1][-1]
    return result


@pytest.mark.parametrize("case", ODD)
def test_page_is_whole_and_needs_nothing_else(case):
    page = Page(ODD[case]())
    for tag, attributes in page.elements:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            if attributes.get(name) is not None:
                assert attributes[name].startswith(("data:image/png;base64,", "#")), (tag, name)
        assert tag not in ("link", "iframe", "object", "base")
    style_and_script = re.sub(r"base64,[A-Za-z0-9+/=]*", "", page.source)
    assert not re.search(r"https?:|file:|//|@import|url\(|fetch\(|XMLHttp", style_and_script)
    assert "default-src 'none'" in page.source and "{{" not in page.source
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(names)) == len(names) and {use["href"][1:] for use in page.all("use")} <= set(names)

    assert [attributes["id"] for attributes in page.all("figure")] == ["compare", *KINDS]
    images = page.all("img")
    assert len({image["alt"] for image in images}) == len(images) == 3 * len(KINDS)


def test_what_comes_from_files_is_escaped():
    nasty = "<script>alert(1)</script> & \"x\" 'y' </style> {{ 7 * 7 }}"
    metrics = {"fixed": {"path": f"/data/{nasty}"}, "moving": {"path": nasty},
        "labels": {nasty: {"dice": stages(0.3, 0.2, 0.1)}}, "settings": {nasty: nasty},
        "verdict": VERDICT | {"least_sure": nasty, "reasons": [{"what": nasty, "advice": nasty}]}}  # fmt: skip
    page = Page(example(name=nasty, metrics=metrics, warnings=[nasty]))
    assert len(page.all("script")) == len(page.all("style")) == 1
    # In title, heading, files, verdict, warning, labels, images, settings.
    assert page.text.count(nasty) >= 11


def test_what_to_do_comes_first():
    page = Page(example(warnings=["one grid is turned", "second"], uncertainty=np.ones(SHAPE, np.float32)))
    tags = [tag for tag, _ in page.elements]
    alerts = [i for i, (_, a) in enumerate(page.elements) if a.get("role") == "alert"]
    assert len(alerts) == 2 and tags.index("h1") < alerts[0]
    assert alerts[1] < min(tags.index(tag) for tag in ("main", "figure", "table"))
    questions = (
        "CHECK: look", "Did it work?", "That is not sure", "Doubt: 0.62", "71 % of the", "Where not?", "off by 3.5 mm",
        "What now?", "Compare",
    )  # fmt: skip
    found = [page.text.index(words) for words in (*questions, "one grid is turned", "second")]
    assert found == sorted(found)
    good = Page(example(metrics=METRICS | {"verdict": VERDICT | {"outcome": "PASS", "reasons": []}}))
    assert [a["href"] for tag, a in page.elements if tag == "a"] == ["#doubt"]
    assert "doubt" in [a.get("id") for tag, a in page.elements if tag == "figure"]
    assert "PASS: the structures" in good.text and "Yes, as far as" in good.text
    assert not [a for _, a in good.elements if a.get("role") == "alert"]
    assert "Did it work?" not in Page(example(metrics={})).text


@pytest.mark.parametrize(("shape", "spacing"), [(SHAPE, SPACING), ((40, 40, 4), (0.4, 0.4, 6.0))])
@pytest.mark.parametrize("orientation", ["RAS", "SLP"])
def test_panels_are_sized_in_mm_and_hold_a_pixel_per_voxel(shape, spacing, orientation):
    data = example(shape, spacing=spacing, orientation=orientation)
    page = Page(data)
    panels = [a["style"] for a in page.all("div") if a.get("class") == "panel"]
    assert len(panels) == 3 * (len(KINDS) + 1)
    axis = {
        letter: i
        for i, code in enumerate(orientation)
        for pair in ("RL", "AP", "SI")
        if code in pair
        for letter in pair
    }
    length = {letter: shape[i] * spacing[i] for letter, i in axis.items()}
    expected = [(length["R"], length["A"]), (length["R"], length["S"]), (length["A"], length["S"])]
    for number, style in enumerate(panels):
        width, height = expected[number % 3]
        values = dict(part.split(":") for part in style.strip(";").split(";"))
        assert float(values["--width"]) == pytest.approx(width)
        assert float(values["--ratio"]) == pytest.approx(height / width, rel=1e-5)
        assert float(values["--part"]) == pytest.approx(width / max(w for w, _ in expected), rel=1e-5)
    planes = make_pictures(data).planes
    for number, image in enumerate(page.all("img")):
        assert pixels(image).shape[:2] == planes[number % 3].cut(data.fixed).shape


def test_pixels_are_the_windowed_slices():
    data = example(moving=(1000 * example().moving).astype(np.int16), moved=500 * np.ones(SHAPE))
    images = Page(data).all("img")
    for kind, volume, window in (("fixed", data.fixed, data.fixed), ("moved", data.moved, data.moving)):
        low, high = np.percentile(window, (0.5, 99.5))
        for row, plane in enumerate(make_pictures(data).planes):
            expected = 255 * np.clip((plane.cut(volume) - low) / (high - low), 0, 1)
            assert np.abs(pixels(images[3 * KINDS.index(kind) + row]) - expected[..., None]).max() <= 1.5


@pytest.mark.parametrize("normal", [0, 1, 2])
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_folds_are_painted_where_the_corner_determinants_fold(normal, place):
    """The slab around a plane gives the folds that the whole volume gives, at its faces, too."""
    phi = index() + np.random.default_rng(1).uniform(-0.7, 0.7, size=(3, *SHAPE)).astype(np.float32)
    label = np.zeros(SHAPE, np.uint8)
    label[tuple(round(place * (n - 1)) for n in SHAPE)] = 1
    data = example(voxel_map=phi, jacobian=np.ones(SHAPE), fixed_label=label)
    planes = make_pictures(data).planes
    (row,) = [row for row, plane in enumerate(planes) if plane.normal == normal]
    expected = planes[row].cut(fold_mask(torch.from_numpy(phi)[None])[0].numpy())
    assert 0 < expected.sum() < expected.size
    image = Page(data).all("img")[3 * KINDS.index("jacobian") + row]
    np.testing.assert_array_equal((pixels(image) == RED).all(axis=-1), expected)


def test_folds_of_the_determinant_are_painted_and_named():
    determinant = np.ones(SHAPE)
    assert "folded voxels" not in Page(example(metrics={}, jacobian=determinant)).text
    determinant[SHAPE[0] // 2, SHAPE[1] // 2, SHAPE[2] // 2] = -0.01
    page = Page(example(metrics={}, jacobian=determinant))
    assert "folded voxels" in page.text
    assert [(pixels(image) == RED).all(axis=-1).sum() for image in page.all("img")[-6:]] == [1] * 6


def test_grid_lines_lie_where_the_map_reaches_round_millimetres():
    """With map(v) = v + shift along D, the line of the moving coordinate c lies at voxel c / spacing - shift."""
    shift = 2.5
    phi = index((24, 16, 10))
    phi[0] += shift
    page = Page(example((24, 16, 10), voxel_map=phi, spacing=(1.5, 2.0, 3.0)))  # step: 36 mm / 24
    width, scale = 24 * 1.5, 4000 / 36
    lines = [line for line in points(page, "grid-0") if np.ptp(line[:, 0]) <= 1]  # down the axial plane
    found = sorted(width - line[0, 0] / scale for line in lines)  # right is at the left of the page
    np.testing.assert_allclose(found, [1.5 * (line - shift + 0.5) for line in np.arange(3, 26)], atol=0.02)
    assert len(points(page, "grid-0")) > len(lines)


@pytest.mark.parametrize(("low", "high"), [(0.25, 0.6), (0.0, 0.4), (0.5, 1.0), (0.0, 1.0)])
def test_outlines_surround_the_labels_at_the_rim_too(low, high):
    page = Page(example(fixed_label=block(low=low, high=high), mask=block(low=0.1, high=0.9)))
    # Axial: right at the left and front at the top, so that the page runs against both axes; H is 2 mm a voxel.
    scale = 4000 / 32
    (outline,) = points(page, "fixed-0")
    ends = [[int(part * n) for part in (high, low)] for n in SHAPE[:2]]
    across, down = ([(n - end) * mm for end in pair] for pair, n, mm in zip(ends, SHAPE, SPACING, strict=False))
    np.testing.assert_allclose(outline.min(axis=0) / scale, [across[0], down[0]], atol=0.01)
    np.testing.assert_allclose(outline.max(axis=0) / scale, [across[1], down[1]], atol=0.01)
    np.testing.assert_array_equal(outline[0], outline[-1])
    assert len(points(page, "mask-2")) == 1


def test_write_report(tmp_path):
    write_report(labelled(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.png"]
    assert "</html>" in (tmp_path / "report.html").read_text(encoding="utf-8")
    with Image.open(tmp_path / "report.png") as image:
        assert np.asarray(image).std() > 5
    with pytest.raises(FileNotFoundError, match="does not exist"):
        write_report(example(), tmp_path / "none")
