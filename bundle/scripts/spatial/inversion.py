"""Inverses of world transforms: exact for affines, sought point by point for displacement fields.

A registration's ``inverse_transform.h5`` is made here as well, at the nodes of a grid.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import map_coordinates

from .frame import apply_matrix
from .grid_map import combined
from .transform import WorldTransform

TOLERANCE = 1e-3
"""How near, in mm, the forward transform must carry a found point to the point asked for."""

_FIRST, _ITERATIONS = 2, 60  # steps for all points, and for the few that need more
_STEP = 1e-3  # voxels of a spline, for its derivative
_FLAT = 1e-3  # determinant below which Newton's step is not to be trusted
_SHORT = 0.1  # a Newton step that had to be shortened to this takes turns with one along the residual
_CHUNK = 1 << 12  # points worked on at once: what they take stays in the processor's cache


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
        super().__init__(count, total, worst, tolerance)
        self.count, self.total, self.worst, self.tolerance = count, total, worst, tolerance

    def __str__(self) -> str:
        return (
            f"no inverse found for {self.count} of {self.total} points, remaining error up to {self.worst:.3g} mm "
            f"(tolerance {self.tolerance:g} mm): the field folds there or ends before it reaches them; use the "
            "registration's own inverse transform"
        )


def merge_warnings(caught: Sequence[InverseNotReachedWarning]) -> InverseNotReachedWarning:
    """One warning for those of several blocks of one image; at least one is needed."""
    return InverseNotReachedWarning(
        sum(warning.count for warning in caught),
        sum(warning.total for warning in caught),
        max(warning.worst for warning in caught),
        caught[0].tolerance,
    )


class Sought:
    """Solves ``p + d(p) = u``, d continued from the faces of its grid, by damped Newton steps.

    Args:
        forward: ``q = L(p + d(p))``, with a displacement field.
        tolerance: in mm of q, see `TOLERANCE`; half of it is kept to, which leaves room for rounding.
        dtype: of the work.

    Attributes:
        frame: the grid of d.
        nodes: d there, ``(3, D, H, W)``, in its voxels.
        to_mm: ``(3, 3)``, from such voxels to mm of q.
        tolerance: that is kept to.
    """

    def __init__(self, forward: WorldTransform, tolerance: float = TOLERANCE, dtype: np.dtype = np.float64) -> None:
        self.frame, self.spline, self.tolerance = forward.frame, forward.spline, tolerance / 2
        axes = forward.frame.affine[:3, :3]
        self.to_mm = forward.linear[:3, :3] @ axes
        field = np.moveaxis(forward.displacement, -1, 0).astype(dtype, copy=False)
        self.nodes = np.ascontiguousarray(combined(np.linalg.inv(axes), field))
        self._faces = [face.astype(dtype)[:, None] for face in forward.faces]

    def __call__(self, target: np.ndarray, start: np.ndarray | None = None) -> np.ndarray:
        """Solve for points.

        Args:
            target: u, ``(3, N)``, in the field's voxels.
            start: where p is sought from, as ``target``; None: from there.

        Returns:
            p, as ``target``. Where nothing nearer is found, as in a fold, the nearest of what was tried.
        """
        found = np.array(target if start is None else start, dtype=self.nodes.dtype)
        left = np.arange(found.shape[1])
        for turns in (_FIRST, _ITERATIONS):
            off = np.empty(left.size, bool)
            for chunk in range(0, left.size, _CHUNK):
                part = left[chunk : chunk + _CHUNK]
                goal = target[:, part].astype(found.dtype, copy=False)
                found[:, part], off[chunk : chunk + _CHUNK] = self._seek(goal, found[:, part], turns)
            left = left[off]
        return found

    def _seek(self, target: np.ndarray, found: np.ndarray, turns: int) -> tuple[np.ndarray, np.ndarray]:
        """Move points found by so many steps; they, and which are not near enough then."""
        place, residual, slopes, error = found, *self._residual(found, target)
        scale, index = np.ones(found.shape[1], found.dtype), np.arange(found.shape[1])
        for turn in range(turns):
            step = _newton(slopes, residual)
            if turn % 2:
                # The derivative jumps where voxels meet, and a point can be stuck there.
                step = np.where(scale < _SHORT, residual, step)
            step *= scale
            step += place
            trial = step, *self._residual(step, target)
            worse = np.flatnonzero(~(trial[-1] < error))
            for new, old in zip(trial, (place, residual, slopes, error), strict=True):
                new[..., worse] = old[..., worse]
            place, residual, slopes, error = trial
            size, scale = scale[worse] / 2, np.ones_like(scale)
            scale[worse] = size
            found[:, index] = place
            on = np.flatnonzero(error > self.tolerance)
            place, residual, slopes, error, scale, target, index = (
                one[..., on] for one in (place, residual, slopes, error, scale, target, index)
            )
            if not on.size:
                break
        off = np.zeros(found.shape[1], bool)
        off[index] = True
        return found, off

    def _residual(self, points: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What p + d(p) lacks to u, the derivatives of d, and the length of the lack in mm of q, ``(N,)``."""
        value, slopes = self._at(points)
        residual = target - points
        residual -= value
        return residual, slopes, np.sqrt(np.square(combined(self.to_mm, residual)).sum(axis=0))

    def _at(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The field d at points, ``(3, N)``, and its derivatives along each axis, ``(axis, 3, N)``."""
        inside = np.clip(points, *self._faces)
        value, slopes = self._linear(inside) if self.spline is None else self._curved(inside)
        slopes *= (inside == points)[:, None]
        return value, slopes

    def _linear(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shape, dtype = self.nodes.shape[1:], points.dtype
        strides = [shape[1] * shape[2], shape[2], 1]
        steps = [stride * (n > 1) for n, stride in zip(shape, strides, strict=True)]
        low = [np.minimum(where.astype(np.intp), max(n - 2, 0)) for where, n in zip(points, shape, strict=True)]
        x, y, z = (where - index.astype(dtype) for where, index in zip(points, low, strict=True))
        base = sum(index * stride for index, stride in zip(low, strides, strict=True))
        corners = [base + i * steps[0] + j * steps[1] + k * steps[2] for i in (0, 1) for j in (0, 1) for k in (0, 1)]
        value, slopes = np.empty_like(points), np.empty((3, *points.shape), dtype)
        for c, nodes in enumerate(self.nodes.reshape(3, -1)):
            ends = [nodes.take(corner, mode="clip") for corner in corners]
            along_z = [ends[i + 1] - ends[i] for i in (0, 2, 4, 6)]
            lines = [ends[2 * i] + z * rise for i, rise in enumerate(along_z)]
            along_y = [lines[i + 1] - lines[i] for i in (0, 2)]
            near, far = (lines[2 * i] + y * rise for i, rise in enumerate(along_y))
            slopes[0, c] = far - near
            value[c] = near + x * slopes[0, c]
            slopes[1, c] = along_y[0] + x * (along_y[1] - along_y[0])
            near, far = (along_z[i] + y * (along_z[i + 1] - along_z[i]) for i in (0, 2))
            slopes[2, c] = near + x * (far - near)
        return value, slopes

    def _curved(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        def look(where: np.ndarray) -> np.ndarray:
            options = {"output": points.dtype, "order": self.spline, "mode": "nearest", "prefilter": False}
            return np.stack([map_coordinates(nodes, where, **options) for nodes in self.nodes])

        value, slopes = look(points), np.empty((3, *points.shape), points.dtype)
        for axis in range(3):
            ahead, behind = points.copy(), points.copy()
            ahead[axis] = np.minimum(points[axis] + _STEP, self._faces[1][axis])
            behind[axis] = np.maximum(points[axis] - _STEP, self._faces[0][axis])
            width = ahead[axis] - behind[axis]
            slopes[axis] = (look(ahead) - look(behind)) / np.where(width > 0, width, 1)
        return value, slopes


def _newton(slopes: np.ndarray, residual: np.ndarray) -> np.ndarray:
    """(I + D)⁻¹ residual, ``(3, N)``, for derivatives D ``(axis, 3, N)``; the residual where that is about singular."""
    columns = slopes.copy()
    for axis in range(3):
        columns[axis, axis] += 1
    minors = [_cross(columns[1], columns[2]), _cross(columns[2], columns[0]), _cross(columns[0], columns[1])]
    determinant = (columns[0] * minors[0]).sum(axis=0)
    flat = np.abs(determinant) < _FLAT
    determinant[flat] = 1
    step = np.stack([(minor * residual).sum(axis=0) for minor in minors])
    step /= determinant
    step[:, flat] = residual[:, flat]
    return step


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of ``(3, N)``; NumPy's takes several times as long."""
    return np.stack([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])


class NumericalInverse:
    """The inverse of one ``q = L(p + d(p))``, sought for the points asked for.

    ``p + d(p) = u`` with u = L⁻¹ q is solved by damped Newton steps (`Sought`). Meanwhile the field is thought to go on
    from its faces; if the point found lies outside of it, where the forward transform acts by L alone, L⁻¹ q is the
    answer. Of several points that a folding field carries to q, one is found.

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
        self._sought = Sought(forward, tolerance)
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
        target, frame = apply_matrix(self._from_moving, points), self.forward.frame
        found = frame.voxel_to_world(self._sought(frame.world_to_voxel(target).T).T)
        # Where the field does not act and is not aimed at, its continuation has no say.
        alone = ~self.forward.covers(found) & ~self.forward.covers(target)
        found[alone] = target[alone]
        return found, np.linalg.norm(self.forward.apply(found) - points, axis=1)


def invert_transforms(
    transforms: Sequence[WorldTransform | NumericalInverse], tolerance: float = TOLERANCE
) -> list[WorldTransform | NumericalInverse]:
    """The inverse of transforms that act one after the other.

    Args:
        transforms: first listed, first applied (ANTs' order).
        tolerance: of the inverses of fields, in mm.

    Returns:
        The inverses in their own order of action, which is the reverse: exact for an affine and for an inverse, sought
        for the points asked for where there is a field.
    """

    def inverse(transform: WorldTransform | NumericalInverse) -> WorldTransform | NumericalInverse:
        if isinstance(transform, NumericalInverse):
            return transform.forward
        if transform.frame is None:
            return WorldTransform(np.linalg.inv(transform.linear))
        return NumericalInverse(transform, tolerance)

    return [inverse(transform) for transform in reversed(transforms)]
