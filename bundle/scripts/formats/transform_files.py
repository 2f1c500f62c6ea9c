"""Transform files: ITK's composites (``.h5``), affines (``.tfm``, ``.txt``, ``.mat``), fields, and plain matrices."""

from __future__ import annotations

import os
import re
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..spatial.transform import WorldTransform
from ..storage import atomic_path
from .displacement import FIELD_SUFFIXES, read_field
from .itk_transforms import (
    affine_entry,
    from_world,
    linear_entry,
    parse_text,
    read_hdf5,
    read_mat,
    read_text,
    text_of,
    to_world,
    write_hdf5,
)

_GREEDY = re.compile(r"(\S+ ){4}\r?")
_FSL = re.compile(r"(\S+  ){4}\r?")
COMPOSITE_SUFFIXES = (".h5", ".hdf5")
AFFINE_SUFFIXES = (".tfm", ".txt", ".mat")
# Kinds that are not read, and how to come by one that is.
_ELSEWHERE = {
    ".lta": "FreeSurfer's; convert it with lta_convert --inlta {0} --outitk affine.txt",
    ".m3z": "FreeSurfer's; convert it with mri_warp_convert --inm3z {0} --outitk warp.nii.gz",
    ".mgz": "FreeSurfer's; convert it with mri_warp_convert --inm3z {0} --outitk warp.nii.gz",
    ".xfm": "MINC's; it is not read: write the transform with ITK",
    ".1d": "AFNI's; it is not read: write the matrix as an ITK AffineTransform in LPS mm",
}


def to_itk(transform: WorldTransform | Sequence[WorldTransform]) -> Any:
    """A transform as an ``itk.CompositeTransform``: 3-D, double precision, LPS mm, as ITK's resampler takes it.

    Of each part there is the affine, then on top of it its field. The first part listed acts first on a point.
    """
    import itk

    return _through_file(transform, lambda path: itk.transformread(path)[0])


def to_sitk(transform: WorldTransform | Sequence[WorldTransform]) -> Any:
    """As `to_itk`, a ``SimpleITK.CompositeTransform``."""
    import SimpleITK as sitk

    return _through_file(transform, sitk.ReadTransform)


def _through_file(transform: WorldTransform | Sequence[WorldTransform], read: Callable[[str], Any]) -> Any:
    """What a library reads from a file of a transform in double precision."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "transform.h5")
        write_hdf5(from_world(_listed(transform)), path, np.float64)
        return read(path)


def _listed(transform: WorldTransform | Sequence[WorldTransform]) -> list[WorldTransform]:
    return [transform] if isinstance(transform, WorldTransform) else list(transform)


def write_transform(transform: WorldTransform | Sequence[WorldTransform], path: str | os.PathLike) -> None:
    """Write a transform that ITK, SimpleITK, ANTs and Slicer read, whole or not at all.

    Args:
        transform: fixed to moving; of several, the first listed acts first on a point.
        path: ``.h5`` or ``.hdf5`` for a composite transform of an affine and, if there is one, the displacement field,
            in single precision; ``.tfm`` or ``.txt`` for a transform without a field. An earlier file there is
            replaced.

    Raises:
        InputError: for another suffix, or a displacement field with an affine's suffix.
        FileNotFoundError: if the folder of ``path`` does not exist.
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
                write_hdf5(from_world(_listed(transform)), temporary)
            else:
                temporary.write_text(text_of(linear_entry(transform)), encoding="ascii")
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:160]
            raise OSError(f"{path}: could not write it ({reason}); see that the disk is not full") from error


def read_transforms(path: str | os.PathLike) -> list[WorldTransform]:
    """Read a transform file that this package, ITK, SimpleITK, ANTs, elastix, Greedy or Slicer wrote.

    Args:
        path: a composite or single transform (``.h5``, ``.hdf5``, ``.tfm``, ``.txt``, ANTs' ``.mat``) of affines,
            displacement fields and B-splines; Greedy's matrix (``.mat``); or a displacement field (`read_field`).

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
            what = (
                "is not a file; give the path of a transform"
                if path.exists()
                else "no such transform file; check the path"
            )
            raise InputError(f"{path}: {what}")
        if name.endswith(FIELD_SUFFIXES):
            return [read_field(path)]
        if name.endswith(COMPOSITE_SUFFIXES):
            return to_world(read_hdf5(path), os.fspath(path))
        if name.endswith(AFFINE_SUFFIXES):
            return _read_affine(path)
    except (OSError, ValueError) as error:  # a path too long, with a NUL, without permission
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}); check the path"
        ) from error
    for suffix, advice in _ELSEWHERE.items():
        if name.endswith(suffix):
            raise InputError(f"{path}: is a transform of {advice.format(path)}")
    known = ", ".join(COMPOSITE_SUFFIXES + AFFINE_SUFFIXES + FIELD_SUFFIXES)
    raise InputError(f"{path}: not a known kind of transform file; its name must end with one of {known}")


def _read_affine(path: Path) -> list[WorldTransform]:
    """Read a file that may be ITK's text, ITK's binary matrix, or another tool's text."""
    with path.open("rb") as stream:
        head = stream.read(64)
    if not head:
        raise InputError(f"{path}: is empty; copy it again or write the transform anew")
    # A binary matrix begins with four small integers.
    if b"\0" in head:
        return to_world(read_mat(path), os.fspath(path))
    text = read_text(path)
    matrix = _read_matrix(path, text)
    entries = parse_text(os.fspath(path), text) if matrix is None else [affine_entry(matrix)]
    return to_world(entries, os.fspath(path))


def _read_matrix(path: Path, text: str) -> np.ndarray | None:
    """The matrix ``(4, 4)``, fixed to moving, RAS, of Greedy and c3d, which write in a way that says who wrote it.

    Four rows of four numbers say neither whose world they count in nor which way they go: Greedy's carry points of the
    fixed image to the moving one in RAS mm; FSL's carry the moving image to the fixed one in coordinates that depend on
    both images. Warns that it was taken so. None if the text is not of this kind; InputError for a matrix of FSL or of
    unknown origin, or elastix's parameters: it says how to convert them.
    """
    if text.lstrip().startswith("(") and "(Transform " in text:
        raise InputError(
            f"{path}: holds elastix's own parameters; let elastix write a transform of ITK, by "
            '(WriteITKCompositeTransform "true") and (ITKTransformOutputFileNameExtension "h5") in its parameter file'
        )
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
    greedy, fsl = f"c3d_affine_tool {path}", f"c3d_affine_tool -ref FIXED -src MOVING {path} -fsl2ras"
    if all(map(_FSL.fullmatch, lines)):
        raise InputError(
            f"{path}: is a matrix of FSL's FLIRT, whose meaning depends on both images; convert it with "
            f"{fsl} -oitk affine.txt"
        )
    raise InputError(
        f"{path}: a plain 4x4 matrix does not say what it means; convert it with {greedy} -oitk affine.txt if it "
        f"carries points of the fixed image to the moving one in RAS mm (Greedy, NiftyReg), with {fsl} -oitk "
        "affine.txt if it is of FSL's FLIRT"
    )
