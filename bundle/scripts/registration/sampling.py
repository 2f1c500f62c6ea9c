"""Sampling both images on the network's grids, intensities in [0, 1], as in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from ..errors import InputError
from ..formats import Image
from ..spatial import Frame, resample_image
from .grids import NetworkGrids, lay_grids, rescale
from .memory import check_memory
from .pair import Pair
from .voxels import threads

__all__ = ["SamplePaird", "SampledPair", "normalise", "sample"]

_TRUNCATE = 3.0  # standard deviations of the smoothing kernel
_WIDEST = 0.25  # standard deviation of the smoothing kernel, part of the image's size


@dataclass(frozen=True, eq=False)
class SampledPair:
    """A pair on the network's grids.

    Attributes:
        grids: the frames of both grids.
        moving: ``(1, 1, D, H, W)`` float32 in [0, 1].
        fixed: as ``moving``.
        mask: weights in [0, 1] of the fixed grid's voxels in the similarity, as ``fixed``: the mask, or else the fixed
            image's field of view; None where all count.
        moving_mask: the same of the moving grid; None unless a moving mask was given.
    """

    grids: NetworkGrids
    moving: Tensor
    fixed: Tensor
    mask: Tensor | None
    moving_mask: Tensor | None

    def to(self, device: torch.device | str) -> SampledPair:
        """The same on a device."""
        names = ("moving", "fixed", "mask", "moving_mask")
        volumes = {name: value.to(device) for name in names if (value := getattr(self, name)) is not None}
        return replace(self, **volumes)

    @property
    def volumes(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """moving, fixed, mask, moving_mask: what optimisers take."""
        return self.moving, self.fixed, self.mask, self.moving_mask


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


class SamplePaird:
    """MONAI transform: lays the network's grids on ``pair`` and adds ``sampled``, the `SampledPair`.

    Args:
        grid: see `lay_grids`, as are ``grid_voxels``, ``initialisation``, ``extent``, ``orientation`` and ``spacing``.
        grid_voxels: see `lay_grids`.
        initialisation: see `lay_grids`.
        extent: see `lay_grids`.
        orientation: see `lay_grids`.
        spacing: see `lay_grids`.
        lower: percentile of intensity that becomes 0.
        upper: percentile of intensity that becomes 1.
        max_memory: MB that a pair may take, see `check_memory`.
        spline: whether the moved image will be interpolated by a cubic spline.
    """

    def __init__(
        self,
        grid: Sequence[int] | None,
        grid_voxels: int,
        initialisation: str,
        extent: str,
        orientation: str,
        spacing: Sequence[float] | None,
        lower: float,
        upper: float,
        max_memory: int | None = None,
        spline: bool = False,
    ) -> None:
        self.options = (grid, grid_voxels, initialisation, extent, orientation, spacing)
        self.percentiles, self.memory = (lower, upper), (max_memory, spline)

    def __call__(self, data: Mapping) -> dict:
        """Sample; raises InputError as `check_memory`, as `lay_grids`, or for nothing on the network grid."""
        pair: Pair = data["pair"]
        check_memory(pair, *self.memory)
        grids = lay_grids(pair.fixed, pair.moving, *self.options)
        fixed = self._volume(pair.fixed, grids.fixed, grids.boxes["fixed"])
        moving = self._volume(pair.moving, grids.moving, grids.boxes["moving"])
        mask = _weight(pair.fixed, pair.fixed_mask, grids.fixed)
        # The moving image's own field of view limits nothing, but it must be there.
        moving_mask = _weight(pair.moving, pair.moving_mask, grids.moving)
        return {
            **data,
            "sampled": SampledPair(
                grids,
                moving,
                fixed,
                None if bool((mask == 1).all()) else mask,
                None if pair.moving_mask is None else moving_mask,
            ),
        }

    def _volume(self, image: Image, grid: Frame, box: np.ndarray) -> Tensor:
        return torch.from_numpy(sample(normalise(image.array, box, *self.percentiles), image.frame, grid, box))[
            None, None
        ]


def _weight(image: Image, mask: Image | None, grid: Frame) -> Tensor:
    """The mask on the network grid, or the image's field of view on it, ``(1, 1, D, H, W)`` float32 in [0, 1]."""
    if mask is None:
        voxels = image.frame.world_to_voxel(grid.voxel_to_world(np.stack(np.indices(grid.shape), axis=-1)))
        weight = image.frame.contains_voxel(voxels).astype(np.float32)
        if not weight.any():
            steps = " x ".join(f"{step:.3g}" for step in grid.spacing)
            raise InputError(
                f"{image.path}: no point of the network's grid over both images, {steps} mm, lies in it; see "
                "spacing and unit in both headers, or crop the larger image"
            )
    else:
        weight = sample(mask.array.astype(np.float32), mask.frame, grid)
        if not (weight > 0.01).any():
            raise InputError(
                f"{mask.path}: the mask has nothing where the network looks; give a mask that covers tissue"
            )
    return torch.from_numpy(weight)[None, None]
