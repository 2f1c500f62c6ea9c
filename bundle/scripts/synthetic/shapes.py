"""Pairs of random anatomy: random shapes seen twice through random warps, whose true map is known.

A template is a set of smooth score fields, one per tissue; a point belongs to the tissue of the highest score. Scans
sample the scores through their warps, not labels, so that edges are as sharp in every scan as its grid allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..geometry import warp
from .fields import channels_last, smooth_noise
from .generated import PairGenerator, checked_probabilities
from .rendering import Scanner, acquire, change_contrast, draw_contrast, tissue_signal
from .seeded import draw, seeded
from .warps import AffineStep, Warp, WarpRange, grid_points, map_on_grid, random_warp

_REACH = 1.4  # how far a template goes beyond the grid, as scans may look there
_FOLLOWUP = 0.3  # how far two visits of one subject differ, as a part of what two subjects do
_TEXTURES = 2
_SURROUND = 0.6  # probability that there is air around the body
_TISSUES = (5, 10)  # fewest and most, air included


@dataclass(frozen=True, eq=False)
class ShapeTemplate:
    """Random anatomy.

    Attributes:
        fields: (K + T, d, h, w), scores of K tissues and T textures over `_REACH` times the grid's extent.
        tissues: K; tissue 0 is air, or background tissue where `surround` is False.
        surround: there is air around the body.
        edge: change of the highest scores over one voxel, the width of the ramp between tissues.
    """

    fields: Tensor
    tissues: int
    surround: bool
    edge: float

    def sample(self, points: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Scores (K, D, H, W) and textures (T, D, H, W) at as many points, (3, N) or (3, D, H, W)."""
        where = (points / _REACH).reshape(1, 3, *shape)
        fields = warp(self.fields[None], where, padding="border")[0]
        return fields[: self.tissues], fields[self.tissues :]


def _highest_tissue(scores: Tensor) -> Tensor:
    """The number (D, H, W) uint8 of the highest of the scores (K, D, H, W); much faster than argmax over channels."""
    best, label = scores[0], torch.zeros(scores.shape[1:], dtype=torch.uint8)
    for tissue in range(1, len(scores)):
        label.masked_fill_(scores[tissue] > best, tissue)
        best = torch.maximum(best, scores[tissue])
    return label


def pair_warps(
    seed: int, mode: str, shape: Sequence[int], extent: Sequence[float], bounds: WarpRange
) -> tuple[Warp, Warp, Warp]:
    """`T_fixed`, `T_moving` (scan to template) and the true map `T_moving^-1 after T_fixed` of a pair.

    In mode "cross_subject" each scan is a subject of its own, in "longitudinal" they are small warps of one. `shape` is
    that of the grid (D, H, W), `extent` mm between its first and last voxel along each axis.
    """
    small = bounds if mode == "cross_subject" else bounds.scaled(_FOLLOWUP)
    fixed, moving = (random_warp(seeded(seed, role), shape, extent, small) for role in (1, 2))
    true_map = fixed.then(moving.inverse())
    if mode == "longitudinal":
        # The subject's own warp cancels in the true map.
        subject = random_warp(seeded(seed, 3), shape, extent, bounds)
        fixed, moving = fixed.then(subject), moving.then(subject)
    return fixed, moving, true_map


class RandomShapes(PairGenerator):
    """Generator of pairs of random anatomy on one grid.

    Args:
        shape: see `PairGenerator`; voxels are of 1 mm.
        multimodal: probability that the two scans of a pair have different contrasts.
    """

    name = "shapes"

    def __init__(self, shape: Sequence[int] = (48, 64, 48), multimodal: float = 0.4) -> None:
        super().__init__(shape, (1.0, 1.0, 1.0))
        checked_probabilities(multimodal=multimodal)
        self.multimodal = multimodal

    def template(self, seed: int) -> ShapeTemplate:
        """Random anatomy: organs of smooth noise, blobs and a shell, in a body with air around it or without."""
        generator = seeded(seed, 0)
        surround = draw(generator, 0, 1) < _SURROUND
        tissues = int(torch.randint(_TISSUES[0], _TISSUES[1] + 1, (), generator=generator))
        size = [min(56, max(16, round(n * 0.8))) for n in self.shape]
        coarse, fine = (int(torch.randint(*span, (), generator=generator)) for span in ((6, 11), (10, 16)))
        rough = draw(generator, 0.0, 0.35)
        scores = smooth_noise(generator, tissues, coarse, size) + rough * smooth_noise(generator, tissues, fine, size)

        x = grid_points(size).reshape(3, *size) * _REACH
        # Blobs and a shell take over the last tissues, noise keeps the first ones.
        blobs = int(torch.randint(min(1, tissues - 2), max(1, tissues - 2), (), generator=generator))
        for tissue in range(tissues - blobs, tissues):
            centre = (torch.rand(3, generator=generator) - 0.5) * 1.3
            radii = torch.rand(3, generator=generator) * 0.4 + 0.12
            distance = ((x - centre.view(3, 1, 1, 1)) / radii.view(3, 1, 1, 1)).square().sum(0).sqrt()
            scores[tissue] = 6 * (1 - distance) + 0.8 * scores[tissue]
        if surround:
            radii = torch.rand(3, generator=generator) * 0.35 + 0.6
            outside = (x / radii.view(3, 1, 1, 1)).square().sum(0).sqrt() - 1
            outside = outside + draw(generator, 0.02, 0.12) * scores[0]
            scores[0] = 15 * outside
            if tissues > 3 and draw(generator, 0, 1) < 0.6:
                width = draw(generator, 0.05, 0.12)
                scores[1] = 30 * (width - (outside + width).abs())
        highest = scores.amax(0)
        edge = float(sum(highest.diff(dim=axis).abs().mean() for axis in range(3))) / 3
        texture = [smooth_noise(generator, 1, c, size) for c in (11, min(26, min(size)))]
        return ShapeTemplate(channels_last(torch.cat([scores, *texture])), tissues, surround, edge)

    def _pair(self, seed: int, mode: str, true_map: bool) -> dict[str, Tensor]:
        template = self.template(seed)
        fixed, moving, mapping = pair_warps(seed, mode, self.shape, self.extent, WarpRange())
        generator = seeded(seed, 4)
        if template.surround and draw(generator, 0, 1) < 0.7:
            frames = self._framed(template, fixed, moving, draw(generator, 0.86, 1.0))
            fixed, moving = frames[0].then(fixed), frames[1].then(moving)
            mapping = frames[0].then(mapping).then(frames[1].inverse())
        other = draw(generator, 0, 1) < self.multimodal
        first = draw_contrast(generator, template.tissues, _TEXTURES, template.surround)
        second = change_contrast(generator, first, other, template.surround)
        pair = {}
        for role, chain, contrast, part in (("fixed", fixed, first, 5), ("moving", moving, second, 6)):
            scores, texture = template.sample(map_on_grid(chain, self.shape), self.shape)
            volumes = torch.softmax(scores / max(template.edge, 1e-3) * 2, dim=0)
            air = volumes[0] if template.surround else None
            signal = tissue_signal(volumes, contrast, texture)
            pair[role] = acquire(signal, seeded(seed, part), Scanner(), air)
            pair[f"{role}_label"] = _highest_tissue(scores)
        if true_map:
            pair["true_map"] = map_on_grid(mapping, self.shape)
        return pair

    def _framed(self, template: ShapeTemplate, fixed: Warp, moving: Warp, fill: float) -> list[Warp]:
        """Both bodies centred on their grids and the larger one filling it, as inference lays its grids."""
        coarse = [max(12, n // 3) for n in self.shape]
        points = grid_points(coarse)
        boxes = []
        for chain in (fixed, moving):
            scores, _ = template.sample(chain(points), coarse)
            body = points[:, scores[1:].amax(0).flatten() > scores[0].flatten()]
            if not body.numel():
                return [Warp(), Warp()]
            boxes.append((body.amin(1), body.amax(1)))
        half = torch.stack([(high - low) / 2 for low, high in boxes]).amax(0)
        # One factor for all axes, as voxels keep their shape.
        scale = float((half.max() / fill).clamp(0.5, 1.1))
        matrix = torch.eye(3, dtype=torch.float64) * scale
        return [Warp((AffineStep(matrix, ((low + high) / 2).double()),)) for low, high in boxes]
