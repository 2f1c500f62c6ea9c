"""The transform as DICOM's Spatial Registration and Deformable Spatial Registration objects (PS3.3, A.39).

Both are in LPS millimetres, and their Registered RCS is the fixed series' frame of reference. They run opposite ways:

- A matrix of the Spatial Registration carries points of the frame of reference that its item names into the Registered
  RCS (C.20.2.1.1). For the moving series that is moving → fixed, the inverse of ITK's and this bundle's affine.
- The Deformable Spatial Registration says where to sample: a point of the Registered RCS goes to
  ``M_post (M_pre p + d(p))`` in the Source RCS (C.20.3.1.1). That is fixed → moving, as ITK's composite: with the
  bundle's ``q = L(p + d(p))``, M_pre is the identity, d the grid's vectors and M_post = L.

The fixed series is named by an item of its own, with the identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import UID, DeformableSpatialRegistrationStorage, SpatialRegistrationStorage, generate_uid
from pydicom.valuerep import DSfloat

from scripts.spatial import KINDS, is_of_kind
from scripts.spatial.frame import LPS_FLIP, Frame, ras_to_lps
from scripts.spatial.transform import WorldTransform

from .derived import DERIVED, Run, code_item, image_references, new_instance, series_text
from .study import Series

__all__ = ["Grid", "affine_registration", "deformable_registration", "dicom_grid"]

# Of a grid's corners, in mm: how far the frame may be from the right angles and right hand of a DICOM grid.
_EXACT = 1e-4
_WORDS = {
    "RIGID": "Rigid registration",
    "RIGID_SCALE": "Registration with one scale",
    "AFFINE": "Affine part of the registration",
}


@dataclass(frozen=True, eq=False)
class Grid:
    """A displacement field as DICOM lays it out: right-handed, its third axis across the first two.

    Attributes:
        position: centre of the first voxel, ``(3,)``, LPS mm.
        directions: unit vectors of the axes as columns, ``(3, 3)``, LPS, a rotation.
        spacing: ``(3,)`` mm.
        vectors: ``(D, H, W, 3)`` float32, LPS mm; the first axis runs along the first direction.
    """

    position: np.ndarray
    directions: np.ndarray
    spacing: np.ndarray
    vectors: np.ndarray


def dicom_grid(transform: WorldTransform) -> Grid:
    """The displacement field of a transform on a grid that DICOM can say.

    A left-handed grid is turned about along its third axis. One off right angles (an image's direction may be by 1e-3)
    is sampled anew on the nearest grid that is not.

    Args:
        transform: with a field.
    """
    frame, field = transform.frame, transform.displacement
    if np.linalg.det(frame.direction) < 0:
        affine = frame.affine.copy()
        affine[:3, 3] = frame.voxel_to_world((0, 0, frame.shape[2] - 1))
        affine[:3, 2] *= -1
        frame, field = Frame(frame.shape, affine, frame.name), field[:, :, ::-1]
    u, _, vt = np.linalg.svd(frame.direction)
    straight = np.eye(4)
    straight[:3, :3] = u @ vt * frame.spacing
    # About the middle, so that no corner moves far.
    straight[:3, 3] = frame.centre - straight[:3, :3] @ ((np.asarray(frame.shape) - 1) / 2)
    straight = Frame(frame.shape, straight, frame.name)
    if not straight.same_as(frame, _EXACT):
        field = np.empty((*frame.shape, 3))
        alone = WorldTransform(np.eye(4), transform.displacement, transform.frame).covering(straight)
        for k in range(frame.shape[0]):
            index = np.stack(np.indices((1, *frame.shape[1:]), dtype=np.float64), axis=-1)[0] + (k, 0, 0)
            points = straight.voxel_to_world(index)
            field[k] = alone.apply(points) - points
    return Grid(
        ras_to_lps(straight.origin),
        LPS_FLIP[:3, :3] @ straight.direction,
        straight.spacing,
        ras_to_lps(np.asarray(field)).astype(np.float32),
    )


def affine_registration(run: Run, affine: WorldTransform) -> Dataset:
    """The affine part as a Spatial Registration object.

    Args:
        run: of the object.
        affine: fixed to moving points, without a field.
    """
    back = np.linalg.inv(LPS_FLIP @ affine.linear @ LPS_FLIP)
    kind = _type(back)
    ds = _registration(run, SpatialRegistrationStorage, 1, kind, _WORDS[kind])
    ds.RegistrationSequence = [
        _matrix_item(run.fixed, np.eye(4), codes.DCM.FrameOfReferenceIdentity),
        _matrix_item(run.moving, back, codes.DCM.ImageContentBasedAlignment),
    ]
    return ds


def deformable_registration(run: Run, transform: WorldTransform) -> Dataset:
    """The whole transform as a Deformable Spatial Registration object.

    Args:
        run: of the object.
        transform: fixed to moving points, with a field.
    """
    ds = _registration(run, DeformableSpatialRegistrationStorage, 2, "DEFORMABLE", "Affine and deformable registration")
    post = LPS_FLIP @ transform.linear @ LPS_FLIP
    ds.DeformableRegistrationSequence = [
        _deformable_item(run.fixed, codes.DCM.FrameOfReferenceIdentity, np.eye(4)),
        _deformable_item(run.moving, codes.DCM.ImageContentBasedAlignment, post, _grid_item(dicom_grid(transform))),
    ]
    return ds


def _registration(run: Run, sop_class: UID, number: int, kind: str, words: str) -> Dataset:
    """A registration object without its registrations."""
    text = f"{words}: {series_text(run.moving)} to {series_text(run.fixed)}"
    ds = new_instance(run, sop_class, "REG", generate_uid(), number, text)
    ds.InstanceNumber = 1
    ds.ContentLabel = f"{DERIVED}_{kind}"[:16]
    ds.ContentDescription = text[:64]
    ds.ContentCreatorName = ""
    _name_references(ds, (run.fixed, run.moving))
    return ds


def _name_references(ds: Dataset, series: Sequence[Series]) -> None:
    """The common instance reference module: the series of this study, and those of others."""
    studies: dict[str, list[Dataset]] = {}
    for one in series:
        item = Dataset()
        item.SeriesInstanceUID = one.uid
        item.ReferencedInstanceSequence = image_references(one.headers)
        studies.setdefault(str(one.header.StudyInstanceUID), []).append(item)
    ds.ReferencedSeriesSequence = studies.pop(str(ds.StudyInstanceUID))
    others = []
    for uid, items in studies.items():
        other = Dataset()
        other.StudyInstanceUID = uid
        other.ReferencedSeriesSequence = items
        others.append(other)
    if others:
        ds.StudiesContainingOtherReferencedInstancesSequence = others


def _matrix_item(series: Series, matrix: np.ndarray, how: Code) -> Dataset:
    """An item of Registration Sequence: ``matrix`` carries points of the series into the Registered RCS, LPS mm."""
    registration = Dataset()
    registration.RegistrationTypeCodeSequence = [code_item(how)]
    registration.MatrixSequence = [_matrix(matrix)]
    item = Dataset()
    item.FrameOfReferenceUID = series.header.FrameOfReferenceUID
    item.ReferencedImageSequence = image_references(series.headers)
    item.MatrixRegistrationSequence = [registration]
    return item


def _deformable_item(series: Series, how: Code, post: np.ndarray, grid: Dataset | None = None) -> Dataset:
    """An item of Deformable Registration Sequence; ``post`` in LPS mm; without a grid nothing is deformed."""
    item = Dataset()
    item.SourceFrameOfReferenceUID = series.header.FrameOfReferenceUID
    item.ReferencedImageSequence = image_references(series.headers)
    item.RegistrationTypeCodeSequence = [code_item(how)]
    # The identity could be left out, but some readers look for it without asking.
    item.PreDeformationMatrixRegistrationSequence = [_matrix(np.eye(4))]
    item.PostDeformationMatrixRegistrationSequence = [_matrix(post)]
    if grid is not None:
        item.DeformableRegistrationGridSequence = [grid]
    return item


def _matrix(matrix: np.ndarray) -> Dataset:
    """A matrix ``(4, 4)`` and its type; row by row."""
    item = Dataset()
    item.FrameOfReferenceTransformationMatrix = _decimals(matrix.ravel())
    item.FrameOfReferenceTransformationMatrixType = _type(matrix)
    return item


def _type(matrix: np.ndarray) -> str:
    """The narrowest type of a matrix ``(4, 4)`` in DICOM's terms, a key of `_WORDS`."""
    return next(name for name, kind in zip(_WORDS, KINDS, strict=True) if is_of_kind(matrix, kind))


def _grid_item(grid: Grid) -> Dataset:
    """The item of Deformable Registration Grid Sequence: vectors in mm along LPS, the first axis fastest."""
    item = Dataset()
    item.ImageOrientationPatient = _decimals(grid.directions[:, :2].T.ravel())
    item.ImagePositionPatient = _decimals(grid.position)
    item.GridDimensions = list(grid.vectors.shape[:3])
    item.GridResolution = grid.spacing.tolist()
    item.VectorGridData = np.ascontiguousarray(grid.vectors.transpose(2, 1, 0, 3), dtype="<f4").tobytes()
    return item


def _decimals(values: np.ndarray) -> list[DSfloat]:
    """Numbers with all digits that 16 characters hold; rounding leaves no minus zero."""
    return [DSfloat(float(value) + 0.0, auto_format=True) for value in values]
