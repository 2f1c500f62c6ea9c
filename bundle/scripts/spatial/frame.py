"""The grid of an image in the world, and every conversion between its coordinates.

Four kinds of coordinates are known here, always as arrays ``(..., 3)``:

- voxel: index along the array axes (D, H, W), counted from 0 at the centre of the first voxel;
- normalised: [-1, 1] along each axis, corners aligned: voxel 0 lies at -1, voxel n - 1 at +1;
- RAS: millimetres in the world, as NIfTI and MONAI count them (right, anterior, superior);
- LPS: millimetres in the world, as ITK, ANTs and Slicer's files count them (left, posterior, superior).

ITK's index (x, y, z) is the array's (D, H, W) here, as nibabel loads it; NumPy views of ITK images count the other way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import product
from operator import and_
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..errors import InputError
from ..settings import SPACES

LPS_FLIP = np.diag((-1.0, -1.0, 1.0, 1.0))
"""Turns homogeneous RAS coordinates to LPS and back."""

# How far columns of a direction may be from right angles and unit length: what a header's rounding leaves is kept; more
# is straightened, as ITK refuses NIfTI files above about 1e-4; what cannot be meant as a right angle is refused.
_ROUNDING = 1e-5
_ORTHONORMAL_TOLERANCE = 1e-3
_NOTED_MM = 1e-3


def ras_to_lps(vectors: np.ndarray) -> np.ndarray:
    """Turn world vectors or points from RAS to LPS; the turn is its own inverse.

    MONAI and NIfTI count x to the patient's right and y to the front, ITK, ANTs and Slicer's files count them to the
    left and to the back.

    Args:
        vectors: ``(..., 3)`` in mm.

    Returns:
        A new array ``(..., 3)``.

    Raises:
        ValueError: if the last axis does not have three components.
    """
    if vectors.shape[-1] != 3:
        raise ValueError(f"vectors: need three components on the last axis, got shape {vectors.shape}.")
    return vectors * np.asarray((-1, -1, 1), dtype=vectors.dtype)


def convert_points(points: ArrayLike, source: str, target: str) -> np.ndarray:
    """Turn points or vectors ``(..., 3)`` in mm from one of RAS, LPS to the other or itself, as a new float64 array.

    Raises:
        InputError: for another name of a space.
        ValueError: if the last axis does not have three components.
    """
    for argument, space in (("source", source), ("target", target)):
        if space not in SPACES:
            raise InputError(f"{argument}: the space must be one of {', '.join(SPACES)}, got {space!r}")
    result = _as_points(points)
    # The sum makes 0.0 of the -0.0 that a flip leaves.
    return result.copy() if source == target else ras_to_lps(result) + 0.0


def apply_matrix(matrix: np.ndarray, points: ArrayLike) -> np.ndarray:
    """Carry points ``(..., 3)`` through an affine ``(4, 4)``, in float64."""
    return _as_points(points) @ matrix[:3, :3].T + matrix[:3, 3]


def _as_points(points: ArrayLike) -> np.ndarray:
    """Return ``(..., 3)`` float64."""
    array = np.asarray(points, dtype=np.float64)
    if array.ndim == 0 or array.shape[-1] != 3:
        raise ValueError(f"points: need three components on the last axis, got shape {array.shape}.")
    return array


def _check_shape(shape: Sequence[int], name: str) -> tuple[int, int, int]:
    """Return three positive integers."""
    sizes = tuple(shape)
    if len(sizes) != 3 or any(n != int(n) or n < 1 for n in sizes):
        raise InputError(
            f"{name}: the shape must be three positive numbers of voxels, got {sizes}; give one 3-D volume"
        )
    return tuple(int(n) for n in sizes)


def _check_spacing(spacing: Sequence[float], name: str) -> np.ndarray:
    """Return three positive finite spacings."""
    values = np.asarray(spacing, dtype=np.float64)
    if values.shape != (3,) or not np.isfinite(values).all() or (values <= 0).any():
        raise InputError(
            f"{name}: the spacing must be three positive numbers of mm, got {values.tolist()}; mend the header"
        )
    return values


def _check_direction(direction: np.ndarray, name: str) -> float:
    """Refuse a direction whose columns are not orthonormal; how far they are from it."""
    if not np.isfinite(direction).all():
        raise InputError(f"{name}: the direction holds NaN or infinity, {direction.tolist()}; mend the header")
    if abs(np.linalg.det(direction)) < 1e-6:
        raise InputError(
            f"{name}: the direction {direction.tolist()} is singular, its axes do not span a volume; mend the header"
        )
    worst = np.abs(direction.T @ direction - np.eye(3)).max()
    if worst > _ORTHONORMAL_TOLERANCE:
        raise InputError(
            f"{name}: the direction's columns are off a right angle or unit length by {worst:.4g}, more than "
            f"{_ORTHONORMAL_TOLERANCE:g}; resample the image to a grid without shear"
        )
    return float(worst)


def _straightened(affine: np.ndarray, shape: tuple[int, int, int]) -> tuple[np.ndarray, float]:
    """The nearest affine with right angles, of the same spacing and centre, and how far (mm) corners move at most."""
    spacing, middle = np.linalg.norm(affine[:3, :3], axis=0), (np.asarray(shape) - 1) / 2
    left, _, right = np.linalg.svd(affine[:3, :3] / spacing)
    straight = affine.copy()
    straight[:3, :3] = left @ right * spacing
    straight[:3, 3] += (affine - straight)[:3, :3] @ middle
    corners = np.array(list(product(*((0, n - 1) for n in shape))))
    return straight, float(np.linalg.norm(apply_matrix(affine - straight, corners), axis=1).max())


@dataclass(frozen=True, eq=False)
class Frame:
    """The grid of one image.

    Frames compare by `same_as`, to a tolerance; ``==`` is identity.

    Args:
        shape: numbers of voxels (D, H, W), array order.
        affine: ``(4, 4)``, voxel to world in mm, RAS. Kept as a read-only float64 copy; a direction that is off
            orthonormal by more than rounding (1e-5) is straightened about the grid's centre.
        name: what error messages call it; a file, best.

    Attributes:
        notes: that the axes were straightened, if a corner moved by more than 0.001 mm; one line.

    Raises:
        InputError: if ``shape`` is not three positive sizes; if ``affine`` is not finite, homogeneous, with non-zero
            columns; or if its direction is singular or off orthonormal by more than 1e-3 (the message says how much).
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    name: str = "frame"
    notes: tuple[str, ...] = field(default=(), init=False, repr=False)

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4):
            raise InputError(f"{self.name}: need a 4x4 voxel-to-world affine, got shape {affine.shape}")
        if not np.isfinite(affine).all() or not np.allclose(affine[3], (0, 0, 0, 1), rtol=0, atol=1e-8):
            raise InputError(
                f"{self.name}: the affine must be finite with a last row of 0 0 0 1, got {affine.tolist()}; "
                "mend the header"
            )
        affine[3] = (0, 0, 0, 1)
        spacing = _check_spacing(np.linalg.norm(affine[:3, :3], axis=0), self.name)
        off = _check_direction(affine[:3, :3] / spacing, self.name)
        shape = _check_shape(self.shape, self.name)
        if off > _ROUNDING:
            affine, moved = _straightened(affine, shape)
            if moved > _NOTED_MM:
                note = (
                    f"the axes are off a right angle by {off:.2g}; straightened, which moves corners by {moved:.2g} mm"
                )
                object.__setattr__(self, "notes", (note,))
        affine.setflags(write=False)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    @classmethod
    def from_parts(
        cls,
        shape: Sequence[int],
        spacing: Sequence[float],
        origin: Sequence[float],
        direction: ArrayLike,
        space: str = "RAS",
        name: str = "frame",
    ) -> Frame:
        """Make a frame from what ITK calls size, spacing, origin and direction.

        Args:
            shape: (D, H, W), which is ITK's size in ITK's order.
            spacing: mm along each array axis.
            origin: the centre of voxel (0, 0, 0) in the world, mm.
            direction: ``(3, 3)`` or its nine numbers by rows; column k is the unit vector of array axis k in the world.
            space: world that ``origin`` and ``direction`` are in, ``"RAS"`` or ``"LPS"`` (ITK's).
            name: what error messages call it.

        Raises:
            InputError: for values that make no frame.
        """
        matrix = np.asarray(direction, dtype=np.float64)
        start = np.asarray(origin, dtype=np.float64)
        if matrix.size != 9 or start.shape != (3,) or not np.isfinite(start).all():
            raise InputError(
                f"{name}: need a 3x3 direction and a finite origin of three numbers, got {matrix.size} numbers and "
                f"{start.tolist()}; give one 3-D volume"
            )
        matrix = matrix.reshape(3, 3)
        _check_direction(matrix, name)
        affine = np.eye(4)
        affine[:3, :3] = matrix * _check_spacing(spacing, name)
        affine[:3, 3] = start
        if space not in SPACES:
            raise InputError(f"space: must be one of {', '.join(SPACES)}, got {space!r}")
        return cls(tuple(shape), affine if space == "RAS" else LPS_FLIP @ affine, name)

    @classmethod
    def from_itk(cls, image: Any, name: str = "image") -> Frame:
        """The frame of an ITK or a SimpleITK image.

        Its shape is ITK's size (x, y, z): that of the image's NumPy view, reversed.

        Raises:
            InputError: if the image is not 3-D or its geometry makes no frame.
        """
        if hasattr(image, "GetLargestPossibleRegion"):
            region = image.GetLargestPossibleRegion()
            size, direction = tuple(region.GetSize()), np.asarray(image.GetDirection())
            # ITK's origin is that of index 0, which a region cut out of an image need not hold.
            origin = image.TransformIndexToPhysicalPoint(region.GetIndex())
        else:
            size, direction, origin = image.GetSize(), np.asarray(image.GetDirection()), image.GetOrigin()
        return cls.from_parts(size, tuple(image.GetSpacing()), tuple(origin), direction, "LPS", name)

    @property
    def spacing(self) -> np.ndarray:
        """Distance of voxels along each array axis in mm, ``(3,)``."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def origin(self) -> np.ndarray:
        """Centre of voxel (0, 0, 0), RAS mm, ``(3,)``."""
        return self.affine[:3, 3].copy()

    @property
    def direction(self) -> np.ndarray:
        """Unit vectors of the array axes as columns, RAS, ``(3, 3)``."""
        return self.affine[:3, :3] / self.spacing

    @property
    def extent(self) -> np.ndarray:
        """Length from the first to the last voxel centre of each axis in mm, ``(3,)``: what [-1, 1] spans."""
        return (np.asarray(self.shape) - 1) * self.spacing

    @property
    def centre(self) -> np.ndarray:
        """Middle of the grid, RAS mm, ``(3,)``."""
        return self.voxel_to_world((np.asarray(self.shape) - 1) / 2)

    @property
    def corners(self) -> np.ndarray:
        """Centres of the eight outermost voxels, RAS mm, ``(8, 3)``."""
        return self.voxel_to_world(np.array(list(product(*((0, n - 1) for n in self.shape)))))

    @property
    def places(self) -> np.ndarray:
        """Centres of all voxels, ``(D, H, W, 3)``, RAS mm."""
        return self.voxel_to_world(np.stack(np.indices(self.shape), axis=-1))

    @property
    def normalised_affine(self) -> np.ndarray:
        """``(4, 4)``, normalised coordinates to world in mm, RAS.

        Raises:
            InputError: if an axis has a single voxel, on which -1 and +1 would be one place.
        """
        if min(self.shape) < 2:
            raise InputError(
                f"{self.name}: normalised coordinates need at least 2 voxels along each axis, got {self.shape}; "
                "pad or resample it"
            )
        half = (np.asarray(self.shape) - 1) / 2
        matrix = np.eye(4)
        matrix[:3, :3] = self.affine[:3, :3] * half
        matrix[:3, 3] = self.centre
        return matrix

    def voxel_to_world(self, points: ArrayLike, space: str = "RAS") -> np.ndarray:
        """Voxel to world coordinates in mm; ``space`` is ``"RAS"`` or ``"LPS"``."""
        return convert_points(apply_matrix(self.affine, points), "RAS", space)

    def world_to_voxel(self, points: ArrayLike, space: str = "RAS") -> np.ndarray:
        """World coordinates in mm (``space`` ``"RAS"`` or ``"LPS"``) to voxels; outside the grid, too, not clamped."""
        return apply_matrix(np.linalg.inv(self.affine), convert_points(points, space, "RAS"))

    def normalised_to_world(self, points: ArrayLike, space: str = "RAS") -> np.ndarray:
        """Normalised to world coordinates in mm; ``space`` is ``"RAS"`` or ``"LPS"``."""
        return convert_points(apply_matrix(self.normalised_affine, points), "RAS", space)

    def world_to_normalised(self, points: ArrayLike, space: str = "RAS") -> np.ndarray:
        """World coordinates in mm (``space`` ``"RAS"`` or ``"LPS"``) to normalised ones."""
        return apply_matrix(np.linalg.inv(self.normalised_affine), convert_points(points, space, "RAS"))

    def contains_voxel(self, points: ArrayLike) -> np.ndarray:
        """Whether voxel coordinates ``(..., 3)`` lie in the image as ITK sees it, ``(...)`` bool.

        A voxel reaches half its size to each side of its centre: from -0.5 up to, not including, n - 0.5.
        """
        points = _as_points(points)
        axes = (points[..., axis] for axis in range(3))  # several times faster than `all` of three
        return reduce(and_, ((one >= -0.5) & (one < n - 0.5) for one, n in zip(axes, self.shape, strict=True)))

    def same_as(self, other: Frame, tolerance: float = 1e-3) -> bool:
        """Whether the other frame has the same shape, and corners within ``tolerance`` mm of this one's."""
        if self.shape != other.shape:
            return False
        corners = np.array(list(product(*((0, n - 1) for n in self.shape))))
        # One voxel along an axis says nothing of that axis' direction, so its neighbour is compared, too.
        corners = np.concatenate([corners, np.eye(3), np.zeros((1, 3))])
        distance = np.linalg.norm(self.voxel_to_world(corners) - other.voxel_to_world(corners), axis=1)
        return bool(distance.max() <= tolerance)

    def resized(self, shape: Sequence[int]) -> Frame:
        """The frame of another shape whose corner voxels' centres are this one's, as ``geometry.resize_map`` has it.

        Raises:
            InputError: if this or the new shape has fewer than 2 voxels along an axis.
        """
        sizes = _check_shape(shape, self.name)
        if min(*sizes, *self.shape) < 2:
            raise InputError(f"{self.name}: cannot resize {self.shape} to {sizes}; both need 2 voxels along each axis")
        affine = self.affine.copy()
        affine[:3, :3] *= (np.asarray(self.shape) - 1) / (np.asarray(sizes) - 1)
        return Frame(sizes, affine, self.name)

    def padded(self, margin: Sequence[int]) -> Frame:
        """The frame with ``margin`` more voxels at both ends of each axis."""
        margin = np.asarray(margin)
        affine = self.affine.copy()
        affine[:3, 3] = self.voxel_to_world(-margin)
        return Frame(tuple(n + 2 * int(m) for n, m in zip(self.shape, margin, strict=True)), affine, self.name)


def network_frame(
    image: Frame,
    grid: Sequence[int],
    spacing: Sequence[float],
    centre: Sequence[float] | None = None,
    orientation: str = "RAS",
) -> Frame:
    """The network's grid laid on an image, along the image's own axes.

    The image's axes are reordered and flipped, never turned, so that they come as close as such steps allow to
    ``orientation`` (for an oblique image the assignment is nibabel's). Resampling the image here so needs no rotation.

    Args:
        image: the image's frame.
        grid: shape of the network grid, its own order (D, H, W).
        spacing: of the network grid in mm, its own order.
        centre: RAS mm, where the middle of the grid shall lie; None: the image's centre.
        orientation: three letters of L/R, A/P and I/S: where the network grid's axes D, H and W point to.

    Returns:
        A frame of shape ``grid`` whose direction has the columns of the image's direction, reordered and flipped.

    Raises:
        InputError: for a bad grid, spacing, centre or orientation.
    """
    steps = _check_spacing(spacing, "spacing")
    shape = _check_shape(grid, "grid")
    letters = tuple(orientation.upper())
    if len(letters) != 3 or any(sum(c in pair for c in letters) != 1 for pair in ("LR", "AP", "IS")):
        raise InputError(
            f"orientation: need three letters, one each of L/R, A/P and I/S, such as RAS, got {orientation!r}"
        )
    middle = image.centre if centre is None else np.asarray(centre, dtype=np.float64)
    if middle.shape != (3,) or not np.isfinite(middle).all():
        raise InputError(f"centre: need three finite numbers of mm (RAS), got {middle.tolist()}")
    from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

    change = ornt_transform(io_orientation(image.affine), axcodes2ornt(letters))
    affine = np.eye(4)
    for axis, (target, flip) in enumerate(change):
        affine[:3, int(target)] = image.direction[:, axis] * flip * steps[int(target)]
    affine[:3, 3] = middle - affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    return Frame(shape, affine, "network grid")
