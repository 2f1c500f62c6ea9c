"""Transforms of other tools than ITK's: FreeSurfer, FSL, AFNI, X5, elastix; read by nitransforms where it is right.

All carry points of the fixed image to the moving one, RAS mm, once they are here. Files of FreeSurfer and FLIRT go the
other way. What FSL writes counts from a corner of either image, in mm, mirrored where an image's axes are right-handed;
it means nothing without the images. An LTA holds the geometry of both.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import nibabel as nib
import numpy as np

from ..errors import InputError
from ..spatial.frame import LPS_FLIP, Frame
from ..spatial.transform import WorldTransform
from .itk_transforms import Entry, to_world

_MOST = 1 << 20  # bytes


def read_lta(path: str | os.PathLike) -> np.ndarray:
    """The affine of an LTA, ``(4, 4)``, fixed (``dst``) to moving (``src``), RAS mm; InputError for other content."""
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


def read_fnirt(path: Path, vectors: np.ndarray, fixed: Frame | None, moving: Frame | None) -> WorldTransform:
    """A field of FNIRT ``(D, H, W, 3)``, relative or absolute, on the fixed image's grid; InputError for another."""
    start, end = _fnirt_corners(path, fixed, moving)
    if fixed.shape != vectors.shape[:3]:
        raise InputError(f"{path}: has {vectors.shape[:3]} voxels, the fixed image {fixed.shape}; give its reference")
    places = np.stack(np.indices(fixed.shape), axis=-1) @ (np.linalg.inv(start) @ fixed.affine)[:3, :3].T
    places = places + (np.linalg.inv(start) @ fixed.affine)[:3, 3]
    if (vectors - places).std() < vectors.std():  # absolute, as fslpy tells it
        vectors = vectors - places
    return WorldTransform(end @ np.linalg.inv(start), vectors @ start[:3, :3].T, fixed)


def read_fnirt_coefficients(path: Path, fixed: Frame | None, moving: Frame | None) -> WorldTransform:
    """The cubic B-spline whose coefficients FNIRT wrote; InputError for an image that is not its reference.

    Its header holds the distance of coefficients in voxels of the reference as their spacing, FLIRT's matrix as sform,
    the reference's sizes as offsets of the qform and its spacing as parameters of the intent.
    """
    start, end = _fnirt_corners(path, fixed, moving)
    image = nib.load(path)
    header, coefficients = image.header, np.asarray(image.dataobj, np.float64)
    sizes = tuple(int(header[f"qoffset_{axis}"]) for axis in "xyz")
    spacing = [float(header[f"intent_p{number}"]) for number in (1, 2, 3)]
    if sizes != fixed.shape or not np.allclose(spacing, fixed.spacing, atol=1e-3):
        raise InputError(f"{path}: is of a reference of {sizes} voxels of {spacing} mm; give that as the fixed image")
    if coefficients.ndim != 4 or coefficients.shape[3] != 3 or not np.isfinite(coefficients).all():
        raise InputError(f"{path}: holds no finite coefficients (X, Y, Z, 3), its shape is {coefficients.shape}")
    knots = np.diag([*map(float, header["pixdim"][1:4]), 1.0])
    knots[:3, 3] = -2 * np.diag(knots)[:3]  # the second coefficient lies on the first voxel, and zeros go around
    matrix = header.get_sform()  # of p to M⁻¹ p + d(p)
    padded = np.pad(coefficients @ (start @ matrix)[:3, :3].T, [(1, 1)] * 3 + [(0, 0)])
    grid = Frame(padded.shape[:3], fixed.affine @ knots)
    return WorldTransform(end @ np.linalg.inv(matrix) @ np.linalg.inv(start), padded, grid, 3)


def _fnirt_corners(path: Path, fixed: Frame | None, moving: Frame | None) -> tuple[np.ndarray, np.ndarray]:
    """From FSL's coordinates of both images to RAS mm; InputError without the images."""
    if fixed is None or moving is None:
        raise InputError(
            f"{path}: is a file of FSL's FNIRT, whose meaning depends on both images; convert it with avsm convert "
            f"{path} transform.h5 --fixed FIXED --moving MOVING"
        )
    return _corner(fixed), _corner(moving)


def read_afni(path: Path, *images: Frame | None) -> np.ndarray:
    """An affine of 3dAllineate (``.aff12.1D``), ``(4, 4)``, fixed to moving, RAS mm.

    InputError for another file, or oblique images, which AFNI sees straightened.
    """
    try:
        numbers = np.loadtxt(path, dtype=np.float64)
        matrix = np.vstack([numbers.reshape(3, 4), (0, 0, 0, 1)])
    except ValueError as error:
        raise InputError(f"{path}: is no .1D file with one affine of AFNI, twelve numbers; write it anew") from error
    if not np.isfinite(matrix).all():
        raise InputError(f"{path}: its numbers are not finite; write it anew")
    _check_straight(path, images)
    return LPS_FLIP @ matrix @ LPS_FLIP


def afni_text(matrix: np.ndarray, path: str | os.PathLike, *images: Frame | None) -> str:
    """The ``.aff12.1D`` of an affine from fixed to moving, RAS mm; InputError for oblique images."""
    _check_straight(path, images)
    numbers = (LPS_FLIP @ matrix @ LPS_FLIP)[:3].ravel()
    return "# 3dvolreg matrices (DICOM-to-DICOM, row-by-row):\n" + " ".join(f"{n:.12g}" for n in numbers) + "\n"


def _check_straight(path: str | os.PathLike, images: tuple[Frame | None, ...]) -> None:
    for frame in images:
        if frame is not None and np.abs(frame.direction).max(axis=0).min() < 1 - 1e-6:
            raise InputError(f"{path}: AFNI's affines are of straightened images, and {frame.name} is oblique; use .h5")


def read_x5(path: Path) -> np.ndarray:
    """The affine of an X5 file, ``(4, 4)``, fixed to moving, RAS mm; InputError for other content."""
    from nitransforms.io.x5 import from_filename

    try:
        (found,) = from_filename(path)
        matrix = np.asarray(found.transform, dtype=np.float64).reshape(4, 4)
        if found.type != "linear" or not np.isfinite(matrix).all():
            raise ValueError(f"a transform of type {found.type}")
    except Exception as error:  # whatever the library comes across
        raise InputError(f"{path}: is no X5 file with one affine ({' '.join(str(error).split())[:100]})") from error
    return matrix


def write_x5(matrix: np.ndarray, path: str | os.PathLike) -> None:
    """Write an affine from fixed to moving, RAS mm, as X5."""
    from nitransforms.io.x5 import X5Transform, to_filename

    to_filename(path, [X5Transform("linear", matrix, subtype="affine", dimension_kinds=("space",) * 3 + ("vector",))])


_ELASTIX = {
    "AffineTransform": "AffineTransform",
    "EulerTransform": "Euler3DTransform",
    "SimilarityTransform": "Similarity3DTransform",
    "TranslationTransform": "TranslationTransform",
    "BSplineTransform": "BSplineTransform",
    "RecursiveBSplineTransform": "BSplineTransform",
}
_PARAMETER = re.compile(r"^\s*\((\w+)\s+(.*?)\)\s*(?://.*)?$", re.MULTILINE)


def read_elastix(path: Path, text: str, depth: int = 0) -> list[WorldTransform]:
    """The transforms of elastix's ``TransformParameters.N.txt``, those that it begins with first.

    InputError for a kind of transform that is not read, a value that is missing, or a file that leads in a circle.
    """
    values = {name: rest.replace('"', " ").split() for name, rest in _PARAMETER.findall(text)}

    def numbers(name: str, otherwise: tuple[float, ...] = ()) -> np.ndarray:
        try:
            found = np.array(values.get(name, otherwise), dtype=np.float64)
        except ValueError as error:
            raise InputError(f"{path}: its {name} are no numbers; let elastix write it anew") from error
        if name not in values and not otherwise:
            raise InputError(f"{path}: has no line ({name} ...); let elastix write it anew")
        return found

    kind = " ".join(values.get("Transform", ["none"]))
    combined = values.get("HowToCombineTransforms", ["Compose"])
    if kind not in _ELASTIX or combined != ["Compose"]:
        raise InputError(
            f"{path}: holds elastix's {kind} ({combined[0]}), which is not read; let elastix write a transform of ITK, "
            'by (WriteITKCompositeTransform "true")'
        )
    before: list[WorldTransform] = []
    names = (values.get(f"InitialTransformParameter{end}FileName") for end in ("", "s"))
    first = " ".join(next(filter(None, names), ["NoInitialTransform"]))
    if first != "NoInitialTransform":
        file = next((one for one in (path.parent / first, path.parent / Path(first).name) if one.is_file()), None)
        if file is None or depth > 9:
            raise InputError(f"{path}: begins with {first}, which is not beside it; copy that file there")
        before = read_elastix(file, file.read_text(encoding="ascii", errors="replace"), depth + 1)
    order = 3
    if "BSpline" in kind:
        turn = numbers("GridDirection").reshape(3, 3).T  # by columns
        fixed = [numbers(name) for name in ("GridSize", "GridOrigin", "GridSpacing")] + [turn.ravel()]
        fixed, order = np.concatenate(fixed), int(numbers("BSplineTransformSplineOrder", (3,))[0])
    elif kind == "EulerTransform":
        fixed = np.append(numbers("CenterOfRotationPoint"), values.get("ComputeZYX") == ["true"])
    else:
        fixed = np.empty(0) if kind == "TranslationTransform" else numbers("CenterOfRotationPoint")
    entry = Entry(_ELASTIX[kind], numbers("TransformParameters"), fixed, order)
    return [*before, *to_world([entry], os.fspath(path))]
