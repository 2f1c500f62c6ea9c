#!/bin/sh
# SimpleITK takes a.nii.gz's header and a.nii's voxels where both lie in one folder.
# Writes an image of tens as a.nii and one of elevens, of 2 mm voxels, as a.nii.gz, and reads the latter.
# One expects the file that was named. ITK's NIfTI library keeps the header of a.nii.gz, then looks for the voxels under
# the name without suffix, and finds a.nii first: values of one image in the place of another, without a word, as when a
# file was unpacked, edited and packed again elsewhere. nibabel reads what was named. Fails if that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install -q numpy==2.3.5 nibabel==5.4.2 SimpleITK==2.5.7
env/bin/python - <<'PYTHON'
import nibabel as nib
import numpy as np
import SimpleITK as sitk

for name, value, size in (("a.nii", 10, 1.0), ("a.nii.gz", 11, 2.0)):
    image = sitk.GetImageFromArray(np.full((3, 4, 5), value, np.int16))
    image.SetSpacing((size, size, size))
    sitk.WriteImage(image, name)
image, other = sitk.ReadImage("a.nii.gz"), nib.load("a.nii.gz")
print("a.nii.gz was written with value 11 and voxels of 2 mm")
print(f"SimpleITK {sitk.Version.VersionString()}: value {image[0, 0, 0]}, voxels of {image.GetSpacing()[0]} mm")
print(f"nibabel {nib.__version__}: value {other.dataobj[0, 0, 0]}, voxels of {other.header.get_zooms()[0]} mm")
assert (image[0, 0, 0], image.GetSpacing()[0]) == (10, 2.0), "SimpleITK reads the file that was named now"
assert other.dataobj[0, 0, 0] == 11
print("as described: header of one file, voxels of the other")
PYTHON
