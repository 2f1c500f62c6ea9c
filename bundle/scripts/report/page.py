"""The quality report of one registration as one HTML page that needs no other file, and as a picture."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.path import Path as PlotPath
from matplotlib.transforms import Affine2D
from PIL import Image

from ..storage import atomic_path
from .drawing import FOLD_COLOUR, GRID_COLOUR, draw_grid, draw_outlines
from .figure import report_figure, save_figure
from .numbers import find, make_highlights, make_tables
from .panels import Panel, Pictures, ReportData, make_pictures
from .planes import Plane
from .verdict import Verdict

_TEMPLATES = Path(__file__).with_name("templates")
_UNITS = 4000  # of SVG paths along a plane's longest side: a quarter of a pixel on a large screen


def write_report(data: ReportData, folder: str | os.PathLike) -> None:
    """Write ``report.html`` and ``report.png`` into a folder that exists, each whole or not at all."""
    folder = Path(folder)
    pictures = make_pictures(data)
    with atomic_path(folder / "report.html") as temporary:
        temporary.write_text(report_page(data, pictures), encoding="utf-8")
    save_figure(report_figure(data, pictures), folder / "report.png")


def report_page(data: ReportData, pictures: Pictures) -> str:
    """Return the report as one HTML document, of a registration and what `make_pictures` made of it.

    Without scripts it shows everything but the comparison by blending; it loads nothing from anywhere. The template
    escapes everything that comes from files.
    """
    paths = {role: find(data.metrics, role, "path") for role in ("fixed", "moving")}
    return _template().render(
        name=data.name,
        files={role: Path(path).name for role, path in paths.items() if path},
        verdict=Verdict.of(data.metrics),
        warnings=data.warnings,
        highlights=make_highlights(data.metrics),
        tables=make_tables(data.metrics),
        planes=[_plane(plane, pictures.planes) for plane in pictures.planes],
        across=sum(p.size[1] for p in pictures.planes) / max(p.size[0] for p in pictures.planes),
        panels=[_panel(panel, pictures) for panel in pictures.panels],
        lines=list(_lines(pictures)),
        legend=pictures.legend(),
        outlined=bool(pictures.outlines),
    )


@cache
def _template() -> jinja2.Template:
    how = {"autoescape": True, "undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    return jinja2.Environment(loader=jinja2.FileSystemLoader(_TEMPLATES), **how).get_template("report.html.j2")


def _plane(plane: Plane, planes: Sequence[Plane]) -> dict[str, Any]:
    """Return what the template needs of a plane: its name, proportions in mm, letters and the units of its lines."""
    height, width = plane.size
    return {
        "name": f"{plane.name} slice {plane.index + 1} of {plane.count}",
        "sizes": {"width": width, "part": width / max(p.size[1] for p in planes), "ratio": height / width},
        "letters": list(zip("trbl", plane.letters, strict=True)),
        "units": " ".join(f"{side * _scale(plane):.0f}" for side in (width, height)),
    }


def _panel(panel: Panel, pictures: Pictures) -> dict[str, Any]:
    layers = [{"name": name, "colour": pictures.outlines[name][1], "kind": "outline"} for name in panel.outlines]
    return {
        "key": panel.key,
        "title": panel.title,
        "meaning": f"{panel.note[0].upper()}{panel.note[1:]}: {panel.meaning}.",
        "images": [_data_uri(_image(panel, row)) for row in range(len(pictures.planes))],
        "layers": [*layers, *([{"name": "grid", "colour": GRID_COLOUR, "kind": "grid"}] if panel.grid else [])],
        "ticks": list(panel.ticks.values()),
        "stops": ",".join(map(to_hex, colormaps.get_cmap(panel.colours)(np.linspace(0, 1, 17)))),
    }


def _image(panel: Panel, row: int) -> Image.Image:
    """Return one picture, a pixel per voxel, as an image with a palette: the browser stretches it to millimetres."""
    low, high = panel.limits
    levels = np.clip((panel.images[row] - low) / (high - low), 0, 1)
    indices = np.round(levels * 254).astype(np.uint8)
    if panel.folds:
        indices[panel.folds[row]] = 255
    palette = np.vstack([colormaps.get_cmap(panel.colours)(np.linspace(0, 1, 255))[:, :3], to_rgb(FOLD_COLOUR)])
    image = Image.frombytes("P", indices.shape[::-1], indices.tobytes())
    image.putpalette(np.round(palette * 255).astype(np.uint8).tobytes())
    return image


def _data_uri(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _lines(pictures: Pictures) -> Iterator[tuple[str, str]]:
    """Names and SVG paths of the lines that the figure draws over the pictures, each once."""
    for row, plane in enumerate(pictures.planes):
        layers = {name: (draw_outlines, outline) for name, outline in pictures.outlines.items()}
        layers["grid"] = (draw_grid, (pictures.positions[row], pictures.step))
        for name, (draw, arguments) in layers.items():
            axes = Figure().add_axes((0, 0, 1, 1))
            draw(axes, plane, *arguments)
            drawn = [path for lines in axes.collections for path in lines.get_paths()]
            yield f"{name}-{row}", _path_data(drawn, _scale(plane))


def _scale(plane: Plane) -> float:
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
