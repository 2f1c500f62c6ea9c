"""Where the network looks: one grid laid on both images, and the initialisation that this amounts to.

Both grids have the same shape and, by default, the same extent in millimetres and the same axes in the world; they
differ by a translation, which is the initialisation: none (``header``), between the centres of the fields of view
(``geometry``), or between the centres of mass (``moments``). As coordinates in the network are normalised to these
grids, the identity map of the network is exactly that translation, and it is part of every transform that is saved.

A field of view here is the box around what differs from the background, so that padding an image or cropping its
background changes nothing; its faces lie between voxels, so that resampling the image changes next to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from ..errors import InputError
from ..formats.images import Image
from ..settings import EXTENTS, PLACINGS
from ..spatial import nearest_of_kind
from ..spatial.frame import Frame, apply_matrix, network_frame
from ..spatial.transform import WorldTransform

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["NetworkGrids", "Pose", "foreground_box", "grid_shape", "lay_grids"]

_BACKGROUND = 0.02
_MULTIPLE = 8
_LEAST = 16
_FEWEST = 8
_MOST = 512**3
# Part of a voxel by which the steps of two grids of one spacing may differ.
_SAME = 1e-3
LARGEST_FIELD = 2**25
"""Most voxels of a displacement field: 800 MB in a file of double precision."""


@dataclass(frozen=True, eq=False)
class Pose:
    """How the moving image is turned and shifted against the fixed image.

    Attributes:
        matrix: fixed to moving points, ``(4, 4)`` RAS mm, rigid or such a motion of a mirror image; None for the
            headers' orientation.
        facts: why it was chosen, for ``metrics.json``.
        method: what found it.
    """

    matrix: np.ndarray | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    method: str = "search"


@dataclass(frozen=True, eq=False)
class NetworkGrids:
    """The network's grid on either image.

    Attributes:
        fixed: frame of the fixed network grid.
        moving: frame of the moving network grid, of the same shape.
        method: the initialisation that placed them.
        boxes: `foreground_box` of the ``fixed`` and the ``moving`` image; empty where they were not looked for.
        pose: what a search for the pose found; None without one.
        kind: one of `KINDS`: of the affine that is sought between them.
    """

    fixed: Frame
    moving: Frame
    method: str
    boxes: Mapping[str, np.ndarray] = field(default_factory=dict)
    pose: Pose | None = None
    kind: str = "affine"

    def linear(self, affine: Tensor) -> WorldTransform:
        """Fixed to moving points, of a normalised affine ``(1, 3, 4)``, of the kind to the last digits."""
        linear = WorldTransform.from_network(self.fixed, self.moving, affine).linear
        return WorldTransform(nearest_of_kind(linear, self.kind, self.fixed), kind=self.kind)

    def nearest(self, affine: Tensor) -> Tensor:
        """The affine ``(1, 3, 4)`` of the kind that is nearest to one, see `nearest_of_kind`."""
        if self.kind == "affine":
            return affine
        to_moving = np.linalg.inv(self.moving.normalised_affine)
        return affine.new_tensor((to_moving @ self.linear(affine).linear @ self.fixed.normalised_affine)[None, :3])

    @property
    def initial(self) -> WorldTransform:
        """The initialisation, fixed to moving points: what the network's identity map does in the world."""
        return WorldTransform(self.moving.normalised_affine @ np.linalg.inv(self.fixed.normalised_affine))


def foreground_box(array: np.ndarray) -> np.ndarray:
    """The box around what differs from the background, ``(2, 3)`` voxel coordinates.

    Background is what lies within a fiftieth of the intensity range of the minimum. A face is where the largest value
    of each slice, interpolated, crosses that level (beyond the image's end it is the minimum), so that the box of a
    resampled image differs by a fraction of a voxel. In images with noise all around the box is the whole image.

    Args:
        array: ``(D, H, W)``.

    Returns:
        Lowest and highest corner, less than a voxel outside the first and the last foreground voxel.
    """
    low, high = _range(array)
    level = low + _BACKGROUND * (high - low)
    box = np.empty((2, 3))
    for axis in range(3):
        profile = array.max(axis=tuple(a for a in range(3) if a != axis)).astype(np.float64)
        profile = np.pad(profile, 1, constant_values=low)
        first, last = np.flatnonzero(profile > level)[[0, -1]]
        # Never a whole voxel: the neighbour is background.
        before = min((profile[first] - level) / (profile[first] - profile[first - 1]), 0.999)
        after = min((profile[last] - level) / (profile[last] - profile[last + 1]), 0.999)
        box[:, axis] = first - 1 - before, last - 1 + after
    return box


def _range(array: np.ndarray) -> tuple[float, float]:
    """The minimum, and the 99.9th percentile of what is above it, which padding with the minimum does not move."""
    low = array.min()
    above = array[array > low]
    # A large image's percentile is that of every n-th voxel.
    above = above[:: max(1, above.size // 2_000_000)]
    return float(low), float(np.percentile(above, 99.9)) if above.size else float(low)


def rescale(array: np.ndarray, low: float, high: float) -> np.ndarray:
    """Intensities from ``low`` to ``high`` brought to [0, 1] and clipped, float32."""
    # In double precision what single precision cannot tell apart: reals, and integers of 32 bits and more.
    scaled = np.subtract(array, low, dtype=np.result_type(array.dtype, np.float32))
    # Divided, not multiplied: the inverse of a denormal contrast is infinite, as is an outlier over it.
    with np.errstate(over="ignore"):
        scaled /= high - low
    return np.clip(scaled, 0, 1, out=scaled).astype(np.float32, copy=False)


def box_corners(box: ArrayLike) -> np.ndarray:
    """The eight corners ``(8, 3)`` of a box ``(2, 3)``."""
    low, high = np.asarray(box)
    return np.array(list(product(*zip(low, high, strict=True))))


def _centre_of_mass(image: Image, box: np.ndarray) -> np.ndarray:
    """Centre of the intensity above the background, up to the 99.9th percentile, RAS mm.

    Args:
        image: the image.
        box: its `foreground_box`.
    """
    low, high = _range(image.array)
    start = np.ceil(box[0]).astype(int)
    inner = image.array[tuple(slice(a, int(np.floor(b)) + 1) for a, b in zip(start, box[1], strict=True))]
    weight = np.maximum(rescale(inner, low, high) - np.float32(_BACKGROUND), 0)
    total = weight.sum(dtype=np.float64)
    where = []
    for axis in range(3):
        profile = weight.sum(axis=tuple(a for a in range(3) if a != axis), dtype=np.float64)
        where.append((profile * np.arange(len(profile))).sum() / total)
    return image.frame.voxel_to_world(start + np.asarray(where))


def grid_shape(extent: Sequence[float], voxels: int) -> tuple[int, int, int]:
    """The shape of a grid over an extent, as near to cubic voxels as multiples of 8 allow.

    Args:
        extent: mm along each axis.
        voxels: the most voxels that the grid may have, 16³ to 512³.

    Returns:
        Sizes that are multiples of 8, 16 at least, with a product of at most ``voxels``.

    Raises:
        InputError: for too few or too many voxels.
    """
    _check_voxels(voxels)
    sizes = np.asarray(extent, dtype=np.float64)

    def shape(spacing: float) -> np.ndarray:
        return np.maximum(np.round(sizes / spacing / _MULTIPLE).astype(int) * _MULTIPLE, _LEAST)

    low, high = sizes.max() / 4096, sizes.max()
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if shape(middle).prod() <= voxels else (middle, high)
    return tuple(int(n) for n in shape(high))


def native_grid(extent: ArrayLike, voxels: int, finest: ArrayLike) -> tuple[tuple[int, int, int], np.ndarray]:
    """A grid over an extent as fine as images are, or as ``voxels`` allows; the finest axes are coarsened first.

    Args:
        extent: mm along each axis.
        voxels: the most voxels that the grid may have, 16³ to 512³.
        finest: mm of the images' voxels along each axis.

    Returns:
        Shape, 8 at least along each axis, and spacing in mm.

    Raises:
        InputError: for too few or too many voxels.
    """
    _check_voxels(voxels)
    sizes, finest = np.asarray(extent, dtype=np.float64), np.asarray(finest, dtype=np.float64)

    def shape(step: float) -> np.ndarray:
        return np.maximum(np.round(sizes / np.maximum(finest, step)).astype(int), _FEWEST)

    low, high = finest.min(), max(sizes.max(), finest.min())
    if shape(low).prod() <= voxels:
        high = low
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if shape(middle).prod() <= voxels else (middle, high)
    found = shape(high)
    return tuple(int(n) for n in found), np.minimum(np.maximum(finest, high), sizes / (_FEWEST - 1))


def _check_voxels(voxels: int) -> None:
    if not _LEAST**3 <= voxels <= _MOST:
        raise InputError(f"grid_voxels={voxels}: give a number from {_LEAST**3} to {_MOST}")


def lay_grids(
    fixed: Image,
    moving: Image,
    grid: Sequence[int] | None = None,
    grid_voxels: int = 150_000,
    initialisation: str = "geometry",
    extent: str = "common",
    orientation: str = "RAS",
    spacing: Sequence[float] | None = None,
    pose: Pose | None = None,
    boxes: Mapping[str, np.ndarray] | None = None,
    native: bool = False,
) -> NetworkGrids:
    """Lay the network's grid on both images.

    Args:
        fixed: the fixed image; its axes, reordered and flipped to ``orientation``, are those of both grids.
        moving: the moving image.
        grid: shape of the network grid; None chooses it from the extent (`grid_shape`).
        grid_voxels: see `grid_shape`.
        initialisation: ``"geometry"``, ``"moments"`` or ``"header"``.
        extent: ``"common"``: the larger of both images' extents in mm along each axis, for both; an image that is
            shorter is padded, not stretched. ``"own"``: each image's own field of view fills the grid (the paper's
            normalisation), along its own axes; the initialisation is then affine and follows from the two boxes.
        orientation: where the grids' axes point, see `network_frame`.
        spacing: mm between the voxels of ``grid``, for a network that was trained at one resolution: the extent is then
            theirs, whatever the images'; what lies farther out takes no part in the similarity and follows the nearest
            face. Along the axes of an image of this spacing the grid is laid on its voxels, at most half a voxel away,
            so that the network sees them as they are. None: the extent follows from the images.
        pose: how the moving grid is turned and shifted, with initialisation ``"geometry"``; None leaves it as it lies.
        boxes: ``fixed`` and ``moving``: the images' `foreground_box`, where they are known.
        native: choose the shape by `native_grid`, from the finer image along each axis, in place of `grid_shape`.

    Returns:
        Both frames.

    Raises:
        InputError: for an unknown initialisation or extent, a bad grid, a spacing without a grid or with ``extent``
            ``"own"``, or ``header`` with fields of view that do not overlap.
    """
    if initialisation not in PLACINGS:
        raise InputError(f"initialisation={initialisation}: must be one of {', '.join(PLACINGS)}; correct the option")
    if grid is not None and (len(tuple(grid)) != 3 or any(isinstance(n, bool) or n != int(n) or n < 4 for n in grid)):
        raise InputError(f"grid={list(grid)}: give three whole numbers of voxels, 4 at least, or null")
    if grid is not None and math.prod(int(n) for n in grid) > _MOST:
        raise InputError(f"grid={list(grid)}: has more than {_MOST} voxels; give a smaller one")
    if extent not in EXTENTS:
        raise InputError(f"extent={extent}: must be one of {', '.join(EXTENTS)}; correct the option")
    if spacing is not None and (grid is None or extent == "own"):
        raise InputError(f"network_spacing={list(spacing)}: needs a grid and extent common; give both or no spacing")
    if boxes is None:
        boxes = {role: foreground_box(image.array) for role, image in (("fixed", fixed), ("moving", moving))}
    if extent == "own":
        return _own_grids(fixed, moving, boxes, grid, grid_voxels, orientation, native)
    # Both boxes along the axes that the network grid will have: mm along its D, H and W.
    axes = network_frame(fixed.frame, (2, 2, 2), (1, 1, 1), orientation=orientation).direction
    posed = None if pose is None else pose.matrix
    turn = np.eye(3) if posed is None else posed[:3, :3]
    fixed_box, moving_box = (
        _box_along(along, image.frame.voxel_to_world(box_corners(boxes[role])))
        for role, image, along in (("fixed", fixed, axes), ("moving", moving, turn @ axes))
    )
    if initialisation == "header":
        low, high = np.minimum(fixed_box[0], moving_box[0]), np.maximum(fixed_box[1], moving_box[1])
        if (np.minimum(fixed_box[1], moving_box[1]) <= np.maximum(fixed_box[0], moving_box[0])).any():
            raise InputError(
                f"{moving.path}: its field of view does not overlap that of {fixed.path} in the world; "
                "give initialisation auto or geometry, or mend the headers"
            )
        sizes, centre = high - low, axes @ ((low + high) / 2)
        there = centre
    else:
        sizes = np.maximum(fixed_box[1] - fixed_box[0], moving_box[1] - moving_box[0])
        centre = axes @ fixed_box.mean(axis=0)
        middle = moving_box.mean(axis=0)
        there = turn @ axes @ middle
        if initialisation == "moments":
            there = centre + _centre_of_mass(moving, boxes["moving"]) - _centre_of_mass(fixed, boxes["fixed"])
        elif posed is not None:
            there = apply_matrix(posed, centre)
        # The moving box must stay inside the moving grid, wherever its middle lies in it.
        off = np.abs((turn @ axes).T @ there - middle)
        sizes = np.maximum(sizes, moving_box[1] - moving_box[0] + 2 * off)
    if grid is None and native:
        finest = np.minimum(_steps_along(fixed.frame, axes), _steps_along(moving.frame, turn @ axes))
        shape, spacing = native_grid(sizes, grid_voxels, finest)
    else:
        shape = grid_shape(sizes, grid_voxels) if grid is None else tuple(grid)
        spacing = sizes / np.asarray(shape) if spacing is None else spacing
    for image, box in ((fixed, fixed_box), (moving, moving_box)):
        _check_seen(image, box[1] - box[0], spacing)
    first = network_frame(fixed.frame, shape, spacing, centre, orientation)
    affine = first.affine.copy()
    affine[:3, :3] = turn @ first.affine[:3, :3]
    affine[:3, 3] = turn @ (first.affine[:3, 3] - centre) + there
    second = Frame(first.shape, affine)
    off = _off_lattice(first, fixed.frame)
    # A shift of the moving grid alone would be an initialisation, of which `header` promises none.
    frames = (
        _named(_shifted(first, off), "fixed network grid"),
        _named(
            _shifted(second, off if initialisation == "header" else _off_lattice(second, moving.frame)),
            "moving network grid",
        ),
    )
    _check_reach(frames, (fixed, moving))
    return NetworkGrids(*frames, initialisation if posed is None else pose.method, boxes, pose)


def _off_lattice(grid: Frame, image: Frame) -> np.ndarray:
    """How far a grid is from an image's voxels where both have the same axes and spacing, in the grid's voxels.

    Laid on the voxels an image is not interpolated at all, as in training at its own spacing; half a voxel off it is
    blurred by averages of two voxels along each axis.

    Returns:
        Along each axis at most half a voxel (just above it where half a voxel is as far either way); zeros where axes
        or spacing differ, as no shift would bring all voxels together.
    """
    step = np.linalg.inv(grid.affine[:3, :3]) @ image.affine[:3, :3]
    whole = np.round(step)
    if (np.abs(step - whole).max() > _SAME) or (np.abs(whole).sum(axis=0) != 1).any() or np.linalg.det(whole) == 0:
        return np.zeros(3)
    first = grid.world_to_voxel(image.voxel_to_world(np.zeros(3)))
    # At a tie rounding errors must not choose the side.
    return first - np.floor(first + 0.5 - _SAME)


def _shifted(grid: Frame, voxels: np.ndarray) -> Frame:
    """A grid moved by so many of its own voxels."""
    affine = grid.affine.copy()
    affine[:3, 3] += grid.affine[:3, :3] @ voxels
    return Frame(grid.shape, affine, grid.name)


def _own_grids(
    fixed: Image,
    moving: Image,
    boxes: dict,
    grid: Sequence[int] | None,
    grid_voxels: int,
    orientation: str,
    native: bool,
) -> NetworkGrids:
    """Each image's own field of view fills the grid."""
    frames = []
    shape = grid
    for image, role in ((fixed, "fixed"), (moving, "moving")):
        axes = network_frame(image.frame, (2, 2, 2), (1, 1, 1), orientation=orientation).direction
        box = _box_along(axes, image.frame.voxel_to_world(box_corners(boxes[role])))
        if shape is None and native:
            shape, _ = native_grid(box[1] - box[0], grid_voxels, _steps_along(image.frame, axes))
        elif shape is None:
            shape = grid_shape(box[1] - box[0], grid_voxels)
        spacing = (box[1] - box[0]) / np.asarray(shape)
        frame = network_frame(image.frame, shape, spacing, axes @ box.mean(axis=0), orientation)
        frames.append(_named(frame, f"{role} network grid"))
    _check_reach(frames, (fixed, moving))
    return NetworkGrids(*frames, "own field of view", boxes)


def _check_seen(image: Image, size: np.ndarray, spacing: ArrayLike) -> None:
    """Refuse an image of which the network would see next to nothing; ``size``, ``spacing`` in mm along its grid."""
    axis = int(np.argmin(size / spacing))
    if size[axis] < spacing[axis]:
        raise InputError(
            f"{image.path}: its content, {size[axis]:.3g} mm along one axis, is less than a step, {spacing[axis]:.3g} "
            "mm, of the grid over both images; see spacing and unit in both headers, or crop the larger image"
        )


def _check_reach(grids: Sequence[Frame], images: Sequence[Image]) -> None:
    """Refuse images of which the grids hold so little that a displacement field over all would be too large."""
    for grid, image in zip(grids, images, strict=True):
        # Fields lie on half the grid's resolution.
        if math.prod(grid.shape) / 8 * reach(grid, image.frame.corners) > LARGEST_FIELD:
            raise InputError(
                f"{image.path}: what the network looks at, {_millimetres(grid)} mm, is so small a part of the image, "
                f"{_millimetres(image.frame)} mm, that no field can cover it all; crop the image to what matters"
            )


def reach(grid: Frame, points: ArrayLike) -> float:
    """How often a grid's volume goes into that of a box around its middle, along its axes, that holds points as well.

    Args:
        grid: the grid.
        points: ``(N, 3)``, RAS mm.

    Returns:
        1 where the grid holds the points.
    """
    return float(np.maximum(np.abs(grid.world_to_normalised(points)).max(axis=0), 1).prod())


def _millimetres(frame: Frame) -> str:
    return " x ".join(f"{length:.3g}" for length in frame.extent)


def _box_along(axes: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Lowest and highest coordinates ``(2, 3)`` of RAS points along orthonormal ``axes`` (columns)."""
    along = corners @ axes
    return np.stack([along.min(axis=0), along.max(axis=0)])


def _steps_along(frame: Frame, axes: np.ndarray) -> np.ndarray:
    """A frame's spacing along the voxel axes that are nearest to ``axes`` (columns), mm."""
    return frame.spacing[np.abs(frame.direction.T @ axes).argmax(axis=0)]


def _named(frame: Frame, name: str) -> Frame:
    return Frame(frame.shape, frame.affine, name)
