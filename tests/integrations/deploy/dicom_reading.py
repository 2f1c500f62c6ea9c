"""DICOM read and applied by the words of the standard alone, without a line of the app or the bundle."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset


def validate(paths: Sequence[Path]) -> list[str]:
    """What dciodvfy says against some files: its errors and warnings, with the files' names."""
    program = shutil.which("dciodvfy")
    assert program, "dciodvfy is not installed; apt-get install dicom3tools, as make test-integrations-deploy does"
    said = []
    for path in paths:
        done = subprocess.run([program, str(path)], capture_output=True, text=True, errors="replace", check=False)
        lines = (done.stderr + done.stdout).splitlines()
        assert lines, f"dciodvfy said nothing of {path}"
        said += [f"{path.name}: {line}" for line in lines if line.startswith(("Error", "Warning"))]
    return said


def read_folder(folder: Path) -> list[Dataset]:
    """The data sets of a folder, by file name."""
    return [pydicom.dcmread(path) for path in sorted(folder.iterdir())]


def read_image(folder: Path, series: str = "") -> sitk.Image:
    """A series as SimpleITK reads it, float64."""
    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series)
    assert files
    return sitk.ReadImage(files, sitk.sitkFloat64)


def matrix(item: Dataset) -> np.ndarray:
    """A Frame of Reference Transformation Matrix, ``(4, 4)``: 16 numbers by rows."""
    found = np.array(item.FrameOfReferenceTransformationMatrix, dtype=float).reshape(4, 4)
    np.testing.assert_array_equal(found[3], (0, 0, 0, 1))
    return found


def apply(affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points ``(n, 3)`` through ``(4, 4)``."""
    return points @ affine[:3, :3].T + affine[:3, 3]


def _item(ds: Dataset, sequence: str, series: str) -> Dataset:
    """The item of a registration that names the images of a series, which the references of the object list."""
    listed = [*ds.ReferencedSeriesSequence]
    for study in ds.get("StudiesContainingOtherReferencedInstancesSequence", []):
        listed += study.ReferencedSeriesSequence
    (images,) = (one.ReferencedInstanceSequence for one in listed if one.SeriesInstanceUID == series)
    uids = {image.ReferencedSOPInstanceUID for image in images}
    (item,) = (i for i in ds[sequence] if {one.ReferencedSOPInstanceUID for one in i.ReferencedImageSequence} == uids)
    return item


def to_registered(ds: Dataset, series: str, points: np.ndarray) -> np.ndarray:
    """Points of a series, carried into the Registered RCS by a Spatial Registration (C.20.2.1.1), LPS mm."""
    item = _item(ds, "RegistrationSequence", series)
    for one in item.MatrixRegistrationSequence[0].MatrixSequence:
        points = apply(matrix(one), points)
    return points


def to_source(ds: Dataset, series: str, points: np.ndarray) -> np.ndarray:
    """Points of the Registered RCS, carried to a series by a Deformable Spatial Registration (C.20.3.1.1), LPS mm.

    M_post (M_pre p + d), with d interpolated linearly between the centres of the grid's voxels; all points must lie
    between these.
    """
    item = _item(ds, "DeformableRegistrationSequence", series)
    pre, post = (matrix(item[f"{when}DeformationMatrixRegistrationSequence"][0]) for when in ("Pre", "Post"))
    moved = apply(pre, points)
    if "DeformableRegistrationGridSequence" in item:
        moved = moved + _vectors(item.DeformableRegistrationGridSequence[0], points)
    return apply(post, moved)


def _vectors(grid: Dataset, points: np.ndarray) -> np.ndarray:
    orientation = np.array(grid.ImageOrientationPatient, dtype=float)
    row, column = orientation[:3], orientation[3:]
    axes = np.stack([row, column, np.cross(row, column)])
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-6)
    sizes = np.array(grid.GridDimensions)
    # The first dimension runs fastest, as pixels do in a row.
    data = np.frombuffer(grid.VectorGridData, "<f4").reshape(*sizes[::-1], 3).transpose(2, 1, 0, 3).astype(float)
    start = np.array(grid.ImagePositionPatient, dtype=float)
    index = (points - start) @ axes.T / np.array(grid.GridResolution, dtype=float)
    assert index.min() >= -1e-6 and (index <= sizes - 1 + 1e-6).all(), "points beyond the grid"
    low = np.clip(np.floor(index).astype(int), 0, sizes - 2)
    part = index - low
    result = np.zeros_like(points)
    for corner in np.ndindex(2, 2, 2):
        weight = np.prod(np.where(np.array(corner) == 1, part, 1 - part), axis=1)
        result += weight[:, None] * data[tuple((low + corner).T)]
    return result
