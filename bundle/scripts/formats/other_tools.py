"""Affines of FreeSurfer (``.lta``) and of FSL's FLIRT (``.mat``), by nitransforms and in FreeSurfer's own words.

All carry points of the fixed image to the moving one, RAS mm, once they are here. Files of both tools go the other way.
FLIRT's matrix counts from a corner of either image, in mm, mirrored where an image's axes are right-handed; it means
nothing without the images. An LTA holds the geometry of both.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..spatial.frame import Frame

__all__ = ["flirt_text", "lta_text", "read_flirt", "read_lta"]

_MOST = 1 << 20  # bytes


def read_lta(path: str | os.PathLike) -> np.ndarray:
    """The affine of an LTA, ``(4, 4)``, fixed (``dst``) to moving (``src``), RAS mm, of either type.

    Raises:
        InputError: for a file that is damaged, or of another type.
    """
    path = Path(path)
    try:
        from nitransforms.io.lta import FSLinearTransformArray
    except ImportError as error:
        raise InputError(f"{path}: FreeSurfer's files are read by nitransforms; pip install nitransforms") from error
    try:
        if path.stat().st_size > _MOST:
            raise ValueError("it is too large")
        matrices = np.asarray(FSLinearTransformArray.from_string(path.read_text(encoding="utf-8")).to_ras(), np.float64)
        if matrices.shape != (1, 4, 4):
            raise ValueError(f"it holds {len(matrices)} transforms, need one")
        matrix = matrices[0]
        if not np.isfinite(matrix).all() or not np.allclose(matrix[3], (0, 0, 0, 1)):
            raise ValueError("its matrix is none of an affine")
        return matrix
    except InputError:
        raise
    except Exception as error:  # the parser raises whatever the text leads it to
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"{path}: is no LTA of FreeSurfer that can be read ({reason}); write it anew") from error


def lta_text(matrix: np.ndarray, fixed: Frame, moving: Frame) -> str:
    """An LTA, RAS to RAS, as FreeSurfer writes it: from ``src``, the moving image, to ``dst``, the fixed one."""
    rows = [" ".join(f"{value:.15e}" for value in row) + " " for row in np.linalg.inv(matrix)]
    head = ["type      = 1", "nxforms   = 1", "mean      = 0.0000 0.0000 0.0000", "sigma     = 1.0000", "1 4 4"]
    return "\n".join([*head, *rows, *_volume("src", moving), *_volume("dst", fixed), ""])


def _volume(name: str, frame: Frame) -> list[str]:
    """The geometry of a volume."""
    middle = frame.affine[:3, 3] + frame.affine[:3, :3] @ (np.asarray(frame.shape) / 2)
    columns = frame.affine[:3, :3] / frame.spacing
    vectors = {**dict(zip(("xras", "yras", "zras"), columns.T, strict=True)), "cras": middle}
    return [
        f"{name} volume info",
        "valid = 1  # volume info valid",
        f"filename = {frame.name or name}",
        "volume = " + " ".join(map(str, frame.shape)),
        "voxelsize = " + " ".join(f"{value:.15e}" for value in frame.spacing),
        *(f"{axis}   = " + " ".join(f"{value:.15e}" for value in vector) for axis, vector in vectors.items()),
    ]


def read_flirt(matrix: np.ndarray, fixed: Frame, moving: Frame) -> np.ndarray:
    """A matrix of FLIRT, moving to fixed in its own coordinates, as one from fixed to moving, RAS mm."""
    return _corner(moving) @ np.linalg.inv(matrix) @ np.linalg.inv(_corner(fixed))


def flirt_text(matrix: np.ndarray, fixed: Frame, moving: Frame) -> str:
    """The file of FLIRT for an affine from fixed to moving, RAS mm."""
    own = np.linalg.inv(_corner(fixed)) @ np.linalg.inv(matrix) @ _corner(moving)
    return "".join("".join(f"{value:.12g}  " for value in row) + "\n" for row in own)


def _corner(frame: Frame) -> np.ndarray:
    """From FSL's coordinates of an image to RAS mm, ``(4, 4)``."""
    scale = np.diag([*(1 / frame.spacing), 1.0])
    if np.linalg.det(frame.affine[:3, :3]) > 0:
        mirror = np.diag([-1.0, 1.0, 1.0, 1.0])
        mirror[0, 3] = frame.shape[0] - 1
        scale = mirror @ scale
    return frame.affine @ scale
