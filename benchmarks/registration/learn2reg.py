"""Displacement fields as Learn2Reg wants them, and its measures as its evaluation script computes them from such files.

The script's formulas, written anew on SciPy from the file's voxels alone: they share no code with our measures, which
look at world transforms. They differ in four points. A label is moved by ``map_coordinates`` of order 0, which gives
background beyond the outermost voxel centres, where ours, as ITK, still holds half a voxel. Its HD95 weighs surface
elements by their area and counts in voxels; here, as in ours, every surface voxel counts once. Its Jacobian leaves out
two voxels at each face, and its logarithm is of |J| + 3, clipped, where ours is of |J|; both are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.ndimage import binary_erosion, correlate1d, distance_transform_edt, map_coordinates

from scripts.formats import Image
from scripts.registration.voxels import VoxelField
from scripts.storage import atomic_path

from .cases import Case
from .method import Answer

__all__ = ["field_name", "log_jacobian_spread", "official_measures", "write_field"]

_RIM = 2
_CLIP = (1e-9, 1e9)
_OFFSET = 3.0


def field_name(case: Case) -> str:
    """``disp_FIXED_MOVING.nii.gz``, with the numbers that the images' names end with, or else the names."""
    stems = []
    for image in (case.fixed, case.moving):
        stem = image.path.name.split(".")[0]
        stems.append(stem.rsplit("_", 1)[-1] if stem.rsplit("_", 1)[-1].isdigit() else stem)
    return f"disp_{stems[0]}_{stems[1]}.nii.gz"


def write_field(case: Case, answer: Answer, folder: Path) -> Path:
    """Write a field ``(D, H, W, 3)`` float32: the moving voxel looked at less the fixed voxel looked from."""
    to_voxel = np.linalg.inv(case.moving.frame.affine)
    field = VoxelField(answer.transform, case.fixed.frame, to_voxel, np.eye(4)).whole()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / field_name(case)
    with atomic_path(path) as temporary:
        nib.save(nib.Nifti1Image(field, case.fixed.frame.affine), temporary)
    return path


def _surface_distances(one: np.ndarray, other: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """From every surface voxel of a mask to the surface of another."""
    surfaces = [mask & ~binary_erosion(mask, border_value=0) for mask in (one, other)]
    return distance_transform_edt(~surfaces[1], sampling=spacing)[surfaces[0]]


def _jacobian(field: np.ndarray) -> np.ndarray:
    """|J| of id + field ``(D, H, W, 3)``, central differences, without two voxels at each face."""
    inner = (slice(_RIM, -_RIM),) * 3
    matrix = np.empty((*field[inner].shape, 3))
    for axis in range(3):
        # Component c along axis a is row c, column a.
        matrix[..., axis] = np.stack(
            [correlate1d(field[..., c], [-0.5, 0, 0.5], axis=axis, mode="constant")[inner] for c in range(3)], axis=-1
        )
    return np.linalg.det(matrix + np.eye(3))


def log_jacobian_spread(field: np.ndarray, offset: float = 0.0) -> float:
    """Standard deviation of ln(|J| + offset), clipped from 1e-9 to 1e9."""
    return float(np.log((_jacobian(field) + offset).clip(*_CLIP)).std())


def official_measures(path: Path, fixed: Image, moving: Image, labels: Sequence[int] = ()) -> dict[str, float]:
    """Dice, HD95 (mm) and the spread of log |J| from a field's file and two label maps.

    Args:
        path: of `write_field`.
        fixed: label map on the fixed grid.
        moving: label map on the moving grid.
        labels: to take the mean of; empty for all of the fixed map.

    Returns:
        ``dice``, ``hd95``: means over the labels that both maps have; ``sdlogj``; ``sdlogj_script``, with the script's
        offset.
    """
    field = np.asarray(nib.load(path).dataobj, dtype=np.float64)
    where = np.moveaxis(np.indices(fixed.array.shape), 0, -1) + field
    moved = map_coordinates(moving.array, np.moveaxis(where, -1, 0), order=0, mode="constant")
    dice, hd95 = [], []
    for label in labels or [value for value in np.unique(fixed.array) if value != 0]:
        target, source, found = fixed.array == label, moving.array == label, moved == label
        if not (target.any() and source.any()):
            continue
        dice.append(2 * np.count_nonzero(target & found) / (np.count_nonzero(target) + np.count_nonzero(found)))
        if found.any():
            spacing = fixed.frame.spacing
            directed = (_surface_distances(found, target, spacing), _surface_distances(target, found, spacing))
            hd95.append(max(np.percentile(one, 95) for one in directed))
    return {
        "dice": float(np.mean(dice)) if dice else float("nan"),
        "hd95": float(np.mean(hd95)) if hd95 else float("nan"),
        "sdlogj": log_jacobian_spread(field),
        "sdlogj_script": log_jacobian_spread(field, _OFFSET),
    }
