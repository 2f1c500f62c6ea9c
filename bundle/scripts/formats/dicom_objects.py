"""What all derived DICOM objects share: patient, study, a new series, equipment, references, UIDs, and the file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from .. import __version__
from ..errors import InputError
from .dicom import series_files

DERIVED = "AVSM"
"""Manufacturer, and the start of labels."""

_TIME = "%H%M%S.%f"
# Of the patient and the study: an attribute that must be there is written empty where the source has none (type 2).
_MUST = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
)
_MAY = (
    "IssuerOfPatientID",
    "PatientBirthTime",
    "OtherPatientIDs",
    "PatientComments",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    "LongitudinalTemporalInformationModified",
    "StudyInstanceUID",
    "StudyDescription",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
)


@dataclass(frozen=True, eq=False)
class Series:
    """One series of DICOM images.

    Attributes:
        uid: its Series Instance UID.
        files: one an image.
        headers: their data sets without pixels, in the same order.
    """

    uid: str
    files: tuple[Path, ...]
    headers: tuple[Dataset, ...]

    @property
    def header(self) -> Dataset:
        """The first image's header, for what all have alike."""
        return self.headers[0]

    def in_order(self) -> Series:
        """The series in the order in which the bundle stacks its slices: along the normal of the image plane.

        To be asked for once the bundle has read it, and so checked its geometry.
        """
        orientation = np.array(self.header.ImageOrientationPatient, dtype=float)
        normal = np.cross(orientation[:3], orientation[3:])
        heights = [float(np.dot(np.array(h.ImagePositionPatient, dtype=float), normal)) for h in self.headers]
        order = np.argsort(heights, kind="stable")
        return Series(self.uid, tuple(self.files[i] for i in order), tuple(self.headers[i] for i in order))

    def __str__(self) -> str:
        words = self.header.get("SeriesDescription") or "no description"
        return f"'{words}' ({self.uid}, {len(self.files)} images)"


def series_of(path: str) -> Series:
    """The series that an image was read from, a file or folder as of `read_series`; InputError where it was none."""
    place = Path(path)
    files = [] if place.is_file() and _header(place) is None else series_files(place)
    found = [(file, header) for file in files if (header := _header(file)) is not None]
    if not found:
        raise InputError(f"{path}: is no DICOM series, of which a registration object tells; give both images as such")
    files, headers = zip(*found, strict=True)
    return Series(str(headers[0].SeriesInstanceUID), files, headers)


def _header(path: Path) -> Dataset | None:
    try:
        return pydicom.dcmread(path, stop_before_pixels=True)
    except InvalidDicomError:
        return None


@dataclass(frozen=True)
class Run:
    """What the objects of one registration have in common.

    Attributes:
        fixed: the fixed series, in order.
        moving: the moving series, in order.
        first_number: Series Number of the first new series of the run.
        model: a few words on the weights or the preset, for Software Versions.
        now: when the objects are made.
    """

    fixed: Series
    moving: Series
    first_number: int
    model: str
    now: datetime = field(default_factory=datetime.now)


def new_instance(run: Run, sop_class: UID, modality: str, series_uid: str, number: int, description: str) -> Dataset:
    """A derived object in the fixed series' study and frame of reference, without its own content.

    Args:
        run: of the object.
        sop_class: of the object.
        modality: of its series.
        series_uid: of its series.
        number: of its series, added to the run's first.
        description: of its series; cut at the 64 characters that DICOM allows.

    Returns:
        A data set with a new SOP Instance UID and the modules of patient, study, series, frame of reference, equipment.
    """
    source = run.fixed.header
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, generate_uid()
    ds.InstanceCreationDate, ds.InstanceCreationTime = run.now.strftime("%Y%m%d"), run.now.strftime(_TIME)
    for keyword in _MUST:
        setattr(ds, keyword, source.get(keyword, ""))
    copy_attributes(run.fixed, ds, _MAY)
    ds.Modality = modality
    ds.SeriesInstanceUID = series_uid
    ds.SeriesNumber = run.first_number + number
    ds.SeriesDescription = description[:64]
    ds.SeriesDate = ds.ContentDate = ds.InstanceCreationDate
    ds.SeriesTime = ds.ContentTime = ds.InstanceCreationTime
    # A side belongs to a part of a pair, and to no other; empty stands for not known.
    copy_attributes(run.moving, ds, ("BodyPartExamined", "Laterality"))
    if "BodyPartExamined" not in ds and "Laterality" not in ds:
        ds.Laterality = ""
    ds.FrameOfReferenceUID = source.FrameOfReferenceUID
    ds.PositionReferenceIndicator = source.get("PositionReferenceIndicator", "")
    ds.Manufacturer, ds.ManufacturerModelName = DERIVED, "AVSM registration"
    ds.DeviceSerialNumber = "0"  # Must be there, and software has none.
    ds.SoftwareVersions = [f"avsm {__version__}", run.model]
    return ds


def constant(series: Series, keyword: str) -> Any:
    """An attribute's value where all images of a series agree on it, else None."""
    values = [header.get(keyword) for header in series.headers]
    return values[0] if all(value == values[0] for value in values) else None


def copy_attributes(source: Series, target: Dataset, keywords: Iterable[str]) -> None:
    """Copy attributes that are there and the same in all images of a series."""
    for keyword in keywords:
        value = constant(source, keyword)
        if value is not None:
            setattr(target, keyword, value)


def code_item(code: Code) -> Dataset:
    """An item of a code sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme_designator, code.meaning
    return item


def image_references(headers: Sequence[Dataset], purpose: Code | None = None) -> list[Dataset]:
    """References to images, one an item, with the purpose of reference where one is given."""
    items = []
    for header in headers:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
        if purpose is not None:
            item.PurposeOfReferenceCodeSequence = [code_item(purpose)]
        items.append(item)
    return items


def acquisition_equipment(series: Series) -> Dataset | None:
    """An item of Contributing Equipment: what made the source images; None where they do not say."""
    item = Dataset()
    copy_attributes(
        series, item, ("Manufacturer", "InstitutionName", "StationName", "ManufacturerModelName", "DeviceSerialNumber")
    )
    if not item.get("Manufacturer"):
        return None
    copy_attributes(series, item, ("SoftwareVersions",))
    item.PurposeOfReferenceCodeSequence = [code_item(codes.DCM.AcquisitionEquipment)]
    return item


def series_text(series: Series) -> str:
    """What a series is called in descriptions of others."""
    return str(series.header.get("SeriesDescription") or f"series {series.header.get('SeriesNumber', '')}").strip()


def save(ds: Dataset, path: Path) -> None:
    """Write a data set as a DICOM file with preamble and file meta information."""
    ds.save_as(path, enforce_file_format=True)
