"""A search for the pose: how the moving image is turned and shifted, before any stage that follows a gradient.

Candidates are the turns that a header may hide (the axes of both arrays, and those of the world, in every order and
direction) and turns spread over all rotations, each about the centres of both contents, and all of them mirrored. All
are compared on a coarse grid in batches; the best are refined by turns and shifts that get smaller, and compared again
on a finer grid. The similarity is normalised mutual information, which does not ask for one contrast, of the part where
both images are. That the moving image is a mirror image is believed where that is plain, or more than chance: two
brains differ little from their mirror images, so that a paired test of local correlation decides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations, product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial.transform import Rotation
from torch import Tensor

from ..formats import Image
from ..geometry import affine_map, warp
from ..losses import BoxCorrelation
from ..optimize import AffineEngine
from ..spatial import Frame
from .grids import Pose
from .intensities import sample

if TYPE_CHECKING:
    from .sampling import SampledPair

__all__ = ["Coarse", "choose_pose", "coarse", "rival"]

_COARSE, _FINE, _FINEST = 12, 20, 48
_SPREAD = 500  # turns over all rotations, about 30 degrees apart
_RIVALS = 300
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
_SURELY = 0.88  # the same where the best lies another way round
_OTHER_WAY = math.radians(75)  # a turn from which on an image lies another way round: knees are alike upside down
_CHANCE = 0.01  # of similarity: what so few points reach where the images have nothing in common
_CONVINCING = 0.05  # a similarity from which on places are more than chance
_NATURAL = math.radians(25)
_ROUNDING = 1e-6
_RIVAL, _PLAIN = 0.9, 1.25  # of the best similarity: what a mirror image must reach to be tested, and needs no test
_CERTAIN, _LEAST_GAIN = 2.5, 0.005  # standard errors, and local correlation, by which it must be more alike
_ALIKE = 0.6  # local correlation below which sides cannot be told
_WITHIN = 0.5  # of a voxel that lies in a field of view
_WINDOW = 2  # radius of the test's correlation, voxels
_MIRRORS = {"left and right": (-1, 1, 1), "front and back": (1, -1, 1), "top and bottom": (1, 1, -1)}


@dataclass(frozen=True, eq=False)
class Coarse:
    """An image's content on a coarse grid along its own axes.

    Attributes:
        array: ``(d, h, w)`` float32 in [0, 1].
        grid: of ``array``.
        image: the image's own frame.
        radius: half the cube root of the larger of both contents' volumes, mm.
        seen: as ``array``, where it counts; None for all that lies in ``image``.
    """

    array: np.ndarray
    grid: Frame
    image: Frame
    radius: float
    seen: np.ndarray | None = None


def coarse(array: np.ndarray, frame: Frame, box: np.ndarray, volume: float, size: int = _FINEST) -> Coarse:
    """An image's content on the grid of the search.

    Args:
        array: ``(D, H, W)`` in [0, 1].
        frame: of ``array``.
        box: its `foreground_box`.
        volume: of the larger of both contents, mm³.
        size: cube root of the voxels of the larger content.
    """
    extent, side = (box[1] - box[0]) * frame.spacing, volume ** (1 / 3)
    # No finer than the image.
    shape = np.minimum(np.round(extent * size / side), np.ceil(box[1] - box[0]))
    shape = tuple(int(n) for n in np.clip(shape, 4, 3 * size))
    affine = np.eye(4)
    affine[:3, :3] = frame.direction * (extent / np.asarray(shape))
    affine[:3, 3] = frame.voxel_to_world(box.mean(axis=0)) - affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    grid = Frame(shape, affine)
    return Coarse(sample(array, frame, grid, box), grid, frame, side / 2)


def choose_pose(
    fixed: Coarse,
    moving: Coarse,
    mask: Image | None = None,
    always: bool = False,
    mirrors: bool = True,
    further: Sequence[tuple[Coarse, Coarse, float]] = (),
) -> Pose:
    """The pose to start from.

    The best pose is that of the header's basin, unless another is more alike by a twentieth, or by an eighth if it
    lies another way round. Where it lies within 25 degrees of turns between axes of the world or of the arrays, it says
    which of them is meant, and no more: people lie as differently, and the affine stage follows. Of several the most
    alike is taken. A mirror image goes before all of these where it is more alike by a quarter, or surely so
    (`_paired`). Images that are hardly alike anywhere stay where the headers lay them, if they are more alike there
    than with centres on each other.

    Args:
        fixed: the fixed image.
        moving: the moving image.
        mask: where in the fixed image the similarity counts; None everywhere.
        always: take the best pose itself, however little it gains.
        mirrors: whether the pose may be that of a mirror image.
        further: more pairs of images in the same spaces, and their weights in a mean of the similarities.

    Returns:
        The pose, and why; without a matrix for the header's orientation, with the centres of both contents laid on each
        other.
    """
    known = _known_turns(fixed.image, moving.image)
    known = known if mirrors else known[np.linalg.det(known) > 0]
    found, level = _search(fixed, moving, mask, known, further)
    plain, mirrored = ([one for one in found if one.mirrored == side] for side in (False, True))
    best, header = _best(plain), found[0]
    rival = _best(mirrored) if mirrors else _Found(best.matrix, 0.0)
    facts: dict[str, Any] = {
        "similarity_header": round(header.similarity, 4),
        "similarity": round(best.similarity, 4),
        "similarity_mirrored": round(rival.similarity, 4),
    }
    least = _SAME if _angle(best.matrix, np.eye(4)) < _OTHER_WAY else _SURELY
    kept = header.similarity >= min(least * best.similarity, best.similarity - _CHANCE)
    matrix = header.matrix if kept and not always else best.matrix
    if rival.similarity > max(_PLAIN * best.similarity, best.similarity + _CHANCE):
        matrix = rival.matrix
    elif rival.similarity > _RIVAL * best.similarity:
        gain, errors = _paired(fixed, moving, mask, best.matrix, rival.matrix)
        facts |= {"mirrored_gain": round(gain, 4), "mirrored_gain_standard_errors": round(errors, 1)}
        if gain > _LEAST_GAIN and errors > _CERTAIN:
            matrix = rival.matrix
    if not always:
        matrix = _meant(matrix, known, level)
    sides, turned = _described(matrix)
    unsure = best.similarity < _CONVINCING and not (sides or turned or always)
    if unsure:
        here, centred = level.similarities(np.stack([np.eye(4), _about(np.eye(3)[None], *level.centres[0])[0]]))
        unsure = here > centred
    if unsure:
        matrix, reason = np.eye(4), "where the headers lay it: the images are too little alike to search"
    elif sides:
        reason = f"mirrored ({sides}), it is surely more alike"
    elif turned:
        reason = "the most alike of all" if always else "more alike than near the headers' orientation"
    else:
        reason = "the headers' orientation: no other is surely more alike"
    facts = {"turned_by": round(turned, 1), "mirrored": sides, "reason": reason, **facts}
    return Pose(matrix if sides or turned or always or unsure else None, facts)


def _meant(matrix: np.ndarray, known: np.ndarray, level: _Level) -> np.ndarray:
    """The most alike of the turns between axes that lie near a pose, with centres on each other; else the pose."""
    same = known[np.sign(np.linalg.det(known)) == np.sign(np.linalg.det(matrix[:3, :3]))]
    poses = _about(same, *level.centres[0])
    poses = poses[[_angle(matrix, turn) <= _NATURAL for turn in poses]]
    if not len(poses):
        return matrix
    similarity = level.similarities(poses)
    similarity[[_angle(turn, np.eye(4)) < _ROUNDING for turn in poses]] /= _SAME
    return poses[int(np.argmax(similarity))]


def rival(sampled: SampledPair, affine: np.ndarray) -> float:
    """How alike the images are in the best of other orientations, as a part of how alike an affine makes them.

    Only what lies in both fields of view, and in the masks, is compared.

    Args:
        sampled: the pair on the network's grids.
        affine: fixed to moving points, ``(4, 4)`` RAS mm, between these grids.

    Returns:
        Below 1 where the affine has found the best orientation, at most 3.
    """
    grids, contents = sampled.grids, []
    volume = float(np.prod(grids.fixed.extent))
    for image, view, grid in ((sampled.fixed, sampled.mask, grids.fixed), (sampled.moving, sampled.view, grids.moving)):
        box = np.stack([np.full(3, -0.5), np.asarray(grid.shape) - 0.5])
        content, seen = (
            None if one is None else coarse(one[0, 0].cpu().numpy(), grid, box, volume, _COARSE)
            for one in (image, view)
        )
        contents.append(content if seen is None else replace(content, seen=seen.array > _WITHIN))
    level = _Level(*contents, None, _COARSE)
    one, _, other = np.linalg.svd(affine[:3, :3])
    own = one @ other
    turns = np.concatenate([_known_turns(grids.fixed, grids.moving), _spread_rotations(_RIVALS)])
    turns = own @ turns[np.linalg.det(turns) > 0]
    turns = turns[[_angle(own, turn) > _NATURAL for turn in turns]]
    best = level.similarities(np.concatenate([_about(turns, *centres) for centres in level.centres])).max()
    return float(np.clip(best / max(level.similarities(affine[None])[0], 1e-6), 0, 3))


@dataclass(frozen=True, eq=False)
class _Found:
    """A pose, ``(4, 4)``, fixed to moving points, and the similarity there."""

    matrix: np.ndarray
    similarity: float

    @property
    def mirrored(self) -> bool:
        """Whether it makes right hands left ones."""
        return bool(np.linalg.det(self.matrix[:3, :3]) < 0)


def _best(found: list[_Found]) -> _Found:
    return max(found, key=lambda one: one.similarity)


def _described(matrix: np.ndarray) -> tuple[str | None, float]:
    """The sides that a pose exchanges, None where it mirrors nothing, and the degrees of the turn that it adds."""
    if np.linalg.det(matrix[:3, :3]) > 0:
        angle = _angle(matrix, np.eye(4))
        return None, 0.0 if angle < _ROUNDING else math.degrees(angle)
    turns = {
        sides: math.degrees(_angle(matrix[:3, :3] @ np.diag(signs), np.eye(3))) for sides, signs in _MIRRORS.items()
    }
    sides = min(turns, key=turns.__getitem__)
    return sides, turns[sides]


def _search(
    fixed: Coarse,
    moving: Coarse,
    mask: Image | None,
    known: np.ndarray,
    further: Sequence[tuple[Coarse, Coarse, float]] = (),
) -> tuple[list[_Found], _Level]:
    """The header's orientation by the better pair of centres, then the best of all others, refined; the finer level."""
    random = np.random.default_rng(0)
    fixed, moving = (_thinned(one, _FINE) for one in (fixed, moving))
    further = [(_thinned(one, _FINE), _thinned(other, _FINE), weight) for one, other, weight in further]
    coarser = [(_thinned(one, _COARSE), other, weight) for one, other, weight in further]
    level = _Level(_thinned(fixed, _COARSE), moving, mask, _COARSE, coarser)
    spread, mirrors = _spread_rotations(_SPREAD), bool((np.linalg.det(known) < 0).any())
    if mirrors:
        spread = np.concatenate([spread, spread * np.array([-1, 1, 1])])
    turns = np.concatenate([np.eye(3)[None], known])
    start = np.concatenate([*(_about(turns, *centres) for centres in level.centres), _about(spread, *level.centres[1])])
    similarity = level.similarities(start)
    chosen = [0, len(turns)]
    for side in (1, -1)[: 1 + mirrors]:
        own: list[int] = []
        for index in np.argsort(np.where(np.linalg.det(start[:, :3, :3]) * side > 0, -similarity, 9), kind="stable"):
            if len(own) == _KEPT // 2:
                break
            if all(_angle(start[index], start[other]) > _APART for other in own):
                own.append(int(index))
        chosen += own
    poses, similarity = level.refined(start[chosen], similarity[chosen], random)
    last = [int(np.argmax(similarity[:2]))]
    for first, count in ((2, _FINALISTS), (2 + _KEPT // 2, 1))[: 1 + mirrors]:
        last += (first + np.argsort(-similarity[first : first + _KEPT // 2], kind="stable")[:count]).tolist()
    level = _Level(fixed, moving, mask, _FINE, further)
    poses, similarity = level.refined(poses[last], level.similarities(poses[last]), random)
    return [_Found(pose, float(value)) for pose, value in zip(poses, similarity, strict=True)], level


class _Level:
    """Both contents on coarse grids.

    Args:
        fixed: the fixed image, whose voxels are compared.
        moving: the moving image, of which the nearest voxel is looked up.
        mask: see `choose_pose`.
        size: key of `_ROUNDS`.
        further: see `choose_pose`.
    """

    def __init__(
        self,
        fixed: Coarse,
        moving: Coarse,
        mask: Image | None,
        size: int,
        further: Sequence[tuple[Coarse, Coarse, float]] = (),
    ) -> None:
        self.further = [(weight, _Level(one, other, None, size)) for one, other, weight in further]
        self.size, self.radius, self.moving = size, fixed.radius, moving
        seen, grid = fixed.array, fixed.grid
        self.centres = [
            tuple(
                one.grid.centre if one.seen is None else _centre_of_mass(one.seen, one.grid) for one in (fixed, moving)
            ),
            (_centre_of_mass(seen, grid), _centre_of_mass(moving.array, moving.grid)),
        ]
        points = grid.places.reshape(-1, 3)
        counted = _counted(fixed, mask).reshape(-1)
        chosen = np.random.default_rng(0).permutation(np.flatnonzero(counted))[: _POINTS[size]]
        self.points = torch.from_numpy(points[chosen]).float()
        self.fixed = _histogram(torch.from_numpy(seen.reshape(-1)[chosen]))
        # A voxel of nothing all around, in which all that lies outside is looked up.
        table = _histogram(torch.from_numpy(moving.array))
        table = table if moving.seen is None else table * torch.from_numpy(moving.seen)[..., None]
        padded = F.pad(table, (0, 0, *(1, 1) * 3))
        self.most = torch.tensor(padded.shape[:3]) - 1.0
        self.strides = torch.tensor([padded.shape[1] * padded.shape[2], padded.shape[2], 1.0])
        self.table = padded.flatten(0, 2)

    def similarities(self, poses: np.ndarray, batch: int = 64) -> np.ndarray:
        """Normalised mutual information under each of ``(N, 4, 4)`` poses, less where less overlaps."""
        joint = torch.cat([self.joint(poses[start : start + batch]) for start in range(0, len(poses), batch)])
        part = joint.sum(dim=(1, 2)) / len(self.points)
        value = _mutual_information(joint) * part.sqrt()
        value = torch.where(part < _LEAST_OVERLAP, -1.0, value).numpy()
        for weight, level in self.further:
            # Where the others do not overlap they say nothing.
            value = value + weight * np.maximum(level.similarities(poses, batch), 0)
        return value / (1 + sum(weight for weight, _ in self.further))

    def joint(self, poses: np.ndarray) -> Tensor:
        """Joint histograms ``(N, bins, bins)``, moving by fixed, of the points that meet something."""
        some = torch.from_numpy(np.linalg.inv(self.moving.grid.affine) @ poses).float()
        # One product for all poses, coordinate by coordinate: the order that takes a third of the time.
        at = (some[:, :3, :3].reshape(-1, 3) @ self.points.T).view(len(some), 3, -1).add_(some[:, :3, 3:] + 1)
        at = torch.minimum(at.round_().clamp_(min=0), self.most[:, None], out=at)
        at = (at * self.strides[:, None]).sum(dim=1).long()
        return F.embedding(at, self.table).mT @ self.fixed

    def expected(self, pose: np.ndarray, moving: Tensor) -> Tensor:
        """The mean fixed intensity that each intensity of a moving image meets under a pose."""
        joint = self.joint(pose[None])[0]
        mean = (joint @ torch.linspace(0, 1, _BINS)) / joint.sum(dim=1).clamp(min=1e-3)
        return _histogram(moving) @ mean

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


def _paired(
    fixed: Coarse, moving: Coarse, mask: Image | None, one: np.ndarray, other: np.ndarray
) -> tuple[float, float]:
    """By how much local correlation the images are more alike under another pose than under one, and standard errors.

    From each pose an affine is sought. The moving intensities are replaced by the fixed ones that they meet on average,
    so that contrasts do not matter; of local correlation the mean differences of blocks are taken as independent.
    Images that are little alike, as a head and a brain without its skull, tell no sides, and the affine's objective
    must agree.

    Returns:
        Both are 0 where nothing can be told, as of images smaller than a block.
    """
    block = 2 * _WINDOW + 1
    if min(fixed.array.shape) < block:
        return 0.0, 0.0
    level = _Level(_thinned(fixed, _FINE), _thinned(moving, _FINE), mask, _FINE)
    search = AffineEngine(
        halvings=(1, 0),
        iterations=(10, 5),
        starts=1,
        angles=(),
        windows=(0.25, 0.25),
        regularisation=0.3,
        tolerance=1e-4,
    )
    still = torch.from_numpy(fixed.array)[None, None]
    weight = torch.from_numpy(_counted(fixed, mask)).float()[None, None]
    correlation, maps, losses = BoxCorrelation(still, weight, (_WINDOW,), 1e-3), [], []
    for pose in (one, other):
        to_moving = torch.from_numpy(
            np.linalg.inv(moving.grid.normalised_affine) @ pose @ fixed.grid.normalised_affine
        ).float()
        seen = level.expected(pose, torch.from_numpy(moving.array))[None, None]
        posed = warp(seen, affine_map(to_moving[None, :3], list(still.shape[2:])), padding="border")
        result = search(posed, still, None, weight)
        losses.append(result.after.item())
        posed = warp(posed, affine_map(result.affine, list(still.shape[2:])), padding="border")
        moments = correlation.moments(posed)[0]
        maps.append((moments.covariance * moments.towards).clamp(-1, 1))
    weight = weight * (still > 0.05)
    mass = F.avg_pool3d(weight, block, block)
    gain = (F.avg_pool3d((maps[1] - maps[0]) * weight, block, block) / mass.clamp(min=1e-6))[mass > 0.3]
    alike = [float((one * weight).sum() / weight.sum().clamp(min=1)) for one in maps]
    agreed = (losses[1] < losses[0]) == (alike[1] > alike[0])
    if len(gain) < 2 or max(alike) < _ALIKE or not agreed:
        return 0.0, 0.0
    return float(gain.mean()), float(gain.mean() / (gain.std() / math.sqrt(len(gain))).clamp(min=1e-6))


def _thinned(content: Coarse, size: int) -> Coarse:
    """The content on a coarser grid."""
    shape = np.asarray(content.array.shape)
    box = np.stack([np.full(3, -0.5), shape - 0.5])
    fewer = coarse(content.array, content.grid, box, 8 * content.radius**3, size)
    return replace(fewer, image=content.image)


def _counted(content: Coarse, mask: Image | None) -> np.ndarray:
    """The voxels of the fixed content that count, ``(d, h, w)``: those of the image, and of the mask if it has any."""
    points = content.grid.places
    counted = content.seen
    if counted is None:
        counted = content.image.contains_voxel(content.image.world_to_voxel(points))
    if mask is not None:
        inside = np.clip(np.round(mask.frame.world_to_voxel(points)).astype(int), 0, np.array(mask.frame.shape) - 1)
        masked = counted & np.asarray(mask.array[tuple(np.moveaxis(inside, -1, 0))], bool)
        counted = masked if masked.any() else counted
    return counted


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
    """The turns that carry axes of the world, or of the fixed array, to such of the world, or of the moving array.

    Returns:
        ``(96, 3, 3)``; half of them mirror. The header's own orientation, the identity, is among them.
    """
    turns = []
    for order in permutations(range(3)):
        for signs in product((1, -1), repeat=3):
            turn = np.zeros((3, 3))
            turn[range(3), order] = signs
            turns += [turn, moving.direction @ turn @ fixed.direction.T]
    return np.array(turns)


def _spread_rotations(count: int) -> np.ndarray:
    """Rotations spread evenly over all, ``(count, 3, 3)``: super-Fibonacci spirals (Alexa, CVPR 2022)."""
    s = np.arange(count) + 0.5
    inner, outer = np.sqrt(s / count), np.sqrt(1 - s / count)
    alpha, beta = 2 * np.pi * s / math.sqrt(2), 2 * np.pi * s / 1.533751168755204288118041
    parts = (inner * np.sin(alpha), inner * np.cos(alpha), outer * np.sin(beta), outer * np.cos(beta))
    return Rotation.from_quat(np.stack(parts, axis=1)).as_matrix()
