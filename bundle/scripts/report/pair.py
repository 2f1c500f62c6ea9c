"""One registered pair on one page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure

from ..geometry import fold_mask
from ..spatial.arrays import ArrayLike, as_map, as_volume
from .drawing import (
    FIXED_COLOUR,
    FOLD_COLOUR,
    GRID_COLOUR,
    MOVED_COLOUR,
    SIGNED,
    check_volumes,
    dimmed,
    draw_folds,
    draw_grid,
    draw_letters,
    draw_outlines,
    grey_range,
    grid_step,
    show_image,
    signed_reach,
)
from .planes import choose_planes
from .sheet import Sheet


def pair_figure(
    fixed: ArrayLike,
    moving: ArrayLike,
    moved: ArrayLike,
    map: ArrayLike,
    fixed_label: ArrayLike | None = None,
    moved_label: ArrayLike | None = None,
    title: str | None = None,
    spacing: Sequence[float] | None = None,
    orientation: str | None = None,
) -> Figure:
    """Show a registered pair in three planes.

    Columns: moving, fixed, moved, moved with the deformation grid (level lines of the map's in-plane coordinates, which
    is the picture of φ⁻¹ in the paper's Figure 4; folded voxels red), difference before and after. The three images
    share one grey range, the two differences one signed range. All planes have one scale in mm.

    Args:
        fixed: ``(D, H, W)`` or ``(1, D, H, W)``.
        moving: as ``fixed``, on a grid of the same shape.
        moved: as ``fixed``.
        map: ``(3, D, H, W)`` or ``(1, 3, D, H, W)``, normalised coordinates.
        fixed_label: as ``fixed``, 0 is background. The planes go through the labels' centre of mass.
        moved_label: as ``fixed_label``.
        title: one line over all.
        spacing: voxel size along each array axis, mm. None: voxels are shown as cubes and lengths told in voxels.
        orientation: where the array axes point, ``"RAS"`` for instance; see :func:`choose_planes`.

    Returns:
        A figure that belongs to no window and to no global state.

    Raises:
        ValueError: if a shape differs from that of ``fixed``, an image is not finite, or ``spacing`` or
            ``orientation`` is not understood.
    """
    images = {"fixed": as_volume(fixed, "fixed")}
    shape = images["fixed"].shape
    images |= {"moving": as_volume(moving, "moving"), "moved": as_volume(moved, "moved")}
    labels = {
        name: as_volume(label, name)
        for name, label in (("fixed_label", fixed_label), ("moved_label", moved_label))
        if label is not None
    }
    phi = as_map(map)
    check_volumes({**images, **labels, "map": phi[0]}, shape)
    images = {name: image.astype(np.float32) for name, image in images.items()}
    unit = "voxels" if spacing is None else "mm"
    spacing = (1.0, 1.0, 1.0) if spacing is None else tuple(spacing)
    planes = choose_planes(shape, list(labels.values()), spacing, orientation)
    page = Sheet(planes, 6, title, bars=(5,))

    grey = grey_range(images.values())
    before, after = images["moving"] - images["fixed"], images["moved"] - images["fixed"]
    reach = signed_reach((before, after))
    folds = fold_mask(torch.from_numpy(np.ascontiguousarray(phi))[None].float())[0].numpy()
    step = grid_step(shape, spacing)

    outlines = [(labels.get("fixed_label"), FIXED_COLOUR), (labels.get("moved_label"), MOVED_COLOUR)]
    for row, plane in enumerate(planes):
        moving_axes, fixed_axes, moved_axes, grid_axes, before_axes, after_axes = page.axes[row]
        for axes, name in zip(page.axes[row], ("moving", "fixed", "moved", "moved"), strict=False):
            show_image(axes, plane, plane.cut(images[name]), "gray", grey if axes is not grid_axes else dimmed(grey))
        for axes, difference in ((before_axes, before), (after_axes, after)):
            show_image(axes, plane, plane.cut(difference), SIGNED, (-reach, reach))
        lengths = {axis: (shape[axis] - 1) * spacing[axis] for axis in (plane.vertical, plane.horizontal)}
        positions = [
            ((plane.cut(phi[axis]).astype(np.float64) + 1) / 2 * length, length) for axis, length in lengths.items()
        ]
        draw_grid(grid_axes, plane, positions, step)
        draw_folds(grid_axes, plane, plane.cut(folds))
        for axes, chosen in ((moving_axes, outlines[:1]), (fixed_axes, outlines[:1]), (moved_axes, outlines)):
            for label, colour in chosen:
                if label is not None:
                    draw_outlines(axes, plane, label, colour)
        draw_letters(moving_axes, plane)

    count = int(folds.sum())
    page.name_columns(
        [
            ("moving", "before registration"),
            ("fixed", "target"),
            ("moved", "after registration"),
            ("deformation grid φ⁻¹", f"{count} folded voxel{'' if count == 1 else 's'} in the volume"),
            ("difference before", f"moving - fixed, mean |d| {np.abs(before).mean():.3g}"),
            ("difference after", f"moved - fixed, mean |d| {np.abs(after).mean():.3g}"),
        ]
    )
    page.colour_bar(5, SIGNED, (-reach, reach), {-reach: f"-{reach:.2g}", 0: "0", reach: f"+{reach:.2g}"})
    page.legend(
        [
            (f"outline of the {name.replace('_', ' ')}", colour, False)
            for name, colour in (("fixed_label", FIXED_COLOUR), ("moved_label", MOVED_COLOUR))
            if name in labels
        ]
        + [(f"φ⁻¹, a line every {step:g} {unit} of the moving image", GRID_COLOUR, False)]
        + [("folded voxels", FOLD_COLOUR, True)] * (count > 0)
    )
    return page.fig
