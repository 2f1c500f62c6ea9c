"""Images on the grids of a scale, and the checks of settings that are given for each scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor

__all__ = ["at_scale", "check_scales", "one_each"]

_LEAST = 8


def at_scale(volume: Tensor, scale: float) -> Tensor:
    """A volume on the grid of a scale, by averages of what each coarse voxel covers; at least 8 voxels an axis.

    Args:
        volume: ``(B, C, D, H, W)``.
        scale: size of the grid relative to the volume's, in (0, 1].
    """
    if scale == 1:
        return volume
    shape = [min(n, max(_LEAST, round(n * scale))) for n in volume.shape[2:]]
    return F.adaptive_avg_pool3d(volume, shape)


def check_scales(owner: str, scales: Sequence[float], counts: Sequence[int], name: str) -> None:
    """Refuse scales that are out of range or order, and counts of steps that do not go with them.

    Args:
        owner: class to name in the message.
        scales: in (0, 1], in rising order.
        counts: whole numbers from 0 on, one for each scale.
        name: of ``counts``.

    Raises:
        ValueError: naming what is wrong.
    """
    if len(scales) != len(counts) or not scales or any(not 0 < s <= 1 for s in scales) or any(n < 0 for n in counts):
        raise ValueError(f"{owner}: scales={scales}, {name}={counts}; give as many of each, in (0, 1] and from 0 on.")
    if list(scales) != sorted(scales):
        raise ValueError(f"{owner}: scales={scales}; give them in rising order.")


def one_each(owner: str, similarity: Callable | Sequence[Callable], count: int) -> tuple[Callable, ...]:
    """The similarity of each scale.

    Args:
        owner: class to name in the message.
        similarity: one for all scales, or one for each; built with ``reduction`` ``"none"``.
        count: number of scales.

    Raises:
        ValueError: for another number of them, or one that reduces over the batch.
    """
    found = tuple(similarity) if isinstance(similarity, Sequence) else (similarity,) * count
    if len(found) != count:
        raise ValueError(f"{owner}: {len(found)} similarities for {count} scales; give one, or one for each.")
    if any(getattr(one, "reduction", "none") != "none" for one in found):
        raise ValueError(f"{owner}: the similarity must be built with reduction='none'.")
    return found
