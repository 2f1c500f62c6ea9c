"""The report of one registration shows what it was given, needs no other file, and survives odd input."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from PIL import Image

from scripts.geometry import fold_mask
from scripts.report import ReportData, figure_array, report_figure, report_page, write_report
from scripts.report.numbers import format_key, format_measure, format_value, make_highlights, make_tables
from scripts.report.qa import make_pictures

SHAPE, SPACING = (12, 16, 10), (1.0, 2.0, 3.0)
KINDS = ["fixed", "moving", "moved", "checkerboard", "difference_before", "difference_after", "grid", "jacobian"]
VOID = {"meta", "img", "input", "br", "link", "hr"}


def stages(*values):
    return dict(zip(("before", "affine", "final"), values, strict=True))


METRICS = {
    "name": "pair",
    "fixed": {"path": "/data/a.nii.gz", "shape": [12, 16, 10], "spacing": [1.0, 2.0, 3.0], "axcodes": "RAS"},
    "moving": {"path": "/data/b.nii.gz", "shape": [20, 21, 22], "spacing": [0.5, 0.5, 1.25], "axcodes": "LPS"},
    "initialisation": {"method": "moments", "translation_mm": [1.5, -2.0, 0.25]},
    "similarity": {"ncc": stages(0.41237, 0.7, 0.93456), "lncc": stages(0.2, 0.3, 0.4)},
    "folds": 17,
    "jacobian": {"min": -0.1234, "max": 2.5, "std_log": 0.125},
    "inverse_consistency_mm": {"mean": 0.0421, "max": 0.777},
    "labels": {
        "1": {"dice": stages(0.5111, 0.6, 0.8222), "hd95": stages(9.0, 5.0, 1.25)},
        "mean": {"dice": stages(0.5, 0.6, 0.8333), "hd95": stages(8.0, 5.0, float("nan"))},
    },
    "landmarks": {"count": 7, "tre_mm": stages(11.5, 5.0, 2.75)},
    "instance_optimisation": {"steps": 50, "before": 0.4444, "after": 0.3333, "folds_before": 12, "folds_after": 3},
    "seconds": {"read": 0.5, "network": 1.75, "total": 2.25},
    "versions": {"avsm": "0.2.0", "torch": "2.6.1"},
    "weights_sha256": "abcdef0123456789",
    "seed": 42,
    "settings": {"device": "cpu", "network": {"channels": [16, 32]}},
    "warnings": [],
    "surprise": {"nested": {"deep": 99.25}},
    "lonely": "odd",
}


def index(shape=SHAPE):
    return np.stack(np.meshgrid(*[np.arange(n, dtype=np.float32) for n in shape], indexing="ij"))


def block(shape=SHAPE, low=0.25, high=0.6):
    label = np.zeros(shape, dtype=np.uint8)
    label[tuple(slice(int(low * n), max(int(high * n), int(low * n) + 1)) for n in shape)] = 3
    return label


def example(shape=SHAPE, **more):
    draw = np.random.default_rng(0)
    volumes = {name: draw.uniform(size=shape).astype(np.float32) for name in ("fixed", "moving", "moved")}
    settings = {
        "name": "pair",
        **volumes,
        "voxel_map": index(shape),
        "jacobian": draw.uniform(0.7, 1.4, size=shape),
        "spacing": SPACING,
        "orientation": "RAS",
        "metrics": METRICS,
    }
    return ReportData(**(settings | more))


def labelled(shape=SHAPE, **more):
    labels = dict.fromkeys(("fixed_label", "moving_label", "moved_label"), block(shape))
    return example(shape, **(labels | {"mask": block(shape, 0.1, 0.9) > 0} | more))


class Page(HTMLParser):
    """Elements, text and faults of a page."""

    def __init__(self, text):
        super().__init__()
        self.stack, self.elements, self.texts, self.faults = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.faults and not self.stack, (self.faults, self.stack)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        if len(set(names)) != len(names):
            self.faults.append(f"{tag}: an attribute twice")
        self.elements.append((tag, dict(attributes), tuple(self.stack)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), tuple(self.stack)))

    def handle_endtag(self, tag):
        if not self.stack or self.stack.pop() != tag:
            self.faults.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data):
        if not {"style", "script"} & set(self.stack):
            self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes, _ in self.elements if name == tag]


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


ODD = {
    "plain": lambda: example(),
    "no metrics": lambda: example(metrics={}),
    "labels": lambda: labelled(),
    "fixed label only": lambda: example(fixed_label=block()),
    "moved label only": lambda: example(moved_label=block()),
    "mask only": lambda: example(mask=block() > 0),
    "empty label and mask": lambda: example(fixed_label=np.zeros(SHAPE), mask=np.zeros(SHAPE, bool)),
    "constant": lambda: example(**{n: np.full(SHAPE, 5, np.int16) for n in ("fixed", "moving", "moved")}),
    "constant difference": lambda: example(fixed=np.zeros(SHAPE), moving=np.ones(SHAPE), moved=np.ones(SHAPE)),
    "flat Jacobian": lambda: example(jacobian=np.ones(SHAPE)),
    "all folded": lambda: example(jacobian=-np.ones(SHAPE), voxel_map=index()[:, ::-1]),
    "wild map": lambda: example(voxel_map=index() * 1e6 - 1e5),
    "point map": lambda: example(voxel_map=index() * 0),
    "few slices": lambda: labelled((64, 64, 2), spacing=(0.4, 0.4, 6.0)),
    "tiny": lambda: labelled((2, 2, 2)),
    "long": lambda: labelled((4, 4, 300), orientation="PIR"),
}


@pytest.mark.parametrize("case", ODD)
def test_page_is_whole_and_needs_nothing_else(case):
    data = ODD[case]()
    text = report_page(data)
    page = Page(text)
    for tag, attributes, _ in page.elements:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            if attributes.get(name) is not None:
                assert attributes[name].startswith(("data:image/png;base64,", "#")), (tag, name)
        assert tag not in ("link", "iframe", "object", "base")
    style_and_script = re.sub(r"base64,[A-Za-z0-9+/=]*", "", text)
    assert not re.search(r"https?:|file:|//|@import|url\(|fetch\(|XMLHttp", style_and_script)
    assert "default-src 'none'" in text
    names = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    assert len(set(names)) == len(names)
    for use in page.all("use"):
        assert use["href"][1:] in names

    figures = [attributes["id"] for attributes in page.all("figure")]
    assert figures == ["compare", *KINDS]
    images = page.all("img")
    assert len(images) == 3 * len(KINDS)
    assert len({image["alt"] for image in images}) == len(images) and all(image["alt"] for image in images)


NUMBERS = re.findall(
    r"\S+",
    "0.412 0.935 17 -0.123 2.500 0.125 0.042 0.777 0.511 0.822 1.250 11.50 2.750 0.444 0.333 12 3 0.500 1.750 2.250 "
    "0.2.0 2.6.1 abcdef0123456789 42 cpu 99.25 odd moments /data/a.nii.gz /data/b.nii.gz RAS LPS",
)


@pytest.mark.parametrize("number", NUMBERS)
def test_page_holds_the_numbers(number, page_of_metrics):
    assert re.search(rf"(^|[\s,;]){re.escape(number)}($|[\s,;])", page_of_metrics.text)


@pytest.fixture(scope="module")
def page_of_metrics():
    return Page(report_page(example()))


def test_names_are_escaped_and_warnings_come_first():
    nasty = "<script>alert(1)</script> & \"x\" 'y' </style> $1^2$"
    metrics = {
        "fixed": {"path": f"/data/{nasty}"},
        "moving": {"path": nasty},
        "labels": {nasty: {"dice": stages(0.1, 0.2, 0.3)}},
        "settings": {nasty: nasty},
        nasty: {nasty: stages(1, 2, 3)},
    }
    data = example(name=nasty, metrics=metrics, warnings=[nasty, "second"])
    page = Page(report_page(data))
    plain = Page(report_page(example(metrics=metrics)))
    assert len(page.all("script")) == len(page.all("style")) == 1
    assert page.text.count(nasty) > plain.text.count(nasty) >= 7
    (title,) = [i for i, (tag, _, _) in enumerate(page.elements) if tag == "h1"]
    (alert,) = [i for i, (_, a, _) in enumerate(page.elements) if a.get("role") == "alert"]
    assert title < alert < min(i for i, (tag, _, _) in enumerate(page.elements) if tag in ("main", "figure", "table"))
    assert "2 warnings" in page.text and not [a for a in plain.elements if a[1].get("role") == "alert"]
    figure_array(report_figure(data))  # ``$`` is no formula


@pytest.mark.parametrize(("shape", "spacing"), [(SHAPE, SPACING), ((40, 40, 4), (0.4, 0.4, 6.0))])
@pytest.mark.parametrize("orientation", ["RAS", "SLP"])
def test_panels_are_sized_in_mm_and_hold_a_pixel_per_voxel(shape, spacing, orientation):
    data = example(shape, spacing=spacing, orientation=orientation)
    page = Page(report_page(data))
    panels = [a["style"] for a in page.all("div") if a.get("class") == "panel"]
    assert len(panels) == 3 * (len(KINDS) + 1)
    millimetres = [n * s for n, s in zip(shape, spacing, strict=True)]
    length = {letter: mm for code, mm in zip(orientation, millimetres, strict=True) for letter in axis(code)}
    expected = [(length["R"], length["A"]), (length["R"], length["S"]), (length["A"], length["S"])]
    for number, style in enumerate(panels):
        width, height = expected[number % 3]
        values = dict(part.split(":") for part in style.split(";"))
        assert float(values["--width"]) == pytest.approx(width)
        assert float(values["--ratio"]) == pytest.approx(height / width, rel=1e-5)
        assert float(values["--part"]) == pytest.approx(width / max(w for w, _ in expected), rel=1e-5)
    planes = make_pictures(data).planes
    for number, image in enumerate(page.all("img")):
        assert pixels(image).shape[:2] == planes[number % 3].cut(data.fixed).shape


def axis(letter):
    return next(pair for pair in ("RL", "AP", "SI") if letter in pair)


def test_pixels_are_the_windowed_slices():
    data = example(moving=(1000 * example().moving).astype(np.int16), moved=500 * np.ones(SHAPE))
    images = Page(report_page(data)).all("img")
    for kind, volume, window in (("fixed", data.fixed, data.fixed), ("moved", data.moved, data.moving)):
        low, high = np.percentile(window, (0.5, 99.5))
        for row, plane in enumerate(make_pictures(data).planes):
            expected = 255 * np.clip((plane.cut(volume) - low) / (high - low), 0, 1)
            shown = pixels(images[3 * KINDS.index(kind) + row])
            assert np.abs(shown - expected[..., None]).max() <= 1.5


def test_checkerboard_takes_turns():
    data = example((40, 40, 40), fixed=np.zeros((40,) * 3), moving=np.ones((40,) * 3), spacing=(1, 1, 2))
    data = dataclasses.replace(data, fixed=np.pad(np.ones((38,) * 3), 1), moving=np.pad(np.ones((38,) * 3), 1))
    data = dataclasses.replace(data, moved=np.zeros((40,) * 3))
    panel = make_pictures(data).panels[KINDS.index("checkerboard")]
    board = panel.images[0][1:-1, 1:-1]  # axial: 40 mm x 40 mm; squares of 8 mm
    assert "squares of 8 mm" in panel.note
    across = np.arange(40) + 0.5
    odd = (np.floor(across / 8)[:, None] + np.floor(across / 8)) % 2 > 0
    np.testing.assert_array_equal(board == 0, odd[1:-1, 1:-1])


@pytest.mark.parametrize("mask", [None, block() > 0])
def test_differences_share_one_scale_and_tell_their_mean(mask):
    data = example(mask=mask)
    panels = {panel.key: panel for panel in make_pictures(data).panels}
    before, after = panels["difference_before"], panels["difference_after"]
    assert before.limits == after.limits and before.limits[0] == -before.limits[1] < 0
    inside = np.ones(SHAPE, bool) if mask is None else mask
    windows = {name: np.percentile(getattr(data, name), (0.5, 99.5)) for name in ("fixed", "moving")}
    scaled = {
        name: (getattr(data, name) - windows[w][0]) / np.diff(windows[w])
        for name, w in (("fixed", "fixed"), ("moving", "moving"), ("moved", "moving"))
    }
    for panel, name in ((before, "moving"), (after, "moved")):
        mean = np.abs(scaled[name] - scaled["fixed"])[inside].mean()
        assert f"{mean:.3g}" in panel.note and f"{mean:.3g}" in panel.meaning
        assert ("in mask" in panel.note) is (mask is not None)


@pytest.mark.parametrize(
    ("determinants", "top"),
    [(np.ones(SHAPE), 1.1), (np.full(SHAPE, 0.6), 2), (np.full(SHAPE, 1e-9), 8), (-np.ones(SHAPE), 1.1)],
)
def test_volume_change_is_shown_on_a_log_scale(determinants, top):
    panel = make_pictures(example(jacobian=determinants)).panels[KINDS.index("jacobian")]
    np.testing.assert_allclose(panel.limits, (-np.log2(top), np.log2(top)))
    assert list(panel.ticks.values()) == [f"{1 / top:.3g}", "1", f"{top:g}"]
    if determinants.min() > 0:
        np.testing.assert_allclose(panel.images[1], max(np.log2(determinants[0, 0, 0]), -8), rtol=1e-5)


@pytest.mark.parametrize("normal", [0, 1, 2])
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_folds_are_painted_where_the_corner_determinants_fold(normal, place):
    """The slab around a plane gives the folds that the whole volume gives, at its faces, too."""
    phi = index() + np.random.default_rng(1).uniform(-0.7, 0.7, size=(3, *SHAPE)).astype(np.float32)
    label = np.zeros(SHAPE, np.uint8)
    label[tuple(round(place * (n - 1)) for n in SHAPE)] = 1
    data = example(voxel_map=phi, jacobian=np.ones(SHAPE), fixed_label=label)
    pictures = make_pictures(data)
    (row,) = [row for row, plane in enumerate(pictures.planes) if plane.normal == normal]
    expected = pictures.planes[row].cut(fold_mask(torch.from_numpy(phi)[None])[0].numpy())
    assert 0 < expected.sum() < expected.size
    image = Page(report_page(data, pictures)).all("img")[3 * KINDS.index("jacobian") + row]
    np.testing.assert_array_equal((pixels(image) == (0xFF, 0x33, 0x55)).all(axis=-1), expected)


def test_folds_of_the_determinant_are_painted_and_named():
    determinant = np.ones(SHAPE)
    assert "folded voxels" not in Page(report_page(example(metrics={}, jacobian=determinant))).text
    determinant[SHAPE[0] // 2, SHAPE[1] // 2, SHAPE[2] // 2] = -0.01
    page = Page(report_page(example(metrics={}, jacobian=determinant)))
    assert "folded voxels" in page.text
    for image in page.all("img")[-6:]:
        assert (pixels(image) == (0xFF, 0x33, 0x55)).all(axis=-1).sum() == 1


def test_grid_lines_lie_where_the_map_reaches_round_millimetres():
    """With map(v) = v + shift along D, the line of the moving coordinate c lies at voxel c / spacing - shift."""
    shift = 2.5
    phi = index((24, 16, 10))
    phi[0] += shift
    page = Page(report_page(example((24, 16, 10), voxel_map=phi, spacing=(1.5, 2.0, 3.0))))  # step: 36 mm / 24
    width, scale = 24 * 1.5, 4000 / 36
    lines = [line for line in points(page, "grid-0") if np.ptp(line[:, 0]) <= 1]  # down the axial plane
    found = sorted(width - line[0, 0] / scale for line in lines)  # right is at the left of the page
    np.testing.assert_allclose(found, [1.5 * (line - shift + 0.5) for line in np.arange(3, 26)], atol=0.02)
    assert len(points(page, "grid-0")) > len(lines)


@pytest.mark.parametrize(("low", "high"), [(0.25, 0.6), (0.0, 0.4), (0.5, 1.0), (0.0, 1.0)])
def test_outlines_surround_the_labels_at_the_rim_too(low, high):
    page = Page(report_page(example(fixed_label=block(low=low, high=high), mask=block(low=0.1, high=0.9))))
    # Axial: right at the left and front at the top, so that the page runs against both axes; H is 2 mm a voxel.
    scale = 4000 / 32
    (outline,) = points(page, "fixed-0")
    ends = [[int(part * n) for part in (high, low)] for n in SHAPE[:2]]
    across, down = ([(n - end) * mm for end in pair] for pair, n, mm in zip(ends, SHAPE, SPACING, strict=False))
    np.testing.assert_allclose(outline.min(axis=0) / scale, [across[0], down[0]], atol=0.01)
    np.testing.assert_allclose(outline.max(axis=0) / scale, [across[1], down[1]], atol=0.01)
    np.testing.assert_array_equal(outline[0], outline[-1])
    assert len(points(page, "mask-2")) == 1


@pytest.mark.parametrize(
    ("given", "layers"),
    [
        ((), {}),
        (("fixed_label",), {"fixed": 4}),  # in fixed, moving, moved, Jacobian
        (("moving_label", "moved_label"), {"moving": 1, "moved": 1}),
        (("fixed_label", "moving_label", "moved_label", "mask"), {"fixed": 4, "moving": 1, "moved": 1, "mask": 1}),
    ],
)
def test_outlines_are_drawn_where_labels_are_given(given, layers):
    page = Page(report_page(example(**dict.fromkeys(given, block()))))
    uses = [use["href"] for use in page.all("use") if use.get("class") != "halo" and "grid" not in use["href"]]
    assert uses.count("#fixed-0") == uses.count("#fixed-2") == layers.get("fixed", 0)
    assert len(uses) == 3 * sum(layers.values())
    assert ("show outlines" in page.text) is bool(layers)
    for name, words in (("fixed", "fixed label"), ("moved", "moving and moved label"), ("mask", "mask of the fixed")):
        assert (words in page.text) is (name in layers)


def test_large_planes_are_reduced_and_keep_single_folds():
    determinant = np.ones((1100, 3, 20), np.float32)
    determinant[777, 1, 11] = -1
    volume = np.linspace(0, 1, 1100, dtype=np.float32)[:, None, None] * np.ones((1, 3, 20), np.float32)
    data = example(determinant.shape, fixed=volume, jacobian=determinant)
    panels = {panel.key: panel for panel in make_pictures(data).panels}
    coronal = panels["fixed"].images[1]
    assert coronal.shape == (20, 367)
    low, high = np.percentile(volume, (0.5, 99.5))
    np.testing.assert_allclose(coronal.mean(), (0.5 - low) / (high - low), atol=2e-3)
    assert panels["grid"].folds[1].sum() == panels["jacobian"].folds[1].sum() == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "none"),
        (True, "yes"),
        (3, "3"),
        (123456789, "123456789"),
        (0.123456, "0.1235"),
        (12345.6, "12346"),
        (float("nan"), "n/a"),
        (1e-7, "1e-07"),
        ([1, 2.5], "1, 2.5"),
        ([], "none"),
        ([[1, 0], [0, 1.5]], "1, 0; 0, 1.5"),
        (["a", "b"], "a, b"),
        (np.float32(0.5), "0.5"),
        ("a_b", "a_b"),
    ],
)
def test_format_value(value, text):
    assert format_value(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "0.500"), (12.0, "12.00"), (123.456, "123.5"), (0.0, "0.000"), (4e-5, "4e-05"), (5, "5"), (None, "none")],
)
def test_format_measure(value, text):
    assert format_measure(value) == text


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("ncc", "NCC"),
        ("tre_mm", "TRE (mm)"),
        ("write_time_s", "write time (s)"),
        ("mm", "mm"),
        ("std_log", "std of log"),
        ("ckpt_path", "checkpoint path"),
    ],
)
def test_format_key(key, text):
    assert format_key(key) == text


@pytest.mark.parametrize(
    ("metrics", "title", "head", "rows"),
    [
        ({"seconds": {"read": 1.0, "total": 2.5}}, "Time (s)", (), [("read", "1.000"), ("total", "2.500")]),
        (
            {"similarity": {"ncc": {"before": 0.1, "final": 0.9}}},
            "Similarity",
            ("", "before", "final"),
            [("NCC", "0.100", "0.900")],
        ),
        (
            {"landmarks": {"count": 4, "before": {"mean_mm": 3.0}}},
            "Landmarks",
            (),
            [("count", "4"), ("before, mean (mm)", "3.000")],
        ),
        (
            {"landmarks": {"count": 4, "error": {"before": {"mean": 3.0, "max": 4.0}, "final": {"mean": 1.0}}}},
            "Landmarks",
            ("", "before", "final"),
            [("count", "4"), ("error, mean", "3.000", "1.000"), ("error, max", "4.000", "n/a")],
        ),
        (
            {
                "labels": {
                    "7": {"dice": {"before": 0.1, "final": None}, "voxels": 12},
                    "mean": {"dice": {"before": 0.2}},
                }
            },
            "Overlap of labels",
            ("label", "before", "final", ""),
            [("mean", "0.200", "n/a", "n/a"), ("7", "0.100", "n/a", "12")],
        ),
        (
            {"fixed": {"path": "a", "shape": [1, 2, 3]}, "moving": {"path": "b", "spacing": (0.5, 1.0, 2.0)}},
            "Images",
            ("", "fixed", "moving"),
            [("file", "a", "b"), ("voxels", "1 × 2 × 3", "none"), ("spacing (mm)", "none", "0.5 × 1 × 2")],
        ),
        ({"versions": {"a": "1"}, "seed": 0}, "Versions", (), [("a", "1"), ("seed", "0")]),
        ({"initialisation": "header"}, "Initialisation", (), [("Initialisation", "header")]),
        ({"my_part": {"a": {"b": True}}}, "My part", (), [("a, b", "yes")]),
        ({"loose": 1, "other": [2]}, "More", (), [("loose", "1"), ("other", "2")]),
    ],
)
def test_tables(metrics, title, head, rows):
    (table,) = make_tables(metrics)
    assert (table.title, table.head, list(table.rows)) == (title, head, rows)


def test_every_row_of_a_table_fills_its_width(page_of_metrics):
    parts = [(tag, attributes) for tag, attributes, _ in page_of_metrics.elements if tag in ("table", "tr", "td", "th")]
    tables = "".join({"table": "|", "tr": "/"}.get(tag, "x" * int(a.get("colspan", 1))) for tag, a in parts)
    assert len(tables.split("|")) == 1 + len(make_tables(METRICS))
    for table in tables.split("|")[1:]:
        assert len(set(table.split("/")[1:])) == 1 and len(table) > 2


def test_missing_numbers_make_no_table():
    empty = {"labels": {}, "similarity": {}, "instance_optimisation": None, "settings": {}, "name": "x", "warnings": []}
    assert make_tables(empty) == [] and make_tables({}) == [] and make_highlights(empty) == []


def test_highlights():
    found = {tile.name: tile for tile in make_highlights(METRICS)}
    assert {name: (tile.value, tile.detail) for name, tile in found.items()} == {
        "NCC": ("0.935", "before 0.412"),
        "mean Dice": ("0.833", "before 0.500"),
        "mean HD95 (mm)": ("n/a", "before 8.000"),
        "landmarks, TRE (mm)": ("2.750", "before 11.50"),
        "range of |J|": ("-0.12 to 2.50", "1 keeps the volume"),
        "folded voxels": ("17", "should be 0"),
        "inverse consistency": ("0.042 mm", "max 0.777 mm"),
        "time": ("2.25 s", ""),
    }
    assert [tile.name for tile in found.values() if tile.alarming] == ["folded voxels"]
    assert not any(tile.alarming for tile in make_highlights({"folds": 0}))


CROWDED = {
    "labels": {f"structure {i} with a long name": {m: stages(0.1, 0.2, 0.3) for m in "abcd"} for i in range(40)},
    "settings": {f"setting {i}": "value " * 40 for i in range(30)},
    "fixed": {"path": "/a/very/long/path/" * 20},
}


@pytest.mark.parametrize(
    "case",
    [
        lambda: labelled(warnings=["look"]),
        lambda: labelled((40, 4, 8), name="n" * 400, metrics=METRICS | CROWDED, warnings=["w " * 300] * 9),
        lambda: example((64, 64, 3), spacing=(0.4, 0.4, 6.0), metrics={}),
    ],
)
def test_figure_is_in_proportion_and_texts_stay_apart(case):
    data = case()
    figure = report_figure(data)
    figure_array(figure)
    panels = [axes for axes in figure.axes if axes.images]
    assert len(panels) == 3 * len(KINDS) and len(figure.axes) == len(panels) + 2
    scales = []
    for axes in panels:
        box = axes.get_window_extent()
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        scales += [box.width / (right - left), box.height / (bottom - top)]
    np.testing.assert_allclose(scales, scales[0], rtol=1e-3)

    texts = [t for t in figure.findobj(Text) if t.get_text() and t.get_visible() and t.axes is None]
    boxes = [t.get_window_extent() for t in texts]
    for text, box in zip(texts, boxes, strict=True):
        inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height
        assert inside, text.get_text()
        assert not any(box.overlaps(axes.get_window_extent()) for axes in figure.axes), text.get_text()
    for (a, box), (b, other) in combinations(zip(texts, boxes, strict=True), 2):
        # Neighbouring lines may share a pixel of their boxes' margins.
        both = min(box.x1, other.x1) - max(box.x0, other.x0), min(box.y1, other.y1) - max(box.y0, other.y0)
        assert min(both) <= 2, (a.get_text(), b.get_text())


def test_figure_holds_the_numbers():
    text = " ".join(t.get_text() for t in report_figure(example()).findobj(Text))
    for number in ("0.412", "0.935", "17", "-0.123", "0.822", "1.250", "2.750", "0.333", "1.750", "abcdef0123456789"):
        assert number in text.split()


@pytest.mark.parametrize("case", ["constant", "all folded", "wild map", "tiny"])
def test_figure_survives(case):
    assert figure_array(report_figure(ODD[case]())).std() > 5


def test_files(tmp_path):
    data = labelled()
    write_report(data, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.png"]
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == report_page(data)
    assert Image.open(tmp_path / "report.png").size[0] > 2000


@pytest.mark.parametrize("failing", ["report.html", "report.png"])
def test_failed_save_keeps_what_was_there(tmp_path, monkeypatch, failing):
    for name in ("report.html", "report.png"):
        (tmp_path / name).write_text("earlier")

    def interrupted(self, *arguments, **_):
        path = self if isinstance(self, Path) else arguments[0]
        Path(path).write_bytes(b"half")
        raise OSError("No space left on device")

    target = "pathlib.Path.write_text" if failing == "report.html" else "matplotlib.figure.Figure.savefig"
    monkeypatch.setattr(target, interrupted)
    with pytest.raises(OSError, match="No space left"):
        write_report(example(metrics={}), tmp_path)
    assert (tmp_path / failing).read_bytes() == b"earlier"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.png"]


def test_missing_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        write_report(example(metrics={}), tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("fixed", np.zeros((4, 4)), "fixed: need a volume"),
        ("fixed", np.zeros((4, 4, 1)), "fixed: need a volume"),
        ("moving", np.zeros((4, 4, 4)), "moving: has the grid"),
        ("moved", np.full(SHAPE, np.nan), "moved: holds NaN"),
        ("voxel_map", index()[:2], "voxel_map: need the shape"),
        ("voxel_map", index((4, 4, 4)), "has the grid"),
        ("jacobian", np.zeros((1, *SHAPE)), "jacobian: has the grid"),
        ("moved_label", np.zeros((4, 4, 4)), "moved_label: has the grid"),
        ("mask", np.zeros((4, 4, 4)), "mask: has the grid"),
    ],
)
def test_refusals(name, value, message):
    with pytest.raises(ValueError, match=message):
        example(**{name: value})


@pytest.mark.parametrize(
    ("name", "value", "message"), [("spacing", (1, 0, 1), "spacing: "), ("orientation", "RAX", "orientation: ")]
)
def test_geometry_refusals(name, value, message):
    with pytest.raises(ValueError, match=message):
        report_page(example(**{name: value}))
