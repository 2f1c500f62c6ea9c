#!/bin/sh
# After SimpleITK has written a DICOM slice with its position, Python reads text in another encoding.
# In a UTF-8 locale, reads a text with an accent, writes a small image with Image Position as DICOM by SimpleITK, and
# reads the text again.
# One expects that writing an image leaves the process as it was. ITK sets the locale of the whole process to "C" and
# does not set it back, so from then on open() without an encoding, which asks the locale, takes text for ASCII: far from
# the image, in whatever comes next, a UnicodeDecodeError. Without position and orientation it does not. The mend: restore
# locale.setlocale(LC_CTYPE) afterwards, or name encodings. Fails if that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install -q SimpleITK==2.5.7
cat > write.py <<'PYTHON'
import locale
import sys

import SimpleITK as sitk

with open("text.txt", "w", encoding="utf-8") as stream:
    stream.write("é")
image = sitk.Image([8, 8, 1], sitk.sitkUInt16)
print(f"Python {sys.version.split()[0]}, SimpleITK {sitk.Version.VersionString()}")
for name in ("image.nrrd", "plain.dcm", "image.dcm"):
    if name == "image.dcm":
        image.SetMetaData("0020|0032", "0\\0\\0")
    print(f"before {name} is written: locale {locale.setlocale(locale.LC_CTYPE)}, text reads {open('text.txt').read()!a}")
    sitk.WriteImage(image, name)
left = locale.setlocale(locale.LC_CTYPE)
print(f"after image.dcm: locale {left}")
try:
    print(f"text reads {open('text.txt').read()!a}")
except UnicodeDecodeError as error:
    print(f"text does not read: {error}")
assert left == "C", "the locale is left alone now"
print("as described: the writer has left the locale C")
PYTHON
PYTHONUTF8=0 LC_ALL=C.UTF-8 env/bin/python write.py
