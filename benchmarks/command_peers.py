"""One pair by another engine as a script of its user's: read the files, register, write moved image and transforms.

``python benchmarks/command_peers.py ENGINE FIXED MOVING FOLDER THREADS``; `command.py` measures such processes.
"""

from __future__ import annotations

import sys

DISTRIBUTIONS = {"ants": "antspyx", "greedy": "picsl_greedy"}
"""Engine → its distribution; both are of the extra ``peers``."""


def ants(fixed: str, moving: str, folder: str, threads: str) -> None:
    """SyN with antspyx's own settings: affine by mutual information, then SyN at three levels."""
    import ants

    images = [ants.image_read(path) for path in (fixed, moving)]
    found = ants.registration(*images, type_of_transform="SyN", outprefix=f"{folder}/ants_")
    ants.image_write(found["warpedmovout"], f"{folder}/moved.nii.gz")


def greedy(fixed: str, moving: str, folder: str, threads: str) -> None:
    """Affine, deformable with its inverse, and reslice, by the settings of greedy's own tutorial."""
    from picsl_greedy import Greedy3D

    pair, affine, warp = f"-i {fixed} {moving}", f"{folder}/affine.mat", f"{folder}/warp.nii.gz"
    steps = f"-m NCC 2x2x2 -n 100x50x10 -threads {threads}"
    engine = Greedy3D()
    engine.execute(f"-a -dof 12 {pair} -ia-image-centers {steps} -o {affine}")
    engine.execute(f"{pair} -it {affine} {steps} -o {warp} -oinv {folder}/inverse.nii.gz")
    engine.execute(f"-rf {fixed} -rm {moving} {folder}/moved.nii.gz -r {warp} {affine} -threads {threads}")


if __name__ == "__main__":
    {"ants": ants, "greedy": greedy}[sys.argv[1]](*sys.argv[2:])
