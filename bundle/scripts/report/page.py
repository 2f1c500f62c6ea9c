"""The quality report of one registration as one HTML page that needs no other file, and as a picture."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.path import Path as PlotPath
from matplotlib.transforms import Affine2D
from PIL import Image

from ..storage import atomic_path
from .drawing import FOLD_COLOUR, GRID_COLOUR, draw_grid, draw_outlines
from .figure import save_figure
from .numbers import Highlight, Table, file_paths, make_highlights, make_tables
from .overview import CONVENTION, DIRECTION, legend_entries, report_figure
from .page_parts import SCRIPT, STYLE
from .planes import Plane
from .qa import Panel, Pictures, ReportData, make_pictures

_UNITS = 4000  # of SVG paths along a plane's longest side: a quarter of a pixel on a large screen

_READING = (
    ("Direction", DIRECTION + " Written as a formula: moved(x) = moving(φ⁻¹(x)), with x on the fixed grid."),
    (
        "Planes",
        CONVENTION
        + " Front is up in axial planes and at the left in sagittal ones; letters mark the sides (R right, L "
        "left, A anterior, P posterior, S superior, I inferior). All panels of a picture have one scale in mm.",
    ),
    (
        "Grey levels",
        "Fixed image: from its 0.5th to its 99.5th percentile. Moving and moved image: one window, from the "
        "percentiles of the moving image. Differences are between intensities with both windows scaled to 0 to 1; "
        "between two modalities they show contrast as well as misalignment.",
    ),
    (
        "Similarity",
        "NCC is the normalised cross-correlation of the whole images, LNCC that of small neighbourhoods; 1 is "
        "the best. A higher similarity is no proof of right anatomy.",
    ),
    (
        "Labels",
        "Dice is the overlap of a label in both images, 0 to 1; HD95 and ASSD are the 95th percentile and the mean of "
        "the distances between its surfaces. Labels tell more about anatomy than the similarity does.",
    ),
    (
        "Folds, |J|",
        "|J| is the volume in the moving image per volume in the fixed image. Where it is below 0 the map folds space "
        "over itself, which no tissue does.",
    ),
    (
        "Inverse consistency",
        "How far a point comes back from where it started when it goes to the moving image and back, in mm.",
    ),
)


def write_report(data: ReportData, folder: str | os.PathLike) -> None:
    """Write ``report.html`` and ``report.png``, each whole or not at all.

    Args:
        data: the registration.
        folder: where to; it must exist.

    Raises:
        FileNotFoundError: if the folder does not exist.
        ValueError: if the spacing or the orientation is not understood.
    """
    folder = Path(folder)
    pictures = make_pictures(data)
    with atomic_path(folder / "report.html") as temporary:
        temporary.write_text(report_page(data, pictures), encoding="utf-8")
    save_figure(report_figure(data, pictures), folder / "report.png")


def report_page(data: ReportData, pictures: Pictures | None = None) -> str:
    """Return the report as one HTML document.

    Without scripts it shows everything but the comparison by blending; it loads nothing from anywhere.

    Args:
        data: the registration.
        pictures: what `make_pictures` made of ``data``, where it is at hand already.

    Raises:
        ValueError: if the spacing or the orientation is not understood.
    """
    pictures = make_pictures(data) if pictures is None else pictures
    name = escape(data.name)
    tables = make_tables(data.metrics)
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>Registration report: {name}</title>
<style>{STYLE}</style>
</head>
<body>
{_lines(pictures)}
<header>
<p class="over">Registration report</p>
<h1>{name}</h1>
{_subject(data)}
{_warnings(data.warnings)}
{_tiles(make_highlights(data.metrics))}
</header>
<main>
{_compare(pictures)}
{_gallery(pictures)}
<section aria-labelledby="numbers">
<h2 id="numbers">Numbers</h2>
{"".join(_table(table) for table in tables if _is_wide(table))}
<div class="tables">
{"".join(_table(table) for table in tables if not _is_wide(table))}
</div>
</section>
<section aria-labelledby="reading">
<h2 id="reading">How to read this page</h2>
<dl class="reading">
{"".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in _READING)}
</dl>
</section>
</main>
<footer>Written by AVSM for research and development; not a medical device.</footer>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _subject(data: ReportData) -> str:
    """Return the lines that name the files."""
    lines = (f"{role}: {escape(Path(path).name)}" for role, path in file_paths(data.metrics).items())
    return f'<p class="lead">{"<br>".join(lines)}</p>'


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    items = "".join(f"<li>{escape(warning)}</li>" for warning in warnings)
    title = "1 warning" if len(warnings) == 1 else f"{len(warnings)} warnings"
    return f'<div class="warnings" role="alert"><strong>{title}</strong><ul>{items}</ul></div>'


def _tiles(highlights: Sequence[Highlight]) -> str:
    """Return the numbers to see first."""
    tiles = (
        f"<div{' class=' + chr(34) + 'alarming' + chr(34) if tile.alarming else ''}><dt>{escape(tile.name)}</dt>"
        f'<dd class="value">{escape(tile.value)}</dd><dd class="detail">{escape(tile.detail)}</dd></div>'
        for tile in highlights
    )
    return f'<dl class="tiles">{"".join(tiles)}</dl>' if highlights else ""


def _compare(pictures: Pictures) -> str:
    """Return the comparison of two images by blending, hidden until a script fills it."""
    return f"""<section class="compare" aria-labelledby="compare-title" data-script hidden>
<h2 id="compare-title">Compare</h2>
<div class="controls">
<fieldset><legend>Fixed image and</legend>
<label><input type="radio" name="with" value="moved" checked> moved (after)</label>
<label><input type="radio" name="with" value="moving"> moving (before)</label></fieldset>
<fieldset><legend>by</legend>
<label><input type="radio" name="way" value="blend" checked> blending</label>
<label><input type="radio" name="way" value="curtain"> curtain</label></fieldset>
<label class="slide"><span>fixed</span> <input type="range" id="mix" min="0" max="100" value="50"
 aria-label="share of the second image"> <span id="second">moved</span></label>
<button type="button" id="flicker" aria-pressed="false">Flicker</button>
</div>
<figure id="compare">{_planes(pictures, ["" for _ in pictures.planes])}</figure>
</section>"""


def _gallery(pictures: Pictures) -> str:
    """Return all kinds of pictures."""
    slices = ", ".join(f"{plane.name} slice {plane.index + 1} of {plane.count}" for plane in pictures.planes)
    key = "".join(
        f'<li><i style="color:{colour}"></i>{escape(text)}</li>' for text, colour, _ in legend_entries(pictures)
    )
    toggle = ""
    if pictures.outlines:
        toggle = (
            '<li data-script hidden><label><input type="checkbox" id="outlines" checked> show outlines</label></li>'
        )
    figures = "".join(_figure(pictures, panel) for panel in pictures.panels)
    return f"""<section aria-labelledby="pictures">
<h2 id="pictures">Pictures</h2>
<p>{escape(slices[:1].upper() + slices[1:])}.
<span class="hint" data-script hidden>Click a picture to enlarge it; the arrow keys then go through all of them in
place, and Escape closes.</span></p>
<ul class="key">{key}{toggle}</ul>
<div class="gallery">{figures}</div>
</section>"""


def _figure(pictures: Pictures, panel: Panel) -> str:
    """Return one kind of picture in all planes, with its caption and colour bar."""
    contents = []
    for row, plane in enumerate(pictures.planes):
        alt = f"{panel.title}, {plane.name} slice {plane.index + 1} of {plane.count}"
        layers = "".join(_layer(plane, name, row, pictures.outlines[name][1]) for name in panel.outlines)
        layers += _layer(plane, "grid", row, GRID_COLOUR) if panel.grid else ""
        contents.append(f'<img alt="{escape(alt)}" src="{_data_uri(_panel_image(panel, row))}">{layers}')
    bar = ""
    if panel.ticks:
        stops = ",".join(_css_colour(panel.colours(part)[:3]) for part in np.linspace(0, 1, 17))
        ticks = "".join(f"<span>{escape(text)}</span>" for text in panel.ticks.values())
        bar = f'<div class="bar"><i style="background:linear-gradient(90deg,{stops})"></i><b>{ticks}</b></div>'
    return (
        f'<figure id="{panel.key}">{_planes(pictures, contents)}<figcaption><h3>{escape(panel.title)}</h3>'
        f'<button type="button" data-script hidden>Enlarge</button><p>{escape(panel.meaning)}</p>{bar}'
        "</figcaption></figure>"
    )


def _planes(pictures: Pictures, contents: Sequence[str]) -> str:
    """Return the panels of all planes side by side, in one scale."""
    widths = [plane.size[1] for plane in pictures.planes]
    across = sum(widths) / max(plane.size[0] for plane in pictures.planes)
    panels = "".join(
        f'<div class="panel" style="--width:{plane.size[1]:.6g};--part:{plane.size[1] / max(widths):.6g};'
        f'--ratio:{plane.size[0] / plane.size[1]:.6g}">{content}{_letters(plane)}</div>'
        for plane, content in zip(pictures.planes, contents, strict=True)
    )
    return f'<div class="planes" style="--across:{across:.4g}">{panels}</div>'


def _letters(plane: Plane) -> str:
    return "".join(
        f'<span class="{side}" aria-hidden="true">{letter}</span>'
        for side, letter in zip("trbl", plane.letters or "", strict=False)
    )


def _panel_image(panel: Panel, row: int) -> Image.Image:
    """Return one picture, a pixel per voxel, as an image with a palette: the browser stretches it to millimetres."""
    low, high = panel.limits
    levels = np.clip((panel.images[row] - low) / (high - low), 0, 1)
    indices = np.round(levels * 254).astype(np.uint8)
    if panel.folds:
        indices[panel.folds[row]] = 255
    palette = np.vstack([panel.colours(np.linspace(0, 1, 255))[:, :3], to_rgb(FOLD_COLOUR)])
    image = Image.frombytes("P", indices.shape[::-1], indices.tobytes())
    image.putpalette(np.round(palette * 255).astype(np.uint8).tobytes())
    return image


def _lines(pictures: Pictures) -> str:
    """Return the lines over the pictures as SVG paths with names, each once however many panels show it.

    They are what the picture's drawing functions draw, so both reports show the same lines.
    """
    paths = []
    for row, plane in enumerate(pictures.planes):
        layers = {name: (draw_outlines, outline) for name, outline in pictures.outlines.items()}
        layers["grid"] = (draw_grid, (pictures.positions[row], pictures.step))
        for name, (draw, arguments) in layers.items():
            axes = Figure().add_axes((0, 0, 1, 1))
            draw(axes, plane, *arguments)
            drawn = [path for lines in axes.collections for path in lines.get_paths()]
            data = _path_data(drawn, _scale(plane))
            paths.append(f'<path id="{name}-{row}" vector-effect="non-scaling-stroke" d="{data}"/>')
    return f'<svg class="store" aria-hidden="true"><defs>{"".join(paths)}</defs></svg>'


def _scale(plane: Plane) -> float:
    """Return the units of a plane's SVG paths per mm."""
    return _UNITS / max(plane.size)


def _path_data(paths: Sequence[PlotPath], scale: float) -> str:
    """Return paths as SVG writes them, in whole units and without points that a straight line does as well."""
    points, moves = [], []
    for path in paths:
        path = path.deepcopy()
        path.simplify_threshold = 1.0
        path = path.cleaned(Affine2D().scale(scale), simplify=True)
        # The last code says only that the path ends.
        drawn = path.codes != PlotPath.STOP
        points += np.rint(path.vertices[drawn]).astype(int).tolist()
        moves += (path.codes[drawn] == PlotPath.MOVETO).tolist()
    steps = np.diff(points, axis=0, prepend=[[0, 0]]).tolist() if points else []
    return "".join(f"{'m' if move else ' '}{x} {y}" for (x, y), move in zip(steps, moves, strict=True))


def _layer(plane: Plane, name: str, row: int, colour: str) -> str:
    """Return lines that lie over a panel; their width does not change with the panel's size."""
    height, width = (side * _scale(plane) for side in plane.size)
    kind = "grid" if name == "grid" else "outline"
    # A dark line below tells them from any image.
    halo = f'<use href="#{name}-{row}" class="halo"/>' if kind == "outline" else ""
    return (
        f'<svg class="layer {kind}" viewBox="0 0 {width:.0f} {height:.0f}" preserveAspectRatio="none" '
        f'aria-hidden="true">{halo}<use href="#{name}-{row}" stroke="{colour}"/></svg>'
    )


def _data_uri(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _css_colour(colour: Sequence[float]) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in colour)


def _is_wide(table: Table) -> bool:
    """Return whether a table goes across the page."""
    return len(table.head) > 4 or table.words


def _table(table: Table) -> str:
    """Return a table."""
    width = len(table.head) or 2
    head = ""
    if table.groups:
        cells = "".join(f'<th colspan="{span}" scope="colgroup">{escape(text)}</th>' for text, span in table.groups)
        head += f"<tr>{cells}</tr>"
    if table.head:
        head += "<tr>" + "".join(f'<th scope="col">{escape(text)}</th>' for text in table.head) + "</tr>"
    rows = []
    for first, *cells in table.rows:
        spans = [1] * (len(cells) - 1) + [width - len(cells)]
        body = "".join(
            f"<td{f' colspan={chr(34)}{span}{chr(34)}' if span > 1 else ''}>{escape(text)}</td>"
            for text, span in zip(cells, spans, strict=True)
        )
        kind = ' class="mean"' if first in ("mean", "total") else ""
        rows.append(f'<tr{kind}><th scope="row">{escape(first)}</th>{body}</tr>')
    kind = "table" + " wide" * _is_wide(table) + (" words" if table.words else " numbers" if table.head else "")
    head = f"<thead>{head}</thead>" if head else ""
    return (
        f'<div class="{kind}"><table><caption>{escape(table.title)}</caption>{head}<tbody>{"".join(rows)}</tbody>'
        "</table></div>\n"
    )
