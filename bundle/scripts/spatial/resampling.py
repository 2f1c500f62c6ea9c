"""Transforms at work on points, images and labels.

Several transforms are listed in ANTs' order. For points, the first listed acts first; an image, which moves the other
way, so passes the last listed first. With ``warp`` on the fixed grid and ``affine`` after it, as a registration
leaves them, ``[warp, affine]`` carries a fixed point p to ``affine(warp(p))`` and warps the moving image onto the fixed
one, as ``antsApplyTransforms -t warp.nii.gz -t affine.mat`` does. What `read_transforms` returns for a file is in this
order; lists of several files are joined in it.

An image is interpolated once, from its own grid, however many transforms there are. Its voxels are found at float64
coordinates in blocks, so that beside the image and its result only some tens of megabytes are held (and, for cubic
splines, the image's coefficients). What lies outside the image is what ITK says: more than half a voxel beyond the
outermost voxel centres.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import map_coordinates, spline_filter

from ..errors import InputError
from .arrays import as_volume
from .frame import Frame, convert_points
from .grid_map import ALL, GridMap, chain_points, in_slabs
from .transform import WorldTransform

IMAGE_MODES = ("linear", "bspline")
LABEL_MODES = ("nearest", "linear")
_BLOCK = 1 << 18  # points worked on at once


class OutsideFieldWarning(UserWarning):
    """Points lay outside a displacement field, where only its linear part acts."""


def warn_outside(outside: Sequence[int], total: int, what: str, stacklevel: int) -> None:
    """Say how many points missed the displacement field of which transform."""
    for index, count in enumerate(outside):
        if count:
            warnings.warn(
                f"transforms[{index}]: {count} of {total} {what} lie outside its displacement field, where it acts by "
                "its affine part alone; use a transform whose field covers them",
                OutsideFieldWarning,
                stacklevel=stacklevel,
            )


def transform_points(points: ArrayLike, transforms: Sequence[WorldTransform], space: str) -> np.ndarray:
    """Carry points of the fixed image to the moving image.

    Args:
        points: ``(N, 3)`` in mm.
        transforms: first listed, first applied (ANTs' order); empty: identity.
        space: world that the points are in and stay in, ``"RAS"`` or ``"LPS"``.

    Returns:
        ``(N, 3)`` float64 in mm. Warns (`OutsideFieldWarning`) when points lie outside a displacement field.

    Raises:
        InputError: if the points are not ``(N, 3)`` and finite, or for another space.
    """
    array = np.asarray(points, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != 3 or not np.isfinite(array).all():
        raise InputError(f"points: need finite coordinates of shape (N, 3), got shape {array.shape}")
    outside = np.zeros(len(transforms), dtype=np.int64)
    result = chain_points(convert_points(array, space, "RAS"), transforms, outside)
    warn_outside(outside, len(array), "points", stacklevel=3)
    return convert_points(result, "RAS", space)


@dataclass(frozen=True, eq=False)
class Sampler:
    """An image or label map on a reference grid, worked out where it is asked for; see `image_sampler`.

    Attributes:
        look: the image's values at voxel coordinates ``(3, d, h, w)``.
        shape: of the image.
        grid: where the reference's voxels lie in the image.
        dtype: of the values.
        fill: value outside the image.
    """

    look: Callable[[np.ndarray], np.ndarray]
    shape: tuple[int, int, int]
    grid: GridMap
    dtype: np.dtype
    fill: float

    def __call__(self, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """The values of some rows of the reference, ``(d, H, W)``, and which lie outside the image."""
        voxels = self.grid.coordinates((rows, ALL, ALL))
        beyond = ((where < -0.5) | (where >= n - 0.5) for where, n in zip(voxels, self.shape, strict=True))
        outside = reduce(np.logical_or, beyond)
        if 2 * np.count_nonzero(outside) < outside.size:
            values = self.look(voxels).astype(self.dtype, copy=False)
            values[outside] = self.fill
        else:  # sooner
            values = np.full(outside.shape, self.fill, self.dtype)
            values[~outside] = self.look(voxels[:, ~outside])
        return values, outside

    def whole(self, threads: int) -> np.ndarray:
        """The values of the whole reference."""
        result = np.empty(self.grid.shape, self.dtype)

        def work(rows: slice) -> None:
            result[rows] = self(rows)[0]

        in_slabs(work, result.shape, _BLOCK, threads)
        warn_outside(self.grid.outside, result.size, "voxels of the reference", stacklevel=4)
        return result


def _check_pair(array: np.ndarray, frame: Frame, name: str) -> None:
    """Refuse an array that is not of its frame's shape."""
    if array.shape != frame.shape:
        raise InputError(
            f"{name}: its shape {array.shape} is not its frame's, {frame.shape}; give the frame of its own grid"
        )


def resample_image(
    image: ArrayLike,
    frame: Frame,
    reference: Frame,
    transforms: Sequence[WorldTransform] = (),
    mode: str = "linear",
    fill: float = 0.0,
    threads: int = 1,
) -> np.ndarray:
    """Warp an image onto a reference grid, with one interpolation from the image's own grid.

    Args:
        image: ``(D, H, W)``, with any number of leading axes of length one.
        frame: the image's own frame.
        reference: the grid of the result.
        transforms: reference to image points, first listed, first applied (ANTs' order); empty: resampling only.
        mode: ``"linear"``, or ``"bspline"`` for ITK's interpolating cubic B-spline, which may overshoot.
        fill: value outside the image.
        threads: that work at once.

    Returns:
        An array of ``reference.shape``: float64 if ``image`` is, else float32. Warns (`OutsideFieldWarning`) when
        voxels lie outside a displacement field.

    Raises:
        InputError: if the shape is not the frame's, the image holds NaN or infinity with ``"bspline"`` (which one bad
            voxel would spoil everywhere), or for another mode.
        ValueError: if ``image`` is not one volume.
    """
    return image_sampler(image, frame, reference, transforms, mode, fill).whole(threads)


def image_sampler(
    image: ArrayLike,
    frame: Frame,
    reference: Frame,
    transforms: Sequence[WorldTransform] = (),
    mode: str = "linear",
    fill: float = 0.0,
) -> Sampler:
    """What `resample_image` makes, rows by rows; arguments and errors are the same."""
    if mode not in IMAGE_MODES:
        raise InputError(f"mode: must be one of {', '.join(IMAGE_MODES)}, got {mode!r}")
    volume = as_volume(image, "image")
    _check_pair(volume, frame, "image")
    dtype = np.dtype(np.float64 if volume.dtype == np.float64 else np.float32)
    options = {"output": dtype, "order": 1, "mode": "nearest", "prefilter": False}
    if mode == "bspline":
        options |= {"order": 3, "mode": "mirror"}
        if not np.isfinite(volume).all():
            raise InputError(
                "image: holds NaN or infinity, which a spline spreads over the image; clean it or use linear"
            )
        volume = spline_filter(volume, order=3, output=np.float64, mode=options["mode"])
    elif volume.dtype in (np.float16, bool):
        volume = volume.astype(np.float32)
    grid = GridMap(transforms, reference, np.linalg.inv(frame.affine))
    return Sampler(lambda voxels: map_coordinates(volume, voxels, **options), volume.shape, grid, dtype, fill)


def _nearest(labels: np.ndarray, voxels: np.ndarray) -> np.ndarray:
    """Return the label of the nearest voxel, halves rounded up as in ITK."""
    index = np.floor(voxels + 0.5).astype(np.intp)
    return labels[tuple(np.clip(i, 0, n - 1) for i, n in zip(index, labels.shape, strict=True))]


def _heaviest(labels: np.ndarray, voxels: np.ndarray) -> np.ndarray:
    """Return the label whose indicator, linearly interpolated, is largest; the lower label of equals.

    Only the labels of a point's eight neighbours can have weight there, so that the cost does not grow with the number
    of labels.
    """
    low = np.floor(voxels)
    ends = [
        [np.clip(where + bit, 0, n - 1).astype(np.intp) for bit in (0, 1)]
        for where, n in zip(low, labels.shape, strict=True)
    ]
    corners = [labels[index] for index in product(*ends)]
    best = corners[0].copy()
    # Most voxels lie amid one label.
    mixed = reduce(np.logical_or, (other != best for other in corners[1:]))
    part = (voxels - low)[:, mixed]
    weights = [x * y * z for x, y, z in product(*zip(1 - part, part, strict=True))]
    corners = [corner[mixed] for corner in corners]
    found, score = corners[0], np.full(part.shape[1], -1.0)
    for candidate in corners:
        weight = sum(np.where(other == candidate, w, 0.0) for other, w in zip(corners, weights, strict=True))
        # Weights of equals differ by rounding; a float64 sum of eight products errs by less than this.
        tie = np.abs(weight - score) <= 1e-12
        better = np.where(tie, candidate < found, weight > score)
        found, score = np.where(better, candidate, found), np.where(better, weight, score)
    best[mixed] = found
    return best


def resample_labels(
    labels: ArrayLike,
    frame: Frame,
    reference: Frame,
    transforms: Sequence[WorldTransform] = (),
    mode: str = "nearest",
    fill: int = 0,
    threads: int = 1,
) -> np.ndarray:
    """Warp a label map onto a reference grid; no value comes out that did not go in, save ``fill``.

    Args:
        labels: ``(D, H, W)``, with any number of leading axes of length one; whole numbers, of a real type if need be.
        frame: the label map's own frame.
        reference: the grid of the result.
        transforms: reference to label points, first listed, first applied (ANTs' order); empty: resampling only.
        mode: ``"nearest"``; or ``"linear"``: each label's indicator is interpolated linearly and the largest wins,
            which gives smoother borders.
        fill: label outside the map.
        threads: that work at once.

    Returns:
        An array of ``reference.shape`` and the labels' type. Warns (`OutsideFieldWarning`) when voxels lie outside a
        displacement field.

    Raises:
        InputError: if the shape is not the frame's, a label is not a whole number, the type cannot hold ``fill``, or
            for another mode.
        ValueError: if ``labels`` is not one volume.
    """
    return label_sampler(labels, frame, reference, transforms, mode, fill).whole(threads)


def label_sampler(
    labels: ArrayLike,
    frame: Frame,
    reference: Frame,
    transforms: Sequence[WorldTransform] = (),
    mode: str = "nearest",
    fill: int = 0,
) -> Sampler:
    """What `resample_labels` makes, rows by rows; arguments and errors are the same."""
    if mode not in LABEL_MODES:
        raise InputError(f"mode: must be one of {', '.join(LABEL_MODES)}, got {mode!r}")
    volume = as_volume(labels, "labels")
    _check_pair(volume, frame, "labels")
    if np.issubdtype(volume.dtype, np.floating) and not (
        np.isfinite(volume).all() and (volume == np.rint(volume)).all()
    ):
        raise InputError("labels: hold values that are not whole numbers; give a label map, or resample it as an image")
    if np.asarray(fill).astype(volume.dtype) != fill:
        raise InputError(f"fill: {fill} is not a label that {volume.dtype} can hold")
    look = _nearest if mode == "nearest" else _heaviest
    grid = GridMap(transforms, reference, np.linalg.inv(frame.affine))
    return Sampler(lambda voxels: look(volume, voxels), volume.shape, grid, volume.dtype, fill)
