"""Plain 4x4 matrices as text, and other tools' parameter files that share ITK's suffixes."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np

from ..errors import InputError

_GREEDY = re.compile(r"(\S+ ){4}\r?")
_FSL = re.compile(r"(\S+  ){4}\r?")


def read_matrix(path: Path, text: str) -> np.ndarray | None:
    """The matrix of Greedy and c3d, which say by their way of writing that they wrote it.

    Four rows of four numbers say neither whose world they count in nor which way they go: Greedy's carry points of the
    fixed image to the moving one in RAS mm; FSL's carry the moving image to the fixed one in coordinates that depend on
    both images.

    Returns:
        ``(4, 4)``, fixed to moving, RAS; warns that it was taken so. None if the text is not of this kind.

    Raises:
        InputError: for a matrix of FSL or of unknown origin, or elastix's parameters; it says how to convert them.
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
