"""Pairs of knees from a real label map: real cartilage and bones under random poses, shapes, contrasts and noise."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ..geometry import warp
from .generated import PairGenerator, checked_probabilities
from .knee_template import TISSUES, KneeTemplate, load_knee
from .rendering import Contrast, Scanner, acquire, change_contrast
from .seeded import draw, seeded
from .shapes import pair_warps
from .warps import WarpRange, map_on_grid

__all__ = ["KNEE_LABELS", "KneeLabels"]

KNEE_LABELS = {1: "femoral cartilage", 2: "tibial cartilage", 3: "femur", 4: "tibia"}
"""Labels given, numbered as those of the phantom."""

# Signal of air, then of TISSUES, with cortex last: as DESS, T1, fat-suppressed proton density and T2 have it.
_SEQUENCES = {
    "dess": {"fat": 0.60, "muscle": 0.38, "marrow": 0.50, "cartilage": 0.90, "menisci": 0.22, "vessels": 0.55},
    "t1": {"fat": 0.95, "muscle": 0.38, "marrow": 0.88, "cartilage": 0.50, "menisci": 0.15, "vessels": 0.20},
    "pd_fs": {"fat": 0.18, "muscle": 0.42, "marrow": 0.16, "cartilage": 0.80, "menisci": 0.15, "vessels": 0.90},
    "t2": {"fat": 0.70, "muscle": 0.20, "marrow": 0.55, "cartilage": 0.45, "menisci": 0.10, "vessels": 0.85},
}
_BONES = ("femur", "tibia", "other bones")
_CORTEX_MM = 1.3
_TEXTURES = 2


class KneeLabels(PairGenerator):
    """Generator of pairs of knees, right or left, on one grid; labels as in `KNEE_LABELS`.

    Args:
        path: label map of a right knee, see `load_knee`.
        shape: grid size (D, H, W), axes in (R, A, S) order.
        spacing: voxel size, mm; None spreads a knee's field of view, 112 x 140 x 140 mm.
        multimodal: probability that the scans of a pair have different contrasts.
        random_contrast: probability that a contrast is of random means, not near that of a sequence in use.
        bounds: of the warp of a subject.
        scanner: bounds of what is drawn for a scan.

    Raises:
        InputError: a bad argument or file.
    """

    name = "knee_labels"

    def __init__(
        self,
        path: str | os.PathLike,
        shape: Sequence[int] = (48, 64, 48),
        spacing: Sequence[float] | None = None,
        multimodal: float = 0.15,
        random_contrast: float = 0.25,
        bounds: WarpRange | None = None,
        scanner: Scanner | None = None,
    ) -> None:
        super().__init__(shape, spacing)
        checked_probabilities(multimodal=multimodal, random_contrast=random_contrast)
        self.multimodal, self.random_contrast = multimodal, random_contrast
        self.bounds = bounds or WarpRange(
            degrees=8.0, shift=0.05, scale=0.1, shear=0.05, displacement=0.035, gradient=0.9
        )
        self.scanner = scanner or Scanner(bias=0.25, noise=0.06, blur=0.6, thickness=3.0, gamma=0.25)
        # Half the finest voxel keeps cartilage whole; finer than the label map makes no sense.
        resolution = max(0.7, min(self.spacing) / 2)
        self.template = _loaded(os.fspath(path), round(resolution, 2))

    def _pair(self, seed: int, mode: str, true_map: bool) -> dict[str, Tensor]:
        fixed, moving, mapping = pair_warps(seed, mode, self.shape, self.extent, self.bounds)
        generator = seeded(seed, 4)
        left = draw(generator, 0, 1) < 0.5
        other = draw(generator, 0, 1) < self.multimodal
        first = self._contrast(generator)
        changed = draw(generator, 0, 1) < 0.3
        second = change_contrast(generator, first, True) if other and changed else self._contrast(generator)
        if not other:
            second = change_contrast(generator, first, False)
        pair = {}
        for role, chain, contrast, part in (("fixed", fixed, first, 5), ("moving", moving, second, 6)):
            points = map_on_grid(chain, self.shape)
            if left:
                points = points * torch.tensor([-1.0, 1.0, 1.0]).view(3, 1, 1, 1)
            fields = self._sample(points)
            signal, air = _paint(fields, contrast)
            pair[role] = acquire(signal, seeded(seed, part), self.scanner, air)
            pair[f"{role}_label"] = _label(fields)
        if true_map:
            pair["true_map"] = map_on_grid(mapping, self.shape)
        return pair

    def _sample(self, points: Tensor) -> dict[str, Tensor]:
        """Distances of the tissues, mm, and textures at points (3, D, H, W)."""
        half = torch.tensor(self.extent, dtype=torch.float32).view(3, 1, 1, 1) / 2
        low, high = (end.view(3, 1, 1, 1) for end in (self.template.low, self.template.high))
        where = ((points * half - low) / (high - low) * 2 - 1)[None]
        fields = warp(self.template.fields[None], where, padding="border")[0]
        names = (*TISSUES, *(f"texture {t}" for t in range(_TEXTURES)))
        return dict(zip(names, fields, strict=True))

    def _contrast(self, generator: torch.Generator) -> Contrast:
        """Means and gains of air, `TISSUES` and cortex."""
        tissues = ("air", *TISSUES, "cortex")
        names = list(_SEQUENCES)
        sequence = _SEQUENCES[names[int(torch.randint(len(names), (), generator=generator))]]
        signals = sequence | {"air": 0.0, "tendon": 0.1, "cortex": 0.08, "skin": sequence["fat"]}
        signals |= dict.fromkeys(_BONES, sequence["marrow"])
        means = [signals["cartilage" if tissue.endswith("cartilage") else tissue] for tissue in tissues]
        means = torch.tensor(means)
        wobble = torch.randn(len(tissues), generator=generator) * 0.05
        # Bones share their marrow, cartilages their signal, up to little.
        groups = (_BONES, tuple(t for t in tissues if t.endswith("cartilage")))
        if draw(generator, 0, 1) < self.random_contrast:
            means = torch.rand(len(tissues), generator=generator) * 0.95 + 0.05
        for group in groups:
            index = [tissues.index(t) for t in group]
            means[index], wobble[index] = means[index[0]].clone(), wobble[index[0]] + wobble[index] * 0.3
        means = (means + wobble).clamp(0.02, 1)
        means[0] = 0.0
        gains = torch.randn(len(tissues), _TEXTURES, generator=generator) * draw(generator, 0.01, 0.06)
        gains[0] = 0.0
        return Contrast(means, gains)


@lru_cache(maxsize=4)
def _loaded(path: str, resolution: float) -> KneeTemplate:
    """Templates are read once for all grids of one resolution."""
    return load_knee(path, resolution)


def _paint(fields: dict[str, Tensor], contrast: Contrast, edge: float = 0.5) -> tuple[Tensor, Tensor]:
    """Signal (D, H, W) and part of air, tissue over tissue, with ramps `edge` mm wide for partial volumes."""
    textures = [fields[f"texture {t}"] for t in range(_TEXTURES)]
    signal = torch.zeros_like(textures[0])

    def cover(signal: Tensor, distance: Tensor, number: int) -> Tensor:
        value = contrast.means[number]
        for gain, texture in zip(contrast.gains[number], textures, strict=True):
            value = value + gain * texture
        return torch.lerp(signal, value, torch.sigmoid(distance / -edge))

    for number, tissue in enumerate(TISSUES, start=1):
        if tissue in _BONES:
            signal = cover(signal, fields[tissue], len(TISSUES) + 1)
            signal = cover(signal, fields[tissue] + _CORTEX_MM, number)
        else:
            signal = cover(signal, fields[tissue], number)
    return signal.clamp(min=0), torch.sigmoid(fields["skin"] / edge)


def _label(fields: dict[str, Tensor]) -> Tensor:
    """Labels (D, H, W) uint8, see `KNEE_LABELS`; where two meet, the deeper one."""
    distances = torch.stack([fields[name] for name in KNEE_LABELS.values()])
    label = torch.zeros(distances.shape[1:], dtype=torch.uint8)
    lowest = torch.zeros_like(distances[0])
    for value, distance in zip(KNEE_LABELS, distances, strict=True):
        label.masked_fill_(distance < lowest, value)
        lowest = torch.minimum(lowest, distance)
    return label
