"""What the report of one registration shows, before any layout: the planes, and the pictures of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from matplotlib.colors import Colormap, LinearSegmentedColormap
from PIL import Image

from ..geometry import fold_mask
from .drawing import (
    FIXED_COLOUR,
    FOLD_COLOUR,
    GRID_COLOUR,
    MASK_COLOUR,
    MOVED_COLOUR,
    dimmed,
    grey_range,
    grid_step,
    round_step,
    signed_reach,
    spread_sample,
)
from .planes import Plane, choose_planes

# Black at zero, so that agreement is dark like the page; blue and orange stay apart for colour-blind readers.
_SIGNED = LinearSegmentedColormap.from_list("signed", ["#9fd4ff", "#2a7fff", "#000000", "#ff7a1a", "#ffd9a0"])
# Light at no change, so that it is not taken for a difference image; dark blue beside the red of folds.
_VOLUME = LinearSegmentedColormap.from_list("volume", ["#08306b", "#4a98d3", "#f5f5f5", "#e5903a", "#7f2704"])
_VOLUME_REACH = (1.1, 1.25, 1.5, 2, 3, 4, 8)
_LARGEST = 512  # pixels of a panel along each side
_SQUARES = 10  # of the checkerboard along the longest side, about


@dataclass(frozen=True, eq=False)
class ReportData:
    """One registration, all volumes on the fixed image's own grid.

    Attributes:
        name: of the pair.
        fixed: ``(D, H, W)``, any intensity range.
        moving: ``(D, H, W)``, the moving image under the initialisation only.
        moved: ``(D, H, W)``, the moving image after registration, in the moving image's intensities.
        voxel_map: ``(3, D, H, W)``, the voxel that each fixed voxel is sent to, the initial transform removed: the
            identity registration gives each voxel's own index. An array, or what works out the slices asked for.
        jacobian: ``(D, H, W)``, determinant of the map (of mm by mm).
        spacing: voxel size along each array axis, mm.
        orientation: where the array axes point, such as ``"RAS"``.
        fixed_label: ``(D, H, W)``, 0 is background, or None.
        moving_label: as ``fixed_label``, under the initialisation only.
        moved_label: as ``fixed_label``, after registration.
        mask: ``(D, H, W)``, the fixed image's mask, or None.
        uncertainty: ``(D, H, W)``, how far structures may be off, mm, or None.
        metrics: the content of ``metrics.json``.
        warnings: lines that a reader must not miss.
    """

    name: str
    fixed: np.ndarray
    moving: np.ndarray
    moved: np.ndarray
    voxel_map: np.ndarray
    jacobian: np.ndarray
    spacing: Sequence[float]
    orientation: str
    fixed_label: np.ndarray | None = None
    moving_label: np.ndarray | None = None
    moved_label: np.ndarray | None = None
    mask: np.ndarray | None = None
    uncertainty: np.ndarray | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class Panel:
    """One kind of picture, in all planes.

    Attributes:
        key, title: short names for programs and for people.
        note, meaning: a few words under the title, and how to read it, after the note.
        images: one ``(rows, columns)`` float image per plane, first row at the top.
        colours: colour map, or its name; ``limits`` are the values at its ends.
        ticks: values and their names at the colour bar; empty: no bar.
        outlines: names of the outlines to draw, keys of `Pictures.outlines`.
        grid: whether to draw the deformation grid.
        folds: one boolean image per plane, to be painted red; empty: none.
    """

    key: str
    title: str
    note: str
    meaning: str
    images: Sequence[np.ndarray]
    colours: str | Colormap = "gray"
    limits: tuple[float, float] = (0.0, 1.0)
    ticks: Mapping[float, str] = field(default_factory=dict)
    outlines: Sequence[str] = ()
    grid: bool = False
    folds: Sequence[np.ndarray] = ()


@dataclass(frozen=True, eq=False)
class Pictures:
    """All pictures of a report.

    Attributes:
        planes: three planes.
        panels: the kinds of pictures, in the order to show them.
        outlines: label volumes ``(D, H, W)`` and their colours.
        positions: per plane, what `drawing.draw_grid` takes.
        step: distance of the deformation grid's lines, mm.
    """

    planes: Sequence[Plane]
    panels: Sequence[Panel]
    outlines: Mapping[str, tuple[np.ndarray, str]]
    positions: Sequence[Sequence[tuple[np.ndarray, float]]]
    step: float

    def legend(self) -> list[tuple[str, str]]:
        """What is drawn over the images: text and colour."""
        moved = " and ".join(name for name in ("moving", "moved") if name in self.outlines)
        entries = {
            "fixed label": FIXED_COLOUR if "fixed" in self.outlines else None,
            f"{moved} label": MOVED_COLOUR if moved else None,
            "mask of the fixed image": MASK_COLOUR if "mask" in self.outlines else None,
            f"deformation grid, a line every {self.step:g} mm of the moving image": GRID_COLOUR,
            "folded voxels": FOLD_COLOUR if any(fold.any() for panel in self.panels for fold in panel.folds) else None,
        }
        return [(text, colour) for text, colour in entries.items() if colour is not None]


def make_pictures(data: ReportData) -> Pictures:
    """Choose the planes and make the pictures.

    The fixed image has one grey window, and the moving and moved images share another, each from the 0.5th to the
    99.5th percentile. Differences are between intensities scaled to [0, 1] by these windows, as two scans rarely share
    a scale.
    """
    labels = {name: getattr(data, f"{name}_label") for name in ("fixed", "moving", "moved")}
    labels = {name: label for name, label in labels.items() if label is not None}
    guides = [labels[name] for name in ("fixed", "moved") if name in labels]
    guides = guides or ([] if data.mask is None else [data.mask])
    planes = choose_planes(data.fixed.shape, guides, data.spacing, data.orientation)
    outlines = {name: (label, FIXED_COLOUR if name == "fixed" else MOVED_COLOUR) for name, label in labels.items()}
    if data.mask is not None:
        outlines["mask"] = (data.mask > 0, MASK_COLOUR)

    windows = {"fixed": grey_range(data.fixed)}
    windows["moving"] = windows["moved"] = grey_range(data.moving)
    cuts = {
        name: [_scaled(plane.cut(getattr(data, name)), window) for plane in planes] for name, window in windows.items()
    }
    panels = [
        Panel(key, key, note, meaning, cuts[key])
        for key, note, meaning in (
            ("fixed", "the target", "it stays where it is"),
            ("moving", "initialised only", "the moving image on the fixed grid by the initialisation alone"),
            ("moved", "after registration", "the moving image, which should now look like the fixed image"),
        )
    ]
    panels += [
        _checkerboard(data, planes, cuts),
        *_differences(data, windows, cuts),
        *_maps(data, planes, cuts["moved"]),
        *_doubts(data, planes),
    ]
    over = {"fixed": ("fixed", "mask"), "jacobian": ("fixed",)}
    over |= {name: ("fixed", name) for name in ("moving", "moved")}
    panels = [
        replace(_reduced(panel), outlines=[name for name in over.get(panel.key, ()) if name in outlines])
        for panel in panels
    ]
    return Pictures(planes, panels, outlines, _positions(data, planes), grid_step(data.fixed.shape, data.spacing))


def _scaled(image: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    return ((image.astype(np.float64) - window[0]) / (window[1] - window[0])).astype(np.float32)


def _checkerboard(data: ReportData, planes: Sequence[Plane], cuts: Mapping[str, Sequence[np.ndarray]]) -> Panel:
    side = round_step(max(n * s for n, s in zip(data.fixed.shape, data.spacing, strict=True)) / _SQUARES)
    # A square of less than two voxels is noise.
    side = max(side, 2 * max(float(s) for s in data.spacing))
    boards = []
    for plane, first, second in zip(planes, cuts["fixed"], cuts["moved"], strict=True):
        across, down = (np.floor(centres / side) for centres in plane.pixel_centres(first.shape))
        boards.append(np.where((across[None] + down[:, None]) % 2 > 0, second, first))
    return Panel(
        "checkerboard",
        "checkerboard",
        f"fixed and moved, squares of {side:g} mm",
        "edges should run on from square to square",
        boards,
    )


def _differences(
    data: ReportData, windows: Mapping[str, tuple[float, float]], cuts: Mapping[str, Sequence[np.ndarray]]
) -> list[Panel]:
    """The differences before and after, in one colour range."""
    samples = {name: _scaled(spread_sample(getattr(data, name)), window) for name, window in windows.items()}
    differences = {name: samples[name] - samples["fixed"] for name in ("moving", "moved")}
    reach = signed_reach(differences.values())
    masked = data.mask is not None and data.mask.any()
    inside = spread_sample(data.mask) > 0 if masked else slice(None)
    panels = []
    for when, name, meaning in (
        ("before", "moving", "moving minus fixed, both scaled to 0 to 1; black is agreement"),
        ("after", "moved", "moved minus fixed, in the same colours; less is better"),
    ):
        values = np.abs(differences[name][inside])
        mean = f"{values.mean() if values.size else 0:.3g}{' in mask' * bool(masked)}"
        panels.append(
            Panel(
                f"difference_{when}",
                f"difference {when}",
                f"mean |{name} − fixed| {mean}",
                meaning,
                [cut - fixed for cut, fixed in zip(cuts[name], cuts["fixed"], strict=True)],
                _SIGNED,
                (-reach, reach),
                {-reach: f"-{reach:.2g}", 0.0: "0", reach: f"+{reach:.2g}"},
            )
        )
    return panels


def _maps(data: ReportData, planes: Sequence[Plane], moved: Sequence[np.ndarray]) -> list[Panel]:
    step = grid_step(data.fixed.shape, data.spacing)
    folds = [_plane_folds(data, plane) for plane in planes]
    factor = _volume_reach(spread_sample(data.jacobian))
    top = float(np.log2(factor))
    logs = [np.log2(np.clip(plane.cut(data.jacobian).astype(np.float32), 2.0**-8, None)) for plane in planes]
    return [
        Panel(
            "grid",
            "deformation grid",
            f"a line every {step:g} mm of the moving image",
            "where they end up, over the moved image: they may bend, never cross",
            moved,
            limits=dimmed((0.0, 1.0)),
            grid=True,
            folds=folds,
        ),
        Panel(
            "jacobian",
            "Jacobian",
            "volume change |J|, log scale; folds red",
            "above 1 the moving image was compressed to fit, below 1 expanded",
            logs,
            _VOLUME,
            (-top, top),
            {-top: f"{1 / factor:.3g}", 0.0: "1", top: f"{factor:g}"},
            folds=folds,
        ),
    ]


def _doubts(data: ReportData, planes: Sequence[Plane]) -> list[Panel]:
    if data.uncertainty is None:
        return []
    reach = round_step(max(float(np.percentile(spread_sample(data.uncertainty), 98)), 1e-3))
    return [
        Panel(
            "doubt",
            "where not to trust",
            "how far structures may be off, mm",
            "bright where shifting the moved image would match as well, at edges that do not fit and where there is "
            "nothing to match",
            [plane.cut(data.uncertainty) for plane in planes],
            "inferno",
            (0.0, reach),
            {0.0: "0", reach: f"{reach:g} mm"},
        )
    ]


def _plane_folds(data: ReportData, plane: Plane) -> np.ndarray:
    """Return where the map is folded in a plane, by the corner determinants, which miss no fold between neighbours."""
    # A plane's determinants need its two neighbours only.
    low, high = max(plane.index - 1, 0), min(plane.index + 2, plane.count)
    slab = _slab(data, plane, low, high)
    # Voxels in place of normalised coordinates scale the determinants, but never change their sign.
    folded = fold_mask(torch.from_numpy(slab.astype(np.float32))[None])[0].numpy()
    return replace(plane, index=plane.index - low).cut(folded) | (plane.cut(data.jacobian) < 0)


def _slab(data: ReportData, plane: Plane, low: int, high: int) -> np.ndarray:
    """The map in some planes parallel to one, ``(3, d, h, w)``."""
    box = [slice(None)] * 4
    box[plane.normal + 1] = slice(low, high)
    return np.asarray(data.voxel_map[tuple(box)])


def _volume_reach(determinants: np.ndarray) -> float:
    """Return a round factor within which nearly all volume changes lie."""
    # Folds have a colour of their own.
    changes = np.abs(np.log2(determinants[determinants > 0]))
    wanted = 2.0 ** float(np.percentile(changes, 99.5)) if changes.size else 1.0
    return next((factor for factor in _VOLUME_REACH if factor >= wanted), _VOLUME_REACH[-1])


def _positions(data: ReportData, planes: Sequence[Plane]) -> list[list[tuple[np.ndarray, float]]]:
    """Return where the map points to, in mm along both in-plane axes, as `draw_grid` takes it."""
    positions = []
    for plane in planes:
        slab, thin = _slab(data, plane, plane.index, plane.index + 1), replace(plane, index=0)
        both = []
        for axis in (plane.vertical, plane.horizontal):
            step = float(data.spacing[axis])
            both.append((thin.cut(slab[axis]).astype(np.float64) * step, (data.fixed.shape[axis] - 1) * step))
        positions.append(both)
    return positions


def _reduced(panel: Panel) -> Panel:
    """Return a panel whose images have at most `_LARGEST` pixels a side."""
    # A single folded voxel must not vanish.
    return replace(panel, images=[_box(i) for i in panel.images], folds=[_box(fold) > 0 for fold in panel.folds])


def _box(image: np.ndarray) -> np.ndarray:
    """Return the means of the parts of an image that `_LARGEST` pixels a side would cover, float32."""
    size = [min(n, _LARGEST) for n in reversed(image.shape)]
    return np.asarray(Image.fromarray(image.astype(np.float32)).resize(size, Image.Resampling.BOX))
