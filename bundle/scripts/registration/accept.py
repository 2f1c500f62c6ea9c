"""Acceptance: the one place that decides whether a deformation is good enough to be written, and how much of it.

A deformation is kept as it was found where it neither folds space on the fixed image's own grid, nor makes the images
less similar there than the affine alone, nor leaves more doubt than it by the measure that the verdict uses, which does
not depend on contrast. Otherwise all its momenta are shortened by one factor, its length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..geometry import affine_map, warp
from ..losses import MultiKernelLNCC
from ..metrics import Doubt, WorldJacobian, doubt_of, world_jacobian
from ..networks import AVSM, Registration
from ..spatial import Frame, WorldTransform, resample_image
from .grids import foreground_box, rescale
from .intensities import normalise, window
from .memory import field_voxels
from .pair import Pair
from .sampling import OF_ANY_CONTRAST, SampledPair, field_of_view, landed
from .voxels import VoxelField, threads
from .world import inverse_transform, world_transform

__all__ = ["SAME", "Accepted", "NativeSimilarity", "accept", "best_length", "shortened"]

SAME = 1e-4
"""Losses that differ by less than this are equal: a deformation of next to nothing is no failure."""

_UNFOLDING = (0.97, 0.94, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.25, 0.0)
_PARTS = (0.75, 0.5, 0.25)
_NEARLY = 0.85  # of a flow; so much of it is as good as all
_FOLDED = "so that there are no folds on the fixed image's grid"
_UNLIKE = "as on the fixed image's grid the whole is less similar than the affine alone"
_WORSE = 0.005  # of the agreement of structures: less is no difference to tell of
_DOUBTED = "as with the whole the structures of both images agree less than with the affine alone"


@dataclass
class Accepted:
    """A registration in the world.

    Attributes:
        registration: what was accepted, on the network's grids.
        length: of its flow, as a part of the one that was found.
        transform: fixed to moving points.
        invert: gives ``inverse``.
        affine: the affine stage of ``transform``, initialisation included.
        jacobian: of ``transform`` on the fixed image's grid, ``fixed``.
        fixed: that grid.
        grid: the network's grid on the fixed image.
        doubt: of ``registration``, on ``grid``.
        affine_moved: the moving image under the affine alone, there, ``(1, 1, D, H, W)``.
        notes: a line where the flow was shortened.
        after: what follows ``transform`` and ``affine``: fields of a transform that was started from.
    """

    registration: Registration
    length: float
    transform: WorldTransform
    invert: Callable[[], list[WorldTransform]]
    affine: WorldTransform
    jacobian: WorldJacobian
    fixed: Frame
    grid: Frame
    doubt: Doubt
    affine_moved: Tensor
    notes: list[str] = field(default_factory=list)
    after: list[WorldTransform] = field(default_factory=list)

    @property
    def chain(self) -> list[WorldTransform]:
        """Fixed to moving points, first listed, first applied: ``transform`` and what follows it."""
        return [self.transform, *self.after]

    @cached_property
    def inverse(self) -> list[WorldTransform]:
        """Moving to fixed points, first listed, first applied, sought when asked for."""
        return self.invert()

    @property
    def displacement(self) -> np.ndarray:
        """Of all voxels of the fixed image, ``(D, H, W, 3)`` float32, RAS mm, worked out when asked for."""
        return VoxelField(self.chain, self.fixed).whole()


@torch.no_grad()
def shortened(network: AVSM, found: Registration, length: float, moving: Tensor) -> Registration:
    """A registration with all its momenta ``length`` times as long."""
    if length == 1:
        return found
    if found.composed:
        steps = ([length * one for one in some] for some in (found.momenta, found.velocities))
        return network.composed(moving, found.affine, length * found.displacement, *steps)
    less = network.integrate(moving, found.affine, [length * momentum for momentum in found.momenta])
    less.affines = found.affines
    return less


def best_length(losses: Mapping[float, float]) -> float:
    """The length of lowest loss, the first of equals."""
    return min(losses, key=losses.__getitem__)


def accept(
    found: Registration,
    network: AVSM,
    sampled: SampledPair,
    pair: Pair,
    tolerance: float,
    keep_better: bool = True,
    max_memory: int | None = None,
    similarity: str | Callable = "lncc",
) -> Accepted:
    """Carry a registration into the world, shortened where it folds or is no better than its affine.

    Args:
        found: on the network's grids.
        network: whose vSVF unit integrates.
        sampled: the pair that was registered.
        pair: the same pair on its own grids.
        tolerance: mm, see `world_transform` and `inverse_transform`.
        keep_better: False takes the flow as it comes, however similar.
        max_memory: MB, see `field_voxels`.
        similarity: what the images were compared by; on the fixed image's grid only correlation is.

    Returns:
        A registration without folds on the fixed image's grid, by all eight corner differences.
    """
    grids, fixed = sampled.grids, pair.fixed.frame
    moving = sampled.moving.to(found.affine.device)
    affine = grids.linear(found.affine)
    how = grids, fixed, pair.moving.frame, tolerance, field_voxels(max_memory)

    def placed(length: float) -> tuple[Registration, WorldTransform, WorldTransform]:
        """With its transform, on the network's grid and such that it covers the fixed image."""
        registration = shortened(network, found, length, moving)
        transform = world_transform(registration, network.vsvf, *how)
        return registration, transform, transform.covering(fixed)

    seen = field_of_view(pair.moving, grids.moving).to(moving)
    affine_moved = warp(moving, affine_map(found.affine, list(moving.shape[2:])))

    def without_folds(longest: float) -> tuple[float, WorldJacobian, Registration, WorldTransform, WorldTransform]:
        """The longest flow, at most ``longest``, that does not fold."""
        for length in (longest, *(part * longest for part in _UNFOLDING)):
            registration, transform, covering = placed(length)
            jacobian = world_jacobian([covering], fixed, threads=threads())
            if jacobian.folds == 0 or not found.velocities:
                break
        return length, jacobian, registration, transform, covering

    result, longest, why = without_folds(1.0), 1.0, ""
    if found.velocities and keep_better and similarity not in OF_ANY_CONTRAST:
        native = NativeSimilarity(pair, boxes=grids.boxes)
        if native.gain(affine, result[-1]) < -SAME:
            lengths = [part * result[0] for part in _PARTS]
            losses = {length: -native.gain(affine, placed(length)[-1]) for length in lengths}
            longest, why = best_length({0.0: 0.0, **losses}), _UNLIKE
            result = without_folds(longest)
        del native
    doubt, whole = _doubt(result[2], affine_moved, sampled, seen), result[0]
    slightly = doubt.agreement > doubt.affine_agreement - _WORSE
    for part in (*_PARTS, 0.0) if keep_better else ():
        if result[0] == 0 or not found.velocities or doubt.agreement >= doubt.affine_agreement:
            break
        longest, why = part * whole, _DOUBTED
        result = without_folds(longest)
        doubt = _doubt(result[2], affine_moved, sampled, seen)
    length, jacobian, registration, transform, covering = result
    why = _FOLDED if length != longest else why
    notes = []
    if (length < _NEARLY or (length < 1 and why != _FOLDED)) and not (slightly and why == _DOUBTED):
        follows = "only the affine is left" if length == 0 else "what differs between the images stays in part"
        notes.append(f"the deformation was shortened to {length:.3g} of its length, {why}: {follows}")
    stages = registration, length, covering, lambda: [inverse_transform(transform, *how)], affine
    return Accepted(*stages, jacobian, fixed, grids.fixed, doubt, affine_moved, notes)


@torch.no_grad()
def _doubt(registration: Registration, affine_moved: Tensor, sampled: SampledPair, seen: Tensor) -> Doubt:
    """The doubt of a registration on the network's grid.

    Args:
        registration: of the pair.
        affine_moved: see `Accepted`.
        sampled: the pair.
        seen: the moving image's field of view, on the moving grid.
    """
    _, fixed, mask, _ = sampled.to(registration.affine.device).volumes
    maps = registration.map, affine_map(registration.affine, list(fixed.shape[2:]))
    inside = [landed(seen, coordinates) for coordinates in maps]
    return doubt_of(fixed, affine_moved, registration.moved, sampled.grids.fixed.spacing.tolist(), mask, *inside)


class NativeSimilarity:
    """Compares transforms by the similarity that they reach on the fixed image's own grid.

    What matches better on a coarse grid may match worse there: where slices are thick, the network can follow how they
    were cut. Of a large image a part of the voxels is compared: every second, third, ... along its finest axes.

    Args:
        pair: the images, and perhaps the fixed image's mask.
        similarity: loss ``(B,)`` of (moved, fixed, mask); mk-LNCC by default.
        voxels: the most voxels to compare.
        boxes: `foreground_box` of the ``fixed`` and the ``moving`` image, where they are known.
    """

    def __init__(
        self,
        pair: Pair,
        similarity: Callable | None = None,
        voxels: int = 2_000_000,
        boxes: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.similarity = MultiKernelLNCC() if similarity is None else similarity
        strides = _strides(pair.fixed.frame, voxels)
        sampled = tuple(slice(None, None, stride) for stride in strides)
        self.frame = _thinned(pair.fixed.frame, strides)
        boxes = boxes or {role: foreground_box(getattr(pair, role).array) for role in ("fixed", "moving")}
        limits = window(pair.fixed.array, boxes["fixed"])
        self.fixed = _tensor(rescale(pair.fixed.array[sampled], *limits))
        self.moving, self.moving_frame = normalise(pair.moving.array, boxes["moving"]), pair.moving.frame
        self.mask = np.ones(self.frame.shape, bool)
        if pair.fixed_mask is not None:
            self.mask = np.asarray(pair.fixed_mask.array[sampled], bool)
        self._affine: tuple[np.ndarray, tuple[np.ndarray, np.ndarray]] | None = None

    def gain(self, affine: WorldTransform, transform: WorldTransform) -> float:
        """By how much a transform's loss is below that of its affine, where both land inside the moving image.

        Args:
            affine: fixed to moving; its warped image is kept for the next call.
            transform: the same.

        Returns:
            Positive where the transform is more similar; 0 where nothing can be compared.
        """
        if self._affine is None or not np.array_equal(self._affine[0], affine.linear):
            self._affine = affine.linear.copy(), self._warped(affine)
        moved, inside = zip(self._affine[1], self._warped(transform), strict=True)
        weight = self.mask & inside[0] & inside[1]
        if not weight.any():
            return 0.0
        mask = None if weight.all() else _tensor(weight)
        with torch.no_grad():
            before, after = (self.similarity(_tensor(one), self.fixed, mask).item() for one in moved)
        return before - after

    def _warped(self, transform: WorldTransform) -> tuple[np.ndarray, np.ndarray]:
        """The moving image on the grid of comparison, and where it lies inside its field of view."""
        moved = resample_image(self.moving, self.moving_frame, self.frame, [transform], fill=np.nan, threads=threads())
        inside = np.isfinite(moved)
        return np.where(inside, moved, np.float32(0)), inside


def _strides(frame: Frame, most: int) -> tuple[int, ...]:
    """Steps in voxels along each axis that leave at most so many voxels; the finest axis is thinned first."""
    strides = [1, 1, 1]
    shape, spacing = np.asarray(frame.shape), frame.spacing
    while math.prod(-(-shape // strides)) > most:
        axes = [axis for axis in range(3) if shape[axis] > strides[axis]]
        strides[min(axes, key=lambda axis: spacing[axis] * strides[axis])] += 1
    return tuple(strides)


def _thinned(frame: Frame, strides: Sequence[int]) -> Frame:
    """The grid of the voxels that are `strides` apart, from the first on."""
    affine = frame.affine.copy()
    affine[:3, :3] *= np.asarray(strides)
    return Frame(tuple(-(-size // stride) for size, stride in zip(frame.shape, strides, strict=True)), affine)


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))[None, None]
