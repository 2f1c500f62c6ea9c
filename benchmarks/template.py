"""Averages of 20 hippocampi of unequal sizes, or of 8 warped brains: ``avsm template`` beside ANTs' ``build_template``.

    python benchmarks/template.py --dataset Task04_Hippocampus --output FOLDER [--method avsm | reversed | ants]
    python benchmarks/template.py --dataset brain_templates --output FOLDER [--method ...]

Brains are the MNI brain at 3 mm, posed and bent otherwise each by a random warp, with noise of 2 % of its range; their
labels are its darker and its brighter half. One thread.

Of each it prints: processor seconds; the mean gradient's magnitude inside the structure, in parts of the images' range
a mm; the mean Dice of all pairs of labels through the average; and how far the mean of the transforms is from the
identity. ANTs' function gives no transforms: its images are registered to its average once more, by its SyN, which is
not counted in the seconds. Where both orders of the list were run, their difference in mm is printed, too.
"""

from __future__ import annotations

import argparse
import itertools
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

COUNT, BRAINS = 20, 8
BRAIN, STEP, NOISE, WARPED = "mni2009c_brain.nii.gz", 3, 0.02, 0.6


def subjects(dataset: Path, count: int = COUNT) -> list[dict[str, str]]:
    """The first training images that no benchmark pair holds, with their labels."""
    listed = json.loads((dataset / "dataset.json").read_text())
    held = json.dumps(listed.get("registration_val", []))
    rows = [row for row in listed["training"] if Path(row["image"]).name not in held][:count]
    return [{key: str(dataset / row[key]) for key in ("image", "label")} for row in rows]


def brains(dataset: Path, folder: Path) -> list[dict[str, str]]:
    """Warped brains, each on a grid of its own size."""
    import torch
    from scipy.ndimage import gaussian_filter, map_coordinates

    from scripts.synthetic.warps import WarpRange, grid_points, random_warp

    folder.mkdir(parents=True, exist_ok=True)
    brain = np.pad(nib.load(dataset / BRAIN).get_fdata(), 4 * STEP)
    brain = gaussian_filter(brain, STEP / 3)[::STEP, ::STEP, ::STEP] / brain.max()
    label = np.where(brain > 0.1, 1 + (brain > np.median(brain[brain > 0.1])), 0)
    extent, last, rows = [STEP * (n - 1) for n in brain.shape], np.array(brain.shape)[:, None] - 1, []
    for seed in range(BRAINS):
        warp = random_warp(torch.Generator().manual_seed(seed), brain.shape, extent, WarpRange().scaled(WARPED))
        where = (warp(grid_points(brain.shape)).numpy() + 1) / 2 * last
        image, classes = (
            map_coordinates(one, where, order=order).reshape(brain.shape) for one, order in ((brain, 1), (label, 0))
        )
        image = image + NOISE * np.random.default_rng(seed).normal(size=brain.shape)
        inside = np.argwhere(classes)
        box = tuple(slice(max(0, low - 2), high + 3) for low, high in zip(inside.min(0), inside.max(0), strict=True))
        row = {name: str(folder / f"brain_{seed}_{name}.nii.gz") for name in ("image", "label")}
        for array, file in ((image.astype(np.float32), row["image"]), (classes.astype(np.uint8), row["label"])):
            nib.save(nib.Nifti1Image(array[box], np.diag([STEP, STEP, STEP, 1.0])), file)
        rows.append(row)
    return rows


def scaled(rows: list[dict[str, str]], folder: Path) -> list[dict[str, str]]:
    """The same images with intensities in [0, 1], which both methods get."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for row in rows:
        image = nib.load(row["image"])
        low, high = np.percentile(image.get_fdata(), (0.1, 99.9))
        file = folder / Path(row["image"]).name
        array = np.clip((image.get_fdata() - low) / (high - low), 0, 1).astype(np.float32)
        nib.save(nib.Nifti1Image(array, image.affine), file)
        found.append({**row, "image": str(file), "name": file.name.split(".")[0]})
    return found


def ours(rows: list[dict[str, str]], folder: Path) -> tuple[nib.Nifti1Image, dict[str, list[str]]]:
    """Our average and, for each image, the files of its transform."""
    import scripts

    scripts.template(rows, folder, threads=1)
    files = {row["name"]: [str(folder / row["name"] / "transform.h5")] for row in rows}
    return nib.load(folder / "template.nii.gz"), files


def ants_average(rows: list[dict[str, str]], folder: Path) -> nib.Nifti1Image:
    """ANTs' average, with its defaults."""
    import ants

    folder.mkdir(parents=True, exist_ok=True)
    average = ants.build_template(image_list=[ants.image_read(row["image"]) for row in rows])
    ants.image_write(average, str(folder / "template.nii.gz"))
    return nib.load(folder / "template.nii.gz")


def ants_transforms(rows: list[dict[str, str]], folder: Path) -> dict[str, list[str]]:
    """For each image, its SyN transform from ANTs' average."""
    import ants

    average, files = ants.image_read(str(folder / "template.nii.gz")), {}
    for row in rows:
        prefix = str(folder / f"{row['name']}_")
        ants.registration(average, ants.image_read(row["image"]), "SyN", outprefix=prefix, random_seed=1)
        files[row["name"]] = [f"{prefix}1Warp.nii.gz", f"{prefix}0GenericAffine.mat"]
    return files


def measured(average: nib.Nifti1Image, files: dict[str, list[str]], rows: list[dict[str, str]]) -> dict[str, float]:
    """How sharp and how unbiased an average is, and how well the labels meet in it."""
    import scripts

    labels, places = [], []
    array = np.asarray(average.get_fdata())
    grid = nib.affines.apply_affine(average.affine, np.stack(np.indices(array.shape), -1).reshape(-1, 3))
    for row in rows:
        transform = scripts.load_transform(*files[row["name"]])
        moved = scripts.apply(transform, row["label"], average, label=True)
        labels.append(np.asarray(moved.dataobj))
        places.append(transform.points(grid))
    inside = np.mean([label > 0 for label in labels], axis=0) > 0.5
    shift = np.linalg.norm(np.mean(places, axis=0) - grid, axis=1)[inside.ravel()]
    slopes = np.linalg.norm(np.gradient(array, *nib.affines.voxel_sizes(average.affine)), axis=0)
    dice = [
        2 * np.sum((one == value) & (other == value)) / (np.sum(one == value) + np.sum(other == value))
        for one, other in itertools.combinations(labels, 2)
        for value in (1, 2)
    ]
    return {
        "mean_gradient": float(slopes[inside].mean()),
        "pairwise_dice": float(np.mean(dice)),
        "mean_displacement_mm": float(shift.mean()),
        "largest_mean_displacement_mm": float(shift.max()),
    }


def main() -> None:
    """Run one method, and print its row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--method", choices=("avsm", "reversed", "ants"), default="avsm")
    options = parser.parse_args()
    whole = (options.dataset / BRAIN).is_file()
    rows = brains(options.dataset, options.output / "brains") if whole else subjects(options.dataset)
    rows, folder = scaled(rows, options.output / "images"), options.output / options.method
    start = time.process_time()
    if options.method == "ants":
        average = ants_average(rows, folder)
    else:
        average, files = ours(rows[::-1] if options.method == "reversed" else rows, folder)
    seconds = time.process_time() - start
    if options.method == "ants":
        files = ants_transforms(rows, folder)
    print(json.dumps({"method": options.method, "seconds": seconds, **measured(average, files, rows)}))
    both = [options.output / name / rows[0]["name"] / "transform.h5" for name in ("avsm", "reversed")]
    if options.method == "reversed" and both[0].is_file():
        import scripts

        grid = nib.affines.apply_affine(average.affine, np.argwhere(average.get_fdata() > 0.3)[::7])
        one, other = (scripts.load_transform(file).points(grid) for file in both)
        print(json.dumps({"orders_differ_by_mm": float(np.linalg.norm(one - other, axis=1).max())}))


if __name__ == "__main__":
    main()
