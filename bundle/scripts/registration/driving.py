"""Labels and landmarks of a pair that drive its registration, laid on the network's grids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from ..errors import InputError
from ..formats import Image
from ..geometry import voxels_per_unit
from ..optimize import Guides, Landmarks
from ..settings import DRIVABLE
from ..spatial import Frame
from .grids import NetworkGrids, Pose
from .intensities import sample
from .pair import Pair

__all__ = ["Driving"]

_LINE = 0.05  # of the longest spread of landmarks: a second spread below it leaves a turn about their line open


@dataclass(frozen=True)
class Driving:
    """How much labels, landmarks (`Guides`) and further images count in what is optimised.

    Attributes:
        label_weight: of the overlap of the labels that both maps have; 0 for none.
        point_weight: of the landmarks' distances; 0 for none.
        point_tolerance: mm, see `Landmarks`.
        drivable: see `Preset.drivable`.
        channel_weights: of the further images; None: 1 each.
    """

    label_weight: float = 0.0
    point_weight: float = 0.0
    point_tolerance: float = 1.0
    drivable: bool = True
    channel_weights: Sequence[float] | None = None

    def check(self, pair: Pair) -> None:
        """Refuse what cannot drive.

        Raises:
            InputError: for a method that cannot be driven, when either label map is missing, or when they have no label
                in common.
        """
        if not self.drivable and (self.label_weight or self._points(pair)):
            raise InputError(f"fixed_points: nothing drives this preset's network; {DRIVABLE}, or point_weight 0")
        count = len(pair.fixed_channels)
        if count and not self.drivable:
            raise InputError(f"fixed_channels: the network of this preset sees one image of each side; {DRIVABLE}")
        if self.channel_weights is not None and len(self.channel_weights) != count:
            raise InputError(
                f"channel_weights: {len(self.channel_weights)} for {count} images of fixed_channels; give one for each"
            )
        if not self.label_weight:
            return
        for role in ("fixed", "moving"):
            if getattr(pair, f"{role}_label") is None:
                raise InputError(f"label_weight: {role}_label is missing; labels of both images drive")
        if not len(_common(pair)):
            raise InputError(
                f"{pair.fixed_label.path}, {pair.moving_label.path}: have no label in common but 0, so that none can "
                "drive; give matching label maps, or no label_weight"
            )

    def channels(self, pair: Pair) -> list[tuple[Image, Image, float]]:
        """The further images of both sides, and their weights."""
        weights = self.channel_weights or [1.0] * len(pair.fixed_channels)
        return list(zip(pair.fixed_channels, pair.moving_channels, weights, strict=True))

    def facts(self, pair: Pair) -> dict[str, Any]:
        """What drives, for ``metrics.json``; empty where nothing but the images does."""
        found: dict[str, Any] = {}
        if self.label_weight:
            found["labels"] = {"weight": self.label_weight, "values": _common(pair).tolist()}
        if self._points(pair):
            found["points"] = {"weight": self.point_weight, "tolerance_mm": self.point_tolerance}
        return found

    def guides(self, pair: Pair, grids: NetworkGrids) -> Guides | None:
        """Labels and landmarks on the grids; None where nothing drives."""
        labels = landmarks = None
        if self.label_weight:
            values = _common(pair)
            labels = tuple(
                _memberships(label, values, frame)
                for label, frame in ((pair.moving_label, grids.moving), (pair.fixed_label, grids.fixed))
            )
        if self._points(pair):
            fixed, moving = (
                torch.from_numpy(frame.world_to_normalised(points.coordinates).astype(np.float32))
                for points, frame in ((pair.fixed_points, grids.fixed), (pair.moving_points, grids.moving))
            )
            extent = voxels_per_unit(list(grids.moving.shape)) * torch.from_numpy(grids.moving.spacing).float()
            landmarks = Landmarks(fixed, moving, extent, self.point_weight, self.point_tolerance)
        return None if labels is landmarks is None else Guides(labels, self.label_weight, landmarks, labels is not None)

    def pose(self, pair: Pair) -> Pose | None:
        """The turn and shift that lay the landmarks on each other best; None where they leave a turn open."""
        if not self._points(pair):
            return None
        points = (pair.fixed_points.coordinates, pair.moving_points.coordinates)
        fixed, moving = (one - one.mean(axis=0) for one in points)
        for one in (fixed, moving):
            spreads = np.linalg.svd(one, compute_uv=False)
            if len(one) < 3 or spreads[1] <= _LINE * spreads[0]:
                return None
        turn = Rotation.align_vectors(moving, fixed)[0].as_matrix()
        matrix = np.eye(4)
        matrix[:3, :3] = turn
        matrix[:3, 3] = points[1].mean(axis=0) - turn @ points[0].mean(axis=0)
        degrees = float(np.degrees(Rotation.from_matrix(turn).magnitude()))
        facts = {"turned_by": round(degrees, 1), "mirrored": "", "reason": "the landmarks' least distances"}
        return Pose(matrix, facts, "landmarks")

    def _points(self, pair: Pair) -> bool:
        return bool(self.point_weight) and pair.fixed_points is not None


def _common(pair: Pair) -> np.ndarray:
    """The labels but 0 that both label maps have."""
    return np.setdiff1d(np.intersect1d(pair.fixed_label.array, pair.moving_label.array), 0)


def _memberships(label: Image, values: np.ndarray, grid: Frame) -> Tensor:
    """How much of each label is at the voxels of a grid, ``(1, L, D, H, W)`` float32 in [0, 1]."""
    found = [sample((label.array == value).astype(np.float32), label.frame, grid) for value in values]
    return torch.from_numpy(np.stack(found))[None]
