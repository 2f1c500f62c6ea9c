"""From the network's grids to the world: the transforms of a registration, and how well they undo each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from ..errors import InputError
from ..geometry import identity_map, warp
from ..layers import VSVF, Flow
from ..networks import Registration
from ..spatial import Frame, WorldTransform
from ..spatial.grid_map import ALL, GridMap, combined, in_slabs
from ..spatial.inversion import Sought
from .grids import LARGEST_FIELD, NetworkGrids, box_corners, reach
from .voxels import rounded

__all__ = ["inverse_consistency", "inverse_transform", "world_transform"]

_FINEST = 4_000_000
_COVERING = 4
# An inverse may have this part of them if they are the moving image's own voxels. Those are nodes if they are no
# coarser than this part of the spacing that is sought, or if nodes between them bring that down to this part.
_OWN, _HELD, _NEARLY = 2.5, 2, 1.1
# No field is finer than this part of the images' smallest voxels: whoever reads it there gains next to nothing.
_OF_VOXEL = 0.6
# Of its spacing: smaller digits are left out of an inverse, which has many nodes.
_ROUNDED = 1e-3
_SAMPLES, _WORST = 20_000, 500
# Of the tolerance: how near to the inverse its nodes are sought.
_NEAR = 0.1
_LESS = 1.25
_INTERIOR = 0.85
_BLOCK = 1 << 18
_TURNS, _SLAB = 3, 1 << 17  # for all nodes, so many at a time; the few that need more are sought one by one


@torch.no_grad()
def world_transform(
    registration: Registration,
    vsvf: VSVF,
    grids: NetworkGrids,
    fixed: Frame,
    moving: Frame,
    tolerance: float = 0.05,
    finest: int = _FINEST,
) -> WorldTransform:
    """The transform of a registration, fixed to moving points.

    Args:
        registration: of one pair, on the network grids.
        vsvf: the unit that integrates.
        grids: the network grids.
        fixed: frame of the fixed image.
        moving: frame of the moving image.
        tolerance: mm. A composed displacement is written at its own nodes, of which it is the linear interpolation. A
            flow is written on a grid so fine that its linear interpolation keeps to the flow by this, but hardly
            finer than 0.6 of the images' smallest voxels.
        finest: voxels that a field may have; four times as many with those that cover the images (`_covered`).

    Returns:
        q = L(p + d(p)), d on the fixed network grid and as far beyond as points are carried.

    Raises:
        InputError: when a field that covers the images would be too large.
    """
    linear = grids.linear(registration.affine)
    if not registration.velocities:
        return linear
    volumes = [registration.displacement] if registration.composed else registration.velocities
    frame, volumes = _with_margin(grids.fixed, registration.displacement, volumes)
    covered = math.prod(frame.shape) * _covered(linear, grids, fixed, moving)
    if covered > LARGEST_FIELD:
        raise InputError(
            f"{fixed.name}, {moving.name}: the network looks at so small a part of them, or scales so much, that no "
            "field can cover them; crop both to what matters, and see the spacing in both headers"
        )
    if registration.composed:
        (field,) = volumes
    else:
        flow = Flow(vsvf, volumes)
        allowed = min(finest / math.prod(frame.shape), _COVERING * finest / covered) ** (1 / 3)
        most = max(1, min(math.floor(allowed), round(frame.spacing.max() / _smallest(fixed, moving))))
        off = (np.linalg.norm(_in_world(flow.error(factor), frame), axis=0).max() for factor in range(1, most))
        field = flow.at(next((factor for factor, worst in enumerate(off, start=1) if worst <= tolerance), most))
    return _transform(linear.linear, _in_world(field, frame), frame.resized(field.shape[2:]))


def inverse_transform(
    transform: WorldTransform,
    grids: NetworkGrids,
    fixed: Frame,
    moving: Frame,
    tolerance: float = 0.05,
    finest: int = _FINEST,
) -> WorldTransform:
    """The inverse of a transform, moving to fixed points, sought at the nodes of a grid along the moving image's axes.

    Between nodes two linear interpolations undo each other up to their second differences, which fall with the square
    of the spacing, or with the spacing alone where the transform's own interpolation has its kinks.

    Args:
        transform: of `world_transform`.
        grids: the network grids.
        fixed: frame of the fixed image.
        moving: frame of the moving image, all of which the inverse shall cover.
        tolerance: mm. The grid is as fine as it takes for sampled points to come back to where they were within this,
            but hardly finer than 0.6 of the images' smallest voxels.
        finest: see `world_transform`; 2.5 times as many if they are the moving image's own voxels, at which the inverse
            is then exact.

    Returns:
        p = L⁻¹(q + e(q)), e on the moving side. A grid that is finer than the moving image holds its voxels.
    """
    undo = WorldTransform(np.linalg.inv(transform.linear), kind=transform.kind)
    if transform.frame is None:
        return undo
    sought = Sought(transform, _NEAR * tolerance, np.float32)
    faces = moving.voxel_to_world(box_corners([[-0.5] * 3, np.asarray(moving.shape) - 0.5]))
    asked = np.concatenate([faces, grids.moving.corners])
    whole, allowed = _part(moving, asked), finest
    if math.prod(whole.shape) > _OWN * allowed:
        # Sought where the field acts; from there it is continued.
        whole = _part(moving, asked, transform.affine_part.apply(transform.frame.corners))
        allowed *= min(1, _COVERING / _covered(transform.affine_part, grids, fixed, moving))
    rough = _inverse_on(_spaced(whole, 2 * grids.fixed.spacing.max()), sought, undo)
    least = max(_smallest(fixed, moving), (whole.extent.prod() / allowed) ** (1 / 3))
    left = partial(_left, sought, rough, *_samples(transform, rough, grids))
    grid = _fine_enough(whole, rough.frame.spacing.max(), least, allowed, tolerance, left)
    near = _inverse_on(_spaced(whole, 2 * grid.spacing), sought, undo, rough)
    return _inverse_on(grid, sought, undo, near).covering_points(faces)


def _fine_enough(
    whole: Frame, spacing: float, least: float, allowed: float, tolerance: float, left: Callable[[Frame], float]
) -> Frame:
    """The coarsest grid from which sampled points come back within a tolerance, or else one of the finest spacing.

    Args:
        whole: the moving image's voxels.
        spacing: mm, to begin with.
        least: the finest spacing.
        allowed: nodes of a grid of the finest spacing; 2.5 times as many if they are those voxels.
        tolerance: mm.
        left: how far off points are, mm; see `_left`.
    """
    while spacing > least:
        grid = _spaced(whole, spacing)
        off = left(grid)
        if off <= tolerance:
            return grid
        spacing = max(least, spacing / max(_LESS, math.sqrt(off / tolerance)))
    holding = _spaced(whole, np.minimum(spacing, whole.spacing))
    if math.prod(holding.shape) > allowed:
        holding = whole
    near = (holding.spacing <= _NEARLY * spacing).all() or (whole.spacing <= _HELD * spacing).all()
    if near and math.prod(holding.shape) <= _OWN * allowed:
        return holding
    return whole.resized(np.ceil(whole.extent / spacing).astype(int) + 1)


@torch.no_grad()
def _inverse_on(
    grid: Frame, sought: Sought, undo: WorldTransform, start: WorldTransform | None = None
) -> WorldTransform:
    """The inverse of ``q = L(p + d(p))`` at the nodes of a grid of q.

    Newton's steps, whose matrix is the slope of what has been found from node to node.

    Args:
        grid: the grid, which need not lie along the axes of d's.
        sought: of d; it solves for the points that these steps leave.
        undo: L⁻¹.
        start: an inverse that is known roughly; None: none is.
    """
    back = np.linalg.inv(sought.frame.affine)
    places = GridMap([undo if start is None else start], grid, back)
    aims = back @ undo.linear @ grid.affine
    to_nodes = np.linalg.inv(aims[:3, :3])
    field = torch.from_numpy(sought.nodes)[None]
    half = torch.tensor([(n - 1) / 2 for n in field.shape[2:]]).view(1, 3, 1, 1, 1)
    result = np.empty((3, *grid.shape), np.float32)

    def lacking(found: Tensor, target: Tensor) -> Tensor:
        return (target - found).sub_(warp(field, found / half - 1, padding="border"))

    def work(rows: slice) -> None:
        around = slice(max(rows.start - 1, 0), min(rows.stop + 1, grid.shape[0]))  # for the slopes of the outermost
        box = around, ALL, ALL
        target, found = (
            torch.from_numpy(one.astype(np.float32))[None] for one in (places.ramp(aims, box), places.coordinates(box))
        )
        lack = lacking(found, target)
        for _ in range(_TURNS if start is None else 1):
            steps = combined(to_nodes, lack[0].numpy())
            trial = found.clone()
            for axis, step in enumerate(steps):
                trial += torch.gradient(found, dim=axis + 2)[0].mul_(torch.from_numpy(step))
            left = lacking(trial, target)
            better = left.square().sum(dim=1, keepdim=True) < lack.square().sum(dim=1, keepdim=True)
            found, lack = torch.where(better, trial, found), torch.where(better, left, lack)
        inner = slice(rows.start - around.start, rows.stop - around.start)
        found, target, lack = (one[0, :, inner].reshape(3, -1).numpy() for one in (found, target, lack))
        off = np.flatnonzero(np.linalg.norm(combined(sought.to_mm, lack), axis=0) > sought.tolerance)
        found[:, off] = sought(target[:, off], found[:, off])
        result[:, rows] = combined(sought.to_mm, found - target).reshape(result[:, rows].shape)

    in_slabs(work, grid.shape, _SLAB)
    rounded(result, grid.spacing.min(), _ROUNDED)
    return WorldTransform(undo.linear, np.moveaxis(result, 0, -1), grid, kind=undo.kind)


def _smallest(fixed: Frame, moving: Frame) -> float:
    """The finest spacing of a field that is of use, mm."""
    return _OF_VOXEL * min(fixed.spacing.min(), moving.spacing.min())


def _covered(linear: WorldTransform, grids: NetworkGrids, fixed: Frame, moving: Frame) -> float:
    """How many times the fixed network grid it takes to cover both images, the moving one carried back."""
    there = WorldTransform(np.linalg.inv(linear.linear)).apply(moving.corners)
    return max(reach(grids.fixed, fixed.corners), reach(grids.fixed, there))


def _transform(linear: np.ndarray, field: np.ndarray, frame: Frame) -> WorldTransform:
    """The transform of a field ``(3, d, h, w)``, which is rounded in place."""
    return WorldTransform(linear, np.moveaxis(rounded(field, frame.spacing.min()), 0, -1), frame)


def _in_world(displacement: Tensor, frame: Frame) -> np.ndarray:
    """A displacement ``(1, 3, d, h, w)``, normalised to a frame, as ``(3, d, h, w)`` float32, RAS mm."""
    return combined(frame.normalised_affine[:3, :3], displacement[0].float().cpu().numpy())


def _part(frame: Frame, *sets: np.ndarray) -> Frame:
    """The least box of a grid's voxels, on it and beyond, around what boxes of points ``(N, 3)``, RAS mm, share."""
    voxels = [frame.world_to_voxel(points) for points in sets]
    low = np.floor(np.max([one.min(axis=0) for one in voxels], axis=0) + 1e-6).astype(int)
    high = np.ceil(np.min([one.max(axis=0) for one in voxels], axis=0) - 1e-6).astype(int)
    affine = frame.affine.copy()
    affine[:3, 3] = frame.voxel_to_world(low)
    return Frame(tuple(int(n) for n in np.maximum(high - low, 1) + 1), affine, frame.name)


def _spaced(frame: Frame, spacing: ArrayLike) -> Frame:
    """The grid with the same corners whose voxels are about so many mm apart; a finer one holds those of ``frame``."""
    steps, last = frame.spacing / spacing * (1 + 1e-6), np.asarray(frame.shape) - 1
    shape = 1 + np.where(steps < 1, np.ceil(last * steps - 1e-3), last * np.rint(steps))
    return frame.resized(np.maximum(shape, 2).astype(int))


def _samples(transform: WorldTransform, rough: WorldTransform, grids: NetworkGrids) -> tuple[np.ndarray, np.ndarray]:
    """Points as `inverse_consistency` takes them, and where they are carried, ``(N, 3)`` RAS mm each.

    Of many random ones those that a rough inverse brings least near to where they were.
    """
    normalised = np.random.default_rng(0).uniform(-_INTERIOR, _INTERIOR, (_SAMPLES, 3))
    points = grids.fixed.normalised_to_world(normalised)
    carried = transform.apply(points)
    seen = (np.abs(grids.moving.world_to_normalised(carried)) <= _INTERIOR).all(axis=1)
    points, carried = points[seen], carried[seen]
    worst = np.argsort(np.linalg.norm(rough.apply(carried) - points, axis=1))[-_WORST:]
    return points[worst], carried[worst]


def _left(sought: Sought, rough: WorldTransform, points: np.ndarray, carried: np.ndarray, grid: Frame) -> float:
    """How far, at the most, the inverse on a grid would bring points from where they were, mm.

    Args:
        sought: what finds the inverse at nodes; only those around the points are asked for.
        rough: an inverse to start from.
        points: see `_samples`.
        carried: see `_samples`.
        grid: the grid.
    """
    if not len(points):
        return 0.0
    where = grid.world_to_voxel(carried)
    low = np.clip(np.floor(where), 0, np.asarray(grid.shape) - 2)
    places = grid.voxel_to_world(low[:, None] + list(product((0, 1), repeat=3))).reshape(-1, 3)
    target = sought.frame.world_to_voxel(rough.affine_part.apply(places)).T
    begin = sought.frame.world_to_voxel(rough.apply(places)).T
    field = sought.frame.voxel_to_world(sought(target, begin).T).T.reshape(3, -1, 2, 2, 2)
    for axis in range(3):
        part = (where - low)[:, axis].reshape(-1, *[1] * (2 - axis))
        field = field[:, :, 0] + part * (field[:, :, 1] - field[:, :, 0])
    return float(np.linalg.norm(field.T - points, axis=1).max())


def _with_margin(grid: Frame, displacement: Tensor, volumes: Sequence[Tensor]) -> tuple[Frame, list[Tensor]]:
    """Velocities or displacements continued from their faces as far as they carry a point, and that grid's frame.

    Points near the faces are carried off the grid. Beyond it a displacement that is continued from the face has no
    inverse in that of the opposite flow; the flow of a continued velocity has.

    Args:
        grid: frame of the fixed network grid.
        displacement: how far they carry, and about as far back, ``(1, 3, d, h, w)``.
        volumes: ``(1, 3, d, h, w)``, normalised to that grid.

    Returns:
        The frame with the volumes' spacing, and the volumes, normalised to it.
    """
    shape = volumes[0].shape[2:]
    low = grid.resized(shape)
    voxels = (torch.tensor(shape, dtype=torch.float32) - 1) / 2
    ends = identity_map(list(shape)) + torch.cat([displacement, -displacement]).detach().cpu()
    # A node more than the farthest point goes: on its way, which is not followed, it may have been farther out.
    reached = (ends.abs().amax(dim=(0, 2, 3, 4)) - 1).clamp(min=0) * voxels + 1
    margin = [min(int(n), size) for n, size in zip(reached.ceil().tolist(), shape, strict=True)]
    pad = [margin[axis] for axis in (2, 2, 1, 1, 0, 0)]
    frame = low.padded(margin)
    # The same length is less of a longer axis.
    scale = torch.tensor([(n - 1) / (m - 1) for n, m in zip(shape, frame.shape, strict=True)]).view(1, 3, 1, 1, 1)
    return frame, [F.pad(v, pad, mode="replicate") * scale.to(v) for v in volumes]


def inverse_consistency(
    transforms: Sequence[WorldTransform], inverse: Sequence[WorldTransform], fixed: Frame, moving: Frame
) -> dict[str, float]:
    """How far points end from where they began when carried to the moving image and back, mm.

    Points are the voxels of ``fixed`` in the inner 85 % of its extent that also land in the inner 85 % of ``moving``'s:
    farther out, the end of the grids has its say.

    Args:
        transforms: fixed to moving, first listed, first applied.
        inverse: moving to fixed, first listed, first applied.
        fixed: a grid over the fixed image.
        moving: a grid over the moving image.

    Returns:
        ``mean``, ``p99``, ``max`` in mm and ``points``, their number; NaN without points.
    """
    there, to_moving = GridMap(transforms, fixed, np.eye(4)), np.linalg.inv(moving.normalised_affine)
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
