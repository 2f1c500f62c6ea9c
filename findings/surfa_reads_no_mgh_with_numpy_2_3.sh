#!/bin/sh
# surfa writes .mgz files that it cannot read when NumPy is 2.3 or newer.
# surfa, of FreeSurfer's authors, reads and writes images and warps in .mgh and .mgz. pip installs it beside any NumPy,
# its requirements name no upper bound, and it imports, computes and writes without a word. Since NumPy 2.3 every .mgz,
# its own among them, raises "The binary mode of fromstring is removed", as the reader still uses that mode. One expects
# a file to be read by the library that wrote it. nibabel reads the same file. With NumPy 2.2 surfa does, too: pin that.
# Fails if that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install -q surfa==0.6.3 nibabel==5.4.2 numpy==2.3.5
cat > try.py <<'PYTHON'
import nibabel as nib
import numpy as np
import surfa

array = np.arange(120, dtype=np.float32).reshape(4, 5, 6)
surfa.Volume(array).save("image.mgz")
print("numpy", np.__version__, "surfa", surfa.__version__)
print("nibabel reads what was written:", np.array_equal(nib.load("image.mgz").get_fdata(), array))
try:
    print("surfa reads it:", np.array_equal(surfa.load_volume("image.mgz").data, array))
except ValueError as error:
    print("surfa raises:", error)
PYTHON
env/bin/python try.py | tee new.txt
env/bin/pip install -q numpy==2.2.6
env/bin/python try.py | tee old.txt
grep -q "nibabel reads what was written: True" new.txt
grep -q "surfa raises: The binary mode of fromstring is removed" new.txt || { echo "surfa reads it now"; exit 1; }
grep -q "surfa reads it: True" old.txt
echo "as described: written with any NumPy, read with NumPy 2.2 alone"
