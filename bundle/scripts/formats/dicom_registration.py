"""The transform as DICOM's Spatial Registration and Deformable Spatial Registration objects (PS3.3, A.39).

Both are in LPS millimetres, and their Registered RCS is the fixed series' frame of reference. They run opposite ways:

- A matrix of the Spatial Registration carries points of the frame of reference that its item names into the Registered
  RCS (C.20.2.1.1). For the moving series that is moving → fixed, the inverse of ITK's and this bundle's affine.
- The Deformable Spatial Registration says where to sample: a point of the Registered RCS goes to
  ``M_post (M_pre p + d(p))`` in the Source RCS (C.20.3.1.1). That is fixed → moving, as ITK's composite: with the
  bundle's ``q = L(p + d(p))``, M_pre is the identity, d the grid's vectors and M_post = L.

The fixed series is named by an item of its own, with the identity. So are those that are read: of their items all but
one, the moving series', must be the identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.filereader import read_file_meta_info
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import UID, DeformableSpatialRegistrationStorage, SpatialRegistrationStorage, generate_uid
from pydicom.valuerep import DSfloat

from ..errors import InputError
from ..spatial.frame import LPS_FLIP, Frame, ras_to_lps
from ..spatial.kinds import KINDS, is_of_kind
from ..spatial.transform import WorldTransform
from .dicom_objects import DERIVED, Run, Series, code_item, image_references, new_instance, save, series_text
from .reading import parsing

# Of a grid's corners, in mm: how far the frame may be from the right angles and right hand of a DICOM grid.
_EXACT = 1e-4
_END = b"AVSM"
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


def write_registration(transform: WorldTransform, fixed: Series, moving: Series, path: Path) -> None:
    """Write a transform, fixed to moving, as the object of its kind, in the study of the fixed series.

    InputError for a series without a frame of reference.
    """
    for series in (fixed, moving):
        if not series.header.get("FrameOfReferenceUID"):
            raise InputError(f"{series.files[0]}: has no Frame of Reference UID, which a registration names; use .h5")
    run = Run(fixed, moving, max(int(one.header.get("SeriesNumber") or 0) for one in (fixed, moving)), "avsm convert")
    save((affine_registration if transform.frame is None else deformable_registration)(run, transform), path)


def read_registration(path: Path) -> WorldTransform:
    """The transform, fixed to moving, of a (Deformable) Spatial Registration; InputError for other content.

    The fixed image is that of the Registered RCS, the moving one that of the item that is not the identity.
    """
    with parsing(path, "registration of DICOM that can be read"):
        ds = _whole(path)
        if ds.SOPClassUID == SpatialRegistrationStorage:
            found = [WorldTransform(np.linalg.inv(_matrix_of(item))) for item in ds.RegistrationSequence]
        elif ds.SOPClassUID == DeformableSpatialRegistrationStorage:
            found = [_deformation_of(path, item) for item in ds.DeformableRegistrationSequence]
        else:
            raise InputError(f"{path}: is of {UID(ds.SOPClassUID).name}; give a registration object")
        moving = [one for one in found if one.frame is not None or not np.allclose(one.linear, np.eye(4), atol=1e-9)]
        if len(moving) > 1 or len(found) + len(moving) < 2:
            raise InputError(f"{path}: it registers {len(moving)} images to a third one, need one; give another")
        return moving[0] if moving else found[-1]


def _whole(path: Path) -> Dataset:
    """The data set of a file; InputError for one that is cut off.

    pydicom ends what is open where the file ends. So an element is put behind the file: if something is open, it lies
    in there, and not in the data set.
    """
    syntax = read_file_meta_info(path).TransferSyntaxUID
    if not syntax.is_little_endian or syntax.is_deflated:  # a deflated one ends by itself
        return pydicom.dcmread(path)
    length = b"\x04\0\0\0" if syntax.is_implicit_VR else b"LO\x04\0"
    ds = pydicom.dcmread(BytesIO(path.read_bytes() + b"\xfb\xff\x10\0" + length + _END))
    behind = ds.get((0xFFFB, 0x10))
    if behind is None or behind.value not in (_END, _END.decode()):
        raise ValueError("its end is missing")
    return ds


def _matrix_of(item: Dataset) -> np.ndarray:
    """The matrix ``(4, 4)`` of an item of Registration Sequence, RAS mm; its own are applied in their order."""
    matrix = np.eye(4)
    for registration in item.MatrixRegistrationSequence:
        for one in registration.MatrixSequence:
            matrix = _numbers_of(one) @ matrix
    return LPS_FLIP @ matrix @ LPS_FLIP


def _numbers_of(item: Dataset) -> np.ndarray:
    return np.array(item.FrameOfReferenceTransformationMatrix, dtype=np.float64).reshape(4, 4)


def _deformation_of(path: Path, item: Dataset) -> WorldTransform:
    """What an item of Deformable Registration Sequence does to points of the Registered RCS, RAS mm."""
    names = (f"{when}DeformationMatrixRegistrationSequence" for when in ("Pre", "Post"))
    pre, post = (LPS_FLIP @ _numbers_of(item[name][0]) @ LPS_FLIP if name in item else np.eye(4) for name in names)
    if not item.get("DeformableRegistrationGridSequence"):
        return WorldTransform(post @ pre)
    grid = item.DeformableRegistrationGridSequence[0]
    rows = np.array(grid.ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
    direction = np.stack([*rows, np.cross(*rows)], axis=1)
    shape = tuple(map(int, grid.GridDimensions))
    frame = Frame.from_parts(shape, grid.GridResolution, grid.ImagePositionPatient, direction, "LPS", str(path))
    data = np.frombuffer(grid.VectorGridData, "<f4")
    vectors = ras_to_lps(data.reshape(*shape[::-1], 3).transpose(2, 1, 0, 3))
    # M_post (M_pre p + d) = M_post M_pre (p + M_pre^-1 d)
    return WorldTransform(post @ pre, (vectors @ np.linalg.inv(pre[:3, :3]).T).astype(np.float32), frame)


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
