"""Which three planes of a volume to show, and which way up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))
# Normal -> name, and the letters that belong at the top and at the left of the panel (radiological convention).
_VIEWS = {"R": ("sagittal", "S", "A"), "A": ("coronal", "S", "R"), "S": ("axial", "A", "R")}


@dataclass(frozen=True)
class Plane:
    """One plane of a volume ``(D, H, W)`` and how it is laid on a page.

    Attributes:
        name: for people.
        normal: array axis that the plane is perpendicular to, ``index`` the voxel along it, of ``count``.
        vertical, horizontal: array axes that run down and across the page.
        flip_vertical, flip_horizontal: whether the first voxel of that axis lies at the bottom, at the right.
        size: height and width on the page, in the unit of the spacing.
        letters: directions of the body at the top, right, bottom and left.
    """

    name: str
    normal: int
    index: int
    count: int
    vertical: int
    horizontal: int
    flip_vertical: bool
    flip_horizontal: bool
    size: tuple[float, float]
    letters: tuple[str, str, str, str]

    def cut(self, volume: np.ndarray) -> np.ndarray:
        """Return the plane of ``volume (D, H, W)`` as an image, first row at the top."""
        image = np.take(volume, self.index, axis=self.normal)
        if self.vertical > self.horizontal:
            image = image.T
        if self.flip_vertical:
            image = image[::-1]
        return image[:, ::-1] if self.flip_horizontal else image

    def pixel_centres(self, shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return where the pixels of an image ``(rows, columns)`` of this plane lie on the page, across and down."""
        height, width = self.size
        return (np.arange(shape[1]) + 0.5) * width / shape[1], (np.arange(shape[0]) + 0.5) * height / shape[0]


def _centre(shape: Sequence[int], labels: Sequence[np.ndarray]) -> list[int]:
    """Return the voxel nearest to the centre of mass of the foreground of the labels, or of the volume without any."""
    foreground = [label > 0 for label in labels]
    centre = []
    for axis, n in enumerate(shape):
        others = tuple(a for a in range(3) if a != axis)
        # The profile along each axis is all it takes, and much cheaper than coordinates of every voxel.
        profile = np.sum([np.count_nonzero(mask, axis=others) for mask in foreground], axis=0, dtype=float)
        if not foreground or not profile.any():
            return [n // 2 for n in shape]
        centre.append(round(float(profile @ np.arange(n) / profile.sum())))
    return centre


def choose_planes(
    shape: Sequence[int], labels: Sequence[np.ndarray], spacing: Sequence[float], orientation: str
) -> list[Plane]:
    """Choose the three planes through the centre of mass of all labels, or through the centre of the volume.

    They are laid out as radiologists see them, axial, coronal, sagittal: the patient's right at the left, front and
    head at the top. ``orientation`` says where each array axis points, ``"RAS"`` for instance.
    """
    axes = {}
    for axis, letter in enumerate(orientation):
        if letter in _OPPOSITE:
            axes[letter] = axes[_OPPOSITE[letter]] = axis
    centre = _centre(shape, labels)
    planes = []
    for letter in "SAR":
        name, top, left = _VIEWS[letter]
        normal, vertical, horizontal = axes[letter], axes[top], axes[left]
        planes.append(
            Plane(
                name,
                normal,
                centre[normal],
                shape[normal],
                vertical,
                horizontal,
                # An axis that points towards the top of the page has its first voxel at the bottom.
                flip_vertical=orientation[vertical] == top,
                flip_horizontal=orientation[horizontal] == left,
                size=(shape[vertical] * float(spacing[vertical]), shape[horizontal] * float(spacing[horizontal])),
                letters=(top, _OPPOSITE[left], _OPPOSITE[top], left),
            )
        )
    return planes
