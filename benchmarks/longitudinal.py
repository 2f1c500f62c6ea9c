"""Visits of one person without a change and with a known one: ``avsm longitudinal`` beside ANTs and Greedy.

    python benchmarks/longitudinal.py --data DATA --output FOLDER [--case brain | hippocampus] [--number N]
        [--method avsm | ants | greedy | greedy-ssd]

DATA holds ``brain_templates`` and ``Task04_Hippocampus``. Three visits are made of one image: a first, the same turned
on another grid, and that with a middle that grows by 20 % within a Gaussian; each with noise of 2 % of the range. The
brain is seen at 3 mm and grows within 8 mm; of the hippocampi, numbered by the training images that no benchmark pair
holds, the inner 86 % are seen at 1 mm, so that visits end at other places, and grow within 4 mm. One thread.

It prints the mean of |log J| where nothing changed, and of the change the log that is found in its middle and the true
one, their correlation over the body, and processor seconds of a pair.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

for name in ("OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bundle"))

import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation
from template import BRAIN, NOISE, subjects

GROWTH, CORE = 0.2, 0.6  # of lengths; of the Gaussian's width
SPACINGS = (1, 1, 1), (0.94, 1.06, 1.03)  # in the first visit's
AXIS = np.array((0.3, 0.9, -0.3))


class Person:
    """One image, where it grows, and its visits."""

    def __init__(self, case: str, number: int, data: Path) -> None:
        self.brain = case == "brain"
        if self.brain:
            array = gaussian_filter(nib.load(data / "brain_templates" / BRAIN).get_fdata(), 1)
            self.array, self.width, self.spacing, self.turn, self.seen = array / array.max(), 8.0, 3.0, 8, 1.0
            self.middle = np.array((10.0, -15.0, 5.0))
            return
        row = subjects(data / "Task04_Hippocampus", number + 1)[number]
        array = nib.load(row["image"]).get_fdata()
        low, high = np.percentile(array, (1, 99))
        self.array = gaussian_filter(np.clip((array - low) / (high - low), 0, 1.2), 0.6)
        self.width, self.spacing, self.turn, self.seen = 4.0, 1.0, 5, 0.86
        self.middle = np.argwhere(nib.load(row["label"]).get_fdata() > 0).mean(0) - (np.array(array.shape) - 1) / 2

    def visit(self, seed: int, growth: float) -> nib.Nifti1Image:
        """A visit; the first, of seed 0, is not turned."""
        step = np.array(SPACINGS[seed > 0]) * self.spacing
        shape = np.ceil(np.array(self.array.shape) * self.seen / step).astype(int)
        turn = Rotation.from_rotvec(np.radians(self.turn * (seed > 0)) * AXIS).as_matrix()
        at = (np.stack(np.indices(shape), -1) - (shape - 1) / 2) * step @ turn.T
        off = at - self.middle
        at -= growth * off * np.exp(-np.square(off).sum(-1, keepdims=True) / (2 * self.width**2))
        where = np.moveaxis(at + (np.array(self.array.shape) - 1) / 2, -1, 0)
        random = np.random.default_rng(seed)
        image = map_coordinates(self.array, where, order=1 if self.brain else 3, mode="nearest")
        image += NOISE * random.normal(size=shape)
        affine = np.diag([*step, 1.0])
        affine[:3, 3] = random.normal(size=3) * 10
        return nib.Nifti1Image((500 * image).astype(np.float32), affine)

    def truth(self, first: nib.Nifti1Image) -> tuple[np.ndarray, np.ndarray]:
        """At the first visit's voxels the log of the grown volume, and the distance from the growth's middle, mm."""
        at = (np.stack(np.indices(first.shape), -1) - (np.array(first.shape) - 1) / 2) * self.spacing - self.middle
        distance = np.linalg.norm(at, axis=-1)
        grown = np.linspace(0, 6 * self.width, 4000)
        shrink = 1 - GROWTH * np.exp(-(grown**2) / (2 * self.width**2))
        log = -np.log(np.gradient(grown * shrink, grown)) - 2 * np.log(shrink)
        return np.interp(distance, grown * shrink, log), distance

    def body(self, first: nib.Nifti1Image) -> np.ndarray:
        """Where the first visit is measured, off its ends."""
        margin = 3 if self.brain else 8
        inside = np.zeros(first.shape, bool)
        inside[(slice(margin, -margin),) * 3] = True
        return inside & (first.get_fdata() > first.get_fdata().mean()) if self.brain else inside


def by_avsm(first: Path, other: Path, folder: Path) -> np.ndarray:
    """The change at the first visit's voxels, log."""
    import scripts

    scripts.longitudinal([first, other], folder, threads=1)
    change, image = nib.load(folder / "change.nii.gz"), nib.load(first)
    back = scripts.load_transform(folder / first.name.split(".")[0] / "inverse_transform.h5")
    grid = nib.affines.apply_affine(image.affine, np.stack(np.indices(image.shape), -1).reshape(-1, 3))
    where = nib.affines.apply_affine(np.linalg.inv(change.affine), back.points(grid)).T
    return map_coordinates(np.log(change.get_fdata()), where, order=1, mode="nearest").reshape(image.shape)


def by_ants(first: Path, other: Path, folder: Path) -> np.ndarray:
    """As `by_avsm`: rigid, then SyN."""
    import ants

    fixed, moving = (ants.image_read(str(file)) for file in (first, other))
    rigid = ants.registration(fixed, moving, "Rigid", random_seed=1)["fwdtransforms"][0]
    found = ants.registration(fixed, moving, "SyN", initial_transform=rigid, random_seed=1)["fwdtransforms"]
    warp = next(file for file in found if file.endswith("Warp.nii.gz"))
    return ants.create_jacobian_determinant_image(fixed, warp, do_log=True).numpy()


def by_greedy(first: Path, other: Path, folder: Path, metric: str = "NCC 2x2x2") -> np.ndarray:
    """As `by_avsm`: rigid, then Greedy."""
    from picsl_greedy import Greedy3D

    import scripts
    from scripts.metrics import world_jacobian
    from scripts.spatial import Frame

    folder.mkdir(parents=True, exist_ok=True)
    images, program = f"-i {first} {other}", Greedy3D()
    affine, warp = folder / "affine.mat", folder / "warp.nii.gz"
    program.execute(f"{images} -a -dof 6 -ia-image-centers -n 100x50x30 -m NCC 4x4x4 -o {affine} -threads 1")
    program.execute(f"{images} -it {affine} -n 100x50x30 -m {metric} -s 2vox 1vox -o {warp} -threads 1")
    image, found = nib.load(first), scripts.load_transform(warp, affine)
    volumes = world_jacobian(found.parts, Frame(image.shape, image.affine)).determinant
    return np.log(np.maximum(volumes, 1e-3))


METHODS = {
    "avsm": by_avsm,
    "ants": by_ants,
    "greedy": by_greedy,
    "greedy-ssd": lambda first, other, folder: by_greedy(first, other, folder, "SSD"),
}


def main() -> None:
    """Run one method on one person, and print its row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--case", choices=("brain", "hippocampus"), default="brain")
    parser.add_argument("--number", type=int, default=0)
    parser.add_argument("--method", choices=METHODS, default="avsm")
    options = parser.parse_args()
    person, folder = Person(options.case, options.number, options.data), options.output / options.method
    folder.mkdir(parents=True, exist_ok=True)
    files = [options.output / f"{name}.nii.gz" for name in ("first", "same", "grown")]
    for seed, (file, growth) in enumerate(zip(files, (0, 0, GROWTH), strict=True)):
        nib.save(person.visit(seed, growth), file)
    first = nib.load(files[0])
    true, distance = person.truth(first)
    body = person.body(first)
    start = time.process_time()
    none, grown = (METHODS[options.method](files[0], file, folder / file.name.split(".")[0]) for file in files[1:])
    core = body & (distance < CORE * person.width)
    row = {
        "no_change": np.abs(none[body]).mean(),
        "found": grown[core].mean(),
        "true": true[core].mean(),
        "correlation": np.corrcoef(grown[body], true[body])[0, 1],
        "seconds": (time.process_time() - start) / 2,
    }
    print(json.dumps({"method": options.method, **{name: round(float(value), 4) for name, value in row.items()}}))


if __name__ == "__main__":
    main()
