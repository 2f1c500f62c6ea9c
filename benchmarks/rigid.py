"""Rigid registration beside ANTs': brains whose motion is known, and real pairs of many kinds; processor seconds.

First table: moving images are real brains after a motion, resampled once (cubic) to another grid, with noise; some in
another contrast. The measure is the mean error over the head. Second table: two real images, the moving one's header
moved by up to 8 degrees and 10 mm. The measure is the distance from the header as it was, where both sequences are of
one session (patients keep still to a few tenths of a millimetre), the distance of landmarks, or the Dice of labels.

    python benchmarks/rigid.py --data DATA [--output benchmarks/results/rigid.md]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from nibabel.affines import apply_affine
from scipy.ndimage import affine_transform, gaussian_filter
from scipy.spatial.transform import Rotation

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bundle"))

from scripts.api import load_transform, register
from scripts.formats import read_image, read_label, read_points
from scripts.metrics import label_metrics, mean_metrics
from scripts.spatial import WorldTransform, resample_labels

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
# Two images, and the landmarks or the labels of each; neither: the headers are true.
REAL = {
    "head, T1 to FLAIR": (PATIENT.format("study1_T1W"), PATIENT.format("study1_FLAIR")),
    "head, FLAIR to T1": (PATIENT.format("study2_FLAIR"), PATIENT.format("study2_T1W")),
    "brains of two people": (
        *(BRAIN.format(name) for name in ("colin27_brain", "mni2009c_brain")),
        *(f"brain_templates/{name}.fcsv" for name in ("Colin27", "MNI152NLin2009cAsym")),
    ),
    "brains, another contrast": (
        *(BRAIN.format(name) for name in ("mni2009c_brain", "pd25_fusion")),
        *(f"brain_templates/{name}.fcsv" for name in ("MNI152NLin2009cAsym", "PD25")),
    ),
    "liver, two states of breath": tuple(
        f"eth_liver_4dmri/liver19_{state}{kind}"
        for kind in (".mha", "LMliver.vtk")
        for state in ("exhMaster", "cyc_1_6")
    ),
    "cord, T1 to T2": ("t1/t1w", "t2/t2", "t1/t1w_seg-manual", "t2/t2_seg-manual"),
    "cord, T2 to T1": ("t2/t2", "t1/t1w", "t2/t2_seg-manual", "t1/t1w_seg-manual"),
    "cord, magnetisation transfer off to on, slices of 17 mm": ("mt/mt0", "mt/mt1", "mt/mt0_seg", "mt/mt1_seg"),
    "cord, T1 to magnetisation transfer, slices of 17 mm": ("mt/t1w", "mt/mt1"),
    "hippocampi of two people": tuple(
        f"Task04_Hippocampus/{kind}Tr/hippocampus_{one}.nii.gz"
        for kind in ("images", "labels")
        for one in ("003", "006")
    ),
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


def known(data: Path) -> Iterator[tuple[str, nib.Nifti1Image, nib.Nifti1Image, np.ndarray]]:
    """Name, fixed and moving image, and the motion, fixed to moving points."""
    for number, (name, (file, contrast, spacing, noise, degrees, mm)) in enumerate(MOVED.items()):
        random, image = np.random.default_rng(100 + number), nib.load(data / file)
        array = np.asarray(image.dataobj, np.float32)
        array = array / np.percentile(array[array > 0], 99.5)
        truth, turn = motion(image, random, degrees, mm), Rotation.from_rotvec(random.uniform(-0.1, 0.1, 3)).as_matrix()
        other, affine = moved(image, CONTRASTS[contrast](array), truth, np.array(spacing, float), turn)
        fixed = nib.Nifti1Image(noisy(array, random, 0.6 * noise), image.affine)
        yield name, fixed, nib.Nifti1Image(noisy(other, random, noise), affine), truth


def real(data: Path) -> Iterator[tuple[str, nib.Nifti1Image, nib.Nifti1Image, np.ndarray, list[str]]]:
    """Name, fixed and moving image, the motion of the latter's header, and the files of what is known."""
    for number, (name, files) in enumerate(REAL.items()):
        paths = [str(data / (file if Path(file).suffix else f"sct_testing/{file}.nii.gz")) for file in files]
        fixed, moving = map(read_image, paths[:2])
        truth = motion(nib.Nifti1Image(moving.array, moving.frame.affine), np.random.default_rng(300 + number), 8, 10)
        images = (
            nib.Nifti1Image(one.array.astype(np.float32), matrix @ one.frame.affine)
            for one, matrix in ((fixed, np.eye(4)), (moving, truth))
        )
        yield name, *images, truth, paths[2:]


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


def judged(found: np.ndarray, truth: np.ndarray, fixed: nib.Nifti1Image, files: list[str]) -> float:
    """How good a result of `real` is: mm, or, of labels, their mean Dice."""
    if not files:
        return float(errors(found, truth, fixed).mean())
    if not files[0].endswith(".nii.gz"):
        here, there = (read_points(file, "LPS" if file.endswith(".vtk") else None).coordinates for file in files)
        return float(np.linalg.norm(apply_affine(found, here) - apply_affine(truth, there), axis=1).mean())
    here, there = map(read_label, files)
    back = WorldTransform(np.linalg.inv(truth) @ found)
    carried = resample_labels(there.array, there.frame, here.frame, [back], mode="linear")
    return mean_metrics(label_metrics(carried, here.array, here.frame.spacing))["dice"]


def timed(tools: Sequence[Callable], *pair: nib.Nifti1Image) -> Iterator[tuple[np.ndarray, float]]:
    """What each tool finds, and its processor seconds."""
    for tool in tools:
        with tempfile.TemporaryDirectory() as folder:
            start = time.process_time()
            found = tool(*pair, Path(folder))
            yield found, time.process_time() - start


def rows(data: Path) -> Iterator[list[str]]:
    """The lines of both tables."""
    yield ["pair", "mean, mm", "largest", "s", "ANTs: mean", "largest", "s", "s, ratio"]
    for name, fixed, moving, truth in known(data):
        cells, seconds = [name], []
        for found, spent in timed((ours, theirs), fixed, moving):
            error = errors(found, truth, fixed)
            cells += [f"{error.mean():.3f}", f"{error.max():.3f}", f"{spent:.0f}"]
            seconds.append(spent)
        yield [*cells, f"{seconds[0] / seconds[1]:.2f}"]
    yield ["pair", "measure", "before", "after", "s", "ANTs: after", "s", "s, ratio"]
    for name, fixed, moving, truth, files in real(data):
        unit = "header, mm" if not files else "Dice" if files[0].endswith(".nii.gz") else "landmarks, mm"
        cells, seconds = [name, unit, f"{judged(np.eye(4), truth, fixed, files):.3f}"], []
        for found, spent in timed((ours, theirs), fixed, moving):
            cells += [f"{judged(found, truth, fixed, files):.3f}", f"{spent:.1f}"]
            seconds.append(spent)
        yield [*cells, f"{seconds[0] / seconds[1]:.2f}"]


def main() -> None:
    """Measure, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    for cells in rows(options.data):
        lines += (
            ["", f"| {' | '.join(cells)} |", "|---" * len(cells) + "|"]
            if cells[0] == "pair"
            else [f"| {' | '.join(cells)} |"]
        )
        print(lines[-1], flush=True)
    if options.output is not None:
        options.output.write_text("# Rigid, beside ANTs\n" + __doc__.split("\n\n", 1)[1] + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
