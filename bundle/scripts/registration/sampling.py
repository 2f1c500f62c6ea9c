"""Sampling both images on the network's grids, intensities in [0, 1], as in training."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..formats import Image
from ..geometry import warp
from ..optimize import Guides
from ..settings import SEARCHES
from ..spatial import Frame
from .driving import Driving
from .grids import NetworkGrids, Pose, foreground_box, lay_grids, rescale
from .intensities import sample, window
from .memory import check_memory
from .pair import Pair
from .pose import Coarse, choose_pose, coarse
from .start import PlacedStart, Start

__all__ = ["OF_ANY_CONTRAST", "SamplePaird", "SampledPair", "field_of_view", "landed"]


OF_ANY_CONTRAST = ("mind", "nmi")
"""Similarities that two contrasts can be compared by."""


@dataclass(frozen=True, eq=False)
class SampledPair:
    """A pair on the network's grids.

    Attributes:
        grids: the frames of both grids.
        moving: ``(1, 1, D, H, W)`` float32 in [0, 1].
        fixed: as ``moving``.
        mask: weights in [0, 1] of the fixed grid's voxels in the similarity, as ``fixed``: the mask, or else the fixed
            image's field of view; None where all count.
        moving_mask: the same of the moving grid; None unless a moving mask was given.
        view: as ``moving_mask``; where none was given, the moving image's field of view.
        start: a transform that was started from, after which the moving grid lies; None without one.
        guides: labels and landmarks that drive; None without.
        channels: further pairs of images on the same grids, each with its masks and its weight.
        weight: of the similarity, against the first pair.
        driven: what drives beside the images, for ``metrics.json``.
        seconds: that the search for the pose and sampling took.
    """

    grids: NetworkGrids
    moving: Tensor
    fixed: Tensor
    mask: Tensor | None
    moving_mask: Tensor | None
    view: Tensor | None = None
    start: PlacedStart | None = None
    guides: Guides | None = None
    driven: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    channels: tuple[SampledPair, ...] = ()
    weight: float = 1.0

    def to(self, device: torch.device | str) -> SampledPair:
        """The same on a device."""
        names = ("moving", "fixed", "mask", "moving_mask", "view")
        volumes = {name: value.to(device) for name in names if (value := getattr(self, name)) is not None}
        channels = tuple(one.to(device) for one in self.channels)
        return replace(self, **volumes, channels=channels, guides=self.guides and self.guides.to(device))

    @property
    def each(self) -> tuple[SampledPair, ...]:
        """This pair of images, then the further ones."""
        return (self, *self.channels)

    @property
    def volumes(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """moving, fixed, mask, moving_mask: what optimisers take."""
        return self.moving, self.fixed, self.mask, self.moving_mask

    def seen_by(self, similarity: Any, *others: Any) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """`volumes` for a similarity: where contrasts differ, what lies outside the moving image must not count.

        Args:
            similarity: of this pair of images.
            others: of the further ones; all are then channels, ``(1, K, D, H, W)``, the masks as well.
        """
        if others:
            rows = [one.seen_by(name) for one, name in zip(self.each, (similarity, *others), strict=True)]
            return tuple(_together(volumes) for volumes in zip(*rows, strict=True))
        return (*self.volumes[:3], self.view) if similarity in OF_ANY_CONTRAST else self.volumes

    def compared_by(self, *similarities: Any) -> Any:
        """What the engines take for so many similarities: the only one, or all with their weights."""
        if len(similarities) == 1:
            return similarities[0]
        return [(name, one.weight) for one, name in zip(self.each, similarities, strict=True)]


class SamplePaird:
    """MONAI transform: lays the network's grids on ``pair`` and adds ``sampled``, the `SampledPair`.

    Args:
        grid: see `lay_grids`, as are ``grid_voxels``, ``initialisation``, ``extent``, ``orientation`` and ``spacing``.
        grid_voxels: see `lay_grids`.
        initialisation: see `lay_grids`.
        extent: see `lay_grids`.
        orientation: see `lay_grids`.
        spacing: see `lay_grids`.
        lower: percentile of intensity that becomes 0.
        upper: percentile of intensity that becomes 1.
        native: see `lay_grids`.
        max_memory: MB that a pair may take, see `check_memory`.
        spline: whether the moved image will be interpolated by a cubic spline.
        start: a transform to start from in place of an initialisation; None for none.
        transform: one of `TRANSFORMS`.
        driving: what the pair's labels and landmarks count.
    """

    def __init__(
        self,
        grid: Sequence[int] | None,
        grid_voxels: int,
        initialisation: str,
        extent: str,
        orientation: str,
        spacing: Sequence[float] | None,
        lower: float,
        upper: float,
        native: bool = False,
        max_memory: int | None = None,
        spline: bool = False,
        start: Start | None = None,
        transform: str = "deformable",
        driving: Driving | None = None,
    ) -> None:
        self.start, self.driving = start, driving or Driving()
        self.kind = "affine" if transform == "deformable" else transform
        self.options = (grid, grid_voxels, initialisation, extent, orientation, spacing)
        self.percentiles, self.memory, self.native = (lower, upper), (max_memory, spline, grid_voxels), native

    def __call__(self, data: Mapping) -> dict:
        """Sample ``pair``, from the item's own ``start`` if it has one.

        Raises:
            InputError: as `check_memory`, as `lay_grids`, or for nothing on the network's grid.
        """
        begin, pair = time.perf_counter(), data["pair"]
        check_memory(pair, *self.memory)
        self.driving.check(pair)
        given = data.get("start", self.start)
        if given is not None and self.options[3] == "own":
            raise InputError("initial_transform: extent own lays each image's own box; give extent common")
        start = None if given is None else given.of(pair)
        pair = pair if start is None else start.pair
        images = {"fixed": pair.fixed, "moving": pair.moving}
        boxes = {role: foreground_box(image.array) for role, image in images.items()}
        windows = {role: window(image.array, boxes[role], *self.percentiles) for role, image in images.items()}
        pose, laid = (None, "header") if start else self._pose(pair, boxes, windows)
        grid, voxels, _, *rest = self.options
        grids = lay_grids(
            pair.fixed, pair.moving, grid, voxels, laid, *rest, pose=pose, boxes=boxes, native=self.native
        )
        grids = replace(grids, kind=self.kind, method=grids.method if start is None else "transform")
        fixed, moving = (
            torch.from_numpy(sample(rescale(image.array, *windows[role]), image.frame, frame, boxes[role]))[None, None]
            for (role, image), frame in zip(images.items(), (grids.fixed, grids.moving), strict=True)
        )
        channels = tuple(
            self._channel(*images, weight, pair.fixed_mask, grids) for *images, weight in self.driving.channels(pair)
        )
        mask = _weight(pair.fixed, pair.fixed_mask, grids.fixed)
        # The moving image's own field of view limits nothing, but it must be there.
        moving_mask = _weight(pair.moving, pair.moving_mask, grids.moving)
        return {
            **data,
            "sampled": SampledPair(
                grids,
                moving,
                fixed,
                None if bool((mask == 1).all()) else mask,
                None if pair.moving_mask is None else moving_mask,
                moving_mask,
                start,
                self.driving.guides(pair, grids),
                self.driving.facts(pair),
                time.perf_counter() - begin,
                channels,
            ),
        }

    def _channel(
        self, fixed: Image, moving: Image, weight: float, mask: Image | None, grids: NetworkGrids
    ) -> SampledPair:
        """Further images on the grids."""
        frames, volumes, views = (grids.fixed, grids.moving), [], []
        for image, frame in zip((fixed, moving), frames, strict=True):
            box = foreground_box(image.array)
            scaled = rescale(image.array, *window(image.array, box, *self.percentiles))
            volumes.append(torch.from_numpy(sample(scaled, image.frame, frame, box))[None, None])
            views.append(_weight(image, None, frame))
        if mask is not None:
            views[0] = views[0] * _weight(fixed, mask, grids.fixed)
        return SampledPair(grids, volumes[1], volumes[0], views[0], None, views[1], weight=weight)

    def _pose(
        self, pair: Pair, boxes: Mapping[str, np.ndarray], windows: Mapping[str, tuple[float, float]]
    ) -> tuple[Pose | None, str]:
        """What a search finds, where one is asked for, and the initialisation that the grids are laid by."""
        initialisation, extent = self.options[2:4]
        if initialisation not in SEARCHES:
            return None, initialisation
        if extent == "own":
            if initialisation == "search":
                raise InputError("initialisation=search: extent own lays each image's own box; give extent common")
            return None, "geometry"
        if (posed := self.driving.pose(pair)) is not None:
            return posed, "geometry"
        images = {"fixed": pair.fixed, "moving": pair.moving}
        volumes = [float(np.prod((box[1] - box[0]) * images[role].frame.spacing)) for role, box in boxes.items()]
        contents = (
            coarse(rescale(image.array, *windows[role]), image.frame, boxes[role], max(volumes))
            for role, image in images.items()
        )
        further = [
            (*(_coarse(image, max(volumes), self.percentiles) for image in images), weight)
            for *images, weight in self.driving.channels(pair)
        ]
        always, mirrors = initialisation == "search", self.kind == "affine"
        return choose_pose(*contents, pair.fixed_mask, always, mirrors, further), "geometry"


def _coarse(image: Image, volume: float, percentiles: tuple[float, float]) -> Coarse:
    box = foreground_box(image.array)
    return coarse(rescale(image.array, *window(image.array, box, *percentiles)), image.frame, box, volume)


def _together(volumes: Sequence[Tensor | None]) -> Tensor | None:
    """Channels as one tensor; None where all are, else ones in place of None."""
    some = next((one for one in volumes if one is not None), None)
    return None if some is None else torch.cat([torch.ones_like(some) if one is None else one for one in volumes], 1)


def field_of_view(image: Image, grid: Frame) -> Tensor:
    """1 where a grid's voxels lie in an image, else 0: ``(1, 1, D, H, W)`` float32."""
    voxels = image.frame.world_to_voxel(grid.places)
    return torch.from_numpy(image.frame.contains_voxel(voxels).astype(np.float32))[None, None]


def landed(view: Tensor, coordinates: Tensor) -> Tensor:
    """Where the points of a map, ``(1, 3, D, H, W)`` normalised, land in a field of view: ``(1, 1, D, H, W)``."""
    beyond = torch.tensor([1 + 1 / n for n in coordinates.shape[2:]], device=coordinates.device).view(1, 3, 1, 1, 1)
    return warp(view, coordinates) * (coordinates.abs() <= beyond).all(dim=1, keepdim=True)


def _weight(image: Image, mask: Image | None, grid: Frame) -> Tensor:
    """The mask on the network grid, or the image's field of view on it, ``(1, 1, D, H, W)`` float32 in [0, 1]."""
    if mask is None:
        weight = field_of_view(image, grid)
        if not weight.any():
            steps = " x ".join(f"{step:.3g}" for step in grid.spacing)
            raise InputError(
                f"{image.path}: no point of the network's grid over both images, {steps} mm, lies in it; see "
                "spacing and unit in both headers, or crop the larger image"
            )
    else:
        weight = torch.from_numpy(sample(mask.array.astype(np.float32), mask.frame, grid))[None, None]
        if not (weight > 0.01).any():
            raise InputError(
                f"{mask.path}: the mask has nothing where the network looks; give a mask that covers tissue"
            )
    return weight
