"""How the engines compare two images: what they look at, the loss, its derivative and its curvature.

A `Comparison` makes a `Compared` for the grid of a level, so that both engines do without automatic differentiation.
What is compared are channels, ``(B, C, D, H, W)``, all under one map; masks are ``(B, 1, D, H, W)``.

| name | channels | loss | curvature (Gauss-Newton) |
|---|---|---|---|
| lncc | image, magnitude of its gradient | 1 - local correlation, `BoxCorrelation` | normalisation held |
| mind | MIND-SSC (Heinrich et al., MICCAI 2013) | squared differences | exact |
| nmi | image | 1 - normalised mutual information of a joint histogram | Fisher information |
| ssd | image | squared differences | exact |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .similarity import AnySimilarity, BoxCorrelation, blocked_sums, volume_sums

__all__ = [
    "COMPARISONS",
    "Compared",
    "Comparison",
    "Correlation",
    "Differences",
    "MutualInformation",
    "SelfSimilarity",
    "Several",
    "SquaredDifference",
    "alikeness",
    "box_means",
    "central_differences",
    "comparison_of",
    "self_similarity",
]

_NEIGHBOURS = ((-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1))
_PAIRS = [
    (i, j)
    for i, one in enumerate(_NEIGHBOURS)
    for j, other in enumerate(_NEIGHBOURS[:i])
    if sum(a * b for a, b in zip(one, other, strict=True)) == 0
]


class Compared(Protocol):
    """A fixed image on one grid, and what moved images are compared with it by."""

    def within(self, mask: Tensor) -> Compared:
        """The same that counts only what lies in another mask."""

    def moments(self, moved: Tensor) -> Any:
        """What `loss` and `derivative` take of moved channels ``(B, C, D, H, W)``."""

    def loss(self, moments: Any) -> Tensor:
        """``(B,)``, 0 for identical images."""

    def derivative(self, moved: Tensor, moments: Any) -> tuple[Tensor, Tensor]:
        """The loss's derivative by each voxel of the moved channels, ``(B, C, D, H, W)``, and its curvature.

        The curvature may be one for all channels, ``(B, 1, D, H, W)``.
        """


class Comparison(Protocol):
    """A similarity of the engines.

    Attributes:
        scale: weight of an affine's regularity and tolerance, against local correlation.
        stiffness: weight of a deformation's regularity, against local correlation; tuned on known warps
            (benchmarks/results/contrasts.md).
    """

    scale: float
    stiffness: float

    def channels(self, image: Tensor) -> Tensor:
        """What is made of an image ``(1, 1, D, H, W)`` once, before it is brought to coarser grids."""

    def on(self, moving: Tensor, fixed: Tensor, mask: Tensor | None) -> tuple[Tensor, Compared]:
        """The moving channels on a level's grid, and what they are compared with once they are moved."""


class Correlation:
    """`BoxCorrelation` of the images and of their gradients' magnitudes, which show edges.

    Args:
        edges: weight of the magnitudes, the rest being that of the images.
        radii: of the windows in voxels.
        window: in place of ``radii``, part of the smallest axis.
        eps: see `BoxCorrelation`.
    """

    scale = stiffness = 1.0

    def __init__(
        self, edges: float = 0.5, radii: Sequence[int] = (2,), window: float | None = None, eps: float = 1e-3
    ) -> None:
        self.edges, self.radii, self.window, self.eps = edges, tuple(radii), window, eps

    def channels(self, image: Tensor) -> Tensor:
        """The image and its gradient's magnitude in units of its 99th percentile; without a weight left out."""
        if not self.edges:
            return image
        magnitude = central_differences(image).square().sum(1, keepdim=True).sqrt()
        unit = magnitude.flatten().kthvalue(math.ceil(0.99 * magnitude.numel())).values
        return torch.cat([image, magnitude / unit.clamp(min=1e-3)], dim=1)

    def on(self, moving: Tensor, fixed: Tensor, mask: Tensor | None) -> tuple[Tensor, BoxCorrelation]:
        """As `Comparison.on`."""
        radii = self.radii if self.window is None else (max(1, round(self.window * min(fixed.shape[2:]))),)
        shares = (1 - self.edges, self.edges)[: fixed.shape[1]]
        return moving, BoxCorrelation(fixed, mask, radii, self.eps, shares)


class Differences:
    """`SquaredDifference` of the images."""

    scale = stiffness = 1.0

    def channels(self, image: Tensor) -> Tensor:
        """The image."""
        return image

    def on(self, moving: Tensor, fixed: Tensor, mask: Tensor | None) -> tuple[Tensor, SquaredDifference]:
        """As `Comparison.on`."""
        return moving, SquaredDifference(fixed, mask)


class SelfSimilarity(Differences):
    """`SquaredDifference` of `self_similarity`, of the images as they are on each grid."""

    stiffness = 4.0

    def on(self, moving: Tensor, fixed: Tensor, mask: Tensor | None) -> tuple[Tensor, SquaredDifference]:
        """As `Comparison.on`."""
        return self_similarity(moving), SquaredDifference(self_similarity(fixed), mask)


class MutualInformation(Differences):
    """`JointHistogram` of the images.

    Args:
        bins: of either image.
    """

    scale, stiffness = 0.1, 10.0

    def __init__(self, bins: int = 24) -> None:
        self.bins = bins

    def on(self, moving: Tensor, fixed: Tensor, mask: Tensor | None) -> tuple[Tensor, JointHistogram]:
        """As `Comparison.on`."""
        return moving, JointHistogram(fixed, mask, self.bins)


class Custom(Differences):
    """A loss of (moved, fixed, mask), ``(B,)``, of the images (`AnySimilarity`)."""

    def __init__(self, similarity: Callable) -> None:
        self.similarity = similarity

    def on(self, moving: Tensor, fixed: Tensor, mask: Tensor | None) -> tuple[Tensor, AnySimilarity]:
        """As `Comparison.on`."""
        return moving, AnySimilarity(self.similarity, fixed, mask)


class SquaredDifference:
    """Half the mean squared difference of channels over the variance of the fixed image's: 1 for unrelated images.

    Args:
        fixed: ``(1, C, D, H, W)``.
        mask: weights of its voxels in [0, 1]; None where all count.
    """

    def __init__(self, fixed: Tensor, mask: Tensor | None = None, unit: Tensor | None = None) -> None:
        self.fixed, self.mask = fixed, mask
        weight = torch.ones_like(fixed[:, :1]) if mask is None else mask
        self.weight = weight / volume_sums(weight).clamp(min=1e-3).view(-1, 1, 1, 1, 1)
        if unit is None:
            mean = blocked_sums(lambda rows: self.weight[:, :, rows] * fixed[:, :, rows], fixed.shape[2:])
            mean = mean[..., None, None, None].expand_as(fixed)
            unit = self._squares(fixed, mean).clamp(min=1e-6).view(-1, 1, 1, 1, 1)
        self.unit = unit
        self.weight = self.weight / unit

    def within(self, mask: Tensor) -> SquaredDifference:
        """As `Compared.within`."""
        return SquaredDifference(self.fixed, mask, self.unit)

    def _squares(self, channels: Tensor, others: Tensor) -> Tensor:
        """The weighted sum of squared differences, ``(B,)``."""

        def made(rows: slice) -> Tensor:
            squares = (channels[:, :, rows] - others[:, :, rows]).square_()
            return squares.sum(1, keepdim=True).mul_(self.weight[:, :, rows])

        return blocked_sums(made, channels.shape[2:]).sum(1)

    def moments(self, moved: Tensor) -> Tensor:
        """The moved channels: differences are taken when they are needed."""
        return moved

    def loss(self, moments: Tensor) -> Tensor:
        """As `Compared.loss`."""
        return self._squares(moments, self.fixed) / 2

    def derivative(self, moved: Tensor, moments: Tensor) -> tuple[Tensor, Tensor]:
        """As `Compared.derivative`."""
        return (moved - self.fixed).mul_(self.weight), self.weight


class JointHistogram:
    """1 - normalised mutual information, as a part of the mean entropy, of a joint histogram, linear between bins.

    Args:
        fixed: ``(1, 1, D, H, W)`` in [0, 1].
        mask: weights of its voxels in [0, 1]; None where all count.
        bins: of either image.
    """

    def __init__(self, fixed: Tensor, mask: Tensor | None = None, bins: int = 24) -> None:
        self.fixed, self.bins = fixed, bins
        self.weight = torch.ones_like(fixed) if mask is None else mask
        self.row, self.rest = self._placed(fixed)

    def _placed(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The lower bin of each voxel, and its part of the next one."""
        at = image.clamp(0, 1) * (self.bins - 1)
        low = at.floor().clamp(max=self.bins - 2)
        return low.long(), at - low

    def within(self, mask: Tensor) -> JointHistogram:
        """As `Compared.within`."""
        return JointHistogram(self.fixed, mask, self.bins)

    def moments(self, moved: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Joint probabilities ``(B, fixed, moved)``, and where the moved voxels lie between bins."""
        column, part = self._placed(moved)
        found = []
        for b in range(len(moved)):
            item = min(b, len(self.weight) - 1)
            weight, row, rest = self.weight[item], self.row[0], self.rest[0]
            total = 0
            for i, share in ((0, 1 - rest), (1, rest)):
                for j, other in ((0, 1 - part[b]), (1, part[b])):
                    place = ((row + i) * self.bins + column[b] + j).flatten()
                    total = total + torch.bincount(place, (share * other * weight).flatten(), self.bins**2)
            found.append(total / total.sum().clamp(min=1e-6))
        return torch.stack(found).view(-1, self.bins, self.bins), column, part

    def loss(self, moments: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """As `Compared.loss`."""
        joint = moments[0]
        single = _entropy(joint.sum(1)) + _entropy(joint.sum(2))
        return 2 * _entropy(joint.flatten(1)) / single.clamp(min=1e-6) - 1

    def derivative(self, moved: Tensor, moments: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """As `Compared.derivative`; the curvature is the Fisher information of a moved about a fixed intensity."""
        joint, column, _ = moments
        p, q = joint.sum(2, keepdim=True), joint.sum(1, keepdim=True)
        single = (_entropy(joint.sum(1)) + _entropy(joint.sum(2))).clamp(min=1e-6).view(-1, 1, 1)
        both = _entropy(joint.flatten(1)).view(-1, 1, 1)
        logs = [one.clamp(min=1e-9).log() for one in (joint, p, q)]
        table = -2 / single * logs[0] + 2 * both / single.square() * (logs[1] + logs[2])
        slope = (table[:, :, 1:] - table[:, :, :-1]) * (self.bins - 1)
        given = joint / q.clamp(min=1e-9)
        bend = (given[:, :, 1:] + given[:, :, :-1]) / 2 * ((logs[0] - logs[2]).diff(dim=2) * (self.bins - 1)).square()
        bend = 2 / single.squeeze(2) * bend.sum(1)
        derivative, curvature = [], []
        for b in range(len(moved)):
            item = min(b, len(self.weight) - 1)
            share = self.weight[item] / self.weight[item].sum().clamp(min=1e-3)
            flat, width = slope[b].flatten(), self.bins - 1
            place = self.row[0] * width + column[b]
            found = flat[place] * (1 - self.rest[0]) + flat[place + width] * self.rest[0]
            inside = (moved[b] > 0) & (moved[b] < 1)
            derivative.append(found * share * inside)
            curvature.append(bend[b][column[b]] * share)
        return torch.stack(derivative), torch.stack(curvature)


def alikeness(moved: Tensor, fixed: Tensor, mask: Tensor | None = None, radius: int = 2) -> tuple[float, float]:
    """Local correlation as it is, and with the moved greys replaced by the fixed ones that they meet on average.

    Two images of one contrast gain nothing by it, however well they are aligned.

    Args:
        moved: ``(1, 1, D, H, W)`` in [0, 1].
        fixed: as ``moved``.
        mask: weights in [0, 1], as ``moved``; None where all count.
        radius: of the correlation's windows, voxels.

    Returns:
        Means of the windows, which weigh as the fixed image varies in them.
    """
    histogram = JointHistogram(fixed, mask)
    joint, column, part = histogram.moments(moved)
    greys = joint[0].T @ torch.linspace(0, 1, histogram.bins).to(fixed) / joint[0].sum(0).clamp(min=1e-6)
    met = greys[column] * (1 - part) + greys[column + 1] * part
    correlation = BoxCorrelation(fixed, mask, (radius,))
    means = []
    for one in (moved, met):
        of = correlation.moments(one)[0]
        means.append(correlation.varied_mean((of.covariance - correlation.eps) * of.towards))
    return means[0], means[1]


def _entropy(p: Tensor) -> Tensor:
    return -(p * p.clamp(min=1e-9).log()).sum(1)


def central_differences(volume: Tensor) -> Tensor:
    """Of ``(B, 1, D, H, W)`` along each axis, voxel to voxel, one-sided at the faces: ``(B, 3, D, H, W)``."""
    result = volume.expand(-1, 3, -1, -1, -1).clone()
    for axis, part in enumerate(result.split(1, dim=1), start=2):
        last = volume.shape[axis] - 1
        torch.sub(
            volume.narrow(axis, 2, last - 1), volume.narrow(axis, 0, last - 1), out=part.narrow(axis, 1, last - 1)
        )
        part.narrow(axis, 1, last - 1).mul_(0.5)
        torch.sub(volume.narrow(axis, 1, 1), volume.narrow(axis, 0, 1), out=part.narrow(axis, 0, 1))
        torch.sub(volume.narrow(axis, last, 1), volume.narrow(axis, last - 1, 1), out=part.narrow(axis, last, 1))
    return result


def self_similarity(volume: Tensor) -> Tensor:
    """MIND-SSC of ``(B, 1, D, H, W)``: ``(B, 12, D, H, W)``, 1 for the most alike of the patches around a voxel."""
    padded = F.pad(volume, [1] * 6, mode="replicate")
    shape = volume.shape[2:]
    around = [
        padded[(..., *(slice(1 + n, 1 + n + size) for n, size in zip(shift, shape, strict=True)))]
        for shift in _NEIGHBOURS
    ]
    distances = torch.cat([box_means((around[i] - around[j]).square_(), 1) for i, j in _PAIRS], dim=1)
    distances -= distances.amin(dim=1, keepdim=True)
    spread = distances.mean(dim=1, keepdim=True)
    middle = spread.mean().item()
    return distances.div_(spread.clamp_(max(1e-3 * middle, 1e-12), max(1e3 * middle, 1e-12))).neg_().exp_()


def box_means(volume: Tensor, radius: int) -> Tensor:
    """Means over cubes, the outermost voxels repeated; in a tenth of the time of PyTorch's pooling."""
    for axis in (2, 3, 4):
        margin, size = [0] * 6, volume.shape[axis]
        margin[8 - 2 * axis] = margin[9 - 2 * axis] = radius
        padded = F.pad(volume, margin, mode="replicate")
        total = padded.narrow(axis, 0, size) + padded.narrow(axis, 1, size)
        for start in range(2, 2 * radius + 1):
            total += padded.narrow(axis, start, size)
        volume = total.div_(2 * radius + 1)
    return volume


COMPARISONS: dict[str, Callable[[], Comparison]] = {
    "mind": SelfSimilarity,
    "nmi": MutualInformation,
    "ssd": Differences,
}


class Several:
    """Several pairs of images under one map, each compared in its own way; what they lose is added.

    Args:
        comparisons: of each pair; regularity and tolerance are those of the first.
        weights: of each pair's loss, in units of the first one's.
        unit: what is equal for all but for the weights: ``scale`` or ``stiffness`` of their losses.
    """

    def __init__(self, comparisons: Sequence[Comparison], weights: Sequence[float], unit: str) -> None:
        first = comparisons[0]
        self.comparisons, self.scale, self.stiffness = list(comparisons), first.scale, first.stiffness
        units = [getattr(first, unit) / getattr(one, unit) for one in comparisons]
        self.weights = [weight * one for weight, one in zip(weights, units, strict=True)]

    @property
    def count(self) -> int:
        """How many pairs there are."""
        return len(self.comparisons)

    def channels(self, images: Tensor) -> Tensor:
        """As `Comparison.channels`, of an image a pair, ``(1, K, D, H, W)``."""
        pairs = zip(self.comparisons, images.split(1, dim=1), strict=True)
        made = [comparison.channels(image) for comparison, image in pairs]
        self.counts = [one.shape[1] for one in made]
        return torch.cat(made, dim=1)

    def on(self, moving: Tensor, fixed: Tensor, mask: Tensor | None) -> tuple[Tensor, SeveralCompared]:
        """As `Comparison.on`; the mask may be one for each pair."""
        images = zip(moving.split(self.counts, 1), fixed.split(self.counts, 1), _each(mask, self.counts), strict=True)
        made = [comparison.on(*image) for comparison, image in zip(self.comparisons, images, strict=True)]
        counts = [one.shape[1] for one, _ in made]
        return torch.cat([one for one, _ in made], 1), SeveralCompared([two for _, two in made], self.weights, counts)


class SeveralCompared:
    """What `Several` pairs are compared by, of so many channels each."""

    def __init__(self, parts: Sequence[Compared], weights: Sequence[float], counts: Sequence[int]) -> None:
        self.parts, self.weights, self.counts = list(parts), list(weights), list(counts)

    def within(self, mask: Tensor) -> SeveralCompared:
        """As `Compared.within`; the mask may be one for each pair."""
        masks = _each(mask, self.counts)
        parts = [part.within(one) for part, one in zip(self.parts, masks, strict=True)]
        return SeveralCompared(parts, self.weights, self.counts)

    def moments(self, moved: Tensor) -> list[Any]:
        """Those of each pair."""
        return [part.moments(one) for part, one in zip(self.parts, moved.split(self.counts, 1), strict=True)]

    def loss(self, moments: list[Any]) -> Tensor:
        """As `Compared.loss`."""
        return sum(w * part.loss(of) for w, part, of in zip(self.weights, self.parts, moments, strict=True))

    def derivative(self, moved: Tensor, moments: list[Any]) -> tuple[Tensor, Tensor]:
        """As `Compared.derivative`."""
        slopes, bends = [], []
        pairs = zip(self.weights, self.parts, moved.split(self.counts, 1), moments, strict=True)
        for weight, part, one, of in pairs:
            slope, bend = part.derivative(one, of)
            slopes.append(weight * slope)
            bends.append((weight * bend).expand_as(slope))
        return torch.cat(slopes, 1), torch.cat(bends, 1)


def _each(mask: Tensor | None, counts: Sequence[int]) -> Sequence[Tensor | None]:
    """The mask of each pair, of one for all or one for each."""
    if mask is None or mask.shape[1] == 1:
        return [mask] * len(counts)
    return mask.split(1, dim=1)


def comparison_of(
    similarity: str | Callable | Comparison | Sequence, correlation: Correlation, unit: str = "stiffness"
) -> Comparison:
    """The comparison of a name, of a loss of one's own, or itself; ``lncc`` is the engine's own correlation.

    Several pairs of images have a sequence of (similarity, weight), see `Several`.

    Raises:
        ValueError: for another name.
    """
    if isinstance(similarity, list | tuple):
        names, weights = zip(*similarity, strict=True)
        return Several([comparison_of(name, correlation) for name in names], weights, unit)
    if isinstance(similarity, str):
        if similarity == "lncc":
            return correlation
        if similarity not in COMPARISONS:
            raise ValueError(f"similarity={similarity!r}; give one of lncc, {', '.join(COMPARISONS)}.")
        return COMPARISONS[similarity]()
    return similarity if hasattr(similarity, "on") else Custom(similarity)
