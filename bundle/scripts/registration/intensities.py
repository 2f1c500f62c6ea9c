"""Intensities as networks and searches see them: in [0, 1], on a grid that may be coarser than the image."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from ..spatial import Frame, resample_image
from .grids import rescale
from .voxels import threads

__all__ = ["normalise", "sample", "window"]

_TRUNCATE = 3.0  # standard deviations of the smoothing kernel
_WIDEST = 0.25  # standard deviation of the smoothing kernel, part of the image's size


def normalise(array: np.ndarray, box: np.ndarray, lower: float = 0.1, upper: float = 99.9) -> np.ndarray:
    """Intensities between two percentiles brought to [0, 1] and clipped, float32.

    The percentiles are of the foreground's box, so that padding does not move them.

    Args:
        array: ``(D, H, W)``.
        box: its `foreground_box`.
        lower: percentile that becomes 0.
        upper: percentile that becomes 1.
    """
    return rescale(array, *window(array, box, lower, upper))


def window(array: np.ndarray, box: np.ndarray, lower: float = 0.1, upper: float = 99.9) -> tuple[float, float]:
    """The intensities that become 0 and 1, see `normalise`."""
    inside = array[tuple(slice(int(np.ceil(a)), int(np.floor(b)) + 1) for a, b in box.T)]
    low, high = np.percentile(inside, (lower, upper))
    return (low, high) if high > low else (float(array.min()), float(array.max()))


def sample(array: np.ndarray, frame: Frame, grid: Frame, box: np.ndarray | None = None) -> np.ndarray:
    """An image on a network grid, smoothed first where the grid is coarser than the image; 0 outside.

    Args:
        array: ``(D, H, W)``, 0 where there is nothing.
        frame: the image's frame.
        grid: the network's frame.
        box: a `foreground_box`; what is outside counts as 0, so that it makes no difference whether the image ends with
            the box or has background around it.

    Returns:
        ``grid.shape``, float32.
    """
    # How long a step of the grid is, in voxels of the image, along each axis of the image that it goes along most.
    steps = np.abs(np.linalg.inv(frame.affine[:3, :3]) @ grid.affine[:3, :3])
    # MONAI's and scikit-image's rule for anti-aliasing: (factor - 1) / 2.
    sigma = np.maximum((steps.max(axis=1) - 1) / 2, 0)
    size = np.asarray(frame.shape) if box is None else box[1] - box[0]
    # An image that spans a step or two needs no smoothing, and the kernel would be many times its size.
    sigma = np.minimum(sigma, _WIDEST * size)
    if box is not None:
        first, last = np.ceil(box[0]).astype(int), np.floor(box[1]).astype(int)
        margin = np.ceil(_TRUNCATE * sigma).astype(int) + 1
        inner = array[tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))]
        array = np.pad(inner, [(m, m) for m in margin])
        affine = frame.affine.copy()
        affine[:3, 3] = frame.voxel_to_world(first - margin)
        frame = Frame(array.shape, affine, frame.name)
    if (sigma > 0.05).any():
        own = np.require(array, np.float32, "C") if box is not None else np.array(array, np.float32)
        array = gaussian_filter(own, sigma, mode="constant", truncate=_TRUNCATE, output=own)
    return resample_image(array, frame, grid, threads=threads()).astype(np.float32, copy=False)
