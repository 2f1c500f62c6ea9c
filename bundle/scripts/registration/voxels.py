"""Where a transform carries the voxels of an image, and with what threads that is worked out."""

from __future__ import annotations

import numpy as np
import torch

from ..spatial.frame import Frame
from ..spatial.grid_map import ALL, Box, GridMap, in_slabs
from ..spatial.transform import WorldTransform

__all__ = ["Displacement", "threads"]

_BLOCK = 1 << 18


def threads() -> int:
    """The threads that were asked for, which PyTorch keeps."""
    return torch.get_num_threads()


class Displacement:
    """Where a transform carries a grid's voxels, less where they are: what a box of it holds is worked out when asked.

    Args:
        transform: fixed to moving.
        frame: the grid.
    """

    def __init__(self, transform: WorldTransform, frame: Frame) -> None:
        self.frame = frame
        self._grid = GridMap([transform], frame, np.eye(4))
        self._ramp = self._grid.linear - frame.affine

    def at(self, box: Box) -> np.ndarray:
        """The displacement of a box of voxels, ``(3, d, h, w)`` float32, RAS mm."""
        result, shift = self._grid.ramp(self._ramp, box), self._grid.shift(box)
        return (result if shift is None else np.add(result, shift, out=result)).astype(np.float32)

    def whole(self) -> np.ndarray:
        """The displacement of all voxels, ``(D, H, W, 3)`` float32, RAS mm."""
        result = np.empty((*self.frame.shape, 3), dtype=np.float32)

        def work(rows: slice) -> None:
            result[rows] = np.moveaxis(self.at((rows, ALL, ALL)), 0, -1)

        in_slabs(work, self.frame.shape, _BLOCK, threads())
        return result
