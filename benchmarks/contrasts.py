"""Pairs of two contrasts: known warps of real heads between T1 and FLAIR, and a spinal cord between T1 and T2.

    python benchmarks/contrasts.py --data DATA --output FOLDER [--methods NAME...] [--seed 0]

A head is warped by a smooth field of 4 mm in the mean and a similarity; the other contrast of the same study is its
fixed image. What is told is how far points of the head end from where they belong, mm, and the Dice of the cord. Each
result is a line of ``FOLDER/contrasts.jsonl``: run again to resume. Whatever is tuned is tuned by other seeds than 0.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import binary_fill_holes, gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bundle"))

from registration.peers.ants_syn import Ants
from registration.peers.greedy import Greedy
from verdict import read_rows

from scripts.formats import Image, read_image, read_label
from scripts.metrics import label_metrics, mean_metrics, world_jacobian
from scripts.registration import Pair, Registrar
from scripts.spatial import Frame, WorldTransform, resample_labels

_WARP, _SMOOTH, _STEP = 4.0, 22.0, 6.0  # mm: mean displacement, standard deviation of the smoothing, the field's grid
_POINTS = 4000
_T2 = ([0, 0.05, 0.25, 0.45, 0.6, 0.8, 1, 1.3], [0, 0.9, 1, 0.75, 0.6, 0.35, 0.3, 0.5])  # greys for those of T1
CONTRASTS = ("T1W", "FLAIR")


@dataclass(frozen=True, eq=False)
class Case:
    """A pair and its truth: points ``(N, 3)`` of the fixed and of the moving image, RAS mm, or label maps."""

    name: str
    fixed: Image
    moving: Image
    points: tuple[np.ndarray, np.ndarray] | None = None
    labels: tuple[Image, Image] | None = None


def heads(root: Path, seed: int, repeats: int = 2) -> Iterator[Case]:
    """Both studies, both directions, so many warps each."""
    for study in (1, 2):
        scans = {
            name: thinned(read_image(str(root / "open_ms_longitudinal" / f"patient01_study{study}_{name}.nii.gz")))
            for name in CONTRASTS
        }
        for repeat in range(repeats):
            for number, name in enumerate(CONTRASTS):
                random = np.random.default_rng([seed, study, repeat, number])
                moving, points = warped(scans[CONTRASTS[1 - number]], random)
                yield Case(f"head {study} {name} {seed}.{repeat}", scans[name], moving, points)


def like_t2(root: Path, seed: int) -> Iterator[Case]:
    """T1 of both studies, and the same with its greys as in T2: air and bone dark, fluid bright."""
    for study in (1, 2):
        scan = thinned(read_image(str(root / "open_ms_longitudinal" / f"patient01_study{study}_T1W.nii.gz")))
        greys = scan.array / np.percentile(scan.array, 99.5)
        other = replace(scan, array=np.where(greys > 0.06, np.interp(greys, *_T2), 0).astype(np.float32))
        moving, points = warped(other, np.random.default_rng([seed, study]))
        yield Case(f"head {study} like T2 {seed}", scan, moving, points)


def cords(root: Path) -> Iterator[Case]:
    """T1 and T2 of one spinal cord, both directions."""
    folder, found = root / "sct_testing", {}
    for name, image, label in (("t1", "t1w", "t1w_seg-manual"), ("t2", "t2", "t2_seg-manual")):
        scan = read_image(str(folder / name / f"{image}.nii.gz"))
        found[name] = scan, read_label(str(folder / name / f"{label}.nii.gz"), scan)
    for one, other in (("t1", "t2"), ("t2", "t1")):
        yield Case(f"cord {one}", found[one][0], found[other][0], None, (found[one][1], found[other][1]))


def thinned(image: Image) -> Image:
    """Means of two by two voxels of each slice, of about 1.5 mm: peers take minutes of the whole."""
    array = image.array[: image.array.shape[0] // 2 * 2, : image.array.shape[1] // 2 * 2].astype(np.float32)
    array = (array[::2] + array[1::2]) / 2
    array = (array[:, ::2] + array[:, 1::2]) / 2
    affine = image.frame.affine @ np.diag([2.0, 2.0, 1.0, 1.0])
    affine[:3, 3] += image.frame.affine[:3, :2].sum(axis=1) / 2
    return replace(image, array=array, frame=Frame(array.shape, affine))


def warped(image: Image, random: np.random.Generator) -> tuple[Image, tuple[np.ndarray, np.ndarray]]:
    """An image under a warp and a similarity, and points of the image as it was and as it is."""
    frame, head = image.frame, _head(image.array)
    places = frame.voxel_to_world(np.stack(np.indices(frame.shape), axis=-1).astype(np.float64))
    grid = _around(frame)
    field = np.stack([gaussian_filter(random.normal(size=grid.shape), _SMOOTH / _STEP) for _ in range(3)])
    at = np.moveaxis(grid.world_to_voxel(places), -1, 0)
    shift = np.stack([map_coordinates(one, at, order=3, mode="nearest") for one in field], axis=-1)
    shift *= _WARP / np.linalg.norm(shift[head], axis=1).mean()
    axis = random.normal(size=3)
    turn = Rotation.from_rotvec(np.radians(random.uniform(4, 10)) * axis / np.linalg.norm(axis)).as_matrix()
    way = random.normal(size=3)
    way *= random.uniform(4, 10) / np.linalg.norm(way)
    centre = places[head].mean(axis=0)
    there = (places + shift - centre) @ (random.uniform(0.94, 1.06) * turn).T + centre + way
    voxels = np.moveaxis(frame.world_to_voxel(there), -1, 0)
    low = float(image.array.min())
    array = map_coordinates(image.array.astype(np.float32), voxels, order=1, cval=low)
    seen = np.argwhere(_head(array) & frame.contains_voxel(np.moveaxis(voxels, 0, -1)))
    some = tuple(seen[random.choice(len(seen), _POINTS, replace=False)].T)
    return replace(image, array=array), (there[some], places[some])


def _around(frame: Frame) -> Frame:
    """A coarse grid along the axes of the world over a frame."""
    low, high = frame.corners.min(axis=0), frame.corners.max(axis=0)
    affine = np.diag([_STEP] * 3 + [1.0])
    affine[:3, 3] = low
    return Frame(tuple(int(n) for n in np.ceil((high - low) / _STEP) + 1), affine)


def _head(array: np.ndarray) -> np.ndarray:
    """What is no air, filled slice by slice."""
    seen = gaussian_filter(array.astype(np.float32), (1, 1, 0)) > 0.12 * np.percentile(array, 99)
    return np.stack([binary_fill_holes(one) for one in np.moveaxis(seen, 2, 0)], axis=2)


def ours(fixed: Image, moving: Image, **settings: Any) -> tuple[dict[str, list[WorldTransform]], dict[str, Any]]:
    """Transforms of the stages by the registration of this project."""
    result = Registrar(**settings)(Pair(fixed, moving))
    verdict = result.metrics["verdict"]
    stages = {"affine": [result.accepted.affine], "final": result.accepted.chain}
    optimisation = result.metrics["optimisation"]
    return stages, {
        "similarity": optimisation.get("similarity"),
        "objective": optimisation.get("after"),
        "outcome": verdict["outcome"],
        "length": result.accepted.length,
        **verdict["measures"],
    }


def peer(make: Callable, fixed: Image, moving: Image) -> tuple[dict[str, list[WorldTransform]], dict[str, Any]]:
    """Those of another engine."""
    answer = make()(fixed, moving)
    return {"affine": list(answer.affine), "final": list(answer.transform)}, {}


METHODS: dict[str, Callable] = {
    "default": ours,
    **{name: partial(ours, similarity=name) for name in ("lncc", "nmi", "mind", "ssd")},
    "SyN": partial(peer, Ants),
    # Tuned on the first study by seed 5: of both metrics, 1.7 to 10 voxels, and a velocity or not, the only one whose
    # deformation leaves the affine's error about where it is.
    "Greedy": partial(peer, partial(Greedy, metric="NMI", own_affine=True, smoothing=(4.0, 2.0), velocity=False)),
}


def measured(case: Case, method: Callable) -> dict[str, Any]:
    """What a method reaches: mean error in mm or Dice at every stage, folds, seconds."""
    wall, begin = time.time(), time.process_time()
    stages, row = method(case.fixed, case.moving)
    row |= {"cpu": round(time.process_time() - begin, 1), "wall": round(time.time() - wall, 1)}
    stages = {"before": [WorldTransform(np.eye(4))], **stages}
    jacobian = world_jacobian(stages["final"], case.fixed.frame)
    row |= {"folds": jacobian.folds, "std log J": round(jacobian.measures["std_log_jacobian"], 3)}
    for name, chain in stages.items():
        if case.points is not None:
            points, there = case.points
            for part in chain:
                points = part.apply(points)
            row[name] = round(float(np.linalg.norm(points - there, axis=1).mean()), 3)
        else:
            fixed, moving = case.labels
            label = resample_labels(moving.array, moving.frame, fixed.frame, chain)
            row[name] = round(mean_metrics(label_metrics(label, fixed.array, fixed.frame.spacing))["dice"], 4)
    return row


def report(rows: list[dict[str, Any]]) -> str:
    """A table of all results."""
    lines = ["| pair | method | before | affine | final | folds | verdict |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        if "failed" in row:
            lines.append(f"| {row['case']} | {row['method']} | {row['failed']} | | | | |")
            continue
        cells = [row["case"], row["method"], *(row[s] for s in ("before", "affine", "final")), row["folds"]]
        lines.append("| " + " | ".join(map(str, [*cells, row.get("outcome", "")])) + " |")
    for kind in ("head", "cord"):
        for method in dict.fromkeys(row["method"] for row in rows):
            some = [row for row in rows if row["method"] == method and row["case"].startswith(kind) and "final" in row]
            if some:
                means = [f"{np.mean([row[s] for row in some]):.3f}" for s in ("before", "affine", "final")]
                cells = [f"**{kind}, {len(some)} pairs**", method, *means, sum(row["folds"] for row in some)]
                lines.append("| " + " | ".join(map(str, [*cells, ""])) + " |")
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=["default", "SyN", "Greedy"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "contrasts.jsonl"
    rows = read_rows(file)
    done = {(row["case"], row["method"]) for row in rows}
    for case in (*heads(options.data, options.seed), *like_t2(options.data, options.seed), *cords(options.data)):
        for name in options.methods:
            if (case.name, name) in done:
                continue
            row = {"case": case.name, "method": name}
            try:
                row |= measured(case, METHODS[name])
            except (RuntimeError, ValueError) as error:  # a peer that fails; the row says so
                row |= {"failed": str(error).splitlines()[0]}
            print(json.dumps(row), flush=True)
            rows.append(row)
            with file.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
    (options.output / "contrasts.md").write_text(report(rows) + "\n")


if __name__ == "__main__":
    main()
