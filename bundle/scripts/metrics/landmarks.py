"""Target registration error: how far corresponding landmarks are apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import InputError
from ..formats.points import Points
from ..spatial.resampling import transform_points
from ..spatial.transform import WorldTransform


def check_correspondence(fixed: Points, moving: Points) -> None:
    """Refuse landmarks that are not as many, or named alike in another order.

    Raises:
        InputError: if there are none, their numbers differ, or equal names come in different orders.
    """
    count = len(fixed.coordinates)
    if count != len(moving.coordinates) or count == 0:
        raise InputError(
            f"points: need as many fixed as moving ones, and at least one, got {count} and {len(moving.coordinates)}; "
            "give the same landmarks of both images"
        )
    if fixed.names is None or moving.names is None or fixed.names == moving.names:
        return
    # Other names may be just another way of counting; the same ones in another order are not.
    if len(set(fixed.names)) == len(fixed.names) and set(fixed.names) == set(moving.names):
        row = next(i for i, (a, b) in enumerate(zip(fixed.names, moving.names, strict=True)) if a != b)
        raise InputError(
            f"points: the fixed and the moving ones are named alike but not in the same order, point {row} is "
            f"{fixed.names[row]!r} and {moving.names[row]!r}; sort them alike"
        )


def target_registration_error(
    fixed: Points, moving: Points, transforms: Sequence[WorldTransform] = ()
) -> dict[str, float]:
    """How far fixed landmarks, carried to the moving image, end from the moving ones, listed in the same order.

    Args:
        fixed: landmarks of the fixed image.
        moving: the same landmarks in the moving image.
        transforms: fixed to moving, first listed, first applied; empty: the error before registration.

    Returns:
        ``count``, and ``mean``, ``std`` (of the sample; 0 for one point), ``median``, ``max`` in mm. Warns
        (``OutsideFieldWarning``) when points lie outside a displacement field.

    Raises:
        InputError: as `check_correspondence`.
    """
    check_correspondence(fixed, moving)
    carried = transform_points(fixed.coordinates, transforms, "RAS")
    error = np.linalg.norm(carried - moving.coordinates, axis=1)
    return {
        "count": len(error),
        "mean": float(error.mean()),
        "std": float(error.std(ddof=1)) if len(error) > 1 else 0.0,
        "median": float(np.median(error)),
        "max": float(error.max()),
    }
