"""What a pair takes of memory: told before the work, and kept to where it can be chosen."""

from __future__ import annotations

import math

from ..errors import InputError
from .pair import Pair
from .voxels import threads

__all__ = ["check_memory", "field_voxels", "needed_memory"]

# Bytes: program, libraries, network and blocks; the blocks of each further thread; a voxel of the grid of registration
# in the engine, edges and masks included, and what each further pair of images adds to it; a voxel of the written field
# while it is made, and afterwards.
_PROGRAM, _THREAD, _REGISTERED, _FURTHER, _MADE, _KEPT = 450e6, 50e6, 330, 180, 80, 40
_LEAST_GRID = 150_000
_MOST_FIELD_VOXELS, _LEAST_FIELD_VOXELS = 4_000_000, 100_000
_MEGABYTE = 1e6


def field_voxels(max_memory: int | None) -> int:
    """How many voxels the field of the network's extent may have within so many MB; never more than 4 million."""
    if max_memory is None:
        return _MOST_FIELD_VOXELS
    part = (max_memory * _MEGABYTE - _PROGRAM) / 3 / _MADE
    return int(min(max(part, _LEAST_FIELD_VOXELS), _MOST_FIELD_VOXELS))


def needed_memory(pair: Pair, max_memory: int | None = None, spline: bool = False, grid_voxels: int = 0) -> int:
    """About how many MB the program takes at the most to register a pair that has been read and write the result.

    Args:
        pair: the images.
        max_memory: see `field_voxels`.
        spline: whether the moved image is interpolated by a cubic spline.
        grid_voxels: the most voxels of the grid of registration, which is hardly finer than the images.
    """
    fixed, moving = (math.prod(image.frame.shape) for image in (pair.fixed, pair.moving))
    wide = 8 if pair.moving.array.dtype.itemsize == 8 else 4
    further = (*pair.fixed_channels, *pair.moving_channels)
    labels = 0 if pair.moving_label is None else 3 * pair.moving_label.array.dtype.itemsize + 3
    field = field_voxels(max_memory)
    stages = (
        # Intensities in single precision, with a margin; what is above the background.
        (wide + 8) * max(fixed, moving, *(one.array.size for one in further)),
        (_REGISTERED + _FURTHER * len(pair.fixed_channels)) * min(grid_voxels, max(_LEAST_GRID, 2 * fixed, 2 * moving)),
        _MADE * field,
        # The Jacobian, and normalised intensities of both.
        4 * (fixed + moving) + 4 * max(fixed, moving) + _KEPT * field,
        # The Jacobian, the moving image before and after, labels at every stage, masks of the report.
        (4 + 2 * wide + labels + 3) * fixed + (8 * moving if spline else 0) + _KEPT * field,
    )
    held = sum(image.array.nbytes for image in (*pair.images.values(), *further)) + _THREAD * (threads() - 1)
    return math.ceil((_PROGRAM + held + max(stages)) / _MEGABYTE)


def check_memory(pair: Pair, max_memory: int | None, spline: bool = False, grid_voxels: int = 0) -> None:
    """Refuse a pair that takes more than so many MB (see `needed_memory`); None refuses nothing.

    Raises:
        InputError: with what it takes.
    """
    if max_memory is not None and (needed := needed_memory(pair, max_memory, spline, grid_voxels)) > max_memory:
        raise InputError(
            f"{pair.fixed.path}, {pair.moving.path}: take about {needed} MB together, more than max_memory "
            f"{max_memory}; allow more, or crop or resample the images"
        )
