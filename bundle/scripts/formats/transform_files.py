"""Transform files: ITK's composites (``.h5``), affines (``.tfm``, ``.txt``, ``.mat``), fields, and plain matrices."""

from __future__ import annotations

import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..spatial.frame import Frame, ras_to_lps
from ..spatial.resampling import transform_points
from ..spatial.transform import WorldTransform, linear_of
from ..storage import atomic_path
from . import itk_transforms as itk_files
from . import other_tools
from .displacement import FIELD_SUFFIXES, read_field, save_displacement_blocks

_GREEDY = re.compile(r"(\S+ ){4}\r?")
_FSL = re.compile(r"(\S+  ){4}\r?")
COMPOSITE_SUFFIXES = (".h5", ".hdf5")
AFFINE_SUFFIXES = (".tfm", ".txt", ".mat")
LTA, AFNI, X5 = ".lta", ".1d", ".x5"
OUTPUTS = (*COMPOSITE_SUFFIXES, ".tfm", ".txt", LTA, ".mat", AFNI, X5, ".nii", ".nii.gz")
"""What `convert_transform` writes."""
# Kinds that are not read, and how to come by one that is.
_ELSEWHERE = {
    ".m3z": "FreeSurfer's; convert it with mri_warp_convert --inm3z {0} --outitk warp.nii.gz",
    ".mgz": "FreeSurfer's; convert it with mri_warp_convert --inm3z {0} --outitk warp.nii.gz",
    ".xfm": "MINC's; it is not read: write the transform with ITK",
}


def to_sitk(transform: WorldTransform | Sequence[WorldTransform]) -> Any:
    """A transform as a ``SimpleITK.CompositeTransform``: 3-D, double precision, LPS mm; the first listed acts first."""
    import SimpleITK as sitk

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "transform.h5")
        itk_files.write_hdf5(itk_files.from_world(_listed(transform)), path, np.float64)
        return sitk.ReadTransform(path)


def _listed(transform: WorldTransform | Sequence[WorldTransform]) -> list[WorldTransform]:
    return [transform] if isinstance(transform, WorldTransform) else list(transform)


def write_transform(transform: WorldTransform | Sequence[WorldTransform], path: str | os.PathLike) -> None:
    """Write a transform that ITK, SimpleITK, ANTs and Slicer read, whole or not at all.

    Args:
        transform: fixed to moving; of several, the first listed acts first on a point.
        path: ``.h5`` or ``.hdf5`` for a composite of affines and displacement fields, these in single precision;
            ``.tfm`` or ``.txt`` for a transform without a field.

    Raises:
        InputError: for another suffix, or a displacement field with an affine's suffix.
        OSError: if it cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (*COMPOSITE_SUFFIXES, ".tfm", ".txt"):
        raise InputError(f"{path}: a transform file must end with .h5, .hdf5, .tfm or .txt")
    if suffix not in COMPOSITE_SUFFIXES and (not isinstance(transform, WorldTransform) or transform.frame is not None):
        raise InputError(f"{path}: {suffix} holds an affine only; name a .h5 file, or write the affine_part")
    with atomic_path(path) as temporary:
        try:
            if suffix in COMPOSITE_SUFFIXES:
                itk_files.write_hdf5(itk_files.from_world(_listed(transform)), temporary)
            else:
                temporary.write_text(itk_files.text_of(itk_files.linear_entry(transform)), encoding="ascii")
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:160]
            raise OSError(f"{path}: could not write it ({reason}); see that the disk is not full") from error


def convert_transform(
    transforms: Sequence[WorldTransform],
    path: str | os.PathLike,
    fixed: Frame | None = None,
    moving: Frame | None = None,
) -> None:
    """Write transforms as another tool reads them, whole or not at all.

    Args:
        transforms: fixed to moving, the first listed acts first on a point.
        path: ``.h5``, ``.hdf5``, ``.tfm`` or ``.txt`` of ITK (`write_transform`), ``.lta`` of FreeSurfer, ``.mat`` of
            FSL's FLIRT, ``.1D`` of AFNI, ``.x5``, or ``.nii``, ``.nii.gz`` for the displacement field of the fixed
            grid, as ITK and ANTs read it.
        fixed: the fixed image's grid, which all but ITK's own files need.
        moving: the moving image's grid, for ``.lta``, ``.mat`` and ``.1D``.

    Raises:
        InputError: for another suffix, a grid that is missing, or a field in a file that holds an affine only.
    """
    name = str(path).lower()
    kind = next((suffix for suffix in sorted(OUTPUTS, key=len, reverse=True) if name.endswith(suffix)), None)
    if kind is None:
        raise InputError(
            f"{path}: not a kind of transform that is written; its name must end with {', '.join(OUTPUTS)}"
        )
    if kind in (".nii", ".nii.gz"):
        save_displacement_blocks(_displacement(transforms, _needed(fixed, "fixed", path)), fixed, path)
        return
    affine = all(part.frame is None for part in transforms)
    if kind not in COMPOSITE_SUFFIXES and not affine:
        raise InputError(
            f"{path}: {kind} holds an affine only, and the transform has a field; name a .h5 or .nii.gz file"
        )
    # Parts that are affine become one.
    whole = linear_of(transforms) if affine else None
    if kind == X5:
        with atomic_path(path) as temporary:
            other_tools.write_x5(whole, temporary)
        return
    if kind not in (LTA, ".mat", AFNI):
        write_transform(WorldTransform(whole) if affine else transforms, path)
        return
    images = _needed(fixed, "fixed", path), _needed(moving, "moving", path)
    if kind == AFNI:
        text = other_tools.afni_text(whole, path, *images)
    else:
        text = (other_tools.lta_text if kind == LTA else other_tools.flirt_text)(whole, *images)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="ascii")


def _needed(frame: Frame | None, name: str, path: str | os.PathLike) -> Frame:
    if frame is None:
        raise InputError(f"{path}: this kind of file depends on the {name} image; give --{name}")
    return frame


def _displacement(transforms: Sequence[WorldTransform], grid: Frame) -> Iterator[np.ndarray]:
    """The displacement of a grid's voxels, LPS mm, a component after the other."""
    points = grid.voxel_to_world(np.stack(np.indices(grid.shape), axis=-1).reshape(-1, 3))
    moved = ras_to_lps(transform_points(points, transforms, "RAS") - points).astype(np.float32)
    yield from moved.T.reshape(3, *grid.shape)


def read_transforms(
    path: str | os.PathLike, fixed: Frame | None = None, moving: Frame | None = None
) -> list[WorldTransform]:
    """Read a transform file of this package, ITK, SimpleITK, ANTs, elastix, Greedy, Slicer, FreeSurfer or FSL.

    Args:
        path: a composite or single transform (``.h5``, ``.hdf5``, ``.tfm``, ``.txt``, ANTs' ``.mat``) of affines,
            displacement fields and B-splines; elastix's ``TransformParameters.N.txt``; Greedy's matrix (``.mat``);
            FreeSurfer's ``.lta``; FSL's matrix of FLIRT; AFNI's ``.aff12.1D``; an affine's ``.x5``; or a displacement
            field (`read_field`).
        fixed: the fixed image's grid, which FSL's files need.
        moving: the moving image's grid, likewise.

    Returns:
        What is in it, in the order in which it acts on a point; one `WorldTransform` for a file of `write_transform`.
        Warns (UserWarning) of what a user should know of it.

    Raises:
        InputError: if the file is missing, unreadable, damaged, or holds something else.
    """
    path = Path(path)
    name = path.name.lower()
    try:
        if not path.is_file():
            absent = "no such transform file; check the path"
            raise InputError(f"{path}: {'is not a file; give the path of a transform' if path.exists() else absent}")
        if name.endswith(FIELD_SUFFIXES):
            return [read_field(path, fixed, moving)]
        if name.endswith(COMPOSITE_SUFFIXES):
            return itk_files.to_world(itk_files.read_hdf5(path), os.fspath(path))
        if name.endswith(AFFINE_SUFFIXES):
            return _read_affine(path, fixed, moving)
        if name.endswith(LTA):
            return [WorldTransform(other_tools.read_lta(path))]
        if name.endswith(AFNI):
            return [WorldTransform(other_tools.read_afni(path, fixed, moving))]
        if name.endswith(X5):
            return [WorldTransform(other_tools.read_x5(path))]
    except (OSError, ValueError) as error:  # a path too long, with a NUL, without permission
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}); check the path"
        ) from error
    for suffix, advice in _ELSEWHERE.items():
        if name.endswith(suffix):
            raise InputError(f"{path}: is a transform of {advice.format(path)}")
    known = ", ".join((*COMPOSITE_SUFFIXES, *AFFINE_SUFFIXES, LTA, AFNI, X5, *FIELD_SUFFIXES))
    raise InputError(f"{path}: not a known kind of transform file; its name must end with one of {known}")


def _read_affine(path: Path, fixed: Frame | None, moving: Frame | None) -> list[WorldTransform]:
    """Read a file that may be ITK's text, ITK's binary matrix, or another tool's text."""
    with path.open("rb") as stream:
        head = stream.read(64)
    if not head:
        raise InputError(f"{path}: is empty; copy it again or write the transform anew")
    # A binary matrix begins with four small integers.
    if b"\0" in head:
        return itk_files.to_world(itk_files.read_mat(path), os.fspath(path))
    text = itk_files.read_text(path)
    if text.lstrip().startswith("(") and "(Transform " in text:
        return other_tools.read_elastix(path, text)
    matrix = _read_matrix(path, text, fixed, moving)
    entries = itk_files.parse_text(os.fspath(path), text) if matrix is None else [itk_files.affine_entry(matrix)]
    return itk_files.to_world(entries, os.fspath(path))


def _read_matrix(path: Path, text: str, fixed: Frame | None, moving: Frame | None) -> np.ndarray | None:
    """The matrix ``(4, 4)``, fixed to moving, RAS, of Greedy, c3d and FSL, which write in a way that says who wrote it.

    Four rows of four numbers say neither whose world they count in nor which way they go: Greedy's carry points of the
    fixed image to the moving one in RAS mm; FSL's carry the moving image to the fixed one in coordinates that depend on
    both images; where these are given any other matrix is taken for one. Warns of Greedy's that it was taken so. None
    if the text is not of this kind; InputError, without the images, for a matrix of FSL or of unknown origin: it says
    how to convert it.
    """
    lines = [line for line in text.split("\n") if line.strip() and not line.startswith("#")]
    rows = [line.split() for line in lines]
    if len(rows) != 4 or any(len(row) != 4 for row in rows):
        return None
    try:
        matrix = np.array(rows, dtype=np.float64)
    except ValueError:
        return None
    if not np.isfinite(matrix).all() or not np.allclose(matrix[3], (0, 0, 0, 1)):
        raise InputError(f"{path}: its four rows are no matrix of an affine, whose last row is 0 0 0 1; write it anew")
    if not text.endswith("\n") and all(map(_GREEDY.fullmatch, lines[:-1])):
        raise InputError(f"{path}: its last line has no end, as if it were cut off; copy it again")
    if all(map(_GREEDY.fullmatch, lines)):
        warnings.warn(f"{path}: taken for a matrix of Greedy or c3d, fixed to moving in RAS mm", stacklevel=4)
        return matrix
    if fixed is not None and moving is not None:
        return other_tools.read_flirt(matrix, fixed, moving)
    greedy, fsl = f"c3d_affine_tool {path}", f"avsm convert {path} affine.tfm --fixed FIXED --moving MOVING"
    if all(map(_FSL.fullmatch, lines)):
        raise InputError(
            f"{path}: is a matrix of FSL's FLIRT, whose meaning depends on both images; convert it with {fsl}"
        )
    raise InputError(
        f"{path}: a plain 4x4 matrix does not say what it means; convert it with {greedy} -oitk affine.txt if it "
        f"carries points of the fixed image to the moving one in RAS mm (Greedy, NiftyReg), with {fsl} if it is "
        "of FSL's FLIRT"
    )
