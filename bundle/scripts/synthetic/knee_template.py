"""A knee made of a real label map: signed distances of its bones and cartilage, and soft tissue around them.

Positions are millimetres in (R, A, S) order from the centre of the joint. Distances are negative inside. Thin cartilage
survives on coarse grids because distances are interpolated, not labels.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt, gaussian_filter
from torch import Tensor

from ..errors import InputError
from ..formats.images import read_label
from .fields import channels_last, smooth_noise
from .seeded import seeded
from .warps import grid_points

__all__ = ["LABEL_TISSUES", "TISSUES", "KneeTemplate", "load_knee"]

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


@dataclass(frozen=True, eq=False)
class KneeTemplate:
    """Distances of tissues on a grid around the joint.

    Attributes:
        fields: (len(TISSUES) + T, d, h, w), mm, at most `_FARTHEST_MM` away from 0; then T textures of variance 1.
        low: position of the first voxel, mm (3,).
        high: position of the last voxel, mm (3,).
    """

    fields: Tensor
    low: Tensor
    high: Tensor


def load_knee(path: str | os.PathLike, resolution: float = 0.7) -> KneeTemplate:
    """Read a knee's label map and prepare it for sampling.

    Args:
        path: of a label map of a right knee with the values of `LABEL_TISSUES`; a left one is mirrored by its user.
        resolution: mm that the template may be coarsened to; finer than the grids it is sampled on.

    Raises:
        InputError: the file does not exist or is not a label map, or lacks a tissue.
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
        mask[box],
        half - distance_transform_edt(mask[box], spacing),
        distance_transform_edt(~mask[box], spacing) - half,
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
