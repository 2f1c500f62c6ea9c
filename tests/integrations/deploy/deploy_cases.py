"""DICOM studies for the tests of the Deploy app: knee phantoms as CT or MR series, complete enough to be validated."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage

from scripts.spatial.frame import LPS_FLIP, Frame
from scripts.spatial.resampling import resample_image
from scripts.synthetic.phantom import KneePhantom
from world_cases import frame

REPOSITORY = Path(__file__).resolve().parents[3]
APP = REPOSITORY / "integrations" / "deploy"
CLASSES = {"CT": CTImageStorage, "MR": MRImageStorage}
ROOT = "1.2.826.0.1.3680043.8.498."  # pydicom's, for examples
STUDY = f"{ROOT}1"
# fixed and moving: shape, angles, spacing, origin; right-handed, as slices along their normal are.
GRIDS = (
    ((26, 34, 24), (6, -11, 4), (4.2, 3.6, 5.0), (-90.0, 20.5, -310.0)),
    ((30, 28, 33), (-14, 3, 9), (3.7, 4.5, 3.9), (71.0, -42.0, 12.0)),
)
_OF_KIND = {
    "CT": {"KVP": 120, "AcquisitionNumber": 1, "RescaleType": "HU", "ConvolutionKernel": "B30"},
    "MR": {"ScanningSequence": "SE", "SequenceVariant": "NONE", "ScanOptions": "", "MRAcquisitionType": "2D",
        "EchoTime": 20, "RepetitionTime": 3000, "EchoTrainLength": 1, "MagneticFieldStrength": 3},
}  # fmt: skip
PATIENT = {"PatientName": "Müller^Jürgen", "PatientID": "P-1", "PatientBirthDate": "19700102", "PatientSex": "M",
    "PatientIdentityRemoved": "YES", "DeidentificationMethod": "made by a test"}  # fmt: skip


def knee_arrays(seed: int = 3, top: float = 1000.0) -> list[tuple[np.ndarray, Frame]]:
    """Fixed and moving knee on the grids of `GRIDS`, values 0 to about ``top``."""
    knees = KneePhantom((48, 64, 48), noise=0.0).pair(seed, "cross_subject")
    result = []
    for role, parts in zip(("fixed", "moving"), GRIDS, strict=True):
        where = frame(*parts)
        source = Frame.from_parts((48, 64, 48), (112 / 48, 140 / 64, 140 / 48), (0, 0, 0), np.eye(3))
        affine = source.affine.copy()
        affine[:3, 3] += where.centre - source.centre
        array = resample_image(knees[role].numpy().astype(np.float32), Frame(source.shape, affine), where)
        result.append((top * array, where))
    return result


def write_series(folder: Path, array: np.ndarray, where: Frame, kind: str = "MR", description: str = "fixed",
                 number: int = 1, frame_of_reference: str | None = None, slope: float | None = None,
                 intercept: float = 0.0, dtype: type = np.uint16, backwards: bool = False, **tags) -> str:  # fmt: skip
    """Write a series, one file a slice; returns its UID.

    Values of the array are stored as ``(value - intercept) / slope``, rounded. Backwards, files and numbers run
    against the slices' normal. Further tags are of all slices; None leaves one out, a function is given the slice.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lps = LPS_FLIP @ where.affine
    direction = lps[:3, :3] / where.spacing
    uid = f"{STUDY}.{number}"
    stored = np.rint((array - intercept) / (slope or 1)).astype(dtype)
    count = array.shape[2]
    for k in range(count):
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        fields = {
            "SpecificCharacterSet": "ISO_IR 100",
            "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL" if kind == "CT" else "OTHER"],
            "SOPClassUID": CLASSES[kind], "SOPInstanceUID": f"{uid}.{k + 1}", "StudyDate": "20240305",
            "StudyTime": "101112", "AccessionNumber": "A7", "Modality": kind, "Manufacturer": "Phantom Works",
            "ManufacturerModelName": "K1", "ReferringPhysicianName": "", "SeriesDescription": description,
            **PATIENT, **_OF_KIND[kind], "BodyPartExamined": "KNEE", "Laterality": "L", "PatientPosition": "HFS",
            "StudyInstanceUID": STUDY, "SeriesInstanceUID": uid, "StudyID": "S1", "SeriesNumber": number,
            "InstanceNumber": count - k if backwards else k + 1,
            "ImagePositionPatient": [f"{v:.10g}" for v in lps[:3] @ (0, 0, k, 1)],
            "ImageOrientationPatient": [f"{v:.10g}" for v in direction[:, :2].T.ravel()],
            "FrameOfReferenceUID": frame_of_reference or f"{STUDY}.9.{number}", "PositionReferenceIndicator": "",
            "SliceThickness": f"{where.spacing[2]:.10g}",
            "PixelSpacing": [f"{where.spacing[1]:.10g}", f"{where.spacing[0]:.10g}"], "WindowCenter": "500",
            "WindowWidth": "1000", "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2",
            "Rows": array.shape[1], "Columns": array.shape[0], "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15,
            "PixelRepresentation": int(np.dtype(dtype).kind == "i"),
            "RescaleSlope": None if slope is None else f"{slope:.10g}",
            "RescaleIntercept": None if slope is None else f"{intercept:.10g}", **tags,
        }  # fmt: skip
        for keyword, value in fields.items():
            value = value(k) if callable(value) else value
            if value is not None:
                setattr(ds, keyword, value)
        ds.PixelData = np.ascontiguousarray(stored[:, :, k].T).tobytes()
        name = f"{kind}{number}_{count - k if backwards else k:03d}"
        ds.save_as(folder / name, enforce_file_format=True)
    return uid


def write_study(folder: Path, kind: str = "MR", **moving) -> Path:
    """Write a knee's two scans as a study of two series, mixed in one folder; further arguments for the moving one."""
    (fixed, where), (image, there) = knee_arrays()
    rescale = {"slope": 1.0, "intercept": -1024.0} if kind == "CT" else {}
    write_series(folder, fixed, where, kind, "Knee fixed", 3, backwards=True, **rescale)
    write_series(folder, image, there, kind, **{"description": "Knee moving", "number": 7, **rescale, **moving})
    return folder


def export_model(folder: Path, weights: str = "model.pt", config: str = "configs/inference.json") -> None:
    """Write ``avsm/model.ts`` into a models folder by the README's command, of the shipped weights unless told."""
    file = folder / "avsm" / "model.ts"
    file.parent.mkdir()
    line = ["-m", "monai.bundle", "ckpt_export", "network_def", "--filepath", file, "--ckpt_file", f"models/{weights}"]
    line += ["--meta_file", "configs/metadata.json", "--config_file", config]
    subprocess.run([sys.executable, *map(str, line)], cwd=REPOSITORY / "bundle", check=True, capture_output=True)
