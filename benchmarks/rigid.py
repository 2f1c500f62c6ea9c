"""Rigid registration of brains whose motion is known, beside ANTs': mean error over the head, and processor seconds.

Moving images are real brains after a motion, resampled once (cubic) to another grid, with noise; some in another
contrast. Of the last rows the truth is that both sequences of one session lie as their headers say, which patients
keep to a few tenths of a millimetre.

    python benchmarks/rigid.py --data DATA [--output benchmarks/results/rigid.md]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from nibabel.affines import apply_affine
from scipy.ndimage import affine_transform, gaussian_filter
from scipy.spatial.transform import Rotation

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bundle"))

from scripts.api import load_transform, register

T2 = ([0, 0.05, 0.25, 0.45, 0.6, 0.8, 1, 1.3], [0, 0.9, 1, 0.75, 0.6, 0.35, 0.3, 0.5])
CONTRASTS = {
    "same": lambda array: array,
    "like T2": lambda array: np.where(array > 0.03, np.interp(array, *T2), 0),
    "inverted": lambda array: np.where(array > 0.05, 1.2 - np.clip(array, 0, 1.1), 0),
}
BRAIN, PATIENT = "brain_templates/{}.nii.gz", "open_ms_longitudinal/patient01_{}.nii.gz"
# Image, contrast of the moving one, its spacing in mm, noise, and the largest turn (degrees) and shift (mm).
MOVED = {
    "Colin27": (BRAIN.format("colin27_brain"), "same", (1, 1, 1), 0.03, 12, 15),
    "MNI2009c, 1.2 mm": (BRAIN.format("mni2009c_brain"), "same", (1.2, 1.2, 1.2), 0.03, 12, 15),
    "PD25, slices of 3 mm": (BRAIN.format("pd25_fusion"), "same", (1, 1, 3), 0.03, 12, 15),
    "Colin27, like T2": (BRAIN.format("colin27_brain"), "like T2", (1.1, 1.1, 1.1), 0.03, 12, 15),
    "MNI2009c, inverted, slices of 2 mm": (BRAIN.format("mni2009c_brain"), "inverted", (1, 1, 2), 0.03, 12, 15),
    "MNI2009c, like T2, 2 mm": (BRAIN.format("mni2009c_brain"), "like T2", (2, 2, 2), 0.03, 12, 15),
    "MS, T1W, slices of 3 mm": (PATIENT.format("study1_T1W"), "same", (0.8, 0.8, 3), 0.01, 8, 10),
    "MS, FLAIR, slices of 4 mm": (PATIENT.format("study1_FLAIR"), "same", (0.9, 0.9, 3.5), 0.01, 8, 10),
    "MS, second T1W": (PATIENT.format("study2_T1W"), "same", (1, 1, 3), 0.01, 8, 10),
}
POSED = {
    "MS, T1W to FLAIR (headers)": ("study1_T1W", "study1_FLAIR"),
    "MS, FLAIR to T1W (headers)": ("study2_FLAIR", "study2_T1W"),
}


def middle(image: nib.Nifti1Image) -> np.ndarray:
    """The centre of an image's grid, RAS mm."""
    return apply_affine(image.affine, (np.array(image.shape) - 1) / 2)


def motion(image: nib.Nifti1Image, random: np.random.Generator, degrees: float, mm: float) -> np.ndarray:
    """A turn about an image's middle and a shift, ``(4, 4)`` RAS mm."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(np.radians(random.uniform(-degrees, degrees, 3))).as_matrix()
    matrix[:3, 3] = middle(image) + random.uniform(-mm, mm, 3) - matrix[:3, :3] @ middle(image)
    return matrix


def noisy(array: np.ndarray, random: np.random.Generator, deviation: float) -> np.ndarray:
    """Magnitudes with noise."""
    return np.abs(np.maximum(array, 0) + random.normal(0, deviation, array.shape)).astype(np.float32)


def moved(image: nib.Nifti1Image, array: np.ndarray, matrix: np.ndarray, spacing: np.ndarray, turn: np.ndarray):
    """An image's array after a motion, on a turned grid of another spacing: array and affine."""
    own = np.array(image.header.get_zooms()[:3], float)
    profile = np.where(spacing > own, 0.4 * np.sqrt(np.maximum((spacing / own) ** 2 - 1, 0)), 0)
    shape = np.ceil(np.array(image.shape) * own * 1.05 / spacing).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = turn @ (image.affine[:3, :3] / own) * spacing
    affine[:3, 3] = apply_affine(matrix, middle(image)) - affine[:3, :3] @ ((shape - 1) / 2)
    voxels = np.linalg.inv(image.affine) @ np.linalg.inv(matrix) @ affine
    array = gaussian_filter(array, profile)
    return affine_transform(array, voxels[:3, :3], voxels[:3, 3], output_shape=tuple(shape), order=3), affine


def cases(data: Path) -> Iterator[tuple[str, nib.Nifti1Image, nib.Nifti1Image, np.ndarray]]:
    """Name, fixed and moving image, and the motion, fixed to moving points."""
    for number, (name, (file, contrast, spacing, noise, degrees, mm)) in enumerate(MOVED.items()):
        random, image = np.random.default_rng(100 + number), nib.load(data / file)
        array = np.asarray(image.dataobj, np.float32)
        array = array / np.percentile(array[array > 0], 99.5)
        truth, turn = motion(image, random, degrees, mm), Rotation.from_rotvec(random.uniform(-0.1, 0.1, 3)).as_matrix()
        other, affine = moved(image, CONTRASTS[contrast](array), truth, np.array(spacing, float), turn)
        fixed = nib.Nifti1Image(noisy(array, random, 0.6 * noise), image.affine)
        yield name, fixed, nib.Nifti1Image(noisy(other, random, noise), affine), truth
    for number, (name, files) in enumerate(POSED.items()):
        fixed, moving = (nib.load(data / PATIENT.format(file)) for file in files)
        truth = motion(moving, np.random.default_rng(300 + number), 8, 10)
        yield name, fixed, nib.Nifti1Image(np.asarray(moving.dataobj), truth @ moving.affine), truth


def ours(fixed: nib.Nifti1Image, moving: nib.Nifti1Image, folder: Path) -> np.ndarray:
    """Fixed to moving points by this package, ``(4, 4)`` RAS mm."""
    return register(fixed, moving, transform="rigid", device="cpu", threads=1).transform.parts[0].linear


def theirs(fixed: nib.Nifti1Image, moving: nib.Nifti1Image, folder: Path) -> np.ndarray:
    """The same by ANTs' Rigid with its defaults."""
    import ants

    images = []
    for name, image in (("fixed", fixed), ("moving", moving)):
        nib.save(image, folder / f"{name}.nii.gz")
        images.append(ants.image_read(str(folder / f"{name}.nii.gz")))
    found = ants.registration(*images, type_of_transform="Rigid", random_seed=1)
    return load_transform(*found["fwdtransforms"]).parts[0].linear


def errors(found: np.ndarray, truth: np.ndarray, fixed: nib.Nifti1Image) -> np.ndarray:
    """Distances in mm over the head."""
    array = np.asarray(fixed.dataobj)
    points = apply_affine(fixed.affine, np.argwhere(array > 0.15 * np.percentile(array, 99))[::50])
    return np.linalg.norm(apply_affine(found, points) - apply_affine(truth, points), axis=1)


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    head = ["pair", "mean, mm", "largest", "s", "ANTs: mean", "largest", "s", "s, ratio"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, fixed, moving, truth in cases(options.data):
        cells, seconds = [name], []
        with tempfile.TemporaryDirectory() as folder:
            for tool in (ours, theirs):
                start = time.process_time()
                found = tool(fixed, moving, Path(folder))
                seconds.append(time.process_time() - start)
                error = errors(found, truth, fixed)
                cells += [f"{error.mean():.3f}", f"{error.max():.3f}", f"{seconds[-1]:.0f}"]
        lines.append(f"| {' | '.join([*cells, f'{seconds[0] / seconds[1]:.2f}'])} |")
        print(lines[-1], flush=True)
    if options.output is not None:
        options.output.write_text(
            "# Rigid: known motions of brains\n" + __doc__.split("\n\n", 1)[1] + "\n" + "\n".join(lines) + "\n"
        )


if __name__ == "__main__":
    main()
