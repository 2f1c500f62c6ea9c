"""How similar two images are on the fixed image's own grid, which is finer than the network's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..formats.images import Image
from ..losses import MultiKernelLNCC
from ..spatial.frame import Frame
from ..spatial.resampling import resample_image
from ..spatial.transform import WorldTransform
from .grids import foreground_box
from .places import displacement_of, lands_inside
from .sample import normalise

__all__ = ["NativeLikeness"]


class NativeLikeness:
    """Compares transforms by the similarity that they reach on the fixed image's own grid.

    What matches better on a coarse grid may match worse there: where slices are thick, the network can follow how they
    were cut. Of a large image every second, third, ... voxel along its finest axes stands for all.

    Args:
        images: ``fixed`` and ``moving``, and perhaps ``fixed_mask``, on the fixed image's grid.
        similarity: loss of (moved, fixed, mask) with ``reduction`` ``"none"``; mk-LNCC by default.
        voxels: at most so many are looked at.
    """

    def __init__(
        self, images: Mapping[str, Image], similarity: Callable | None = None, voxels: int = 2_000_000
    ) -> None:
        fixed, self.moving = images["fixed"], images["moving"]
        self.similarity = MultiKernelLNCC(reduction="none") if similarity is None else similarity
        self.strides = _strides(fixed.frame, voxels)
        places = tuple(slice(None, None, stride) for stride in self.strides)
        self.frame = _thinned(fixed.frame, self.strides)
        self.fixed = _tensor(normalise(fixed.array, foreground_box(fixed.array))[places])
        self.array = normalise(self.moving.array, foreground_box(self.moving.array))
        self._affine: tuple[np.ndarray, tuple[np.ndarray, np.ndarray]] | None = None
        mask = images.get("fixed_mask")
        self.mask = np.ones(self.frame.shape, bool) if mask is None else np.asarray(mask.array[places], bool)

    def gain(self, affine: WorldTransform, transform: WorldTransform) -> float:
        """By how much a transform's loss is below that of its affine, where both land inside the moving image.

        Args:
            affine: fixed to moving; what it makes of the moving image is remembered.
            transform: the same.

        Returns:
            Positive where the transform is more similar; 0 where nothing can be compared.
        """
        if self._affine is None or not np.array_equal(self._affine[0], affine.linear):
            self._affine = affine.linear.copy(), self._moved(affine)
        moved, seen = zip(self._affine[1], self._moved(transform), strict=True)
        weight = self.mask & seen[0] & seen[1]
        if not weight.any():
            return 0.0
        with torch.no_grad():
            before, after = (
                self.similarity(_tensor(one), self.fixed, None if weight.all() else _tensor(weight)).item()
                for one in moved
            )
        return before - after

    def _moved(self, transform: WorldTransform) -> tuple[np.ndarray, np.ndarray]:
        """The moving image on the grid of comparison, and where it was seen."""
        there = WorldTransform(np.eye(4), displacement_of(transform, self.frame), self.frame)
        seen = lands_inside(there, self.frame, self.moving.frame)
        return resample_image(self.array, self.moving.frame, self.frame, [there]), seen


def _strides(frame: Frame, most: int) -> tuple[int, ...]:
    """Every how manieth voxel to look at along each axis, coarsest where the grid is finest."""
    strides = [1, 1, 1]
    shape, spacing = np.asarray(frame.shape), frame.spacing
    while math.prod(-(-shape // strides)) > most:
        axes = [axis for axis in range(3) if shape[axis] > strides[axis]]
        strides[min(axes, key=lambda axis: spacing[axis] * strides[axis])] += 1
    return tuple(strides)


def _thinned(frame: Frame, strides: Sequence[int]) -> Frame:
    """The grid of every so manieth voxel, from the first on."""
    affine = frame.affine.copy()
    affine[:3, :3] *= np.asarray(strides)
    return Frame(tuple(-(-size // stride) for size, stride in zip(frame.shape, strides, strict=True)), affine)


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))[None, None]
