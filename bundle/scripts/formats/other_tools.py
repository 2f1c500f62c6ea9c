"""Transforms of other tools than ITK's: FSL, AFNI, X5, elastix; read by nitransforms where it is right.

All carry points of the fixed image to the moving one, RAS mm, once they are here. FLIRT's files go the other way. What
FSL writes counts from a corner of either image, in mm, mirrored where an image's axes are right-handed; it means
nothing without the images.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import nibabel as nib
import numpy as np

from ..errors import InputError
from ..spatial.frame import LPS_FLIP, Frame, apply_matrix, ras_to_lps
from ..spatial.transform import WorldTransform
from .itk_transforms import Entry, to_world
from .reading import parsing


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
    places = apply_matrix(np.linalg.inv(start), fixed.places)
    if (vectors - places).std() < vectors.std():  # absolute, as fslpy tells it
        vectors = vectors - places
    return WorldTransform(end @ np.linalg.inv(start), vectors @ start[:3, :3].T, fixed)


def fnirt_displacement(path: str | os.PathLike, there: np.ndarray, fixed: Frame, moving: Frame | None) -> np.ndarray:
    """What FNIRT's relative field of the fixed grid holds, ``(D, H, W, 3)``, for where its voxels go, RAS mm."""
    start, end = _fnirt_corners(path, fixed, moving)
    return apply_matrix(np.linalg.inv(end), there) - apply_matrix(np.linalg.inv(start), fixed.places)


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


def _fnirt_corners(path: str | os.PathLike, fixed: Frame | None, moving: Frame | None) -> tuple[np.ndarray, np.ndarray]:
    """From FSL's coordinates of both images to RAS mm; InputError without the images."""
    if fixed is None or moving is None:
        raise InputError(
            f"{path}: a file of FSL's FNIRT means nothing without both images; give them to avsm convert: "
            "--fixed FIXED --moving MOVING"
        )
    return _corner(fixed), _corner(moving)


def read_afni(path: Path, *images: Frame | None) -> np.ndarray:
    """An affine of 3dAllineate (``.aff12.1D``), ``(4, 4)``, fixed to moving, RAS mm.

    InputError for another file, or oblique images, which AFNI sees straightened.
    """
    try:
        lines = path.read_text(encoding="ascii").splitlines()
        numbers = np.array(" ".join(line.split("#")[0] for line in lines).split(), dtype=np.float64)
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
            raise InputError(
                f"{path}: AFNI's affines are of straightened images, and {frame.name} is oblique; register what "
                "3dWarp -deoblique makes of it"
            )


def read_x5(path: Path) -> WorldTransform:
    """The affine or displacement field of an X5 file, fixed to moving; InputError for other content."""
    from nitransforms.io.x5 import from_filename

    with parsing(path, "X5 file with one transform"):
        (found,) = from_filename(path)
        if found.type == "linear":
            return WorldTransform(np.reshape(found.transform, (4, 4)))
        if (found.type, found.subtype) != ("nonlinear", "densefield"):
            raise InputError(f"{path}: holds a transform of type {found.type}, which is not read; write a dense field")
        frame, vectors = Frame(found.domain.size, found.domain.mapping, str(path)), found.transform
        if found.representation != "displacements":
            vectors = vectors - frame.places
        return WorldTransform(np.eye(4), vectors, frame)


def write_x5(numbers: np.ndarray, grid: Frame | None, path: str | os.PathLike) -> None:
    """Write an affine ``(4, 4)``, or the displacement of a grid's voxels ``(D, H, W, 3)``, RAS mm, as X5."""
    from nitransforms.io.x5 import X5Domain, X5Transform, to_filename

    found = X5Transform("linear", numbers, "affine", dimension_kinds=("space",) * 3 + ("vector",))
    if grid is not None:
        found.type, found.subtype, found.representation = "nonlinear", "densefield", "displacements"
        found.domain = X5Domain(True, grid.shape, grid.affine, "cartesian")
    to_filename(path, [found])


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


def elastix_text(affine: Entry, fixed: Frame) -> str:
    """The parameters by which elastix tells an affine, with the fixed image's grid for transformix."""
    numbers = {
        "NumberOfParameters": [12],
        "TransformParameters": affine.parameters,
        "CenterOfRotationPoint": affine.fixed,
        "FixedImageDimension": [3],
        "MovingImageDimension": [3],
        "Size": fixed.shape,
        "Index": [0, 0, 0],
        "Spacing": fixed.spacing,
        "Origin": ras_to_lps(fixed.origin),
        "Direction": (LPS_FLIP[:3, :3] @ fixed.direction).T.ravel(),  # by columns
    }
    words = {
        "Transform": "AffineTransform",
        "InitialTransformParameterFileName": "NoInitialTransform",
        "HowToCombineTransforms": "Compose",
        "UseDirectionCosines": "true",
        "FixedInternalImagePixelType": "float",
        "MovingInternalImagePixelType": "float",
        "ResampleInterpolator": "FinalLinearInterpolator",
        "Resampler": "DefaultResampler",
        "ResultImageFormat": "nii.gz",
        "ResultImagePixelType": "float",
    }
    lines = [f'({name} "{word}")' for name, word in words.items()]
    lines += [f"({name} {' '.join(map(repr, np.asarray(held).tolist()))})" for name, held in numbers.items()]
    return "\n".join([*lines, ""])
