"""From the network's grids to the world: the transforms of a registration, and how well they undo each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..geometry import identity_map, resize_volume
from ..layers import VSVF, Field, Flows, integrate
from ..networks import Registration
from ..spatial import Frame, WorldTransform
from ..spatial.grid_map import GridMap, combined, in_slabs
from .grids import LARGEST_FIELD, NetworkGrids, reach
from .voxels import rounded

__all__ = ["inverse_consistency", "world_transforms"]

_FINEST = 4_000_000
_COVERING = 4
# The power of the field's spacing with which the inverse's error falls, somewhat below the two of smooth fields.
_ORDER = 1.75
# A finer field that leaves more than this part of the error is not worth its size.
_GAIN = 0.8
# What linear interpolation of the written field may leave of the flow, mm, for a coarser grid to be enough.
_EXACT = 0.02
_INTERIOR = 0.85
_BLOCK = 1 << 18


def world_transforms(
    registration: Registration,
    vsvf: VSVF,
    grids: NetworkGrids,
    fixed: Frame,
    moving: Frame,
    field_spacing: float = 2.5,
    tolerance: float | None = 0.1,
    finest: int | None = None,
) -> tuple[WorldTransform, list[WorldTransform]]:
    """The transform of a registration and its inverse, both from the model: exp(∓v) (`integrate`), Γ^±1.

    Args:
        registration: of one pair, on the network grids.
        vsvf: the unit that integrates.
        grids: the network grids.
        fixed: frame of the fixed image, all of which the transform shall cover.
        moving: frame of the moving image, all of which the inverse shall cover.
        field_spacing: the flow is given on a grid of at most this spacing in mm (as far as 4 million voxels allow, or
            16 million with those that cover the images), on the network's own low-resolution grid where that is finer,
            or on a coarser grid whose interpolation keeps the flow to 0.02 mm. A finer grid brings transform and
            inverse closer to being each other's inverses.
        tolerance: the grid is made finer still, within the same limits, until no point is farther than this many mm
            from where it began when carried there and back (`inverse_consistency`), or this no longer pays; None leaves
            the spacing alone.
        finest: voxels in place of the 4 million.

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
    if registration.composed:
        field = registration.displacement
        velocities = [resize_volume(one, list(field.shape[2:])) for one in registration.velocities]
        frame, (field, *velocities) = _with_margin(grids.fixed, torch.cat([field, -field]), [field, *velocities])
        flows: Field | Flows = Field(field, velocities)
    else:
        with torch.no_grad():
            carried = torch.cat(integrate(vsvf, registration.velocities))
        frame, velocities = _with_margin(grids.fixed, carried, registration.velocities)
        flows = Flows(vsvf, velocities)
    shape = frame.shape
    spacing = frame.spacing.max()
    there = undo.apply(moving.corners)
    covered = math.prod(shape) * max(reach(grids.fixed, fixed.corners), reach(grids.fixed, there))
    if covered > LARGEST_FIELD:
        raise InputError(
            f"{fixed.name}, {moving.name}: the network looks at so small a part of them, or scales so much, that no "
            "field can cover them; crop both to what matters, and see the spacing in both headers"
        )
    finest = _FINEST if finest is None else finest
    allowed = math.floor(min(finest / math.prod(shape), _COVERING * finest / covered) ** (1 / 3))
    factor, before = max(1, min(math.ceil(spacing / field_spacing), allowed)), math.inf
    with torch.no_grad():
        factor = next((fewer for fewer in range(2, factor) if _off(flows, fewer, frame) <= _EXACT), factor)
        while True:
            step = frame.spacing.min() / factor
            forward, backward = (rounded(_in_world(flow, frame), step) for flow in flows.at(factor))
            field = frame.resized(forward.shape[:3])
            transform, flow = WorldTransform(linear.linear, forward, field), WorldTransform(np.eye(4), backward, field)
            if tolerance is None or factor >= allowed:
                break
            worst = inverse_consistency(transform, [undo, flow], grids.fixed, grids.moving)["max"]
            if not tolerance < worst < _GAIN * before:
                break
            before = worst
            factor = min(allowed, max(factor + 1, math.ceil(factor * (worst / tolerance) ** (1 / _ORDER))))
    return transform.covering(fixed), [undo, flow.covering_points(there)]


def _in_world(flow: Tensor, frame: Frame) -> np.ndarray:
    """A displacement ``(1, 3, d, h, w)``, normalised to a frame, as ``(d, h, w, 3)`` float32, RAS mm."""
    return np.moveaxis(combined(frame.normalised_affine[:3, :3], flow[0].float().cpu().numpy()), 0, -1)


def _off(flows: Flows, factor: int, frame: Frame) -> float:
    """How far in mm the field of a grid is from the flow, at the most."""
    return float(np.linalg.norm(_in_world(flows.error(factor), frame), axis=-1).max())


def _with_margin(grid: Frame, flows: Tensor, volumes: Sequence[Tensor]) -> tuple[Frame, list[Tensor]]:
    """Velocities or displacements continued from their faces as far as they carry a point, and that grid's frame.

    Points near the faces are carried off the grid. Beyond it a displacement that is continued from the face has no
    inverse in that of the opposite flow; the flow of a continued velocity has.

    Args:
        grid: frame of the fixed network grid.
        flows: how far they carry, there and back, ``(2, 3, d, h, w)``.
        volumes: ``(1, 3, d, h, w)``, normalised to that grid.

    Returns:
        The frame with the volumes' spacing, and the volumes, normalised to it.
    """
    shape = volumes[0].shape[2:]
    low = grid.resized(shape)
    voxels = (torch.tensor(shape, dtype=torch.float32) - 1) / 2
    ends = identity_map(list(shape)) + flows.detach().cpu()
    # A node more than the farthest point goes: on its way, which is not followed, it may have been farther out.
    reached = (ends.abs().amax(dim=(0, 2, 3, 4)) - 1).clamp(min=0) * voxels + 1
    margin = [min(int(n), size) for n, size in zip(reached.ceil().tolist(), shape, strict=True)]
    pad = [margin[axis] for axis in (2, 2, 1, 1, 0, 0)]
    frame = low.padded(margin)
    # The same length is less of a longer axis.
    scale = torch.tensor([(n - 1) / (m - 1) for n, m in zip(shape, frame.shape, strict=True)]).view(1, 3, 1, 1, 1)
    return frame, [F.pad(v, pad, mode="replicate") * scale.to(v) for v in volumes]


def inverse_consistency(
    transform: WorldTransform, inverse: Sequence[WorldTransform], fixed: Frame, moving: Frame
) -> dict[str, float]:
    """How far points end from where they began when carried to the moving image and back, mm.

    Points are the voxels of ``fixed`` in the inner 85 % of its extent that also land in the inner 85 % of ``moving``'s:
    farther out, the end of the grids has its say.

    Args:
        transform: fixed to moving.
        inverse: moving to fixed, first listed, first applied.
        fixed: a grid over the fixed image.
        moving: a grid over the moving image.

    Returns:
        ``mean``, ``p99``, ``max`` in mm and ``points``, their number; NaN without points.
    """
    there, to_moving = GridMap([transform], fixed, np.eye(4)), np.linalg.inv(moving.normalised_affine)
    inner = [np.flatnonzero(np.abs(np.linspace(-1, 1, n)) <= _INTERIOR) for n in fixed.shape]
    first, *others = (slice(rows[0], rows[-1] + 1) if rows.size else slice(0, 0) for rows in inner)
    errors = []

    def work(rows: slice) -> None:
        box = (slice(first.start + rows.start, first.start + rows.stop), *others)
        start, end = there.ramp(fixed.affine, box).reshape(3, -1), there.coordinates(box).reshape(3, -1)
        seen = (np.abs(combined(to_moving[:3, :3], end) + to_moving[:3, 3:]) <= _INTERIOR).all(axis=0)
        back = end[:, seen].T
        for part in inverse:
            back = part.apply(back)
        errors.append(np.linalg.norm(back - start[:, seen].T, axis=1))

    in_slabs(work, [rows.size for rows in inner], _BLOCK)
    error = np.concatenate(errors or [np.zeros(0)])
    if not error.size:
        return {"mean": float("nan"), "p99": float("nan"), "max": float("nan"), "points": 0}
    return {
        "mean": float(error.mean()),
        "p99": float(np.percentile(error, 99)),
        "max": float(error.max()),
        "points": int(error.size),
    }
