#!/bin/sh
# nitransforms writes a FreeSurfer LTA whose two volumes are exchanged.
# An LTA carries points of its "src" volume to its "dst" volume and holds the geometry of both. nitransforms' affine
# carries points of the reference to the moving image. It writes the inverse, moving to reference, as FreeSurfer's files
# have it, and one expects src to be the moving image. It writes the reference as src and the moving image as dst.
# nitransforms reads the file back unharmed, as it looks at the matrix alone. surfa, of FreeSurfer's authors, needs the
# volumes as soon as voxels are asked for, and ends many voxels away. Fails if that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install -q nitransforms==25.1.0 nibabel==5.4.2 numpy==2.4.6
env/bin/pip install -q surfa==0.6.3
env/bin/python - <<'PYTHON'
from importlib.metadata import version

import nibabel as nib
import numpy as np
import surfa
from nitransforms.linear import Affine

grids = {"fixed": ((20, 22, 24), [1.0, 1.0, 1.0], [-10, -20, 5]), "moving": ((30, 25, 21), [2.0, 1.5, 1.0], [8, -12, 3])}
for name, (shape, spacing, origin) in grids.items():
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = origin
    nib.save(nib.Nifti1Image(np.zeros(shape, np.float32), affine), f"{name}.nii.gz")
fixed_to_moving = np.eye(4)
fixed_to_moving[:3, 3] = [5, -7, 9]
Affine(fixed_to_moving, reference="fixed.nii.gz").to_filename("t.lta", fmt="fs", moving="moving.nii.gz")
print("nitransforms", version("nitransforms"), "surfa", version("surfa"))
lines = open("t.lta").read().splitlines()
for name in ("src", "dst"):
    start = lines.index(f"{name} volume info")
    print(name, lines[start + 3])

affine = surfa.load_affine("t.lta")
voxel = np.array([3.0, 4.0, 5.0, 1.0])  # of the moving image
fixed, moving = (nib.load(f"{name}.nii.gz").affine for name in ("fixed", "moving"))
expected = np.linalg.inv(fixed) @ np.linalg.inv(fixed_to_moving) @ moving @ voxel
found = affine.convert(space="voxel").matrix @ voxel
own = surfa.Affine(
    np.linalg.inv(fixed_to_moving), source=surfa.load_volume("moving.nii.gz"), target=surfa.load_volume("fixed.nii.gz"),
    space="world",
)
print("moving voxel 3 4 5 is the fixed voxel", expected[:3], "by the definition")
print("and by surfa's own file             ", (own.convert(space="voxel").matrix @ voxel)[:3])
print("by the file of nitransforms         ", found[:3])
back = Affine.from_filename("t.lta", fmt="fs", reference="fixed.nii.gz", moving="moving.nii.gz")
assert np.allclose(back.matrix, fixed_to_moving, atol=1e-5), "its own round trip has changed"
assert np.allclose((own.convert(space="voxel").matrix @ voxel)[:3], expected[:3], atol=1e-4)
if affine.source.shape[0] != 20 or np.allclose(found[:3], expected[:3], atol=0.1):
    raise SystemExit("src is the moving image now")
print("as described: src is the reference, dst the moving image, the matrix goes from moving to reference")
PYTHON
