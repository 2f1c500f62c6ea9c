"""The transform that users hold: a chain of world transforms that maps points, warps images, inverts and composes."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from .formats import convert_transform, read_transforms, to_sitk
from .formats.transform_files import SAMPLED
from .settings import INVERSE
from .spatial import (
    Frame,
    NumericalInverse,
    WorldTransform,
    invert_transforms,
    resample_image,
    resample_labels,
    transform_points,
)
from .spatial.inversion import InverseNotReachedWarning, merge_warnings

if TYPE_CHECKING:
    from .formats import Image


class Transform:
    """Carries points of one image to another, in millimetres; images go the other way.

    A registration's transform carries points of the fixed image to the moving image, and so warps the moving image onto
    the fixed image's grid.

    Args:
        parts: in the order in which they act on a point (ANTs' order).
        files: where each part was read from, for messages; empty where there is none.
        inverses: the parts of the exact inverse, where a model has it; None: it is sought numerically.
    """

    def __init__(
        self,
        parts: Sequence[WorldTransform | NumericalInverse],
        files: Sequence[str] = (),
        inverses: Sequence[WorldTransform] | None = None,
    ) -> None:
        self.parts = list(parts)
        self.files = list(files)
        self._inverses = None if inverses is None else list(inverses)

    def __repr__(self) -> str:
        count = len(self.parts)
        return f"Transform({', '.join(dict.fromkeys(self.files)) or f'{count} part' + 's' * (count != 1)})"

    @classmethod
    def read(cls, *paths: str | os.PathLike, fixed: Frame | None = None, moving: Frame | None = None) -> Transform:
        """Read transform files, the first listed, the first to act on a point (ANTs' order), by `read_transforms`.

        ``inverse:FILE`` stands for the inverse.
        """
        parts: list[WorldTransform] = []
        files: list[str] = []
        for path in paths:
            name = os.fspath(path)
            found = read_transforms(name.removeprefix(INVERSE), fixed, moving)
            if name.startswith(INVERSE):
                found = invert_transforms(found)
            parts += found
            files += [os.fspath(path)] * len(found)
        return cls(parts, files)

    def points(self, points: ArrayLike, space: str = "RAS") -> np.ndarray:
        """Carry points ``(N, 3)`` in mm, or one, ``(3,)``.

        ``space`` is ``"RAS"`` (NIfTI, MONAI) or ``"LPS"`` (ITK, Slicer, DICOM). Warns (`OutsideFieldWarning`) where
        points lie outside a displacement field.
        """
        with self.named():
            if np.shape(points) == (3,):
                return transform_points(np.asarray(points)[None], self.parts, space)[0]
            return transform_points(points, self.parts, space)

    def warp(
        self, image: Image, reference: Frame, label: bool = False, interpolation: str | None = None, fill: float = 0.0
    ) -> np.ndarray:
        """Warp an image or label map onto a reference grid, with one interpolation.

        ``interpolation`` is ``"linear"`` (default) or ``"bspline"``, for labels ``"nearest"`` (default) or
        ``"linear"``; outside the image the result is ``fill``. InputError as `resample_image` and `resample_labels`.
        """
        mode = interpolation or ("nearest" if label else "linear")
        resample = resample_labels if label else resample_image
        with self.named():
            return resample(image.array, image.frame, reference, self.parts, mode, fill)

    @property
    def affine_determinant(self) -> float:
        """Determinant of all affine parts together: the change of volume without the displacement fields."""
        linear = [part.forward.linear if isinstance(part, NumericalInverse) else part.linear for part in self.parts]
        signs = [-1 if isinstance(part, NumericalInverse) else 1 for part in self.parts]
        return float(np.prod([np.linalg.det(m[:3, :3]) ** s for m, s in zip(linear, signs, strict=True)]))

    def inverse(self) -> Transform:
        """The inverse: the model's own where there is one, else exact for affines and numerical for fields."""
        if self._inverses is not None:
            return Transform(self._inverses, inverses=self.parts)
        return Transform(invert_transforms(self.parts), self.files[::-1])

    def then(self, other: Transform) -> Transform:
        """The transform that acts as this one, then as ``other``."""
        inverses = None
        if self._inverses is not None and other._inverses is not None:
            inverses = [*other._inverses, *self._inverses]
        files = [*self.files, *other.files] if self.files and other.files else []
        return Transform([*self.parts, *other.parts], files, inverses)

    def to_sitk(self) -> Any:
        """As a SimpleITK transform, LPS mm; ValueError for a numerical inverse, which no file or transform can hold."""
        return to_sitk(self._writable())

    def save(
        self, path: str | os.PathLike, fixed: Frame | None = None, moving: Frame | None = None, tool: str | None = None
    ) -> None:
        """Write as the file's name and the tool say, see `convert_transform`; raises as that and `to_sitk`."""
        parts = self.parts if str(path).lower().endswith(SAMPLED) else self._writable()
        convert_transform(parts, path, fixed, moving, tool)

    def _writable(self) -> list[WorldTransform]:
        if any(isinstance(part, NumericalInverse) for part in self.parts):
            raise ValueError(
                "a numerical inverse of a displacement field has no parameters to write; use the registration's own "
                "inverse_transform.h5, or write its field, as .nii.gz with the moving image as --fixed"
            )
        return self.parts

    @contextmanager
    def named(self, path: str | os.PathLike | None = None) -> Iterator[None]:
        """Pass on the warnings of the block with the names of the file at work and of the transform's file."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
        messages = [w.message for w in caught if isinstance(w.message, UserWarning)]
        missed = [message for message in messages if isinstance(message, InverseNotReachedWarning)]
        others = [message for message in messages if message not in missed]
        if missed:
            others.append(merge_warnings(missed))
        for message in others:
            text = re.sub(
                r"^transforms\[(\d+)\]",
                lambda match: self.files[int(match[1])] if self.files else match[0],
                str(message),
            )
            told = path is None or text.startswith((f"{path}: ", f"{os.path.abspath(path)}: "))
            warnings.warn(text if told else f"{path}: {text}", UserWarning, stacklevel=4)
