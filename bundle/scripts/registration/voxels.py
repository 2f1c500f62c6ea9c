"""Where a transform carries the voxels of an image, worked out where it is asked for, with the threads asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from ..spatial.frame import Frame
from ..spatial.grid_map import ALL, GridMap, in_slabs
from ..spatial.transform import WorldTransform

__all__ = ["VoxelField", "rounded", "threads"]

_BLOCK = 1 << 18


def threads() -> int:
    """The threads that were asked for, which PyTorch keeps."""
    return torch.get_num_threads()


def rounded(field: np.ndarray, spacing: float, part: float = 1e-4) -> np.ndarray:
    """A field in mm, in place, without digits below a part of its voxels' spacing.

    What is left out is noise to every reader, and a quarter of the file.
    """
    step = field.dtype.type(2.0 ** math.floor(math.log2(spacing * part)))
    field /= step
    np.rint(field, out=field)
    field *= step
    return field


class VoxelField:
    """Where transforms carry a grid's voxels, relative to where they are.

    Indexed as an array ``(3, D, H, W)``, by slices, it works out that part; a large image's field takes gigabytes.

    Args:
        transforms: fixed to moving, first listed, first applied (ANTs' order).
        frame: the grid.
        to_target: ``(4, 4)``, from RAS mm to the coordinates wanted, such as the moving image's voxels; None: RAS mm.
        start: ``(4, 4)``, the voxel's index to what is subtracted; None: where it is in RAS mm.
    """

    def __init__(
        self,
        transforms: Sequence[WorldTransform],
        frame: Frame,
        to_target: np.ndarray | None = None,
        start: np.ndarray | None = None,
    ) -> None:
        self.shape = (3, *frame.shape)
        self._given = list(transforms), frame, to_target, frame.affine if start is None else start
        self._grid = GridMap(transforms, frame, np.eye(4) if to_target is None else to_target)
        self._ramp = self._grid.linear - self._given[-1]

    def __getitem__(self, part: tuple[slice, slice, slice, slice]) -> np.ndarray:
        """A part of the field, ``(c, d, h, w)`` float32."""
        parts, *box = part
        result, shift = self._grid.ramp(self._ramp, box, parts), self._grid.shift(box, parts=parts)
        return (result if shift is None else np.add(result, shift, out=result)).astype(np.float32)

    def whole(self) -> np.ndarray:
        """The field of all voxels, ``(D, H, W, 3)`` float32."""
        result = np.empty((*self.shape[1:], 3), dtype=np.float32)

        def work(rows: slice) -> None:
            result[rows] = np.moveaxis(self[ALL, rows, ALL, ALL], 0, -1)

        in_slabs(work, self.shape[1:], _BLOCK, threads())
        return result

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """The field in the order of a NIfTI file: component after component, slices ``(D, H, w)`` after slices."""
        transforms, frame, to_target, start = self._given
        # On the grid with reversed axes these are rows that lie together.
        turn = [2, 1, 0, 3]
        turned = Frame(frame.shape[::-1], frame.affine[:, turn], frame.name)
        field = VoxelField(transforms, turned, to_target, start[:, turn])
        size = max(1, _BLOCK // (turned.shape[1] * turned.shape[2]))
        for component in range(3):
            for row in range(0, turned.shape[0], size):
                rows = slice(row, row + size)
                yield component, field[slice(component, component + 1), rows, ALL, ALL][0].T
