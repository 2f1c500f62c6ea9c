"""Image similarities: local and multi-kernel correlation (Equations 2 and 3), global correlation.

All losses take ``(moved, fixed, mask=None)`` of shapes (B, C, D, H, W) and (B, 1, D, H, W), compute in float32 at least
(autocast is off: half precision gives NaN variances) and give (B,), 0 for identical images. Any other callable of this
form, which gives (B,), can take their place in the configs.

Every correlation has the form ``(cov + eps) / sqrt((var_x + eps) * (var_y + eps))`` of window means. It never leaves
[-1, 1], is 1 where both windows are flat, near 0 where only one is, and has finite gradients everywhere. ``eps`` is in
squared intensity, so bring images to a common range such as [0, 1] or [-1, 1] first.

Window sums are matrix products; on CUDA leave TF32 off for them (``torch.backends.cuda.matmul.allow_tf32 = False``, the
default of PyTorch), because its 10 bits are too few for the difference of two moments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError

_MIN_WINDOW = 3
_BLOCK = 2**18  # voxels worked on at a time


class Kernel(NamedTuple):
    """One sliding window: its weight, and its size, stride and dilation in voxels."""

    weight: float
    window: int
    stride: int
    dilation: int


def global_correlation(
    x: Tensor, y: Tensor, squared: bool = False, eps: float = 1e-5, mask: Tensor | None = None
) -> Tensor:
    """The correlation ``(B,)`` of two images ``(B, C, D, H, W)`` in one window: the whole image, or the mask.

    Arguments as of `MultiKernelLNCC`; the mean over channels. ValueError for shapes that differ, or an empty mask.
    """
    x, y, mask = _checked(x, y, mask)
    with torch.autocast(x.device.type, enabled=False):
        x, y = x - _masked_mean(x, mask), y - _masked_mean(y, mask)
        covariance = _masked_mean(x * y, mask)
        correlation = _regularised_correlation(covariance, _masked_mean(x * x, mask), _masked_mean(y * y, mask), eps)
        if squared:
            correlation = correlation.square()
        return correlation.flatten(1).mean(1)


class _Similarity(nn.Module):
    def __init__(self, squared: bool = False, eps: float = 1e-5) -> None:
        super().__init__()
        self.squared, self.eps = squared, eps


class MultiKernelLNCC(_Similarity):
    """Equation 3 as a loss: 1 minus a weighted sum of local correlations with windows of several sizes.

    One window is Equation 2: ``MultiKernelLNCC((1.0,), (9,), dilation=1)``.

    The defaults are the paper's: windows of S/4 and S/2, dilated by 2, with S the smallest image dimension. The paper
    states a "sliding window stride" of S/4; its authors' code steps by a quarter of each window, which is the default
    here because S/4 leaves a handful of windows. ``stride_of="smallest_dimension"`` is the paper to the letter.
    An even stride with dilation 2 keeps to voxels of one parity: the S/2 windows may then see an eighth of the volume,
    so prefer odd strides (or dilation 1) where images are noisy.

    Args:
        weights: one for each window, not negative, sum 1.
        windows: sizes: a float in (0, 1] is a fraction of S, an int is voxels. At least 3 voxels, clipped to each axis.
        stride: fraction in (0, 1] of what ``stride_of`` names; at least one voxel.
        dilation: voxels between the samples of a window, one for all or one each.
        stride_of: ``"window"`` or ``"smallest_dimension"``.
        squared: square the correlation of each window, as the authors' code does and Equation 2 does not.
        eps: regulariser, in squared intensity.

    Raises:
        ValueError: for weights that are negative or do not sum to 1, unequal lengths or sizes out of range.
    """

    def __init__(
        self,
        weights: Sequence[float] = (0.3, 0.7),
        windows: Sequence[float | int] = (0.25, 0.5),
        stride: float = 0.25,
        dilation: int | Sequence[int] = 2,
        stride_of: str = "window",
        squared: bool = False,
        eps: float = 1e-5,
    ) -> None:
        super().__init__(squared, eps)
        self.weights, self.windows, self.stride, self.stride_of = tuple(weights), tuple(windows), stride, stride_of
        self.dilations = (dilation,) * len(self.windows) if isinstance(dilation, int) else tuple(dilation)
        counts = [len(self.weights), len(self.windows), len(self.dilations)]
        if len(set(counts)) > 1 or 0 in counts:
            raise ValueError(f"weights, windows and dilation must have one entry each per kernel, got {counts}.")
        if min(self.weights) < 0 or abs(sum(self.weights) - 1) > 1e-6:
            raise ValueError(f"weights must not be negative and must sum to 1, got {self.weights}.")
        if any(window <= 0 or (isinstance(window, float) and window > 1) for window in self.windows):
            raise ValueError(f"windows must be floats in (0, 1] (parts of S) or ints above 0 (voxels): {self.windows}.")
        if not 0 < stride <= 1 or min(self.dilations) < 1:
            raise ValueError(f"stride must lie in (0, 1], dilation from 1 on, got {stride} and {self.dilations}.")
        if stride_of not in ("window", "smallest_dimension"):
            raise ValueError(f"stride_of must be 'window' or 'smallest_dimension', got {stride_of!r}.")

    def kernels(self, shape: Sequence[int]) -> tuple[Kernel, ...]:
        """The kernels, in voxels, that an image of shape ``(D, H, W)`` is compared with."""
        smallest, kernels = min(shape), []
        for weight, window, dilation in zip(self.weights, self.windows, self.dilations, strict=True):
            size = max(_MIN_WINDOW, round(window * smallest) if isinstance(window, float) else window)
            step = max(1, round(self.stride * (size if self.stride_of == "window" else smallest)))
            kernels.append(Kernel(weight, size, step, dilation))
        return tuple(kernels)

    def forward(self, moved: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
        """The loss ``(B,)`` of moved against fixed, ``(B, C, D, H, W)`` both; mask ``(B, 1, D, H, W)``."""
        x, y, mask = _checked(moved, fixed, mask)
        kernels = self.kernels(x.shape[2:])
        with torch.autocast(x.device.type, enabled=False):
            scores = _windowed_scores(x, y, kernels, self.squared, self.eps, mask)
            # Weights that sum to 1 up to rounding must still give 0 at identical images: sum losses, not scores.
            return sum(kernel.weight * (1 - score) for kernel, score in zip(kernels, scores, strict=True))


class NormalizedCrossCorrelation(_Similarity):
    """1 minus `global_correlation`, with its arguments."""

    def forward(self, moved: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
        """As `MultiKernelLNCC`."""
        return 1 - global_correlation(moved, fixed, self.squared, self.eps, mask)


def _checked(x: Tensor, y: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Two images and perhaps a mask in their common type, float32 at least."""
    if x.ndim != 5 or x.shape != y.shape:
        raise ValueError(
            f"moved and fixed must have one shape (B, C, D, H, W), got {tuple(x.shape)} and {tuple(y.shape)}."
        )
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    if mask is None:
        return x.to(dtype), y.to(dtype), None
    expected = (x.shape[0], 1, *x.shape[2:])
    if tuple(mask.shape) != expected:
        raise ValueError(f"mask must have the shape {expected} (B, 1, D, H, W), got {tuple(mask.shape)}.")
    if bool((mask < 0).any()) or not bool((mask > 0).flatten(1).any(1).all()):
        raise ValueError("mask is negative, or zero everywhere for a pair: give weights in [0, 1], some above 0.")
    return x.to(dtype), y.to(dtype), mask.to(dtype)


def _masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    axes = (2, 3, 4)
    if mask is None:
        return values.mean(axes, keepdim=True)
    return (values * mask).sum(axes, keepdim=True) / mask.sum(axes, keepdim=True)


def _regularised_correlation(covariance: Tensor, variance_x: Tensor, variance_y: Tensor, eps: float) -> Tensor:
    return (covariance + eps) / ((variance_x + eps) * (variance_y + eps)).sqrt()


def _windowed_scores(
    x: Tensor, y: Tensor, kernels: Sequence[Kernel], squared: bool, eps: float, mask: Tensor | None
) -> list[Tensor]:
    """The score (B,) of each kernel; the products of the images are formed and swept once for all kernels.

    Windows lie inside the image (no padding); one that does not fit an axis is clipped to the largest that fits with
    its dilation. The voxels that the stride leaves over are shared by both ends of the axis, so that flipping both
    images hardly changes the score. Under a mask moments are weighted means, and windows weigh as their mask mass.
    """
    batch, channels = x.shape[:2]
    # A shift of intensities changes no correlation, so the mean needs no gradient; without it the moments are small
    # and their differences keep their digits in float32.
    x = x - _masked_mean(x.detach(), mask)
    y = y - _masked_mean(y.detach(), mask)
    matrices = [_window_matrices(x.shape[2:], kernel, x) for kernel in kernels]
    if mask is None:
        moments = _window_means([x, y, x * x, y * y, x * y], matrices)
        masses = [None] * len(kernels)
    else:
        mask = mask.expand(-1, channels, -1, -1, -1)
        mx, my = mask * x, mask * y
        moments, masses = [], []
        for means in _window_means([mx, my, mx * x, my * y, mx * y, mask], matrices):
            mass = means[-1]
            # An empty window has the weight 0; a divisor of 1 keeps its gradient finite.
            moments.append(means[:-1] / torch.where(mass > 0, mass, torch.ones_like(mass)))
            masses.append(mass.reshape(batch, -1))
    return [_score_of_moments(m, mass, batch, squared, eps) for m, mass in zip(moments, masses, strict=True)]


def _score_of_moments(moments: Tensor, mass: Tensor | None, batch: int, squared: bool, eps: float) -> Tensor:
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = moments.unbind(0)
    raw_x, raw_y = mean_xx - mean_x * mean_x, mean_yy - mean_y * mean_y
    variance_x, variance_y = raw_x.clamp(min=0), raw_y.clamp(min=0)
    # What the clamps add is rounding. The covariance of identical images holds the same rounding and must lose it too,
    # or a flat window would score below 1.
    rounding = ((variance_x - raw_x) + (variance_y - raw_y)).detach() / 2
    covariance = mean_xy - mean_x * mean_y + rounding
    # By Cauchy and Schwarz only rounding leaves [-1, 1]: in nearly flat windows of raw intensities it would, by far.
    correlation = _regularised_correlation(covariance, variance_x, variance_y, eps).clamp(-1, 1)
    if squared:
        correlation = correlation.square()
    correlation = correlation.reshape(batch, -1)
    if mass is None:
        return correlation.mean(1)
    total = mass.sum(1)
    if not bool((total > 0).all()):
        raise ValueError("mask has no weight in any window: use a smaller stride or dilation, or a larger mask.")
    return (correlation * mass).sum(1) / total


def _window_means(volumes: Sequence[Tensor], matrices: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Means of each volume in each kernel's windows: one (len(volumes), B, C, d, h, w) for each kernel.

    The last axis is reduced for all kernels in one sweep over each full volume; what follows is small.
    """
    last = torch.cat([m[2] for m in matrices]).T
    reduced = torch.stack([volume @ last for volume in volumes])
    results = []
    for part, (depth, height, _) in zip(reduced.split([m[2].shape[0] for m in matrices], -1), matrices, strict=True):
        rows = height @ part
        columns = depth @ rows.flatten(-2)
        results.append(columns.unflatten(-1, rows.shape[-2:]))
    return results


def _window_matrices(shape: Sequence[int], kernel: Kernel, like: Tensor) -> list[Tensor]:
    """For each axis the banded matrix (windows, voxels) that takes the mean over each window."""
    stride, dilation, matrices = kernel.stride, kernel.dilation, []
    for size in shape:
        window = min(kernel.window, (size - 1) // dilation + 1)
        free = size - (window - 1) * dilation - 1
        starts = torch.arange(free % stride // 2, free + 1, stride, device=like.device)
        columns = starts[:, None] + dilation * torch.arange(window, device=like.device)
        matrices.append(like.new_zeros(len(starts), size).scatter_(1, columns, 1 / window))
    return matrices


class BoxMoments(NamedTuple):
    """What `BoxCorrelation` knows of a moved image in the windows of one size, ``(B, C, D, H, W)`` each."""

    mean: Tensor
    variance: Tensor
    covariance: Tensor
    towards: Tensor


class BoxCorrelation:
    """Equation 3 with a window around every voxel, cut off at the faces: the loss and its derivative by the moved.

    What an optimiser needs at every step, without automatic differentiation: the fixed image's moments are taken once,
    and box sums cost a few additions a voxel whatever the window's size. Windows weigh as their mass.

    Args:
        fixed: ``(B, C, D, H, W)``, channels of about [0, 1].
        mask: weights of its voxels in [0, 1], ``(B, 1, D, H, W)``; None where all count.
        radii: of the windows in voxels, each of 2 r + 1 voxels; all weigh the same.
        eps: regulariser of variances and covariance, squared intensity.
        shares: weights of the channels, sum 1; None for equal ones.
    """

    def __init__(
        self,
        fixed: Tensor,
        mask: Tensor | None = None,
        radii: Sequence[int] = (2,),
        eps: float = 1e-4,
        shares: Sequence[float] | None = None,
    ):
        if not radii or min(radii) < 1:
            raise ValueError(f"BoxCorrelation: radii={tuple(radii)}; give at least one, from 1 on.")
        channels = fixed.shape[1]
        self.shares = fixed.new_tensor([1 / channels] * channels if shares is None else shares).view(1, -1, 1, 1, 1)
        # A shift changes no correlation; without it the moments are small and keep their digits.
        weight = torch.ones_like(fixed[:, :1]) if mask is None else mask
        self.shift = channel_sums(weight * fixed) / channel_sums(weight).clamp(min=1e-3)
        self.fixed, self.radii, self.eps = fixed - self.shift, tuple(radii), eps
        self._weigh(mask)

    def within(self, mask: Tensor) -> BoxCorrelation:
        """The same that counts only what lies in another mask."""
        other = copy(self)
        other._weigh(mask)
        return other

    def _weigh(self, mask: Tensor | None) -> None:
        self.mask, channels = mask, self.fixed.shape[1]
        weight = torch.ones_like(self.fixed[:, :1]) if mask is None else mask
        fixed = self.fixed.expand(len(weight), -1, -1, -1, -1)
        self._windows = []
        for radius in self.radii:
            found = []
            for rows in row_blocks(fixed.shape[2:]):
                near, within = reach(rows, radius, fixed.shape[2])
                one, weighted = fixed[:, :, near], weight[:, :, near] * fixed[:, :, near]
                products = torch.cat([weight[:, :, near], weighted, weighted * one], dim=1)
                mass, mean, square = box_sums(products, radius, within).split([1, channels, channels], dim=1)
                inverse = 1 / mass.clamp(min=1e-3)
                mean = mean * inverse
                found.append((inverse, mass, mean, (square * inverse - mean * mean).clamp_(min=0).add_(self.eps)))
            inverse, mass, mean, variance = (torch.cat(parts, dim=2) for parts in zip(*found, strict=True))
            self._windows.append((inverse, mass / channel_sums(mass).clamp(min=1e-3), mean, variance))

    def moments(self, moved: Tensor) -> list[BoxMoments]:
        """Those of moved channels ``(B, C, D, H, W)`` with the fixed ones, for each size of window."""
        found = []
        for radius, window in zip(self.radii, self._windows, strict=True):
            found.append(BoxMoments(*(torch.empty_like(moved) for _ in BoxMoments._fields)))
            for rows in row_blocks(moved.shape[2:]):
                near, within = reach(rows, radius, moved.shape[2])
                one = moved[:, :, near] - self.shift
                weighted = one if self.mask is None else one * self.mask[:, :, near]
                products = torch.cat([weighted, weighted * one, weighted * self.fixed[:, :, near]], dim=1)
                inverse, _, fixed_mean, fixed_variance = (part[:, :, rows] for part in window)
                mean, square, product = (box_sums(products, radius, within) * inverse).chunk(3, dim=1)
                variance = (square - mean * mean).clamp_(min=0).add_(self.eps)
                covariance = (product - mean * fixed_mean).add_(self.eps)
                made = (mean, variance, covariance, (variance * fixed_variance).rsqrt_())
                for whole, part in zip(found[-1], made, strict=True):
                    whole[:, :, rows] = part
        return found

    def loss(self, moments: Sequence[BoxMoments]) -> Tensor:
        """1 - the mean correlation of the windows, ``(B,)``."""
        score = 0
        for of, (_, weight, _, _) in zip(moments, self._windows, strict=True):

            def made(rows: slice, of: BoxMoments = of, weight: Tensor = weight) -> Tensor:
                return of.covariance[:, :, rows] * of.towards[:, :, rows] * weight[:, :, rows]

            score = score + (blocked_sums(made, weight.shape[2:]) * self.shares.flatten()).sum(1)
        return 1 - score / len(moments)

    def varied_mean(self, values: Tensor) -> float:
        """The mean of values ``(B, C, D, H, W)``, each as much as the fixed image varies in its first window."""
        _, weight, _, variance = self._windows[0]
        weight = weight * variance.sqrt()
        return (volume_sums(values * weight).sum() / volume_sums(weight).sum()).item()

    def derivative(self, moved: Tensor, moments: Sequence[BoxMoments]) -> tuple[Tensor, Tensor]:
        """The loss's derivative by each voxel of the moved channels, and its curvature.

        The correlation of a window is 1 less half the mean squared difference of intensities that the window
        normalises. Its curvature (Gauss-Newton, the normalisation held) is 1 over the moved window's variance.

        Args:
            moved: ``(B, C, D, H, W)``.
            moments: its own.

        Returns:
            Both as ``moved``.
        """
        derivative, curvature = torch.empty_like(moved), torch.empty_like(moved)
        for rows in row_blocks(moved.shape[2:]):
            terms: Tensor | None = None
            for of, radius, window in zip(moments, self.radii, self._windows, strict=True):
                near, within = reach(rows, radius, moved.shape[2])
                inverse, weight, fixed_mean, _ = (part[:, :, near] for part in window)
                mean, variance, covariance, towards = (part[:, :, near] for part in of)
                share = inverse * weight * self.shares / len(self.radii)
                towards = towards * share
                away = towards * covariance / variance
                shift = away * mean - towards * fixed_mean
                summed = box_sums(torch.cat([towards, away, shift, share / variance], dim=1), radius, within)
                terms = summed if terms is None else terms + summed
            towards, away, shift, bend = terms.chunk(4, dim=1)
            slope = away * (moved[:, :, rows] - self.shift) - towards * self.fixed[:, :, rows] - shift
            for whole, part in ((derivative, slope), (curvature, bend)):
                whole[:, :, rows] = part if self.mask is None else part * self.mask[:, :, rows]
        return derivative, curvature


class AnySimilarity:
    """A similarity of one's own with the interface of `BoxCorrelation`, by automatic differentiation.

    Its curvature is taken to be the same everywhere, c = Σ g² / 2 L of a loss L with the derivative g: exact where the
    loss is a multiple of the squared difference. Elsewhere the line search mends it; L-BFGS and SGD do without.

    Args:
        similarity: loss of (moved, fixed, mask), ``(B,)``.
        fixed: ``(B, 1, D, H, W)``.
        mask: weights of its voxels in [0, 1], as ``fixed``; None where all count.
    """

    def __init__(self, similarity: Callable, fixed: Tensor, mask: Tensor | None = None):
        self.similarity, self.fixed, self.mask = similarity, fixed, mask

    def within(self, mask: Tensor) -> AnySimilarity:
        """As `BoxCorrelation.within`."""
        return AnySimilarity(self.similarity, self.fixed, mask)

    def moments(self, moved: Tensor) -> Tensor:
        """What `loss` takes: the moved image."""
        return moved

    def loss(self, moved: Tensor) -> Tensor:
        """The loss of each item, ``(B,)``."""
        mask = None if self.mask is None else self.mask.expand_as(moved)
        found = self.similarity(moved, self.fixed.expand_as(moved), mask)
        if found.shape != moved.shape[:1]:
            raise InputError(
                f"similarity: {self.similarity} gives the shape {tuple(found.shape)} for {len(moved)} pairs of images; "
                "give one loss for each, (B,)"
            )
        return found

    def derivative(self, moved: Tensor, moments: Tensor) -> tuple[Tensor, Tensor]:
        """As `BoxCorrelation.derivative`."""
        with torch.enable_grad():
            seen = moved.detach().requires_grad_()
            loss = self.loss(seen)
            (derivative,) = torch.autograd.grad(loss.sum(), seen)
        curvature = volume_sums(derivative.square()).flatten() / (2 * loss.detach()).clamp(min=1e-12)
        curvature = torch.ones_like(moved) * curvature.clamp(min=1e-12).view(-1, 1, 1, 1, 1)
        return derivative, curvature if self.mask is None else curvature * self.mask


def row_blocks(shape: Sequence[int]) -> list[slice]:
    """The rows of a grid's first axis in blocks of about `_BLOCK` voxels, an even number of rows each but the last.

    What is made of one block on the way stays in the processor's cache, and takes no memory for all.
    """
    count = max(2, _BLOCK // (shape[1] * shape[2]) // 2 * 2)
    return [slice(start, min(start + count, shape[0])) for start in range(0, shape[0], count)]


def reach(rows: slice, radius: int, size: int) -> tuple[slice, slice]:
    """The rows of so many that windows around some rows see, and where these lie among them."""
    first = max(rows.start - radius, 0)
    return slice(first, min(rows.stop + radius, size)), slice(rows.start - first, rows.stop - first)


def blocked_sums(made: Callable[[slice], Tensor], shape: Sequence[int]) -> Tensor:
    """Sums ``(B, C)`` of what is made of a grid's rows, ``(B, C, D, H, W)`` in all, as `volume_sums`."""
    return torch.cat([made(rows).sum(4).sum(3) for rows in row_blocks(shape)], dim=2).sum(2)


def box_sums(volumes: Tensor, radius: int, rows: slice | None = None) -> Tensor:
    """Sums over the window of 2 radius + 1 voxels around every voxel, cut off at the faces, ``(B, C, D, H, W)``.

    Sums over 1, 2, 4, ... voxels are made of each other; unlike running sums they lose no digits. ``rows``: those of
    the first axis that are asked for.
    """
    for axis in (2, 3, 4):
        length = volumes.shape[axis]
        first, last = (rows.start, rows.stop) if axis == 2 and rows is not None else (0, length)
        pad, size = [0] * 6, last - first
        pad[2 * (4 - axis)], pad[2 * (4 - axis) + 1] = radius - first, last + radius - length
        part, width, left = F.pad(volumes, pad), 1, 2 * radius + 1
        total, start = None, 0
        while left:
            if left & 1:
                piece = part.narrow(axis, start, size)
                total = piece if total is None else total + piece
                start += width
            left >>= 1
            if left:
                length = part.shape[axis] - width
                part = part.narrow(axis, 0, length) + part.narrow(axis, width, length)
                width *= 2
        volumes = total
    return volumes


def channel_sums(volume: Tensor) -> Tensor:
    """Sums ``(B, C, 1, 1, 1)`` of ``(B, C, D, H, W)``, as `volume_sums`."""
    return volume.sum(4, keepdim=True).sum(3, keepdim=True).sum(2, keepdim=True)


def volume_sums(volume: Tensor) -> Tensor:
    """Sums ``(B,)`` of ``(B, C, D, H, W)``: axis by axis, so that they do not depend on the number of threads."""
    return volume.sum(4).sum(3).sum(2).sum(1)
