"""SimpleITK images of world images, and world transforms of its results; LPS on that side, RAS on ours."""

from __future__ import annotations

from typing import Any

import numpy as np

from scripts.formats import Image
from scripts.spatial import LPS_FLIP, Frame, WorldTransform, ras_to_lps

from .base import intensities

__all__ = ["affine_to_sitk", "affine_to_world", "field_to_world", "to_sitk"]


def to_sitk(image: Image) -> Any:
    """The image with `intensities`, as float32."""
    import SimpleITK as sitk

    result = sitk.GetImageFromArray(np.ascontiguousarray(intensities(image).transpose(2, 1, 0)))
    result.SetSpacing(image.frame.spacing.tolist())
    result.SetOrigin(ras_to_lps(image.frame.origin).tolist())
    result.SetDirection((LPS_FLIP[:3, :3] @ image.frame.direction).ravel().tolist())
    return result


def affine_to_world(transform: Any) -> WorldTransform:
    """A SimpleITK ``AffineTransform`` (with any centre)."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(transform.GetMatrix(), (3, 3))
    centre = np.asarray(transform.GetCenter())
    matrix[:3, 3] = np.asarray(transform.GetTranslation()) + centre - matrix[:3, :3] @ centre
    return WorldTransform(LPS_FLIP @ matrix @ LPS_FLIP)


def affine_to_sitk(transform: WorldTransform) -> Any:
    """The linear part as a SimpleITK ``AffineTransform``."""
    import SimpleITK as sitk

    matrix = LPS_FLIP @ transform.linear @ LPS_FLIP
    return sitk.AffineTransform(matrix[:3, :3].ravel().tolist(), matrix[:3, 3].tolist())


def field_to_world(field: Any, linear: np.ndarray) -> WorldTransform:
    """A SimpleITK displacement field image, which acts first, and the affine behind it."""
    import SimpleITK as sitk

    vectors = ras_to_lps(sitk.GetArrayFromImage(field).transpose(2, 1, 0, 3))
    return WorldTransform(linear, vectors.astype(np.float32), Frame.from_itk(field, "displacement field"))
