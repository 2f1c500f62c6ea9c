"""The moved image as a DICOM series: the fixed series' grid and frame of reference, the moving series' kind of values.

The bundle's array ``(D, H, W)`` counts columns, rows and slices; slice k lies where the k-th of the fixed series does.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, MRImageStorage, generate_uid
from pydicom.valuerep import DSfloat

from scripts.formats.dicom_objects import (
    DERIVED,
    Run,
    Series,
    acquisition_equipment,
    code_item,
    copy_attributes,
    image_references,
    new_instance,
    save,
    series_text,
)
from scripts.spatial.frame import Frame

__all__ = ["Stored", "contributing_slices", "stored_values", "write_moved_series"]

# What describes how the moving image came about is true of its values still; what describes its grid is not.
_OF_ACQUISITION = (
    "ProtocolName",
    "AcquisitionDate",
    "AcquisitionTime",
    "AcquisitionNumber",
    "ContrastBolusAgent",
    "ContrastBolusRoute",
    "BurnedInAnnotation",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
    "WindowCenter",
    "WindowWidth",
    "WindowCenterWidthExplanation",
    "PresentationLUTShape",
)
_OF_KIND = {
    CTImageStorage: ("KVP", "ScanOptions", "FilterType", "ConvolutionKernel", "RescaleType"),
    MRImageStorage: (
        "ScanningSequence",
        "SequenceVariant",
        "ScanOptions",
        "MRAcquisitionType",
        "SequenceName",
        "RepetitionTime",
        "EchoTime",
        "EchoTrainLength",
        "InversionTime",
        "FlipAngle",
        "MagneticFieldStrength",
        "ImagedNucleus",
        "ImagingFrequency",
        "NumberOfAverages",
        "EchoNumbers",
        "RescaleType",
    ),
}
# Must be there (types 1 and 2) where the moving series, perhaps stripped of its tags, has none.
_OTHERWISE = {
    CTImageStorage: {"KVP": None, "AcquisitionNumber": None},
    MRImageStorage: {
        "ScanningSequence": "RM",  # research mode: the only value that claims nothing
        "SequenceVariant": "NONE",
        "ScanOptions": "",
        "MRAcquisitionType": "",
        "RepetitionTime": None,
        "EchoTime": None,
        "EchoTrainLength": None,
    },
}
_OF_GRID = (
    "PatientPosition",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
)


@dataclass(frozen=True, eq=False)
class Stored:
    """Values as DICOM keeps them: ``value = slope * stored + intercept``.

    Attributes:
        array: 16 bits, of the shape of the values.
        slope: as the file says it.
        intercept: as the file says it.
        says_so: whether Rescale Slope and Intercept are to be written.
    """

    array: np.ndarray
    slope: float
    intercept: float
    says_so: bool


def stored_values(values: np.ndarray, moving: Series) -> Stored:
    """Store values as the moving series stores its own, so that they are rounded as its are; no value is cut off.

    Where its slices have several slopes, or what they have cannot hold the values in 16 bits (a spline overshoots, the
    source has 32 bits), slope and intercept are such that the values' range fills 16 bits.

    Args:
        values: of the moved image, any shape.
        moving: the moving series.
    """
    says_so = moving.header.SOPClassUID == CTImageStorage or any("RescaleSlope" in h for h in moving.headers)
    pairs = {(float(h.get("RescaleSlope", 1)), float(h.get("RescaleIntercept", 0))) for h in moving.headers}
    low, high = float(values.min()), float(values.max())
    if len(pairs) == 1:
        ((slope, intercept),) = pairs
        own = np.int16 if moving.header.get("PixelRepresentation", 0) else np.uint16
        ends = sorted(np.rint([(value - intercept) / slope for value in (low, high)]))
        for dtype in (own, np.int16, np.uint16):
            limits = np.iinfo(dtype)
            if limits.min <= ends[0] and ends[1] <= limits.max:
                return Stored(_rounded(values, slope, intercept).astype(dtype), slope, intercept, says_so)
    # What the file will say has 16 characters; values must be stored for that.
    slope = float(str(DSfloat((high - low) / 65535 if high > low else 1.0, auto_format=True)))
    intercept = float(str(DSfloat(low, auto_format=True)))
    stored = np.clip(_rounded(values, slope, intercept), 0, 65535)
    return Stored(stored.astype(np.uint16), slope, intercept, True)


def _rounded(values: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    return np.rint((values.astype(np.float64) - intercept) / slope)


def contributing_slices(displacement: np.ndarray, fixed: Frame, moving: Frame) -> list[range]:
    """Which slices of the moving series each slice of the moved one was interpolated from.

    Args:
        displacement: ``(D, H, W, 3)``, LPS mm, of the fixed voxels.
        fixed: frame of the fixed series.
        moving: frame of the moving series.

    Returns:
        For each slice of the fixed series a range of slices of the moving one; empty where it looks outside.
    """
    columns, rows, count = fixed.shape
    plane = np.stack(np.meshgrid(np.arange(columns), np.arange(rows), indexing="ij"), axis=-1)
    result = []
    for k in range(count):
        points = fixed.voxel_to_world(np.concatenate([plane, np.full((columns, rows, 1), k)], axis=-1), "LPS")
        voxels = moving.world_to_voxel(points + displacement[:, :, k], "LPS")
        height = voxels[..., 2][moving.contains_voxel(voxels)]
        if not height.size:
            result.append(range(0))
            continue
        low, high = max(int(np.floor(height.min())), 0), min(int(np.ceil(height.max())), moving.shape[2] - 1)
        result.append(range(low, high + 1))
    return result


def write_moved_series(run: Run, moved: np.ndarray, sources: Sequence[range], deformed: bool, folder: Path) -> None:
    """Write the moved image, one file a slice.

    Args:
        run: of the series.
        moved: ``(D, H, W)`` on the fixed series' grid, values of the moving series.
        sources: see `contributing_slices`.
        deformed: whether the transform is more than affine.
        folder: made anew.
    """
    folder.mkdir(parents=True)
    stored = stored_values(moved, run.moving)
    numbers = [header.get("InstanceNumber") for header in run.fixed.headers]
    usable = None not in numbers and len(set(numbers)) == len(numbers)
    common = _common(run, deformed)
    for k, place in enumerate(run.fixed.headers):
        ds = copy.deepcopy(common)
        ds.SOPInstanceUID = generate_uid()
        ds.InstanceNumber = numbers[k] if usable else k + 1
        _set_place(ds, place)
        # Where a slice looks past the moving image, all of it is the source of what little there is.
        used = [run.moving.headers[i] for i in sources[k]] or run.moving.headers
        ds.SourceImageSequence = image_references(used, codes.DCM.SourceImageForImageProcessingOperation)
        ds.ReferencedImageSequence = image_references([place])
        _set_pixels(ds, stored, np.ascontiguousarray(stored.array[:, :, k].T))
        save(ds, folder / f"{k + 1:04d}.dcm")


def _common(run: Run, deformed: bool) -> Dataset:
    """What all images of the series have alike."""
    source = run.moving.header
    description = f"{series_text(run.moving)} registered to {series_text(run.fixed)}"
    ds = new_instance(run, source.SOPClassUID, source.Modality, generate_uid(), 0, description)
    ds.ImageType = _image_type(source)
    ds.PhotometricInterpretation = source.get("PhotometricInterpretation", "MONOCHROME2")
    ds.DerivationDescription = (
        f"{DERIVED}: resampled in the space of the fixed series by an affine "
        f"{'and deformable ' if deformed else ''}registration, interpolated once"
    )
    derivations = [codes.DCM.SpatialResampling, *([codes.DCM.DeformedForRegistration] if deformed else [])]
    ds.DerivationCodeSequence = [code_item(code) for code in derivations]
    for keyword, value in _OTHERWISE[source.SOPClassUID].items():
        setattr(ds, keyword, value)
    copy_attributes(run.moving, ds, (*_OF_ACQUISITION, *_OF_KIND[source.SOPClassUID]))
    if (equipment := acquisition_equipment(run.moving)) is not None:
        ds.ContributingEquipmentSequence = [equipment]
    return ds


def _set_place(ds: Dataset, place: Dataset) -> None:
    """The grid of a slice of the fixed series."""
    for keyword in _OF_GRID:
        if keyword in place:
            setattr(ds, keyword, place[keyword].value)
    if "SliceThickness" not in ds:
        ds.SliceThickness = None


def _image_type(source: Dataset) -> list[str]:
    """The moving series' Image Type as one of a derived image."""
    third = list(source.get("ImageType") or [])[2:3] or ["AXIAL" if source.SOPClassUID == CTImageStorage else "OTHER"]
    return ["DERIVED", "SECONDARY", *third]


def _set_pixels(ds: Dataset, stored: Stored, pixels: np.ndarray) -> None:
    """The image pixel module, and the rescaling."""
    ds.SamplesPerPixel = 1
    ds.Rows, ds.Columns = pixels.shape
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit = 15
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    if stored.says_so:
        ds.RescaleSlope = DSfloat(stored.slope, auto_format=True)
        ds.RescaleIntercept = DSfloat(stored.intercept, auto_format=True)
        ds.RescaleType = ds.get("RescaleType", "HU" if ds.Modality == "CT" else "US")
    elif "RescaleType" in ds:
        del ds.RescaleType
    ds.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
