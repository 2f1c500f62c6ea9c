"""What all derived DICOM objects share: patient, study, a new series, equipment, references, UIDs, and the file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib import metadata
from pathlib import Path

from monai.bundle import ConfigParser
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from scripts.settings import BUNDLE

from .study import Series, constant

__all__ = [
    "DERIVED",
    "Run",
    "acquisition_equipment",
    "code_item",
    "copy_attributes",
    "image_references",
    "new_instance",
    "save",
    "series_text",
]

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
    ds.Manufacturer, ds.ManufacturerModelName = DERIVED, "AVSM registration (MONAI Deploy)"
    ds.DeviceSerialNumber = "0"  # Must be there, and software has none.
    ds.SoftwareVersions = [f"avsm {_version()}", run.model]
    return ds


def _version() -> str:
    """The bundle's version: of the installation, or of the checkout's metadata."""
    try:
        return metadata.version("avsm")
    except metadata.PackageNotFoundError:
        return str(ConfigParser.load_config_file(BUNDLE / "configs" / "metadata.json")["version"])


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
