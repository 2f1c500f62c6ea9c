"""From the network's grids to the world: the transforms of a registration, and what they do to images and labels."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..geometry import identity_affine, identity_map
from ..layers import VSVF, flow_displacements
from ..metrics import displacement_jacobian
from ..networks import Registration
from ..spatial.frame import Frame
from ..spatial.resampling import resample_image, resample_labels
from ..spatial.transform import WorldTransform
from .grids import LARGEST_FIELD, NetworkGrids, reach
from .likeness import NativeLikeness
from .places import displacement_of, lands_inside
from .round_trip import round_trip
from .update import SAME, Registered

__all__ = ["NativeOutputsd", "WorldTransformsd", "world_transforms"]

STAGES = ("before", "affine", "final")
_FINEST = 4_000_000
_FINEST_COVERING = 4 * _FINEST
# How long a flow may still be when it turns out to have folds on the image's own grid, in the order of trying.
_LENGTHS = (0.97, 0.94, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.25, 0.0)
_FOLDED = "so that there are no folds on the fixed image's grid"
# What parts are tried where the whole is less similar than none.
_PARTS = (0.75, 0.5, 0.25)
_UNLIKE = "as on the fixed image's grid the whole is less similar than the affine alone"
# With which power of the field's spacing the round trip's error falls, somewhat below the two of smooth fields.
_ORDER = 1.75
# A finer field that leaves more than this of the error is not worth its size.
_GAIN = 0.8


def world_transforms(
    registration: Registration,
    vsvf: VSVF,
    grids: NetworkGrids,
    fixed: Frame,
    moving: Frame,
    field_spacing: float = 2.5,
    tolerance: float | None = 0.1,
) -> tuple[WorldTransform, list[WorldTransform]]:
    """The transform of a registration and its inverse, both from the model: exp(∓v) (`flow_displacements`), Γ^±1.

    Args:
        registration: of one pair, on the network grids.
        vsvf: the unit that integrates.
        grids: the network grids.
        fixed: frame of the fixed image, all of which the transform shall cover.
        moving: frame of the moving image, all of which the inverse shall cover.
        field_spacing: the flow is given on a grid of at most this spacing in mm (as far as 4 million voxels allow, or
            16 million with those that cover the images), or on the network's own low-resolution grid where that is
            finer. A finer grid brings transform and inverse closer to being each other's inverses.
        tolerance: the grid is made finer still, within the same limits, until no point is farther than this many mm
            from where it began when carried there and back (`round_trip`), or this no longer pays; None leaves the
            spacing alone.

    Returns:
        Fixed to moving: q = L(p + d(p)). Moving to fixed, as a list, first listed, first applied: L⁻¹, then the inverse
        flow on the fixed side.

    Raises:
        InputError: when a field that covers the images would be too large.
    """
    linear = WorldTransform.from_network(grids.fixed, grids.moving, registration.affine)
    undo = WorldTransform(np.linalg.inv(linear.linear))
    if not registration.velocities:
        return linear, [undo]
    frame, velocities = _with_margin(vsvf, grids.fixed, registration.velocities)
    shape = frame.shape
    spacing = frame.spacing.max()
    there = undo.apply(moving.corners)
    covered = math.prod(shape) * max(reach(grids.fixed, fixed.corners), reach(grids.fixed, there))
    if covered > LARGEST_FIELD:
        raise InputError(
            f"{fixed.name}, {moving.name}: the network looks at so small a part of them, or scales so much, that no "
            "field can cover them; crop both to what matters, and see the spacing in both headers"
        )
    allowed = math.floor(min(_FINEST / math.prod(shape), _FINEST_COVERING / covered) ** (1 / 3))
    factor, before = max(1, min(math.ceil(spacing / field_spacing), allowed)), math.inf
    while True:
        with torch.no_grad():
            flows = flow_displacements(vsvf, velocities, factor)
        forward, backward = (WorldTransform.from_network(frame, frame, identity_affine(1), flow) for flow in flows)
        transform = WorldTransform(linear.linear, forward.displacement, forward.frame)
        flow = WorldTransform(np.eye(4), backward.displacement, backward.frame)
        if tolerance is None or factor >= allowed:
            break
        worst = round_trip(transform, [undo, flow], grids.fixed, grids.moving)["max"]
        if not tolerance < worst < _GAIN * before:
            break
        before = worst
        factor = min(allowed, max(factor + 1, math.ceil(factor * (worst / tolerance) ** (1 / _ORDER))))
    return transform.covering(fixed), [undo, flow.covering_points(there)]


def _with_margin(vsvf: VSVF, grid: Frame, velocities: Sequence[Tensor]) -> tuple[Frame, list[Tensor]]:
    """The velocities continued from their faces as far as they carry a point, and the frame of that larger grid.

    Points near the faces are carried off the grid. Beyond it a displacement that is continued from the face has no
    inverse in that of the opposite flow; the flow of a continued velocity has.

    Args:
        vsvf: the unit that integrates.
        grid: frame of the fixed network grid.
        velocities: ``(1, 3, d, h, w)``, normalised to that grid.

    Returns:
        The frame with the velocities' spacing, and the velocities, normalised to it.
    """
    shape = velocities[0].shape[2:]
    low = grid.resized(shape)
    voxels = (torch.tensor(shape, dtype=torch.float32) - 1) / 2
    with torch.no_grad():
        flows = torch.cat(flow_displacements(vsvf, velocities)).cpu()
    ends = identity_map(list(shape)) + flows
    # A node more than the farthest point goes: on its way, which is not followed, it may have been farther out.
    reached = (ends.abs().amax(dim=(0, 2, 3, 4)) - 1).clamp(min=0) * voxels + 1
    margin = [min(int(n), size) for n, size in zip(reached.ceil().tolist(), shape, strict=True)]
    pad = [margin[axis] for axis in (2, 2, 1, 1, 0, 0)]
    frame = low.padded(margin)
    # The same length is less of a longer axis.
    scale = torch.tensor([(n - 1) / (m - 1) for n, m in zip(shape, frame.shape, strict=True)]).view(1, 3, 1, 1, 1)
    return frame, [F.pad(v, pad, mode="replicate") * scale.to(v) for v in velocities]


class WorldTransformsd:
    """Adds ``transform``, ``inverse``, ``affine_transform`` and ``initial_transform`` to a registered pair.

    ``transform`` is a `WorldTransform`, fixed to moving points; ``inverse`` a list of them, moving to fixed, first
    listed, first applied; the other two are affine, fixed to moving. Each holds the initialisation. A flow is shortened
    (`Registered.shorter`) until there are no folds on the fixed image's own grid, by all eight corner differences;
    ``displacement``, that of the fixed image's voxels, ``(D, H, W, 3)`` float32, RAS mm, and ``regularity``, its
    `displacement_jacobian`, are then known and added, too. Where it makes the images less similar than the affine alone
    there (`NativeLikeness`), the part of it that is most similar is kept. ``round_trip_tolerance`` tells others what
    was asked for.

    Args:
        network: whose vSVF unit integrates.
        field_spacing: see `world_transforms`.
        tolerance: see `world_transforms`.
        keep_better: False takes the flow as it comes, however similar.

    Raises:
        ValueError: when one of the two is not positive.
    """

    def __init__(
        self,
        network: Any,
        field_spacing: float = 2.5,
        tolerance: float | None = 0.1,
        keep_better: bool = True,
    ) -> None:
        for name, value in (("field_spacing", field_spacing), ("tolerance", tolerance)):
            if value is not None and not value > 0:
                raise ValueError(f"WorldTransformsd: {name}={value}; give a positive number of mm.")
        self.network = network
        self.field_spacing = field_spacing
        self.tolerance = tolerance
        self.keep_better = keep_better

    def __call__(self, data: Mapping[str, Any]) -> dict:
        """Add them."""
        item, start = dict(data), time.perf_counter()
        item["round_trip_tolerance"], item["initial_transform"] = self.tolerance, item["grids"].initial
        self._place(item, item["registered"])
        if item["registered"].shorter is not None:
            length = self._unfold(item, 1.0)
            if self.keep_better:
                self._compare(item, length)
        item["registered"].seconds["transform"] = time.perf_counter() - start
        return item

    def _transform(self, item: dict[str, Any], registered: Registered, tolerance: float | None) -> None:
        """Set a registration and its transforms in the item; see `world_transforms`."""
        vsvf = (self.network if hasattr(self.network, "vsvf") else self.network.module).vsvf
        grids, images = item["grids"], item["images"]
        frames = images["fixed"].frame, images["moving"].frame
        found = registered.registration
        item["registered"] = registered
        item["transform"], item["inverse"] = world_transforms(
            found, vsvf, grids, *frames, self.field_spacing, tolerance
        )
        item["affine_transform"] = WorldTransform.from_network(grids.fixed, grids.moving, found.affine)

    def _place(self, item: dict[str, Any], registered: Registered) -> None:
        """The same, and what follows from a flow on the fixed image's own grid."""
        self._transform(item, registered, self.tolerance)
        if registered.shorter is not None:
            fixed = item["images"]["fixed"].frame
            item["displacement"] = displacement_of(item["transform"], fixed)
            item["regularity"] = displacement_jacobian(item["displacement"], fixed)

    def _unfold(self, item: dict[str, Any], longest: float) -> float:
        """Shorten the flow, ``longest`` times as long as it was found, until nothing folds; its length then."""
        length = longest
        for part in _LENGTHS:
            if item["regularity"].folds == 0:
                break
            length = part * longest
            self._place(item, item["registered"].shorter(length, _FOLDED))
        return length

    def _compare(self, item: dict[str, Any], longest: float) -> None:
        """Where the flow is less similar than the affine on the fixed image's own grid, take the best part of it."""
        likeness = NativeLikeness(item["images"])
        if likeness.gain(item["affine_transform"], item["transform"]) >= -SAME:
            return
        gains = {0.0: 0.0}
        for part in _PARTS:
            self._transform(item, item["registered"].shorter(part * longest, _UNLIKE), None)
            gains[part * longest] = likeness.gain(item["affine_transform"], item["transform"])
        best = max(gains, key=gains.__getitem__)
        self._place(item, item["registered"].shorter(best, _UNLIKE))
        self._unfold(item, best)


class NativeOutputsd:
    """Adds what the transforms make of the moving image and label on the fixed image's own grid.

    Each is interpolated once from the moving image's own grid. ``moved`` and ``moved_label`` are dicts of the stages
    ``before`` (initialisation alone), ``affine`` and ``final``; ``inside`` is where every stage stays inside the moving
    image ``(D, H, W)`` bool; ``displacement``, of `WorldTransformsd`, is added where it is not known yet.

    Args:
        interpolation: ``"linear"`` or ``"bspline"`` for the final image; the stages before are linear.
        label_interpolation: ``"nearest"``, or ``"linear"`` for each label on its own, then the largest.
        fill: value outside the moving image; None for its minimum.
    """

    def __init__(
        self, interpolation: str = "linear", label_interpolation: str = "nearest", fill: float | None = None
    ) -> None:
        self.interpolation = interpolation
        self.label_interpolation = label_interpolation
        self.fill = fill

    def __call__(self, data: Mapping[str, Any]) -> dict:
        """Add them."""
        item, start = dict(data), time.perf_counter()
        images = item["images"]
        fixed, moving = images["fixed"].frame, images["moving"]
        transforms = dict(
            zip(STAGES, (item["initial_transform"], item["affine_transform"], item["transform"]), strict=True)
        )
        # The displacement is found once, voxel by voxel, and serves image, label, field and Jacobian.
        if "displacement" not in item:
            item["displacement"] = displacement_of(item["transform"], fixed)
        displacement = item["displacement"]
        transforms["final"] = WorldTransform(np.eye(4), displacement, fixed)
        fill = float(moving.array.min()) if self.fill is None else self.fill
        item["moved"], item["moved_label"] = {}, {}
        inside = np.ones(fixed.shape, dtype=bool)
        for stage, transform in transforms.items():
            mode = self.interpolation if stage == "final" else "linear"
            item["moved"][stage] = resample_image(moving.array, moving.frame, fixed, [transform], mode, fill)
            inside &= lands_inside(transform, fixed, moving.frame)
            if "moving_label" in images:
                label = images["moving_label"]
                item["moved_label"][stage] = resample_labels(
                    label.array, label.frame, fixed, [transform], self.label_interpolation
                )
        item["inside"] = inside
        item["registered"].seconds["resample"] = time.perf_counter() - start
        return item
