"""The sliding windows of mk-LNCC: the paper's, those of the authors' later software, and their rules of size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Kernel", "easyreg_kernels", "paper_kernels"]

MIN_WINDOW = 3
STRIDE_REFERENCES = ("window", "smallest_dimension")


class Kernel(NamedTuple):
    """One sliding window of mk-LNCC: its weight, and its size, stride and dilation in voxels (each int or 3 ints)."""

    weight: float
    window: int | Sequence[int]
    stride: int | Sequence[int]
    dilation: int | Sequence[int]


def paper_kernels(smallest_dimension: int, stride_of: str = "window") -> tuple[Kernel, ...]:
    """The windows of the paper: S/4 with weight 0.3 and S/2 with weight 0.7, dilation 2.

    Args:
        smallest_dimension: S, voxels along the shortest axis of the image.
        stride_of: ``"window"`` for a quarter of each window, ``"smallest_dimension"`` for S/4 as the paper writes.

    Returns:
        The two kernels, sizes in voxels.
    """
    return resolve_kernels(smallest_dimension, (0.3, 0.7), (0.25, 0.5), 0.25, (2, 2), stride_of)


def easyreg_kernels(smallest_dimension: int, stride_of: str = "window") -> tuple[Kernel, ...]:
    """The size-dependent windows of the authors' later software (which also squares the correlation).

    From S = 128 up S/16, S/8, S/4 with weights 0.1, 0.3, 0.6; from 64 up the paper's; below, S/2 undilated.

    Args:
        smallest_dimension: S, voxels along the shortest axis of the image.
        stride_of: As in :func:`paper_kernels`.

    Returns:
        One to three kernels, sizes in voxels.
    """
    if smallest_dimension >= 128:
        return resolve_kernels(smallest_dimension, (0.1, 0.3, 0.6), (1 / 16, 1 / 8, 1 / 4), 0.25, (2, 2, 2), stride_of)
    if smallest_dimension >= 64:
        return paper_kernels(smallest_dimension, stride_of)
    return resolve_kernels(smallest_dimension, (1.0,), (0.5,), 0.25, (1,), stride_of)


def triple(value: int | Sequence[int], name: str) -> tuple[int, ...]:
    """The value for each axis (D, H, W); a ValueError that names it where it is not an int or 3 ints above 0."""
    values = (value,) * 3 if isinstance(value, int) else tuple(value)
    if len(values) != 3 or any(int(v) != v or v < 1 for v in values):
        raise ValueError(f"{name} must be an int or 3 ints, at least 1, got {value!r}.")
    return tuple(int(v) for v in values)


def check_kernels(
    weights: Sequence[float], windows: Sequence[float | int], stride: float, dilations: Sequence[int]
) -> None:
    """Raise the ValueErrors that MultiKernelLNCC documents."""
    if not len(weights) == len(windows) == len(dilations) or not weights:
        raise ValueError(
            f"weights, windows and dilation must have one entry each per kernel, got {len(weights)}, {len(windows)} "
            f"and {len(dilations)}."
        )
    if min(weights) < 0 or abs(sum(weights) - 1) > 1e-6:
        raise ValueError(f"weights must not be negative and must sum to 1, got {tuple(weights)}.")
    for window in windows:
        if window <= 0 or (isinstance(window, float) and window > 1):
            raise ValueError(
                f"windows must be floats in (0, 1] (fractions of S) or positive ints (voxels): {window!r}."
            )
    if not 0 < stride <= 1:
        raise ValueError(f"stride must be a fraction in (0, 1], got {stride!r}.")
    if any(d < 1 for d in dilations):
        raise ValueError(f"dilation must be at least 1, got {tuple(dilations)}.")


def resolve_kernels(
    smallest: int,
    weights: Sequence[float],
    windows: Sequence[float | int],
    stride: float,
    dilations: Sequence[int],
    stride_of: str,
) -> tuple[Kernel, ...]:
    """Kernels in voxels for an image whose shortest axis has ``smallest`` voxels; arguments as in MultiKernelLNCC."""
    if stride_of not in STRIDE_REFERENCES:
        raise ValueError(f"stride_of must be one of {STRIDE_REFERENCES}, got {stride_of!r}.")
    kernels = []
    for weight, window, dilation in zip(weights, windows, dilations, strict=True):
        size = max(MIN_WINDOW, round(window * smallest) if isinstance(window, float) else window)
        step = max(1, round(stride * (size if stride_of == "window" else smallest)))
        kernels.append(Kernel(weight, size, step, dilation))
    return tuple(kernels)
