#!/bin/sh
# ITK and nibabel put one NIfTI file in two places, and scale it in two ways.
# Makes small NIfTI files whose headers have both a sform and a qform, a pixdim that is not the sform's, no form at all,
# and a slope of 0 beside an intercept; reads each by nibabel and by SimpleITK (whose ITK ANTs and Slicer share).
# One expects that the sform goes first whatever its code is, that it also holds the voxel sizes, and that a slope of 0
# means no scaling, as the NIfTI standard says. ITK takes the sform first only if its code is 1, takes the sizes from
# pixdim, guesses other axes where no form is set, and adds the intercept. Fails if that changes.
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


def read(sform=1, qform=0, pixdim=None, **fields):
    """Place of the first voxel, size of voxels, and largest value, by nibabel and by SimpleITK, in RAS."""
    image = nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.diag((1, 1, 1, 1)))
    image.set_sform(nib.affines.from_matvec(np.eye(3), (10, 20, 30)), sform)
    image.set_qform(nib.affines.from_matvec(np.eye(3), (1, 2, 3)), qform)
    data = bytearray(image.to_bytes())
    header = np.frombuffer(data, nib.Nifti1Header.template_dtype, 1)[0].copy()
    if pixdim is not None:
        header["pixdim"][1:4] = pixdim
    for name, value in fields.items():
        header[name] = value
    data[:348] = header.tobytes()
    with open("a.nii", "wb") as stream:
        stream.write(data)
    one, other = nib.load("a.nii"), sitk.ReadImage("a.nii")
    values = sitk.GetArrayFromImage(other)
    theirs = (*one.affine[:3, 3], np.linalg.norm(one.affine[:3, 0]), np.asarray(one.dataobj).max())
    itks = (*(np.array((-1, -1, 1)) * other.GetOrigin()), other.GetSpacing()[0], values.max())
    return [float(v) + 0.0 for v in theirs], [float(v) + 0.0 for v in itks]


print(f"nibabel {nib.__version__}, SimpleITK {sitk.Version.VersionString()} (ITK {sitk.Version.ITKVersionString()})")
sform, qform = [10, 20, 30, 1, 59], [1, 2, 3, 1, 59]
for what, fields, theirs, itks in (
    ("both forms, sform_code 1", {"qform": 1}, sform, sform),
    ("both forms, sform_code 2", {"sform": 2, "qform": 1}, sform, qform),
    ("sform alone, pixdim 5", {"pixdim": (5, 5, 5)}, sform, [10, 20, 30, 5, 59]),
    ("no form", {"sform": 0}, [1, -1.5, -2, 1, 59], [0, 0, 0, 1, 59]),
    ("slope 0, intercept 7", {"scl_slope": 0, "scl_inter": 7}, sform, [10, 20, 30, 1, 66]),
):
    found = read(**fields)
    print(f"{what}: x, y, z of the first voxel, voxel size, largest value: nibabel {found[0]}, SimpleITK {found[1]}")
    assert found == (theirs, itks), f"expected {theirs} and {itks}"
print("as described: they agree on the first file alone")
PYTHON
