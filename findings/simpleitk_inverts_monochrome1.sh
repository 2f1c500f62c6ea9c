#!/bin/sh
# SimpleITK returns other numbers than a DICOM file says where low values are shown bright.
# Makes one CT slice with MONOCHROME1, rescale slope 1 and intercept -1024, and reads it by pydicom and SimpleITK.
# One expects Hounsfield units, stored value times slope plus intercept: Photometric Interpretation is about the screen,
# and comes after the modality LUT. SimpleITK (ITK by GDCM) turns the stored values round first, so that air becomes the
# densest of all, and the image says nothing of it. Fails if that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install -q numpy==2.3.5 pydicom==3.0.2 SimpleITK==2.5.7
env/bin/python - <<'PYTHON'
import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.pixels import apply_modality_lut
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

stored = np.array([[0, 1024, 1064, 2024]], np.uint16).repeat(4, axis=0)  # air, water, tissue, bone
data = pydicom.Dataset()
data.file_meta = pydicom.dataset.FileMetaDataset()
data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, generate_uid()
data.Rows = data.Columns = 4
data.SamplesPerPixel, data.PixelRepresentation = 1, 0
data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
data.PhotometricInterpretation = "MONOCHROME1"
data.RescaleSlope, data.RescaleIntercept = 1, -1024
data.PixelData = stored.tobytes()
data.save_as("slice.dcm", enforce_file_format=True)
read = pydicom.dcmread("slice.dcm")
theirs = apply_modality_lut(read.pixel_array, read)[0].astype(int).tolist()
itks = sitk.GetArrayFromImage(sitk.ReadImage("slice.dcm"))[0, 0].tolist()
print("air, water, tissue and bone in Hounsfield units")
print(f"pydicom {pydicom.__version__}: {theirs}")
print(f"SimpleITK {sitk.Version.VersionString()}: {itks}")
assert theirs == [-1024, 0, 40, 1000]
assert itks == [4095 - 1024 - 1024 - v for v in theirs], "SimpleITK gives other values now"
print("as described: the largest number of 12 bits less each stored value")
PYTHON
