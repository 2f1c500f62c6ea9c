"""Sampling both images on the network's grids, intensities in [0, 1], as the network was trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from ..errors import InputError
from ..formats.images import Image
from ..spatial.frame import Frame
from ..spatial.resampling import resample_image
from .grids import foreground_box, lay_grids, rescale
from .read import ROLES

__all__ = ["SampleOnNetworkGridd", "normalise", "sample"]

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
    inside = array[tuple(slice(int(np.ceil(a)), int(np.floor(b)) + 1) for a, b in box.T)]
    low, high = np.percentile(inside, (lower, upper))
    if high <= low:
        low, high = float(array.min()), float(array.max())
    return rescale(array, low, high)


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
    # Of an image that spans a step or two there is nothing to smooth, but a kernel and margin of many times its size.
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
        array = gaussian_filter(array.astype(np.float32, copy=False), sigma, mode="constant", truncate=_TRUNCATE)
    return resample_image(array, frame, grid).astype(np.float32, copy=False)


class SampleOnNetworkGridd:
    """Lays the network's grids on a pair and samples both images and masks on them.

    In: what `ReadPaird` gives. Out: ``fixed``, ``moving`` ``(1, D, H, W)`` float32 in [0, 1]; ``fixed_weight``,
    ``moving_weight`` ``(1, D, H, W)``, what the similarity shall count: the mask, or where there is none the image's
    own field of view; ``grids``, the `NetworkGrids`.

    Args:
        grid: see `lay_grids`, as are ``grid_voxels``, ``initialisation``, ``extent`` and ``orientation``.
        grid_voxels: see `lay_grids`.
        initialisation: see `lay_grids`.
        extent: see `lay_grids`.
        orientation: see `lay_grids`.
        spacing: see `lay_grids`.
        lower: percentile of intensity that becomes 0.
        upper: percentile of intensity that becomes 1.
    """

    def __init__(
        self,
        grid: Sequence[int] | None = None,
        grid_voxels: int = 150_000,
        initialisation: str = "geometry",
        extent: str = "common",
        orientation: str = "RAS",
        spacing: Sequence[float] | None = None,
        lower: float = 0.1,
        upper: float = 99.9,
    ) -> None:
        self.options = {
            "grid": grid,
            "grid_voxels": grid_voxels,
            "initialisation": initialisation,
            "extent": extent,
            "orientation": orientation,
            "spacing": spacing,
        }
        self.percentiles = (lower, upper)

    def __call__(self, data: Mapping) -> dict:
        """Sample.

        Raises:
            InputError: see `lay_grids`; or when an image or mask has nothing on the network grid.
        """
        item, images = dict(data), data["images"]
        grids = item["grids"] = lay_grids(images["fixed"], images["moving"], **self.options)
        for role in ROLES:
            image, frame = images[role], getattr(grids, role)
            box = foreground_box(image.array)
            volume = sample(normalise(image.array, box, *self.percentiles), image.frame, frame, box)
            item[role] = torch.from_numpy(volume)[None]
            item[f"{role}_weight"] = torch.from_numpy(_weight(image, images.get(f"{role}_mask"), frame))[None]
        return item


def _weight(image: Image, mask: Image | None, grid: Frame) -> np.ndarray:
    """The mask on the network grid, or the image's field of view on it, float32 in [0, 1]."""
    if mask is None:
        inside = image.frame.contains_voxel(image.frame.world_to_voxel(grid.voxel_to_world(_indices(grid))))
        if not inside.any():
            raise InputError(
                f"{image.path}: no point of the network's grid over both images, {_steps(grid)} mm, lies in it; see "
                "spacing and unit in both headers, or crop the larger image"
            )
        return inside.astype(np.float32)
    weight = sample(mask.array.astype(np.float32), mask.frame, grid)
    if not (weight > 0.01).any():
        raise InputError(f"{mask.path}: the mask has nothing where the network looks; give a mask that covers tissue")
    return weight


def _steps(grid: Frame) -> str:
    return " x ".join(f"{step:.3g}" for step in grid.spacing)


def _indices(grid: Frame) -> np.ndarray:
    return np.stack(np.indices(grid.shape), axis=-1)
