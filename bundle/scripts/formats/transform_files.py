"""Transform files of ITK: composites (``.h5``), affines (``.tfm``, ``.txt``, ``.mat``) and displacement fields.

ITK counts in LPS and gives a displacement field by index (x, y, z), which is the array's (D, H, W) with reversed memory
order; both turns happen here. A composite transform is a stack: the transform added last is applied to a point first.
The lists of this package run the other way, as the command line of ANTs does: first listed, first applied to a point.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ..errors import InputError
from ..spatial.frame import LPS_FLIP, Frame, ras_to_lps
from ..spatial.transform import WorldTransform
from ..storage import atomic_path
from .displacement import load_displacement
from .reading import quiet_stderr

COMPOSITE_SUFFIXES = (".h5", ".hdf5")
AFFINE_SUFFIXES = (".tfm", ".txt", ".mat")
FIELD_SUFFIXES = (".nii", ".nii.gz")
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_PROBE = 1024.0  # mm; a power of two, so that dividing by it is exact


def _affine_to_itk(linear: np.ndarray) -> Any:
    """Return an ITK affine of an RAS matrix ``(4, 4)``."""
    import itk

    matrix = LPS_FLIP @ linear @ LPS_FLIP
    transform = itk.AffineTransform[itk.D, 3].New()
    transform.SetMatrix(itk.matrix_from_array(np.ascontiguousarray(matrix[:3, :3])))
    transform.SetOffset(matrix[:3, 3].tolist())
    return transform


def _field_to_itk(displacement: np.ndarray, frame: Frame) -> Any:
    """Return an ITK displacement field transform of RAS vectors ``(D, H, W, 3)``."""
    import itk

    image = itk.Image[itk.Vector[itk.D, 3], 3].New()
    image.SetRegions(list(frame.shape))
    image.SetSpacing(frame.spacing.tolist())
    image.SetOrigin(ras_to_lps(frame.origin).tolist())
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(LPS_FLIP[:3, :3] @ frame.direction)))
    image.Allocate()
    itk.array_view_from_image(image)[...] = ras_to_lps(displacement).transpose(2, 1, 0, 3)
    transform = itk.DisplacementFieldTransform[itk.D, 3].New()
    transform.SetDisplacementField(image)
    return transform


def to_itk(transform: WorldTransform | Sequence[WorldTransform]) -> Any:
    """Return a transform as an ``itk.CompositeTransform``: of each part the affine, then on top of it its field.

    Args:
        transform: fixed to moving; of several, the first listed acts first on a point.

    Returns:
        A double precision 3-D composite in LPS mm that ITK's resampler takes as it is.
    """
    import itk

    parts = [transform] if isinstance(transform, WorldTransform) else list(transform)
    composite = itk.CompositeTransform[itk.D, 3].New()
    for part in reversed(parts):
        if part.frame is None or not np.array_equal(part.linear, np.eye(4)):
            composite.AddTransform(_affine_to_itk(part.linear))
        if part.frame is not None:
            composite.AddTransform(_field_to_itk(part.displacement, part.frame))
    return composite


def write_transform(transform: WorldTransform | Sequence[WorldTransform], path: str | os.PathLike) -> None:
    """Write a transform that ITK, SimpleITK, ANTs and Slicer read, whole or not at all.

    Args:
        transform: fixed to moving; of several, the first listed acts first on a point.
        path: ``.h5`` or ``.hdf5`` for a composite transform of an affine and, if there is one, the displacement field;
            ``.tfm`` or ``.txt`` for a transform without a field. An earlier file there is replaced.

    Raises:
        InputError: for another suffix, or a displacement field with an affine's suffix.
        FileNotFoundError: if the folder of ``path`` does not exist.
        OSError: if ITK cannot write the file.
    """
    import itk

    suffix = Path(path).suffix.lower()
    if suffix in COMPOSITE_SUFFIXES:
        content = to_itk(transform)
    elif suffix in (".tfm", ".txt"):
        if not isinstance(transform, WorldTransform) or transform.frame is not None:
            raise InputError(f"{path}: {suffix} holds an affine only; name a .h5 file, or write the affine_part")
        content = _affine_to_itk(transform.linear)
    else:
        raise InputError(f"{path}: a transform file must end with .h5, .hdf5, .tfm or .txt")
    with atomic_path(path) as temporary:
        problem = None
        with quiet_stderr([]):
            try:
                itk.transformwrite([content], os.fspath(temporary))
                _check_written(content, temporary)
            except RuntimeError as error:
                # The error holds the file, of which HDF5 complains once more on the screen when it is let go.
                problem = _last_line(error)
        if problem is not None:
            raise OSError(f"{path}: ITK could not write it ({problem}); see that the disk is not full")


def _check_written(content: Any, path: Path) -> None:
    """Read a file that ITK has written: it does not look whether all of a text, or the end of an HDF5 file, got there.

    Raises:
        RuntimeError: if it is not whole.
    """
    import itk

    found = itk.transformread(os.fspath(path))
    # The numbers of a field are HDF5's to keep; it refuses a file that is cut off.
    whole = len(found) == 1 and (
        content.GetNameOfClass() == "CompositeTransform"
        or np.array_equal(_linear_from_itk(found[0]), _linear_from_itk(content))
    )
    if not whole:
        raise RuntimeError("the file is cut off")


def _last_line(error: BaseException) -> str:
    """Return the last line of an error's text; ITK's first ones name its source files."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__


def _linear_from_itk(transform: Any) -> np.ndarray:
    """Return the RAS matrix ``(4, 4)`` of any linear ITK transform, by what it does to the origin and three points."""
    matrix = np.eye(4)
    matrix[:3, 3] = np.asarray(transform.TransformPoint([0.0, 0.0, 0.0]))
    for axis in range(3):
        point = [0.0, 0.0, 0.0]
        point[axis] = _PROBE
        matrix[:3, axis] = (np.asarray(transform.TransformPoint(point)) - matrix[:3, 3]) / _PROBE
    return LPS_FLIP @ matrix @ LPS_FLIP


def from_itk(transform: Any, name: str = "transform") -> list[WorldTransform]:
    """Return an ITK transform, or one of those inside a composite after the other, as world transforms.

    Args:
        transform: a 3-D linear transform of any kind, a displacement field transform, or a composite of them. Float
            transforms are taken, too.
        name: what error messages call it; a file, best.

    Returns:
        In the order in which they act on a point. An affine that acts right after a field is one `WorldTransform` with
        it, so that what `to_itk` made comes back as one.

    Raises:
        InputError: for a transform of another kind, such as a B-spline, or of another dimension.
    """
    parts = _parts_from_itk(transform, name)
    result: list[WorldTransform] = []
    for part in parts:
        if result and part.frame is None:
            last = result.pop()
            part = WorldTransform(part.linear @ last.linear, last.displacement, last.frame)
        result.append(part)
    return result


def _parts_from_itk(transform: Any, name: str) -> list[WorldTransform]:
    """Return the parts of a transform in the order in which they act on a point."""
    import itk

    kind = transform.GetNameOfClass()
    dimensions = (transform.GetInputSpaceDimension(), transform.GetOutputSpaceDimension())
    if dimensions != (3, 3):
        raise InputError(f"{name}: holds a {kind} from {dimensions[0]}-D to {dimensions[1]}-D; need a 3-D transform")
    if kind == "CompositeTransform":
        parts = []
        composite = itk.down_cast(transform)
        for index in reversed(range(composite.GetNumberOfTransforms())):
            parts += _parts_from_itk(composite.GetNthTransform(index), name)
        return parts or [WorldTransform(np.eye(4))]
    if kind == "DisplacementFieldTransform":
        image = itk.down_cast(transform).GetDisplacementField()
        if image is None:
            raise InputError(f"{name}: holds a displacement field transform without a field; write it anew")
        vectors = itk.array_view_from_image(image).transpose(2, 1, 0, 3).astype(np.float64)
        return [WorldTransform(np.eye(4), ras_to_lps(vectors), Frame.from_itk(image, name))]
    if transform.IsLinear():
        return [WorldTransform(_linear_from_itk(transform))]
    raise InputError(
        f"{name}: holds a {kind}, which is neither affine nor a displacement field; turn it into a field first "
        "(SimpleITK: TransformToDisplacementField)"
    )


def _read_field(path: Path) -> list[WorldTransform]:
    """Read a NIfTI vector file."""
    try:
        vectors, affine = load_displacement(path)
    except (ValueError, OSError, EOFError, zlib.error, nib.filebasedimages.ImageFileError) as error:
        raise InputError(f"{path}: cannot be read as a displacement field: {_last_line(error)}") from error
    return [WorldTransform(np.eye(4), ras_to_lps(vectors), Frame(vectors.shape[:3], affine, os.fspath(path)))]


def read_transforms(path: str | os.PathLike) -> list[WorldTransform]:
    """Read a transform file that this package, ITK, SimpleITK, ANTs or Slicer wrote.

    Args:
        path: a composite or single transform (``.h5``, ``.hdf5``, ``.tfm``, ``.txt``, ANTs' ``.mat``), or a
            displacement field (``.nii``, ``.nii.gz``, intent 1007, LPS mm).

    Returns:
        What is in it, in the order in which it acts on a point; one `WorldTransform` for a file of `write_transform`.

    Raises:
        InputError: if the file is missing, unreadable, or holds no 3-D affine, displacement field or composite of them.
    """
    import itk

    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such transform file; check the path")
    name = path.name.lower()
    if name.endswith(FIELD_SUFFIXES):
        return _read_field(path)
    if not name.endswith(COMPOSITE_SUFFIXES + AFFINE_SUFFIXES):
        known = ", ".join(COMPOSITE_SUFFIXES + AFFINE_SUFFIXES + FIELD_SUFFIXES)
        raise InputError(f"{path}: not a known kind of transform file; its name must end with one of {known}")
    if name.endswith(COMPOSITE_SUFFIXES):
        # Asked of such a file, ITK says no more than that the suffix is not supported.
        with open(path, "rb") as stream:
            if stream.read(len(_HDF5_SIGNATURE)) != _HDF5_SIGNATURE:
                raise InputError(f"{path}: is not an HDF5 file; write the transform anew")
    try:
        with quiet_stderr([]):
            transforms = itk.transformread(os.fspath(path))
    except (RuntimeError, KeyError, AttributeError) as error:
        # The latter two come from classes that ITK's Python package does not wrap.
        reason = _last_line(error)
        if name.endswith(COMPOSITE_SUFFIXES) and "unsupported type" in reason:
            reason = "its HDF5 data are truncated or damaged"
        raise InputError(
            f"{path}: ITK cannot read it as a transform: {reason}; copy it again or write it anew"
        ) from error
    if len(transforms) != 1:
        raise InputError(f"{path}: holds {len(transforms)} transforms without saying how they combine; need one")
    return from_itk(transforms[0], os.fspath(path))
