"""A search for the pose: how the moving image is turned and shifted, before any stage that follows a gradient.

Candidates are the turns that a header may hide (the axes of both arrays, and those of the world, in every order and
direction) and turns spread over all rotations, each about the centres of both contents. All are compared on a coarse
grid in batches; the best are refined by turns and shifts that get smaller, and compared again on a finer grid. The
similarity is normalised mutual information, which does not ask for one contrast, of the part where both images are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import permutations, product

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial.transform import Rotation

from ..formats import Image
from ..spatial import Frame
from .grids import Pose
from .intensities import sample

__all__ = ["Coarse", "choose_pose", "coarse"]

_COARSE, _FINE = 12, 20  # voxels of the grids of comparison, the cube root
_SPREAD = 500  # turns over all rotations, about 30 degrees apart
_KEPT, _FINALISTS = 14, 2
_POINTS = {_COARSE: 1000, _FINE: 3000}  # at most, of either grid, that are compared
_APART = math.radians(20)  # candidates that are refined differ by more
_TRIALS = 16  # turns and shifts that are tried at once
# Rounds of refinement, and the first turn (radians) and shift (part of the image's radius) of each.
_ROUNDS = {_COARSE: (5, math.radians(15), 0.15), _FINE: (5, math.radians(5), 0.05)}
_SMALLER = 0.65
_BINS = 12
_LEAST_OVERLAP = 0.4
_SAME = 0.95  # of the best similarity: no reason to leave the header's orientation
_NATURAL = math.radians(25)
_ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class Coarse:
    """An image's content on a coarse grid along its own axes.

    Attributes:
        array: ``(d, h, w)`` float32 in [0, 1].
        grid: of ``array``.
        image: the image's own frame.
        radius: half the cube root of the larger of both contents' volumes, mm.
    """

    array: np.ndarray
    grid: Frame
    image: Frame
    radius: float


def coarse(array: np.ndarray, frame: Frame, box: np.ndarray, volume: float, size: int = _FINE) -> Coarse:
    """An image's content on the grid of the search.

    Args:
        array: ``(D, H, W)`` in [0, 1].
        frame: of ``array``.
        box: its `foreground_box`.
        volume: of the larger of both contents, mm³.
        size: cube root of the voxels of the larger content.
    """
    extent, side = (box[1] - box[0]) * frame.spacing, volume ** (1 / 3)
    shape = tuple(int(n) for n in np.clip(np.round(extent * size / side), 4, 64))
    affine = np.eye(4)
    affine[:3, :3] = frame.direction * (extent / np.asarray(shape))
    affine[:3, 3] = frame.voxel_to_world(box.mean(axis=0)) - affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    grid = Frame(shape, affine)
    return Coarse(sample(array, frame, grid, box), grid, frame, side / 2)


def choose_pose(fixed: Coarse, moving: Coarse, mask: Image | None = None, always: bool = False) -> Pose | None:
    """The pose to start from.

    The best pose is that of the header's basin, unless another is more alike by a twentieth. Where it lies within 25
    degrees of turns between axes of the world or of the arrays, it says which of them is meant, and no more: people lie
    as differently, and the affine stage follows. Of several the most alike is taken.

    Args:
        fixed: the fixed image.
        moving: the moving image.
        mask: where in the fixed image the similarity counts; None everywhere.
        always: take the best pose itself, however little it gains.

    Returns:
        The pose; None for the header's orientation, with the centres of both contents laid on each other.
    """
    found, level = _search(fixed, moving, mask)
    best, header = max(found, key=lambda one: one.similarity), found[0]
    facts = {"similarity_header": round(header.similarity, 4), "similarity": round(best.similarity, 4)}
    matrix = best.matrix
    if not always:
        if header.similarity >= _SAME * best.similarity:
            matrix = header.matrix
        known = _about(_known_turns(fixed.image, moving.image), *level.centres[0])
        known = known[[_angle(matrix, turn) <= _NATURAL for turn in known]]
        if len(known):
            similarity = level.similarities(known)
            similarity[[_angle(turn, np.eye(4)) < _ROUNDING for turn in known]] /= _SAME
            matrix = known[int(np.argmax(similarity))]
            if _angle(matrix, np.eye(4)) < _ROUNDING:
                return None
    turned = math.degrees(_angle(matrix, np.eye(4)))
    return Pose(matrix, {"turned_by": round(turned, 1), **facts})


@dataclass(frozen=True, eq=False)
class _Found:
    """A pose, ``(4, 4)``, fixed to moving points, and the similarity there."""

    matrix: np.ndarray
    similarity: float


def _search(fixed: Coarse, moving: Coarse, mask: Image | None) -> tuple[list[_Found], _Level]:
    """The header's orientation by the better pair of centres, then the best of all others, refined; the finer level."""
    random = np.random.default_rng(0)
    level = _Level(_thinned(fixed), _thinned(moving), mask, _COARSE)
    turns = np.concatenate([np.eye(3)[None], _known_turns(fixed.image, moving.image), _spread_rotations(_SPREAD)])
    start = np.concatenate([_about(turns, *centres) for centres in level.centres])
    similarity = level.similarities(start)
    chosen = [0, len(turns)]
    for index in np.argsort(-similarity, kind="stable"):
        if len(chosen) == _KEPT + 2:
            break
        if all(_angle(start[index], start[other]) > _APART for other in chosen[2:]):
            chosen.append(int(index))
    poses, similarity = level.refined(start[chosen], similarity[chosen], random)
    last = [int(np.argmax(similarity[:2])), *(2 + np.argsort(-similarity[2:], kind="stable")[:_FINALISTS])]
    level = _Level(fixed, moving, mask, _FINE)
    poses, similarity = level.refined(poses[last], level.similarities(poses[last]), random)
    return [_Found(pose, float(value)) for pose, value in zip(poses, similarity, strict=True)], level


class _Level:
    """Both contents on coarse grids of one spacing.

    Args:
        fixed: the fixed image.
        moving: the moving image.
        mask: see `choose_pose`.
        size: key of `_ROUNDS`.
    """

    def __init__(self, fixed: Coarse, moving: Coarse, mask: Image | None, size: int) -> None:
        self.size, self.radius, self.moving = size, fixed.radius, moving
        seen, grid = fixed.array, fixed.grid
        self.centres = [
            (grid.centre, moving.grid.centre),
            (_centre_of_mass(seen, grid), _centre_of_mass(moving.array, moving.grid)),
        ]
        points = grid.voxel_to_world(np.stack(np.indices(grid.shape), axis=-1).reshape(-1, 3))
        counted = fixed.image.contains_voxel(fixed.image.world_to_voxel(points))
        if mask is not None:
            inside = np.clip(np.round(mask.frame.world_to_voxel(points)).astype(int), 0, np.array(mask.frame.shape) - 1)
            masked = counted & np.asarray(mask.array[tuple(inside.T)], bool)
            counted = masked if masked.any() else counted
        chosen = np.random.default_rng(0).permutation(np.flatnonzero(counted))[: _POINTS[size]]
        self.points = torch.from_numpy(points[chosen]).float()
        self.fixed = _histogram(torch.from_numpy(seen.reshape(-1)[chosen]))
        self.volume = torch.from_numpy(moving.array)[None, None]

    def similarities(self, poses: np.ndarray, batch: int = 64) -> np.ndarray:
        """Normalised mutual information under each of ``(N, 4, 4)`` poses, less where less overlaps."""
        matrices = torch.from_numpy(np.linalg.inv(self.moving.grid.normalised_affine) @ poses).float()
        found = []
        for some in matrices.split(batch):
            at = self.points @ some[:, :3, :3].transpose(1, 2) + some[:, None, :3, 3]
            inside = (at.abs() <= 1 + 1 / torch.tensor(self.moving.grid.shape)).all(dim=-1).float()
            moved = F.grid_sample(
                self.volume.expand(len(some), -1, -1, -1, -1),
                at.flip(-1)[:, :, None, None],
                padding_mode="border",
                align_corners=True,
            )[:, 0, :, 0, 0]
            joint = (_histogram(moved) * inside.unsqueeze(-1)).transpose(1, 2) @ self.fixed
            part = inside.mean(dim=1)
            value = _mutual_information(joint) * part.sqrt()
            found.append(torch.where(part < _LEAST_OVERLAP, -1.0, value))
        return torch.cat(found).numpy()

    def refined(
        self, poses: np.ndarray, similarity: np.ndarray, random: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Each pose by random turns and shifts about it, where they are more alike."""
        poses, similarity = poses.copy(), similarity.copy()
        rounds, turn, shift = _ROUNDS[self.size]
        centre = self.centres[0][0]
        for _ in range(rounds):
            size = (len(poses), _TRIALS, 3)
            turns = Rotation.from_rotvec(random.normal(size=size).reshape(-1, 3) * turn * _SMALLER).as_matrix()
            there = (poses[:, :3, :3] @ centre + poses[:, :3, 3])[:, None]
            there = (there + random.normal(size=size) * shift * self.radius * _SMALLER).reshape(-1, 3)
            trials = _about(turns @ np.repeat(poses[:, :3, :3], _TRIALS, axis=0), centre, there)
            values = self.similarities(trials).reshape(len(poses), _TRIALS)
            for index, best in enumerate(values.argmax(axis=1)):
                if values[index, best] > similarity[index]:
                    poses[index], similarity[index] = trials[index * _TRIALS + best], values[index, best]
            turn, shift = turn * _SMALLER, shift * _SMALLER
        return poses, similarity


def _thinned(content: Coarse) -> Coarse:
    """The content on the coarser grid."""
    shape = np.asarray(content.array.shape)
    box = np.stack([np.full(3, -0.5), shape - 0.5])
    fewer = coarse(content.array, content.grid, box, 8 * content.radius**3, _COARSE)
    return replace(fewer, image=content.image)


def _centre_of_mass(array: np.ndarray, frame: Frame) -> np.ndarray:
    index = np.stack(np.indices(array.shape), axis=-1)
    return frame.voxel_to_world((array[..., None] * index).sum(axis=(0, 1, 2)) / max(float(array.sum()), 1e-9))


def _histogram(values: torch.Tensor) -> torch.Tensor:
    """The share of each bin in each of the values in [0, 1], linear between bins, ``(..., bins)``."""
    return (1 - (values.clamp(0, 1).unsqueeze(-1) * (_BINS - 1) - torch.arange(_BINS)).abs()).clamp(min=0)


def _mutual_information(joint: torch.Tensor) -> torch.Tensor:
    """Mutual information of joint histograms ``(N, bins, bins)``, as a part of the mean entropy: 0 to 1."""
    joint = joint / joint.sum(dim=(1, 2), keepdim=True).clamp(min=1)

    def entropy(p: torch.Tensor) -> torch.Tensor:
        return -(p * p.clamp(min=1e-9).log()).flatten(1).sum(dim=1)

    both = entropy(joint.sum(dim=2)) + entropy(joint.sum(dim=1))
    return 2 * (both - entropy(joint)) / both.clamp(min=1e-6)


def _about(turns: np.ndarray, centre: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Poses ``(N, 4, 4)`` of turns ``(N, 3, 3)`` that carry a centre ``(3,)`` to ``there``, ``(3,)`` or ``(N, 3)``."""
    poses = np.tile(np.eye(4), (len(turns), 1, 1))
    poses[:, :3, :3] = turns
    poses[:, :3, 3] = there - turns @ centre
    return poses


def _angle(one: np.ndarray, other: np.ndarray) -> float:
    """The angle between the rotations of two matrices, radians."""
    # By the chord, whose small values are exact.
    chord = float(np.linalg.norm(one[:3, :3] - other[:3, :3])) / math.sqrt(8)
    return 2 * math.asin(min(chord, 1.0))


def _known_turns(fixed: Frame, moving: Frame) -> np.ndarray:
    """The rotations that carry axes of the world, or of the fixed array, to such of the world, or of the moving array.

    Returns:
        ``(48, 3, 3)`` or fewer; the header's own orientation, the identity, is among them.
    """
    turns = []
    for order in permutations(range(3)):
        for signs in product((1, -1), repeat=3):
            turn = np.zeros((3, 3))
            turn[range(3), order] = signs
            turns += [turn, moving.direction @ turn @ fixed.direction.T]
    return np.array([turn for turn in turns if np.linalg.det(turn) > 0])


def _spread_rotations(count: int) -> np.ndarray:
    """Rotations spread evenly over all, ``(count, 3, 3)``: super-Fibonacci spirals (Alexa, CVPR 2022)."""
    s = np.arange(count) + 0.5
    inner, outer = np.sqrt(s / count), np.sqrt(1 - s / count)
    alpha, beta = 2 * np.pi * s / math.sqrt(2), 2 * np.pi * s / 1.533751168755204288118041
    parts = (inner * np.sin(alpha), inner * np.cos(alpha), outer * np.sin(beta), outer * np.cos(beta))
    return Rotation.from_quat(np.stack(parts, axis=1)).as_matrix()
