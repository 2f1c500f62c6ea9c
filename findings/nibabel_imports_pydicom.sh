#!/bin/sh
# Installing pydicom makes "import nibabel" slower.
# Measures the processor seconds of "import nibabel" with and without pydicom in the environment.
# One expects that a package for DICOM costs nothing where only NIfTI is read. nibabel imports pydicom wherever it finds
# it, for a feature of NIfTI headers that hardly any file has, and takes about 1.7 times as long: it counts for a command
# that is to answer at once. Fails if that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install -q numpy==2.3.5 nibabel==5.4.2
cat > seconds.py <<'PYTHON'
import sys
import time

import numpy

start = time.process_time()
import nibabel

print(f"{time.process_time() - start:.3f} {'pydicom' in sys.modules}")
PYTHON
measure() {
    for _ in 1 2 3 4 5; do env/bin/python seconds.py; done | sort | sed -n 3p
}
env/bin/python seconds.py > /dev/null
without=$(measure)
env/bin/pip install -q pydicom==3.0.2
env/bin/python seconds.py > /dev/null
with=$(measure)
echo "nibabel 5.4.2 alone: median of 5, processor seconds, pydicom loaded: $without"
echo "beside pydicom 3.0.2: $with"
case "$without $with" in
*False*True) echo "as described: pydicom is loaded although nobody asked for it" ;;
*) echo "pydicom is not loaded now" && exit 1 ;;
esac
