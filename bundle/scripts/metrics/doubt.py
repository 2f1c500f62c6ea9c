"""How far a registration can be doubted, without labels: whether structures of both images lie on each other.

Images are compared by MIND-SSC (Heinrich et al., MICCAI 2013), which describes each voxel by how alike the patches
around it are and so does not depend on contrast. Where a registration is right, descriptors agree far better than
between places that have nothing to do with each other, and a shift of the moved image makes them agree less.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..losses import box_means, self_similarity

__all__ = ["Doubt", "agreement", "doubt_of", "settled"]

_VOXELS = 160_000  # about, that are looked at
_STRIDE = 2
_SHIFTS = (1, 2, 4, 6)  # voxels
_SETTLED = 2  # voxels of the grid to one of that on which shifts by one and two are tried
_MIRROR = 3  # of the voxels that are compared: the plane of symmetry may lie off the middle
_FAR = 0.3  # of an axis: displaced so far, a place has nothing to do with where it was
_TEMPERATURE = 0.01  # of a difference of descriptors: calibrated on known warps, benchmarks/verdict.py
_NEIGHBOURS = ((-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1))


@dataclass(frozen=True, eq=False)
class Doubt:
    """What speaks for and against a registration.

    Attributes:
        agreement: of the moved with the fixed image's structures: 1 for equal ones, 0 for as much as displaced images.
        affine_agreement: the same of the affine alone.
        mirror_agreement: that of the affine's image mirrored left for right, where it lies best.
        settled: part of the content where no shift of two or four voxels agrees better.
        outside: part of the fixed image's content that lands outside the moving image.
        uncertainty: ``(d, h, w)``, mm: how far structures may be off, by the width of the peak of the agreement.
        weight: as ``uncertainty``, how much structure there is to judge by; it sums to 1.
        step: voxels of the grid that was looked at from one entry of ``uncertainty`` to the next, along each axis.
    """

    agreement: float
    affine_agreement: float
    mirror_agreement: float
    settled: float
    outside: float
    uncertainty: Tensor
    weight: Tensor
    step: int


def agreement(fixed: Tensor, moved: Tensor, weight: Tensor, inside: Tensor | None = None) -> float:
    """How much better descriptors agree than those of displaced images, 1 for equal ones.

    Args:
        fixed: descriptors ``(1, 12, d, h, w)``.
        moved: the same.
        weight: ``(1, 1, d, h, w)``, sums to 1.
        inside: as ``weight``, in [0, 1], where the moved image has something; None for everywhere.
    """
    inside = torch.ones_like(weight) if inside is None else inside

    def mean(shift: int = 0, axis: int = 2) -> float:
        counted = weight * torch.roll(inside, shift, axis)
        difference = _difference(fixed, torch.roll(moved, shift, axis))
        return ((difference * counted).sum() / counted.sum().clamp(min=1e-12)).item()

    sizes = enumerate(fixed.shape[2:], start=2)
    far = [mean(sign * max(1, round(_FAR * size)), axis) for axis, size in sizes for sign in (1, -1)]
    chance = sum(far) / len(far)
    return 1 - mean() / chance if chance > 0 else 0.0


@torch.no_grad()
def doubt_of(
    fixed: Tensor,
    affine: Tensor,
    moved: Tensor,
    spacing: tuple[float, float, float],
    mask: Tensor | None = None,
    inside: Tensor | None = None,
    affine_inside: Tensor | None = None,
) -> Doubt:
    """Measure the doubt of a registration, where both images are.

    Args:
        fixed: ``(1, 1, D, H, W)``, intensities of about [0, 1]; the first axis is left to right.
        affine: the moving image under the affine alone, as ``fixed``.
        moved: the moving image under the whole map, as ``fixed``.
        spacing: mm between voxels along each axis.
        mask: weights in [0, 1] of the fixed voxels that count; None for all.
        inside: the same, where the map lands inside the moving image; None for everywhere.
        affine_inside: the same, of the affine alone.
    """
    every = _every(fixed)
    views = (torch.ones_like(fixed) if one is None else one for one in (mask, inside, affine_inside))
    fixed, affine, moved, mask, inside, affine_inside = _coarser((fixed, affine, moved, *views), every)
    content = _content(fixed, mask)
    outside = 1 - ((content * inside).sum() / content.sum().clamp(min=1e-12)).item()
    weight, within, affine_within = (_thin(one) for one in (content, _deep(inside), _deep(affine_inside)))
    weight = weight * within
    weight = weight / weight.sum().clamp(min=1e-12)
    target, padded = _thin(self_similarity(fixed)), _padded(self_similarity(moved), _SHIFTS[-1])
    shape = fixed.shape[2:]
    differences = [box_means(_difference(target, _cut(padded, at, shape, _STRIDE)), 1) for at in _places()]
    at_rest = _cut(padded, [_SHIFTS[-1]] * 3, shape, _STRIDE)
    mirror = _thin(self_similarity(affine.flip(2))), affine_within.flip(2)
    return Doubt(
        agreement(target, at_rest, weight, within),
        agreement(target, _thin(self_similarity(affine)), weight, affine_within),
        max(
            agreement(target, mirror[0].roll(shift, 2), weight, mirror[1].roll(shift, 2))
            for shift in range(-_MIRROR, _MIRROR + 1)
        ),
        _settled(fixed, moved, mask, inside),
        outside,
        _width(torch.cat(differences, dim=1)[0], [every * float(one) for one in spacing]),
        weight[0, 0],
        every * _STRIDE,
    )


@torch.no_grad()
def settled(fixed: Tensor, moved: Tensor, mask: Tensor | None, inside: Tensor) -> float:
    """`Doubt.settled` alone, of what `doubt_of` takes."""
    mask = torch.ones_like(fixed) if mask is None else mask
    return _settled(*_coarser((fixed, moved, mask, inside), _every(fixed)))


def _every(fixed: Tensor) -> int:
    """So many voxels along each axis are looked at as one."""
    return max(1, round((fixed[0, 0].numel() / _VOXELS) ** (1 / 3)))


def _settled(fixed: Tensor, moved: Tensor, mask: Tensor, inside: Tensor) -> float:
    """The part of the content where no shift of a coarser voxel or two, inside of the moving image, agrees better."""
    fixed, moved, mask, inside = _coarser((fixed, moved, mask, inside), _SETTLED)
    weight = _content(fixed, mask) * _deep(inside)
    shape, middle = fixed.shape[2:], [2] * 3
    target, padded, inside = self_similarity(fixed), _padded(self_similarity(moved), 2), F.pad(inside, [2] * 6)
    best = box_means(_difference(target, _cut(padded, middle, shape)), 1)
    here = torch.ones_like(best)
    for direction in _NEIGHBOURS:
        for length in (1, 2):
            at = [2 + length * n for n in direction]
            there = box_means(_difference(target, _cut(padded, at, shape)), 1)
            here *= (best <= there) | (_cut(inside, at, shape) < 0.5)
    return ((here * weight).sum() / weight.sum().clamp(min=1e-12)).item()


def _content(fixed: Tensor, mask: Tensor) -> Tensor:
    """How much structure there is, of what is in the mask: where it ends there is none."""
    part = box_means(mask, 2).clamp_(min=1e-3)
    mean = box_means(fixed * mask, 2) / part
    return (box_means(fixed * fixed * mask, 2) / part - mean * mean).clamp_(min=0).sqrt_() * _deep(mask)


def _deep(mask: Tensor) -> Tensor:
    """A mask less its margin, whose descriptors are of what lies outside as well."""
    return (2 * box_means(mask, 2) - 1).clamp_(min=0) * mask


def _coarser(volumes: Sequence[Tensor], every: int) -> list[Tensor]:
    return [one if every == 1 else F.avg_pool3d(one, every, ceil_mode=True) for one in volumes]


def _places() -> Iterator[list[int]]:
    """Where to cut the padded image: at rest, then shifted along every axis either way, by more and more."""
    yield [_SHIFTS[-1]] * 3
    for length in _SHIFTS:
        for direction in _NEIGHBOURS:
            yield [_SHIFTS[-1] + length * n for n in direction]


def _width(differences: Tensor, spacing: list[float]) -> Tensor:
    """Root mean square of the shifts, mm, each as likely as its descriptors agree.

    Args:
        differences: ``(S, d, h, w)``, of all `_places`.
        spacing: mm.
    """
    likely = torch.softmax(-differences / _TEMPERATURE, dim=0)
    squares = [0.0] + [
        (length * step) ** 2 for length in _SHIFTS for step in (spacing[axis] for axis in (0, 0, 1, 1, 2, 2))
    ]
    return torch.einsum("s,sdhw->dhw", differences.new_tensor(squares), likely).sqrt_()


def _difference(one: Tensor, other: Tensor) -> Tensor:
    return (one - other).abs_().mean(dim=1, keepdim=True)


def _thin(volume: Tensor) -> Tensor:
    return volume[..., ::_STRIDE, ::_STRIDE, ::_STRIDE]


def _padded(volume: Tensor, margin: int) -> Tensor:
    return F.pad(volume, [margin] * 6, mode="replicate")


def _cut(padded: Tensor, start: list[int], shape: torch.Size, stride: int = 1) -> Tensor:
    """The part of a shape from a place on, of which every so many voxels."""
    return padded[(..., *(slice(n, n + size, stride) for n, size in zip(start, shape, strict=True)))]
