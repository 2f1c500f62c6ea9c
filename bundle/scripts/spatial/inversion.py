"""Inverses of world transforms: exact for affines, sought point by point for displacement fields.

A registration that knows its own inverse (``inverse_transform.h5``) is the better source: it is exact by construction,
costs nothing and is defined wherever its own field is. What is here serves transforms that come alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from .frame import apply_matrix
from .transform import WorldTransform

TOLERANCE = 1e-3
"""How near, in mm, the forward transform must carry a found point to the point asked for."""

_ITERATIONS = 60
_STEP = 1e-3  # voxels of the field, for its derivative; exact within a voxel, where the field is linear along each axis
_SLOW = 0.5  # a residual that shrinks by less than this factor asks for Newton's step
_FLAT = 1e-3  # determinant below which Newton's step is not to be trusted


class InverseNotReachedWarning(UserWarning):
    """Points for which no inverse was found to the tolerance.

    Args:
        count: of such points.
        total: of all points asked for.
        worst: largest remaining error in mm: from the point asked for to where the forward transform carries the point
            that was given back.
        tolerance: in mm.
    """

    def __init__(self, count: int, total: int, worst: float, tolerance: float) -> None:
        self.count, self.total, self.worst, self.tolerance = count, total, worst, tolerance
        super().__init__(
            f"no inverse found for {count} of {total} points, remaining error up to {worst:.3g} mm (tolerance "
            f"{tolerance:g} mm): the field folds there or ends before it reaches them; use the registration's own "
            "inverse transform"
        )


def merge_warnings(caught: Sequence[InverseNotReachedWarning]) -> InverseNotReachedWarning:
    """One warning for those of several blocks of one image; at least one is needed."""
    return InverseNotReachedWarning(
        sum(warning.count for warning in caught),
        sum(warning.total for warning in caught),
        max(warning.worst for warning in caught),
        caught[0].tolerance,
    )


class NumericalInverse:
    """The inverse of one ``q = L(p + d(p))``, sought for the points asked for.

    ``p + d(p) = u`` with u = L⁻¹ q is solved by fixed-point steps ``p ← u - d(p)`` and, where these shrink the error
    too slowly, by damped Newton steps. Meanwhile the field is thought to go on from its faces; if the point found lies
    outside of it, where the forward transform acts by L alone, L⁻¹ q is the answer. Of several points that a folding
    field carries to q, one is found.

    Args:
        forward: with a displacement field.
        tolerance: in mm, see `TOLERANCE`.

    Raises:
        ValueError: if the tolerance is not positive, or the transform has no field (invert its matrix instead).
    """

    def __init__(self, forward: WorldTransform, tolerance: float = TOLERANCE) -> None:
        if forward.frame is None:
            raise ValueError("forward: has no displacement field; invert its matrix instead.")
        if not tolerance > 0:
            raise ValueError(f"tolerance: need a positive number of mm, got {tolerance}.")
        self.forward = forward
        self.tolerance = tolerance
        self._from_moving = np.linalg.inv(forward.linear)
        self._last: tuple[np.ndarray, np.ndarray] | None = None

    def covers(self, points: ArrayLike) -> np.ndarray:
        """Whether points ``(..., 3)``, RAS mm, come from where the field acts, ``(...)`` bool."""
        return self.forward.covers(self.apply(points))

    def apply(self, points: ArrayLike) -> np.ndarray:
        """Carry points of the moving image back to the fixed one.

        Args:
            points: ``(..., 3)``, RAS mm.

        Returns:
            ``(..., 3)`` float64, RAS mm. Warns (`InverseNotReachedWarning`) where the tolerance is not reached.
        """
        points = np.asarray(points, dtype=np.float64)
        # Whoever applies a transform asks for `covers` of the same points, too.
        if self._last is not None and np.array_equal(self._last[0], points):
            return self._last[1].copy()
        found, error = self.solve(points.reshape(-1, 3))
        missed = error > self.tolerance
        if missed.any():
            warning = InverseNotReachedWarning(int(missed.sum()), len(error), float(error.max()), self.tolerance)
            warnings.warn(warning, stacklevel=2)
        found = found.reshape(points.shape)
        self._last = (points.copy(), found.copy())
        return found

    def solve(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Seek the inverse of points.

        Args:
            points: ``(N, 3)``, RAS mm, of the moving image.

        Returns:
            The points found, ``(N, 3)`` RAS mm, and how far off the forward transform carries them, ``(N,)`` mm.
        """
        target = apply_matrix(self._from_moving, points)
        found = self._seek(target)
        # Where the field does not act and is not aimed at, its continuation has no say.
        alone = ~self.forward.covers(found) & ~self.forward.covers(target)
        found[alone] = target[alone]
        return found, np.linalg.norm(self.forward.apply(found) - points, axis=1)

    def _seek(self, target: np.ndarray) -> np.ndarray:
        """Solve ``p + d(p) = target`` with the field continued from its faces; ``(N, 3)`` RAS mm."""
        found = target.copy()
        residual, error = self._residual(found, target)
        scale = np.ones(len(target))
        newton = np.zeros(len(target), dtype=bool)
        for turn in range(_ITERATIONS):
            # Half of the tolerance leaves room for rounding in the last check.
            active = np.flatnonzero(error > self.tolerance / 2)
            if not len(active):
                break
            step = residual[active]
            careful = newton[active]
            step[careful] = self._newton(found[active[careful]], step[careful], turn)
            trial = found[active] + scale[active, None] * step
            rest, rest_error = self._residual(trial, target[active])
            before = error[active]
            better = rest_error < before
            scale[active] = np.where(better | ~careful, 1.0, scale[active] / 2)
            newton[active] |= rest_error > _SLOW * before
            taken = active[better]
            found[taken], residual[taken], error[taken] = trial[better], rest[better], rest_error[better]
        return found

    def _residual(self, points: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What ``points`` lack to reach ``target``, ``(N, 3)`` mm, and its length behind L, ``(N,)`` mm."""
        residual = target - self._continued(points)
        return residual, np.linalg.norm(residual @ self.forward.linear[:3, :3].T, axis=1)

    def _continued(self, points: np.ndarray) -> np.ndarray:
        """``p + d(p)``, d continued from the faces of the field's grid; ``(N, 3)`` RAS mm."""
        frame = self.forward.frame
        face = frame.voxel_to_world(np.clip(frame.world_to_voxel(points), *self.forward.faces))
        return points - face + apply_matrix(self._from_moving, self.forward.apply(face))

    def _newton(self, points: np.ndarray, residual: np.ndarray, turn: int) -> np.ndarray:
        """Newton's step, or the fixed-point step where the derivative is about singular; ``(N, 3)`` mm.

        The derivative jumps where voxels meet: a point that is stuck there needs that of another side, which comes with
        another ``turn``.
        """
        axes = self.forward.frame.affine[:3, :3]
        base = self._continued(points)
        steps = [-_STEP if (turn >> k) & 1 else _STEP for k in range(3)]
        columns = [(self._continued(points + step * axes[:, k]) - base) / step for k, step in enumerate(steps)]
        derivative = np.stack(columns, axis=-1) @ np.linalg.inv(axes)
        derivative[np.abs(np.linalg.det(derivative)) < _FLAT] = np.eye(3)
        return np.linalg.solve(derivative, residual[..., None])[..., 0]


def invert_transforms(
    transforms: Sequence[WorldTransform], tolerance: float = TOLERANCE
) -> list[WorldTransform | NumericalInverse]:
    """The inverse of transforms that act one after the other.

    Args:
        transforms: first listed, first applied (ANTs' order).
        tolerance: of the inverses of fields, in mm.

    Returns:
        The inverses in their own order of action, which is the reverse: exact for an affine, sought for the points
        asked for where there is a field.
    """
    return [
        WorldTransform(np.linalg.inv(transform.linear))
        if transform.frame is None
        else NumericalInverse(transform, tolerance)
        for transform in reversed(transforms)
    ]
