"""A transform to start from: the pair as it lies under it, and what is written after it.

The registration goes from the fixed image to the moving image as the given transform T lays it into the fixed image's
world, and finds φ. What is written is T ∘ φ, and φ⁻¹ ∘ T⁻¹; the moving image itself is interpolated once by them.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError
from ..formats import Image, Points
from ..metrics import world_jacobian
from ..settings import INVERSE, TransformFile
from ..spatial import Frame, WorldTransform, is_of_kind, linear_of, resample_image, resample_labels
from ..transform import Transform
from .grids import foreground_box
from .pair import Pair
from .voxels import threads

if TYPE_CHECKING:
    from .accept import Accepted

__all__ = ["PlacedStart", "Start"]

_MARGIN = 0.25  # of the fixed image, around it: how far the moving image is looked at
_MOST = 4_000_000  # voxels of a field that a numerical inverse is written as
_RIGHT_ANGLES = 1e-6
_LEAST = 0.05  # of the points of the fixed image's content that must land in the moving image
_PROBES = 8


@dataclass(frozen=True, eq=False)
class Start:
    """A transform, fixed to moving points, and how it was given.

    Attributes:
        transform: all of them, first listed, first applied (ANTs' order).
        names: of the files, for messages.
    """

    transform: Transform
    names: str

    @classmethod
    def read(
        cls, given: Start | str | os.PathLike | Transform | Sequence[str | os.PathLike | Transform] | None
    ) -> Start | None:
        """Read what was given; None for nothing, and a start as it is.

        Args:
            given: files, ``inverse:FILE`` or transforms, one or several; the first listed acts on a point first.

        Raises:
            InputError: for a file that cannot be read.
        """
        if isinstance(given, Start):
            return given
        several = [given] if isinstance(given, str | os.PathLike | Transform) else list(given or ())
        if not several:
            return None
        parts = [_read(one) for one in several]
        names = ", ".join(map(str, several))
        return cls(reduce(Transform.then, parts), names)

    @property
    def facts(self) -> dict[str, str]:
        """The files and a hash of what they hold, by which a list that is resumed knows whether it is the same."""
        digest = hashlib.sha256()
        for part in self.transform.parts:
            forward = part if isinstance(part, WorldTransform) else part.forward
            digest.update(f"{type(part).__name__} {forward.spline}".encode() + forward.linear.tobytes())
            if forward.frame is not None:
                digest.update(forward.frame.affine.tobytes() + np.ascontiguousarray(forward.displacement).tobytes())
        return {"files": self.names, "sha256": digest.hexdigest()}

    def of(self, pair: Pair) -> PlacedStart:
        """The start for one pair.

        Raises:
            InputError: where it carries next to nothing of the fixed image into the moving one.
        """
        self._check_meeting(pair)
        around = pair.fixed.frame.padded(np.ceil(_MARGIN * np.asarray(pair.fixed.frame.shape)).astype(int))
        parts = self.transform.parts
        if not all(isinstance(part, WorldTransform) for part in parts):
            parts = [_as_field(self.transform, around)]
        posed = _posed(pair, parts, around)
        if (points := pair.moving_points) is not None:
            there = _carried(self.transform.inverse(), points.coordinates)
            posed = replace(posed, moving_points=Points(there, points.names))
        return PlacedStart(self, parts, posed)

    def _check_meeting(self, pair: Pair) -> None:
        """Refuse a start that carries the fixed image's content past the moving image's."""
        low, high = foreground_box(pair.fixed.array)
        places = np.stack(np.meshgrid(*np.linspace(low, high, _PROBES).T, indexing="ij"), axis=-1).reshape(-1, 3)
        there = _carried(self.transform, pair.fixed.frame.voxel_to_world(places))
        voxels, box = pair.moving.frame.world_to_voxel(there), foreground_box(pair.moving.array)
        if ((voxels >= box[0]) & (voxels <= box[1])).all(axis=1).mean() < _LEAST:
            raise InputError(
                f"{self.names}: carries {pair.fixed.path} past {pair.moving.path}; the transform must go from fixed to "
                f"moving points, as transform.h5 does: perhaps {INVERSE}FILE is meant, or their order"
            )


@dataclass(frozen=True, eq=False)
class PlacedStart:
    """A start for one pair.

    Attributes:
        start: what was given.
        parts: the same as files can hold it, fixed to moving points.
        pair: with the moving image as it lies under the start.
    """

    start: Start
    parts: list[WorldTransform]
    pair: Pair

    @property
    def linear(self) -> np.ndarray:
        """The affine parts together, ``(4, 4)``."""
        return linear_of(self.parts)

    def follow(self, accepted: Accepted, pair: Pair) -> Accepted:
        """What was found between the fixed image and the moving one under the start, with the start after it.

        Affine parts of the start become one with the affine that was found; fields stay parts of their own.

        Args:
            accepted: of ``self.pair``.
            pair: the pair itself.
        """
        first = next((at for at, part in enumerate(self.parts) if part.frame is not None), len(self.parts))
        linear, after = linear_of(self.parts[:first]), self.parts[first:]
        kind = accepted.affine.kind if is_of_kind(linear, accepted.affine.kind) else "affine"
        transform = replace(accepted.transform, linear=linear @ accepted.transform.linear, kind=kind)
        moving = pair.moving.frame

        def invert() -> list[WorldTransform]:
            back = self._undone(moving) if after else [WorldTransform(np.linalg.inv(linear), kind=kind)]
            there = reduce(lambda points, part: part.apply(points), back, moving.corners)
            return [*back, *(part.covering_points(there) for part in accepted.inverse)]

        return replace(
            accepted,
            transform=transform,
            after=after,
            invert=invert,
            affine=WorldTransform(linear @ accepted.affine.linear, kind=kind),
            jacobian=world_jacobian([transform, *after], pair.fixed.frame, threads=threads()),
        )

    def _undone(self, moving: Frame) -> list[WorldTransform]:
        """The inverse of the start, as files can hold it."""
        inverse = self.start.transform.inverse()
        if all(isinstance(part, WorldTransform) for part in inverse.parts):
            return inverse.parts
        return [_as_field(inverse, moving)]


def _read(given: str | os.PathLike | Transform) -> Transform:
    if isinstance(given, Transform):
        return given
    return Transform.read(TransformFile(given))


def _carried(transform: Transform, points: np.ndarray) -> np.ndarray:
    """Points under a transform; outside of its fields, where files say nothing, its affine parts act alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transform.points(points)


def _as_field(transform: Transform, frame: Frame) -> WorldTransform:
    """A transform as one field on a grid over a frame, of its spacing as far as `_MOST` voxels allow."""
    shape = np.asarray(frame.shape)
    fewer = min(1.0, (_MOST / shape.prod()) ** (1 / 3))
    grid = frame.resized(tuple(int(n) for n in np.maximum(np.ceil(shape * fewer), 2)))
    points = grid.places
    there = _carried(transform, points.reshape(-1, 3)).reshape(points.shape)
    return WorldTransform(np.eye(4), there - points, grid)


def _posed(pair: Pair, parts: Sequence[WorldTransform], around: Frame) -> Pair:
    """The pair with moving image, label map and mask as they lie under a transform in the fixed image's world."""
    if pair.moving_channels:
        alone = replace(pair, moving_label=None, moving_mask=None, fixed_channels=(), moving_channels=())
        channels = tuple(_posed(replace(alone, moving=one), parts, around).moving for one in pair.moving_channels)
        single = _posed(replace(pair, fixed_channels=(), moving_channels=()), parts, around)
        return replace(single, fixed_channels=pair.fixed_channels, moving_channels=channels)
    moving, label, mask = pair.moving, pair.moving_label, pair.moving_mask
    if all(part.frame is None for part in parts):
        linear = linear_of(parts)
        affine = np.linalg.inv(linear) @ moving.frame.affine
        axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
        if np.abs(axes.T @ axes - np.eye(3)).max() < _RIGHT_ANGLES:
            frame = Frame(moving.frame.shape, affine, moving.frame.name)
            return replace(
                pair,
                moving=replace(moving, frame=frame),
                moving_label=None if label is None else replace(label, frame=frame),
                moving_mask=None if mask is None else replace(mask, frame=frame),
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where fields end is told when the result is made
        array = resample_image(
            moving.array, moving.frame, around, parts, fill=float(moving.array.min()), threads=threads()
        )
        shown = None if label is None else resample_labels(label.array, label.frame, around, parts)
        inside = None if mask is None else resample_labels(mask.array.astype(np.uint8), mask.frame, around, parts) > 0
    return replace(
        pair,
        moving=Image(array, around, moving.path),
        moving_label=None if shown is None else replace(label, array=shown, frame=around),
        moving_mask=None if inside is None else replace(mask, array=inside, frame=around),
    )
