#!/bin/sh
# SimpleITK cannot read a transform that it wrote.
# Writes a ComposeScaleSkewVersor3DTransform (affine, made of versor, scale and skew) and reads the file again.
# One expects the transform back. ReadTransform ends in KeyError: 10, which is no RuntimeError as of its other failures
# and tells nothing of the file: its table of classes lacks this one. Fails if that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install -q SimpleITK==2.5.7
env/bin/python - <<'PYTHON'
import SimpleITK as sitk

sitk.WriteTransform(sitk.ComposeScaleSkewVersor3DTransform(), "a.tfm")
print(f"SimpleITK {sitk.Version.VersionString()} (ITK {sitk.Version.ITKVersionString()})")
print(open("a.tfm").read())
try:
    transform = sitk.ReadTransform("a.tfm")
except KeyError as error:
    print("as described: ReadTransform raises KeyError:", error)
else:
    raise SystemExit(f"it reads {transform.GetName()} now")
PYTHON
