#!/bin/sh
# ITK scales a third of a NIfTI vector image.
# Makes a displacement field (5 axes, intent 1007, float32) of ones with scl_slope 3 and reads it by nibabel and SimpleITK.
# One expects 3 everywhere, as NIfTI says and nibabel reads. ITK (here in SimpleITK; ANTs alike) multiplies as many
# numbers as there are voxels, which is the first third of the components, and leaves the others as stored: the field is
# bent in one part of the image and not in the rest, without an error. Fails if that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install -q numpy==2.3.5 nibabel==5.4.2 SimpleITK==2.5.7
env/bin/python - <<'PYTHON'
import struct

import nibabel as nib
import numpy as np
import SimpleITK as sitk

image = nib.Nifti1Image(np.ones((4, 5, 6, 1, 3), np.float32), np.eye(4))
image.header.set_intent(1007)
content = bytearray(image.to_bytes())
content[112:120] = struct.pack("<ff", 3, 0)  # scl_slope, scl_inter
with open("field.nii", "wb") as stream:
    stream.write(content)
theirs = np.unique(nib.load("field.nii").get_fdata(), return_counts=True)
itks = np.unique(sitk.GetArrayFromImage(sitk.ReadImage("field.nii")), return_counts=True)
print("nibabel", nib.__version__, "values and how many:", *(a.tolist() for a in theirs))
print(f"SimpleITK {sitk.Version.VersionString()} (ITK {sitk.Version.ITKVersionString()})", *(a.tolist() for a in itks))
assert [a.tolist() for a in theirs] == [[3.0], [360]]
assert [a.tolist() for a in itks] == [[1.0, 3.0], [240, 120]], "ITK reads it otherwise now"
print("as described: two thirds of the numbers are not scaled")
PYTHON
