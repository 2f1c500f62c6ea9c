"""Figures 4 and 6: examples with deformation grids and labels, and what the symmetry loss does to the grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import nibabel as nib
import numpy as np
import torch
from matplotlib.figure import Figure

from scripts.geometry import fold_mask
from scripts.registration import foreground_box, normalise
from scripts.report.drawing import BACKGROUND, INK, dimmed, draw_folds, draw_grid, grid_step, round_step, show_image
from scripts.report.planes import Plane, choose_planes
from scripts.spatial import WorldTransform, apply_matrix, resample_image, resample_labels

from .cases import Case
from .measures import displacement
from .method import Answer

__all__ = ["Picture", "examples_figure", "picture", "symmetry_figure"]

_LABELS = "tab10"
_DPI = 110
_WIDTH = 1.75
_GREY = (0.0, 1.0)
_COARSER = 1.7  # panels are small: fewer lines than on a page of one pair


@dataclass(frozen=True, eq=False)
class Picture:
    """What a figure shows of one pair and one answer, all on the fixed grid and in one plane.

    Attributes:
        plane: the plane shown.
        images: ``fixed``, ``moving`` (as its own initialisation lays it), ``moved``, ``affine`` and the labels
            ``fixed_label``, ``moving_label``, ``moved_label``, each a 2-D image.
        positions: of `draw_grid`, the grid of the moving image that the map pulls.
        step: between its lines, mm.
        folds: boolean 2-D image.
        count: folds in the volume.
    """

    plane: Plane
    images: dict[str, np.ndarray]
    positions: list[tuple[np.ndarray, float]]
    step: float
    folds: np.ndarray
    count: int


def picture(case: Case, answer: Answer, view: str = "sagittal") -> Picture:
    """Cut a plane of a pair and its answer that shows much of every label.

    Args:
        case: the pair.
        answer: what a method found; with its affine stage.
        view: ``"axial"``, ``"coronal"`` or ``"sagittal"``.
    """
    frame, moving = case.fixed.frame, case.moving
    field = displacement(answer.transform, frame)
    final = [WorldTransform(np.eye(4), field, frame)]
    grey = {
        role: normalise(image.array, foreground_box(image.array))
        for role, image in (("fixed", case.fixed), ("moving", moving))
    }
    # As they would lie without registration: centre on centre.
    start = np.eye(4)
    start[:3, 3] = moving.frame.centre - frame.centre
    stages = {"moving": [WorldTransform(start)], "affine": list(answer.affine or answer.transform), "moved": final}
    volumes = {
        name: resample_image(grey["moving"], moving.frame, frame, chain, fill=0.0) for name, chain in stages.items()
    }
    label = case.moving_label
    volumes |= {
        f"{name}_label": resample_labels(label.array, label.frame, frame, stages[name]) for name in ("moving", "moved")
    }
    volumes |= {"fixed": grey["fixed"], "fixed_label": case.fixed_label.array}
    spacing = tuple(frame.spacing.tolist())
    plane = _plane(case, view)

    # Where each voxel looks, in mm along the axes of the moving grid as it lay before.
    points = frame.voxel_to_world(np.stack(np.indices(frame.shape), axis=-1)) + field
    seen = frame.world_to_voxel(apply_matrix(np.linalg.inv(start), points))
    positions = [
        (plane.cut(seen[..., axis]) * spacing[axis], (frame.shape[axis] - 1) * spacing[axis])
        for axis in (plane.vertical, plane.horizontal)
    ]
    map_ = torch.from_numpy(np.ascontiguousarray(np.moveaxis(frame.world_to_normalised(points), -1, 0)))[None]
    folds = fold_mask(map_)[0].numpy()
    return Picture(
        plane,
        {name: plane.cut(volume) for name, volume in volumes.items()},
        positions,
        round_step(_COARSER * grid_step(frame.shape, spacing)),
        plane.cut(folds),
        int(folds.sum()),
    )


def _plane(case: Case, view: str) -> Plane:
    """The slice of a view that shows most of every label, each as a part of its largest cross-section."""
    frame, label = case.fixed.frame, case.fixed_label.array
    axcodes = "".join(nib.aff2axcodes(frame.affine))
    planes = choose_planes(frame.shape, (), tuple(frame.spacing.tolist()), axcodes)
    plane = next(one for one in planes if one.name == view)
    inside = (plane.vertical, plane.horizontal)
    areas = [np.count_nonzero(label == value, axis=inside) for value in np.unique(label) if value != 0]
    if not areas:
        return plane
    # So cartilage counts like bone.
    return replace(plane, index=int(np.sum([area / area.max() for area in areas], axis=0).argmax()))


def _grey(axes, found: Picture, name: str) -> None:
    show_image(axes, found.plane, found.images[name], "gray", _GREY)


def _grid(axes, found: Picture, name: str = "moved") -> None:
    show_image(axes, found.plane, found.images[name], "gray", dimmed(_GREY))
    draw_grid(axes, found.plane, found.positions, found.step)
    draw_folds(axes, found.plane, found.folds)


def _label(axes, found: Picture, name: str) -> None:
    image = found.images[name].astype(float)
    image[image == 0] = np.nan
    # Label 1 begins the palette; ten labels are told apart.
    show_image(axes, found.plane, (image - 1) % 10, _LABELS, (-0.5, 9.5))


Draw = Callable[..., None]
_ROWS: tuple[tuple[str, Draw, str], ...] = (
    ("source", _grey, "moving"),
    ("target", _grey, "fixed"),
    ("warped", _grey, "moved"),
    ("with deformation\ngrid, φ⁻¹", _grid, "moved"),
    ("warped by\nits affine", _grey, "affine"),
    ("source label", _label, "moving_label"),
    ("target label", _label, "fixed_label"),
    ("warped label", _label, "moved_label"),
)


def _panels(title: str, rows: Sequence[str], columns: Sequence[str], plane: Plane) -> tuple[Figure, np.ndarray]:
    """A dark page of panels with the shape of a plane."""
    height = _WIDTH * min(1.6, max(0.5, plane.size[0] / plane.size[1]))
    left, top = 1.15, 0.62
    size = (left + len(columns) * _WIDTH + 0.1, top + len(rows) * height + 0.1)
    fig = Figure(figsize=size, dpi=_DPI, facecolor=BACKGROUND)
    grid = fig.add_gridspec(
        len(rows),
        len(columns),
        left=left / size[0],
        right=1 - 0.1 / size[0],
        top=1 - top / size[1],
        bottom=0.1 / size[1],
        wspace=0.04,
        hspace=0.04,
    )
    axes = grid.subplots(squeeze=False)
    fig.text(0.5, 1 - 0.2 / size[1], title, color=INK, ha="center", va="center", size=10, weight="bold")
    for row, name in enumerate(rows):
        box = axes[row, 0].get_position()
        fig.text((left - 0.08) / size[0], (box.y0 + box.y1) / 2, name, color=INK, ha="right", va="center", size=8)
    for column, name in enumerate(columns):
        axes[0, column].set_title(name, color=INK, size=7, pad=3)
    for one in axes.flat:
        one.set_axis_off()
        one.set_facecolor(BACKGROUND)
    return fig, axes


def examples_figure(pictures: Mapping[str, Picture], title: str) -> Figure:
    """Figure 4: a column for each example, rows from the source image to the warped label.

    Args:
        pictures: column's name → picture.
        title: one line.
    """
    first = next(iter(pictures.values()))
    columns = [f"{name}\n{found.count} folds" for name, found in pictures.items()]
    fig, axes = _panels(title, [row[0] for row in _ROWS], columns, first.plane)
    for column, found in enumerate(pictures.values()):
        for row, (_, draw, name) in enumerate(_ROWS):
            draw(axes[row, column], found, name)
    return fig


def symmetry_figure(without: Picture, with_loss: Picture, title: str) -> Figure:
    """Figure 6: source and target at the left, warped without and with the symmetry loss at the right, with grids.

    Args:
        without: of the network trained without it.
        with_loss: of the one trained with it, same pair and plane.
        title: one line.
    """
    columns = ("images", "warped", "with deformation grid, φ⁻¹")
    rows = ("source;\nwithout\nsymmetry loss", "target;\nwith\nsymmetry loss")
    fig, axes = _panels(title, rows, columns, without.plane)
    for row, (found, name) in enumerate(((without, "moving"), (with_loss, "fixed"))):
        _grey(axes[row, 0], found, name)
        _grey(axes[row, 1], found, "moved")
        _grid(axes[row, 2], found)
    return fig
