"""Displacement fields as vector files: NIfTI, NRRD and MetaImage.

A field takes points of the fixed image to the moving image, as ITK, ANTs and Slicer want of a transform that resamples
the moving image onto the fixed one. What we write is 5-D NIfTI ``(D, H, W, 1, 3)``, intent 1007, LPS vectors in mm.
Other tools keep other things under the same code and say which, if at all, in other fields of the header.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from ..errors import InputError
from ..spatial.frame import LPS_FLIP, Frame, ras_to_lps
from ..spatial.grid_map import ALL, GridMap
from ..spatial.resampling import warn_outside
from ..spatial.transform import WorldTransform
from .nifti import read_vectors
from .other_tools import fnirt_displacement, read_fnirt, read_fnirt_coefficients
from .text_headed import read_text_headed
from .volumes import nifti_image, write_nifti

FIELD_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
_DISPLACEMENT, _VECTOR = 1006, 1007  # NIFTI_INTENT_DISPVECT: RAS by the standard; _VECTOR: ITK's own, LPS
_AFNI = 4  # NIFTI_ECODE_AFNI: the extension by which its files are known
_FSL = range(2006, 2019)
# What a field's numbers are: displacements or the coordinates themselves, and the world they count in.
_LPS, _RAS, _RAS_POINTS, _SPLINE = "LPS", "RAS", "RAS points", "RAS points of a spline's control points"
_FNIRT, _FNIRT_FIELD, _FNIRT_CUBIC = "FSL", 2006, 2007
_NIFTYREG = {
    0: _RAS_POINTS,
    1: _RAS,
    2: _SPLINE,
    3: "a velocity field",
    4: "a velocity field",
    5: "a grid of control points of a velocity",
    6: "a grid of control points",
}
FIELDS = {
    "itk": (_VECTOR, b""),
    "greedy": (_VECTOR, b""),
    "fsl": (_FNIRT_FIELD, b""),
    "niftyreg": (_VECTOR, b"NREG_TRANS"),
    "spm": (_VECTOR, b"Mapping"),
}
"""Whose NIfTI fields are written: the code and name of their intent. Greedy's and AFNI's are ITK's."""
_LARGEST = 1e12  # mm
# Numbers are coordinates if, as such, they are by this factor nearer to a turn of the grid than as displacements. Those
# of RAS would as displacements squeeze two axes to nothing; those of LPS would double all, as two species may differ.
_SURELY_RAS, _PERHAPS_LPS = 0.75, 0.5


def save_displacement_blocks(blocks: Iterable[np.ndarray], frame: Frame, path: str | os.PathLike) -> None:
    """Write a field, piece by piece, as the NIfTI vector file that ITK, ANTs and Slicer read as a transform.

    ``blocks`` are the first component, ``(D, H, w)`` after ``(D, H, w)``, then the second, then the third; mm, LPS.
    """
    image = nifti_image(np.broadcast_to(np.float32(0), (*frame.shape, 1, 3)), frame.affine)
    image.header.set_intent(_VECTOR)
    write_nifti(image, path, blocks)


def write_field(
    transforms: Sequence[WorldTransform],
    fixed: Frame,
    path: str | os.PathLike,
    tool: str = "itk",
    moving: Frame | None = None,
) -> None:
    """Write where the voxels of the fixed grid go as the NIfTI file of a tool, a key of `FIELDS`.

    InputError without the moving image's grid for FSL's.
    """
    if tool in ("itk", "greedy"):
        save_displacement_blocks(np.moveaxis(ras_to_lps(displaced(transforms, fixed)), -1, 0), fixed, path)
        return
    there = carried(transforms, fixed)
    numbers = there[:, :, :, None] if tool != "fsl" else fnirt_displacement(path, there, fixed, moving)
    image = nifti_image(numbers.astype(np.float32), fixed.affine)
    intent, image.header["intent_name"] = FIELDS[tool]
    image.header["intent_code"] = intent
    write_nifti(image, path)


def carried(transforms: Sequence[WorldTransform], grid: Frame) -> np.ndarray:
    """Where transforms carry a grid's voxels, ``(D, H, W, 3)``, RAS mm; the first listed acts first."""
    return _carried(transforms, grid, np.zeros((4, 4)))


def between_voxels(transforms: Sequence[WorldTransform], grid: Frame, most: int = 1000) -> float:
    """How far transforms are from what is linear between a grid's voxels, in mm: the most of a sample of cells."""
    cells = np.random.default_rng(0).integers(0, np.asarray(grid.shape) - 1, (most, 3))
    corners = cells[:, None] + np.stack(np.indices((2, 2, 2)), axis=-1).reshape(8, 3)
    points = grid.voxel_to_world(np.concatenate([corners.reshape(-1, 3), cells + 0.5]))
    for part in transforms:
        points = part.apply(points)
    off = points[: 8 * most].reshape(most, 8, 3).mean(axis=1) - points[8 * most :]
    return float(np.linalg.norm(off, axis=1).max())


def displaced(transforms: Sequence[WorldTransform], grid: Frame) -> np.ndarray:
    """As `carried`, how far from the voxels themselves."""
    return _carried(transforms, grid, grid.affine)


def _carried(transforms: Sequence[WorldTransform], grid: Frame, start: np.ndarray) -> np.ndarray:
    found, box = GridMap(transforms, grid, np.eye(4)), (ALL, ALL, ALL)
    result = found.ramp(found.linear - start, box)
    if (shift := found.shift(box)) is not None:
        result += shift
    warn_outside(found.outside, int(np.prod(grid.shape)), "voxels", stacklevel=4)
    return np.moveaxis(result, 0, -1)


def read_field(path: str | os.PathLike, fixed: Frame | None = None, moving: Frame | None = None) -> WorldTransform:
    """Read a displacement field.

    Args:
        path: a vector file of ITK, ANTs, Slicer, elastix or Greedy (``.nii``, ``.nii.gz``, ``.nrrd``, ``.nhdr``,
            ``.mha``, ``.mhd``); a NIfTI of intent 1006, of NiftyReg (deformation, displacement or control points), SPM
            (``y_``) or FSL (a field, or cubic coefficients, of FNIRT), or one that holds coordinates in RAS mm.
        fixed: the fixed image's grid, which a file of FNIRT needs.
        moving: the moving image's grid, likewise.

    Returns:
        The transform. Warns (UserWarning) of oddities of the header and of how an unnamed file was understood.

    Raises:
        InputError: if the file is unreadable or damaged, holds no field of 3-D vectors, or such as only another tool
            can make into displacements (which is named).
    """
    file = Path(path)
    try:
        if file.name.lower().endswith((".nii", ".nii.gz")):
            if _intent(file) == _FNIRT_CUBIC:  # whose header places no grid
                return read_fnirt_coefficients(file, fixed, moving)
            voxels, header = read_vectors(file, _field_sizes)
        else:
            voxels, header = read_text_headed(file, 3), None
    except InputError as error:
        text = str(error).replace("cannot be read as an image", "cannot be read as a displacement field")
        raise InputError(text) from error
    frame, notes = voxels.frame, [*voxels.notes, *voxels.frame.notes]
    vectors = voxels.array.reshape(*frame.shape, 3)
    if vectors.dtype == np.uint8:
        raise InputError(f"{file}: is a colour image: three bytes a voxel; give a transform or a displacement field")
    if vectors.dtype not in (np.float32, np.float64):
        vectors = vectors.astype(np.float64)
    if not (vectors.max() < _LARGEST and vectors.min() > -_LARGEST):
        bad = int(vectors.size - np.count_nonzero(np.abs(vectors) < _LARGEST))
        raise InputError(
            f"{file}: {bad} of {vectors.size} numbers of the field are NaN, infinite or beyond all images; write anew"
        )
    if header is not None and header.get_slope_inter() not in ((None, None), (1.0, 0.0)):
        notes.append(
            "its numbers are scaled as its header says; ITK, ANTs and Slicer scale a third of them: rewrite it"
        )
    meaning = _LPS if header is None else _named(file, header)
    if meaning == _FNIRT:
        return read_fnirt(file, vectors, fixed, moving)
    if meaning in (None, _LPS):
        meaning, guess = _recognised(file, vectors, frame, meaning)
        notes += guess
    if meaning == _LPS:
        vectors = ras_to_lps(vectors)
    elif meaning in (_RAS_POINTS, _SPLINE):
        vectors = (vectors - frame.places).astype(vectors.dtype)
    for note in notes:
        warnings.warn(f"{file}: {note}", stacklevel=2)
    return WorldTransform(np.eye(4), vectors, frame, 3 if meaning == _SPLINE else None)


def _intent(file: Path) -> int | None:
    """What a NIfTI file says that it is for; None where that cannot be read, which is told later."""
    try:
        return int(nib.load(file).header["intent_code"])
    except Exception:  # nibabel raises whatever a broken header leads it to
        return None


def _field_sizes(file: Path, sizes: Sequence[int]) -> tuple[int, ...]:
    """The sizes of a field in a NIfTI file: NIfTI's 5 axes, or 4 as several tools write coordinates."""
    if len(sizes) == 5 and tuple(sizes[3:]) == (1, 3):
        return tuple(sizes)
    if len(sizes) == 4 and sizes[3] == 3:
        return tuple(sizes)
    what = "is an image" if len(sizes) == 3 else "is no displacement field, which is of shape (X, Y, Z, 1, 3)"
    raise InputError(f"{file}: {what}: its shape is {tuple(sizes)}; give a transform or a displacement field")


def _named(file: Path, header: nib.Nifti1Header) -> str | None:
    """What the header says of the numbers, None if nothing; InputError, which names the tool, if they are neither."""
    intent, axes = int(header["intent_code"]), int(header["dim"][0])
    name, described = (_text(header, field) for field in ("intent_name", "descrip"))
    if intent == _FNIRT_FIELD:
        return _FNIRT
    if intent in _FSL:
        raise InputError(
            f"{file}: holds coefficients of FSL's FNIRT or TOPUP that are no cubic spline's; make a field of them by "
            f"fnirtfileutils --in={file} --ref=FIXED --out=field.nii.gz"
        )
    if name.startswith("NREG_"):
        kind = float(header["intent_p1"]) if name == "NREG_TRANS" else -1
        meaning = _NIFTYREG.get(kind, "a transform of an older version or unknown kind")
        if meaning not in (_RAS, _RAS_POINTS, _SPLINE):
            raise InputError(
                f"{file}: is {meaning} of NiftyReg; convert it with reg_transform -ref FIXED -def {file} field.nii.gz"
            )
        return meaning
    if name == "Mapping":
        return _RAS_POINTS
    if name.lower() == "velocity" or described.startswith(("Flow Field", "Velocity")):
        raise InputError(
            f"{file}: is a velocity ('{described or name}') of SPM's DARTEL or Shoot, not a deformation; make one of "
            "it first (SPM: Deformations, saved as a y_ file)"
        )
    if axes == 4:
        return None
    if intent == 0 and any(one.get_code() == _AFNI for one in nib.load(file).header.extensions):
        return _LPS
    return {_DISPLACEMENT: _RAS, _VECTOR: _LPS}.get(intent)


def _text(header: nib.Nifti1Header, field: str) -> str:
    return header[field].item().split(b"\0")[0].decode("latin-1").strip()


def _recognised(file: Path, vectors: np.ndarray, frame: Frame, meaning: str | None) -> tuple[str, list[str]]:
    """What numbers are that their file does not name, or calls vectors, and notes on it; InputError if not certain.

    Found by comparison with the places that they lie at.
    """
    steps = [max(1, n // 24) for n in frame.shape]
    values = vectors[tuple(slice(None, None, n) for n in steps)].reshape(-1, 3).astype(np.float64)
    places = frame.places[tuple(slice(None, None, n) for n in steps)].reshape(-1, 3)
    # The linear part of the numbers as a function of the place, both in RAS.
    linear = np.linalg.lstsq(places - places.mean(axis=0), values - values.mean(axis=0))[0].T
    flip = LPS_FLIP[:3, :3]
    as_points, as_vectors = _off_turn(linear), _off_turn(np.eye(3) + linear @ flip)
    turned = np.linalg.norm(linear - flip) < np.linalg.norm(linear - np.eye(3))
    if not turned and as_points < _SURELY_RAS * as_vectors:
        note = "its numbers are the coordinates themselves (RAS mm, as SPM and MRtrix write), and are taken so"
        return _RAS_POINTS, [note]
    if meaning is None:
        raise InputError(
            f"{file}: does not say what its numbers are (intent {_VECTOR} and 5 axes: displacements in LPS mm, intent "
            f"{_DISPLACEMENT}: in RAS mm); rewrite it with the tool that made it, or mend the header"
        )
    if turned and as_points < _PERHAPS_LPS * as_vectors:
        raise InputError(
            f"{file}: its numbers look like coordinates in LPS mm, not displacements; subtract the voxels' own "
            f"coordinates, or if they are displacements, write them in RAS mm with intent {_DISPLACEMENT}"
        )
    return meaning, []


def _off_turn(matrix: np.ndarray) -> float:
    """How far a matrix ``(3, 3)`` is from the nearest rotation."""
    left, sizes, right = np.linalg.svd(matrix)
    sizes[-1] *= np.sign(np.linalg.det(left @ right))
    return float(np.linalg.norm(sizes - 1))
