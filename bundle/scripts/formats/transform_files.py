"""Transform files: ITK's composites (``.h5``), affines (``.tfm``, ``.txt``, ``.mat``), fields, and plain matrices."""

from __future__ import annotations

import os
import re
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..spatial.frame import Frame
from ..spatial.transform import WorldTransform, linear_of
from ..storage import atomic_path
from . import freesurfer, itk_transforms, ngff, other_tools
from .displacement import FIELD_SUFFIXES, FIELDS, between_voxels, carried, displaced, read_field, write_field

_GREEDY = re.compile(r"(\S+ ){4}\r?")
_FSL = re.compile(r"(\S+  ){4}\r?")
COMPOSITE_SUFFIXES = (".h5", ".hdf5")
AFFINE_SUFFIXES = (".tfm", ".txt", ".mat")
LTA, M3Z, MGZ, AFNI, X5, DICOM, NGFF = ".lta", ".m3z", ".mgz", ".1d", ".x5", ".dcm", ".ome.zarr"
OUTPUTS = (*COMPOSITE_SUFFIXES, ".tfm", ".txt", ".mat", ".nii", ".nii.gz", LTA, M3Z, MGZ, AFNI, X5, DICOM, NGFF)
"""What `convert_transform` writes."""
SAMPLED = (".nii", ".nii.gz", M3Z, MGZ)
"""What holds the places of the fixed grid's voxels, whatever the transform."""
# Whose files of a suffix are written, the first unless another is named.
_TOOLS_OF = {
    (".nii", ".nii.gz"): tuple(FIELDS),
    (".txt", ".tfm"): ("itk", "elastix", "greedy", "niftyreg"),
    (".mat",): ("fsl", "greedy", "niftyreg"),
}


def loss_between_voxels(
    transforms: Sequence[WorldTransform], path: str | os.PathLike, fixed: Frame | None = None
) -> float:
    """How far points between the fixed grid's voxels end elsewhere by a file of `convert_transform`, in mm.

    The most of a sample; 0 for a file that keeps a field's own nodes.
    """
    name = str(path).lower()
    kept = name.endswith((DICOM, NGFF)) and len(transforms) == 1 and transforms[0].spline is None
    if fixed is None or kept or not name.endswith((*SAMPLED, X5, DICOM, NGFF)):
        return 0.0
    return between_voxels(transforms, fixed)


def to_sitk(transform: WorldTransform | Sequence[WorldTransform]) -> Any:
    """A transform as a ``SimpleITK.CompositeTransform``: 3-D, double precision, LPS mm; the first listed acts first."""
    import SimpleITK

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "transform.h5")
        itk_transforms.write_hdf5(itk_transforms.from_world(_listed(transform)), path, np.float64)
        return SimpleITK.ReadTransform(path)


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
                itk_transforms.write_hdf5(itk_transforms.from_world(_listed(transform)), temporary)
            else:
                temporary.write_text(itk_transforms.text_of(itk_transforms.linear_entry(transform)), encoding="ascii")
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:160]
            raise OSError(f"{path}: could not write it ({reason}); see that the disk is not full") from error


def convert_transform(
    transforms: Sequence[WorldTransform],
    path: str | os.PathLike,
    fixed: Frame | None = None,
    moving: Frame | None = None,
    tool: str | None = None,
) -> None:
    """Write transforms as another tool reads them, whole or not at all.

    Args:
        transforms: fixed to moving, the first listed acts first on a point.
        path: ``.h5``, ``.hdf5``, ``.tfm`` or ``.txt`` of ITK (`write_transform`); of an affine alone ``.lta`` of
            FreeSurfer, ``.mat`` of FSL's FLIRT, ``.1D`` of AFNI; ``.x5``; ``.dcm``, a registration object of DICOM;
            and of the fixed grid's displacement field ``.nii``, ``.nii.gz`` of ITK and ANTs, ``.m3z``, ``.mgz`` of
            FreeSurfer.
        fixed: the fixed image's grid, which all but ITK's own files need; that of a DICOM series for ``.dcm``.
        moving: the moving image's grid, for ``.lta``, ``.mat``, ``.1D``, ``.m3z``, ``.mgz`` and ``.dcm``.
        tool: one of `TOOLS`, where files of this suffix differ between them; None: the first that the suffix has.

    Raises:
        InputError: for another suffix, a tool that has no such file, a grid that is missing, or a field in a file that
            holds an affine only.
    """
    name = str(path).lower()
    kind = next((suffix for suffix in sorted(OUTPUTS, key=len, reverse=True) if name.endswith(suffix)), None)
    if kind is None:
        raise InputError(
            f"{path}: not a kind of transform that is written; its name must end with {', '.join(OUTPUTS)}"
        )
    own = next((tools for suffixes, tools in _TOOLS_OF.items() if kind in suffixes), ())
    if tool is not None and tool not in own:
        held = ", ".join(own) or "none"
        raise InputError(f"{path}: {tool} has no such kind of file; tools whose {kind} files are written: {held}")
    if kind in (".nii", ".nii.gz"):
        images = {"fixed": fixed, "moving": moving} if tool == "fsl" else {"fixed": fixed}
        write_field(transforms, _needed(path, **images)[0], path, tool or own[0], moving)
    elif kind in COMPOSITE_SUFFIXES:
        affine = all(part.frame is None for part in transforms)  # such parts become one
        write_transform(WorldTransform(linear_of(transforms)) if affine else transforms, path)
    elif kind in (M3Z, MGZ):
        images = _needed(path, fixed=fixed, moving=moving)
        with atomic_path(path) as temporary:
            write = freesurfer.write_m3z if kind == M3Z else freesurfer.write_mgz
            write(carried(transforms, images[0]), *images, temporary)
    elif kind == X5:
        affine = all(part.frame is None for part in transforms)
        grid = None if affine else _needed(path, fixed=fixed)[0]
        with atomic_path(path) as temporary:
            numbers = linear_of(transforms) if affine else displaced(transforms, grid)
            other_tools.write_x5(numbers, grid, temporary)
    elif kind == NGFF:
        ngff.write_ngff(_one(transforms, fixed, path), path)
    elif kind == DICOM:
        from .dicom_objects import series_of
        from .dicom_registration import write_registration

        series = [series_of(frame.name) for frame in _needed(path, fixed=fixed, moving=moving)]
        whole = _one(transforms, fixed, path)
        with atomic_path(path) as temporary:
            write_registration(whole, *series, temporary)
    else:
        _write_affine(transforms, path, kind, tool or (own or [None])[0], fixed, moving)


def _one(transforms: Sequence[WorldTransform], fixed: Frame | None, path: str | os.PathLike) -> WorldTransform:
    """Transforms as one: the only one, an affine, or else the displacement of the fixed grid's voxels."""
    if all(part.frame is None for part in transforms):
        return WorldTransform(linear_of(transforms), kind=transforms[0].kind if len(transforms) == 1 else "affine")
    if len(transforms) == 1 and transforms[0].spline is None:
        return transforms[0]
    (grid,) = _needed(path, fixed=fixed)
    return WorldTransform(np.eye(4), displaced(transforms, grid), grid)


def _write_affine(
    transforms: Sequence[WorldTransform],
    path: str | os.PathLike,
    kind: str,
    tool: str | None,
    fixed: Frame | None,
    moving: Frame | None,
) -> None:
    """Write a text that holds one affine."""
    if any(part.frame is not None for part in transforms):
        holds = {LTA: ".m3z file", AFNI: ".nii.gz file"}.get(kind, ".h5 file")
        if tool != "itk" and tool in FIELDS:
            holds = f".nii.gz file with --tool {tool}"
        raise InputError(
            f"{path}: {Path(path).suffix} holds an affine only, and the transform has a field; name a {holds}"
        )
    whole = linear_of(transforms)
    if tool == "itk":
        write_transform(WorldTransform(whole), path)
        return
    if tool in ("greedy", "niftyreg"):
        text = "".join("".join(f"{value:.12g} " for value in row) + "\n" for row in whole)
    elif tool == "elastix":
        text = other_tools.elastix_text(itk_transforms.affine_entry(whole), *_needed(path, fixed=fixed))
    else:
        images = _needed(path, fixed=fixed, moving=moving)
        if kind == AFNI:
            text = other_tools.afni_text(whole, path, *images)
        else:
            text = (freesurfer.lta_text if kind == LTA else other_tools.flirt_text)(whole, *images)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="ascii")


def _needed(path: str | os.PathLike, **frames: Frame | None) -> list[Frame]:
    """The grids by their names; one InputError for all that are missing."""
    missing = [name for name, frame in frames.items() if frame is None]
    if missing:
        images, options = " and the ".join(f"{name} image" for name in missing), " and ".join(f"--{n}" for n in missing)
        raise InputError(f"{path}: this kind of file depends on the {images}; give {options}")
    return list(frames.values())


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
        if path.exists() and name.endswith(NGFF):
            return ngff.read_ngff(path)
        if not path.is_file():
            absent = "no such transform file; check the path"
            raise InputError(f"{path}: {'is not a file; give the path of a transform' if path.exists() else absent}")
        if not path.stat().st_size:
            raise InputError(f"{path}: is empty; copy it again or write the transform anew")
        if name.endswith(FIELD_SUFFIXES):
            return [read_field(path, fixed, moving)]
        if name.endswith(COMPOSITE_SUFFIXES):
            return itk_transforms.to_world(itk_transforms.read_hdf5(path), os.fspath(path))
        if name.endswith(AFFINE_SUFFIXES):
            return _read_affine(path, fixed, moving)
        for suffix, read in _READERS.items():
            if name.endswith(suffix):
                return [read(path, fixed, moving)]
    except (OSError, ValueError) as error:  # a path too long, with a NUL, without permission
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}); check the path"
        ) from error
    known = ", ".join((*COMPOSITE_SUFFIXES, *AFFINE_SUFFIXES, *_READERS, NGFF, *FIELD_SUFFIXES))
    raise InputError(f"{path}: not a known kind of transform file; its name must end with one of {known}")


def _read_registration(path: Path) -> WorldTransform:
    from .dicom_registration import read_registration  # pydicom takes a tenth of a second

    return read_registration(path)


_READERS = {
    LTA: lambda path, *_: WorldTransform(freesurfer.read_lta(path)),
    M3Z: lambda path, *_: freesurfer.read_m3z(path),
    MGZ: lambda path, *_: freesurfer.read_mgz(path),
    AFNI: lambda path, *images: WorldTransform(other_tools.read_afni(path, *images)),
    X5: lambda path, *_: other_tools.read_x5(path),
    DICOM: lambda path, *_: _read_registration(path),
}


def _read_affine(path: Path, fixed: Frame | None, moving: Frame | None) -> list[WorldTransform]:
    """Read a file that may be ITK's text, ITK's binary matrix, or another tool's text."""
    with path.open("rb") as stream:
        head = stream.read(64)
    # A binary matrix begins with four small integers.
    if b"\0" in head:
        return itk_transforms.to_world(itk_transforms.read_mat(path), os.fspath(path))
    text = itk_transforms.read_text(path)
    if text.lstrip().startswith("(") and "(Transform " in text:
        return other_tools.read_elastix(path, text)
    matrix = _read_matrix(path, text, fixed, moving)
    entries = (
        itk_transforms.parse_text(os.fspath(path), text) if matrix is None else [itk_transforms.affine_entry(matrix)]
    )
    return itk_transforms.to_world(entries, os.fspath(path))


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
