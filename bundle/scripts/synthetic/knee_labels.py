"""Pairs of knees from a real label map: real cartilage and bones under random poses, shapes, contrasts and noise.

The template has the signed distances of the label map's bones and cartilage, and soft tissue around them. Positions are
millimetres in (R, A, S) order from the centre of the joint. Distances are negative inside. Thin cartilage survives on
coarse grids because distances are interpolated, not labels.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt, gaussian_filter
from torch import Tensor

from ..errors import InputError
from ..formats.images import read_label
from ..geometry import warp
from .fields import channels_last, smooth_noise
from .generated import PairGenerator, checked_probabilities
from .rendering import Contrast, Scanner, acquire, change_contrast
from .seeded import draw, seeded
from .shapes import pair_warps
from .warps import WarpRange, grid_points, map_on_grid, warp_range

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
_SCANNER = Scanner(bias=0.25, noise=0.06, blur=0.6, thickness=3.0, gamma=0.25)
LABEL_TISSUES = {
    "femoral cartilage": (1,),
    "tibial cartilage": (2, 3),
    "patellar cartilage": (4,),
    "femur": (5,),
    "tibia": (6,),
    "other bones": (7, 8),
    "menisci": (9, 10),
}
"""Values of the label map that make each tissue; medial and lateral tibial cartilage are one, as are the menisci."""

SOFT_TISSUES = ("skin", "muscle", "tendon", "vessels")
TISSUES = (*SOFT_TISSUES, *reversed(LABEL_TISSUES))
"""In the order of painting: what comes later covers what came before."""

_FARTHEST_MM = 8.0
_MARGIN_MM = 14.0
# From the middle of the femoral cartilage to the middle of the leg, (R, A, S).
_MIDDLE_MM = (0.0, 4.0, -6.0)


class KneeLabels(PairGenerator):
    """Generator of pairs of knees, right or left, on one grid; labels as in `KNEE_LABELS`.

    Args:
        path: label map of a right knee, see `load_knee`.
        shape, spacing: see `PairGenerator`.
        multimodal: probability that the scans of a pair have different contrasts.
        random_contrast: probability that a contrast is of random means, not near that of a sequence in use.
        bounds: of the warp of a subject, a `WarpRange` or a dict of its fields.
        thicker: mm by which the surfaces of bones lie farther out or in, drawn for each subject up to these; those of
            cartilage up to a third, on their own. The true map is that of the warp alone.

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
        bounds: WarpRange | Mapping[str, Any] | None = None,
        thicker: float = 0.0,
    ) -> None:
        super().__init__(shape, spacing)
        checked_probabilities(multimodal=multimodal, random_contrast=random_contrast)
        self.multimodal, self.random_contrast, self.thicker = multimodal, random_contrast, thicker
        self.bounds = (
            warp_range(bounds)
            if bounds
            else WarpRange(degrees=8.0, shift=0.05, scale=0.1, shear=0.05, displacement=0.035, gradient=0.9)
        )
        # Half the finest voxel keeps cartilage whole; finer than the label map makes no sense.
        resolution = max(0.7, min(self.spacing) / 2)
        self.template = load_knee(os.fspath(path), round(resolution, 2))

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
            self._thicken(fields, seeded(seed, part + 2 if mode == "cross_subject" else 7))
            signal, air = _paint(fields, contrast)
            pair[role] = acquire(signal, seeded(seed, part), _SCANNER, air)
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

    def _thicken(self, fields: dict[str, Tensor], generator: torch.Generator) -> None:
        """Move the surfaces of a subject's bones and cartilages, each by a distance of its own."""
        if self.thicker:
            for tissue in LABEL_TISSUES:
                most = self.thicker if tissue in _BONES else self.thicker / 3
                fields[tissue] = fields[tissue] + draw(generator, -most, most)

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


def _paint(fields: dict[str, Tensor], contrast: Contrast, edge: float = 0.5) -> tuple[Tensor, Tensor]:
    """Signal (D, H, W) and part of air, tissue over tissue, with ramps `edge` mm wide for partial volumes."""
    textures = [fields[f"texture {t}"] for t in range(_TEXTURES)]
    layers = []
    for number, tissue in enumerate(TISSUES, start=1):
        if tissue in _BONES:
            layers.append((fields[tissue], len(TISSUES) + 1))
        layers.append((fields[tissue] + _CORTEX_MM if tissue in _BONES else fields[tissue], number))
    signal = torch.zeros_like(textures[0])
    for distance, number in layers:
        value = contrast.means[number]
        for gain, texture in zip(contrast.gains[number], textures, strict=True):
            value = value + gain * texture
        signal = torch.lerp(signal, value, torch.sigmoid(distance / -edge))
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


@dataclass(frozen=True, eq=False)
class KneeTemplate:
    """Distances of tissues on a grid around the joint.

    Attributes:
        fields: (len(TISSUES) + T, d, h, w), mm, at most `_FARTHEST_MM` away from 0; then T textures of variance 1.
        low, high: positions of the first and the last voxel, mm (3,).
    """

    fields: Tensor
    low: Tensor
    high: Tensor


@lru_cache(maxsize=4)  # templates are read once for all grids of one resolution
def load_knee(path: str | os.PathLike, resolution: float = 0.7) -> KneeTemplate:
    """Read a right knee's label map, with the values of `LABEL_TISSUES`, and prepare it for sampling.

    It may be coarsened to ``resolution`` mm, finer than the grids it is sampled on. InputError for a file that is no
    label map, or lacks a tissue.
    """
    label = read_label(path)
    turn = nib.orientations.io_orientation(label.frame.affine)
    array = nib.orientations.apply_orientation(label.array, turn)
    spacing = np.linalg.norm(label.frame.affine[:3, :3], axis=0)[np.argsort(turn[:, 0])]
    pool = [max(1, int(resolution / s + 0.05)) for s in spacing]
    spacing = spacing * pool
    volumes = {}
    for name, values in LABEL_TISSUES.items():
        mask = np.isin(array, list(values))
        if not mask.any():
            raise InputError(
                f"{label.path}: no voxel of {name} (values {list(values)}); give a label map of a whole knee"
            )
        pooled = F.avg_pool3d(torch.from_numpy(mask.astype(np.float32))[None], pool)[0].numpy()
        volumes[name] = pooled >= 0.5

    # Room beside and around the leg; above and below, bones go on beyond the label map.
    margin = np.array([round(_MARGIN_MM / s) for s in spacing])
    pad = [(margin[0],) * 2, (margin[1],) * 2, (0, 0)]
    volumes = {name: np.pad(volume, pad) for name, volume in volumes.items()}
    inside = np.argwhere(volumes["femoral cartilage"])
    centre = (inside.min(0) + inside.max(0)) / 2 * spacing + np.array(_MIDDLE_MM)
    shape = volumes["femur"].shape
    low = -centre
    high = (np.array(shape) - 1) * spacing - centre

    points = (grid_points(shape).numpy().reshape(3, *shape) + 1) / 2 * (high - low).reshape(3, 1, 1, 1)
    x, y, z = torch.from_numpy(points.astype(np.float32)) + torch.tensor(low, dtype=torch.float32).view(3, 1, 1, 1)
    fields = _soft_tissues(x, y, z)
    fields.update({name: torch.from_numpy(_distance(volume, spacing)) for name, volume in volumes.items()})
    generator = seeded(0)
    # Texture moves with the tissue: marrow and muscle look alike at both visits.
    textures = [smooth_noise(generator, 1, c, shape)[0] for c in (12, 30)]
    stacked = channels_last(
        torch.stack([fields[name].clamp(-_FARTHEST_MM, _FARTHEST_MM) for name in TISSUES] + textures)
    )
    return KneeTemplate(stacked, torch.tensor(low, dtype=torch.float32), torch.tensor(high, dtype=torch.float32))


def _distance(mask: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Signed distance to a mask's surface, mm, negative inside; only near the mask, and at most `_FARTHEST_MM`."""
    where = np.argwhere(mask)
    room = np.ceil(_FARTHEST_MM / np.asarray(spacing)).astype(int)
    low, high = np.maximum(where.min(0) - room, 0), np.minimum(where.max(0) + room + 1, mask.shape)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    # Half a voxel, as the surface lies between a voxel inside and its neighbour outside.
    half = float(np.mean(spacing)) / 2
    inner = np.where(
        mask[box], half - distance_transform_edt(mask[box], spacing), distance_transform_edt(~mask[box], spacing) - half
    )
    distance = np.full(mask.shape, _FARTHEST_MM, dtype=np.float32)
    # The stairs of the label map go, layers of a voxel and a half stay.
    distance[box] = gaussian_filter(inner, 0.6)
    return distance


def _tube(x: Tensor, y: Tensor, centre: Sequence[float], radii: Sequence[float]) -> Tensor:
    """About the distance to an upright elliptic cylinder."""
    return ((((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2).sqrt() - 1) * min(radii)


def _soft_tissues(x: Tensor, y: Tensor, z: Tensor) -> dict[str, Tensor]:
    """Distances of what the label map lacks; fat fills the skin, muscle the back and the thigh."""
    skin = _tube(x, y, (0.0, 0.0), (59.0, 58.0))
    fascia = skin + 7.0
    pad = ((x / 26.0) ** 2 + ((y - 28.0) / 18.0) ** 2 + ((z + 4.0) / 24.0) ** 2).sqrt().sub(1) * 18.0
    fossa = ((x / 11.0) ** 2 + ((y + 36.0) / 13.0) ** 2 + ((z - 8.0) / 42.0) ** 2).sqrt().sub(1) * 11.0
    septum = 1.2 - (x + 3.0 - 0.1 * y).abs()
    side = 1.0 - (y + 6.0 + 0.15 * x.abs()).abs()
    muscle = torch.maximum(torch.maximum(fascia, -torch.minimum(pad, fossa)), torch.maximum(septum, side))
    front = (y - 47.0 - 0.12 * z).abs() - 2.5
    tendon = torch.maximum(front, torch.maximum(x.abs() - 12.0, -(z + 40.0)))
    artery = _tube(x, y, (2.0, -33.0), (3.6, 3.6))
    vein = _tube(x, y, (-6.0, -38.0), (3.0, 3.0))
    return {"skin": skin, "muscle": muscle, "tendon": tendon, "vessels": torch.minimum(artery, vein)}
