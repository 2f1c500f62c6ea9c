"""A small search for each peer's main parameter, on pairs of training subjects only.

From the repository root: ``python benchmarks/registration/tune.py --data DATA``, DATA being the folder that holds
``Task04_Hippocampus`` (the environment variable AVSM_DATA does as well). A row a pair and setting is kept in
``tuning.csv``; a run that was stopped goes on where it was. ``tuning.md`` is made anew from the rows.

What wins here stands in ``peers/__init__.py``, by hand: tables must not change because a search was repeated.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE.parent), str(ROOT / "bundle")]

import numpy as np

from registration.method import Answer, Method
from registration.peers.ants_syn import Ants
from registration.peers.convexadam import ConvexAdam
from registration.peers.demons import Demons
from registration.peers.elastix import Elastix
from registration.peers.greedy import Greedy
from registration.peers.itk_affine import ItkAffine
from registration.peers.niftyreg import NiftyReg
from registration.peers.voxelmorph_peer import VoxelMorphPeer
from scripts.data import training_pairs
from scripts.formats import Image, read_image, read_label
from scripts.metrics import label_metrics, mean_metrics
from scripts.spatial import Frame, WorldTransform, resample_labels

NEAR = 0.01  # Dice that a handful of pairs does not tell apart
NOTES = (
    "- The affine stage of Demons, Greedy and ConvexAdam is ITK affine by correlation: as good as by mutual",
    "  information, and quicker.",
    '- Settings called "(paper)" are those of the AVSM paper, searched for on knees by its authors, not here.',
    "- SyN and SyN CC keep the default of antspyx, a flow sigma of 3: it is what the rows are for.",
    "- `elastix` keeps its default maps; `elastix MI` is the same without the bending energy.",
    "- VoxelMorph: a training of 120 pairs (6 to 7 processor minutes) for each weight of its diffusion, after row V's",
    "  affine network of an earlier run (3 minutes), on subjects that it saw. 1 is also its authors' weight.",
)
COLUMNS = ("method", "setting", "pair", "dice", "folds", "seconds")


class Remembered:
    """An affine stage that is asked once for each pair, however many settings follow it."""

    def __init__(self, method: Method) -> None:
        self.method, self.found = method, {}
        self.name, self.deterministic = method.name, method.deterministic

    def missing(self) -> str | None:
        """As the method."""
        return self.method.missing()

    def parameters(self) -> dict[str, Any]:
        """As the method."""
        return self.method.parameters()

    def __call__(self, fixed: Image, moving: Image, threads: int = 1) -> Answer:
        """As the method, the first time."""
        key = fixed.path, moving.path
        if key not in self.found:
            self.found[key] = self.method(fixed, moving, threads)
        return self.found[key]


@dataclass(frozen=True)
class Search:
    """What is tried for one method: each setting is passed to ``build`` by keyword."""

    name: str
    build: Callable[..., Method]
    settings: Sequence[dict[str, Any]]


def _voxelmorph(regularisation: float) -> VoxelMorphPeer:
    """A short training with this weight, see ``peers/README.md``."""
    return VoxelMorphPeer("VoxelMorph with affine", f"voxelmorph_tuning_{regularisation:g}")


def searches() -> list[Search]:
    """All searches, quick ones first."""
    affine = Remembered(ItkAffine())
    sigmas = [{"sigma": sigma, "match": match} for match in (False, True) for sigma in (1.2, 1.5, 2.0)]
    flows = [{"flow_sigma": sigma} for sigma in (1.0, 2.0, 3.0, 4.0)]
    cc = partial(Ants, metric="CC", sampling=4, iterations=(40, 20, 10))
    widths = [{"smoothing": (width, 0.7071), "velocity": way} for way in (True, False) for width in (1.0, 1.732, 3.0)]
    convex = [{"smoothness": weight, "grid_spacing": step} for step in (4, 6) for weight in (0.5, 1.25, 3.0)]
    return [
        Search("SyN", Ants, flows),
        Search("ITK affine", ItkAffine, [{"metric": metric} for metric in ("correlation", "mattes")]),
        Search("Demons", partial(Demons, affine=affine), sigmas),
        Search("Demons diffeomorphic", partial(Demons, forces="diffeomorphic", affine=affine), sigmas),
        Search("ConvexAdam", partial(ConvexAdam, affine=affine), convex),
        Search("Greedy", partial(Greedy, affine=affine), widths),
        Search("SyN CC", cc, flows),
        Search("elastix MI", partial(Elastix, bending=0.0), [{"grid_spacing": mm} for mm in (8.0, 10.0, 16.0)]),
        Search("NiftyReg NMI", partial(NiftyReg, similarity="nmi"), [{"spacing": n} for n in (3.0, 5.0, 10.0)]),
        Search("NiftyReg LNCC", partial(NiftyReg, similarity="lncc"), [{"lncc_std": n} for n in (5.0, 10.0, 40.0)]),
        Search("VoxelMorph with affine", _voxelmorph, [{"regularisation": weight} for weight in (0.1, 0.3, 1.0)]),
    ]


def read_pairs(data: Path, count: int, seed: int) -> Iterator[tuple[str, list[Image]]]:
    """Name and fixed image, moving image, fixed label, moving label of pairs of training subjects."""
    listed = training_pairs(data / "Task04_Hippocampus", "training", "cross_subject", 2 * count, seed)[::2]
    for pair in listed:
        images = [read_image(pair[role]) for role in ("fixed", "moving")]
        labels = [
            read_label(pair[f"{role}_label"], image) for role, image in zip(("fixed", "moving"), images, strict=True)
        ]
        yield pair["name"], [*images, *labels]


def measure(transform: Sequence[WorldTransform], fixed: Image, labels: Sequence[Image]) -> dict[str, float]:
    """Mean Dice over labels, moved by the nearest voxel onto the fixed image's own grid, and folds there.

    A fold is a voxel at which any of the eight corner determinants is negative.
    """
    from torch import from_numpy

    from scripts.geometry import count_folds

    frame: Frame = fixed.frame
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # voxels beyond a field follow its affine
        moved = resample_labels(labels[1].array, labels[1].frame, frame, transform)
    points = frame.voxel_to_world(np.stack(np.indices(frame.shape, dtype=np.float64), axis=-1))
    for part in transform:
        points = part.apply(points)
    coordinates = np.moveaxis(frame.world_to_normalised(points), -1, 0)
    folds, _ = count_folds(from_numpy(coordinates[None]))
    return {
        "dice": mean_metrics(label_metrics(moved, labels[0].array, frame.spacing))["dice"],
        "folds": int(folds.item()),
    }


def read_rows(path: Path) -> dict[tuple[str, str, str], dict[str, str]]:
    """Rows of an earlier run by method, setting and pair."""
    if not path.is_file():
        return {}
    with open(path, encoding="utf-8", newline="") as stream:
        return {tuple(row[name] for name in COLUMNS[:3]): row for row in csv.DictReader(stream)}


def run(options: argparse.Namespace) -> None:
    """Measure what is not yet measured, a row at a time."""
    table = options.output / "tuning.csv"
    done, pairs = read_rows(table), list(read_pairs(options.data, options.pairs, options.seed))
    new = not done
    with open(table, "a", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        if new:
            writer.writeheader()
        identity = Search("identity", lambda: None, [{}])
        for search in [identity, *searches()]:
            if options.methods and search.name not in options.methods:
                continue
            for setting in search.settings:
                text, method = json.dumps(setting), search.build(**setting)
                reason = None if method is None else method.missing()
                if reason:
                    print(f"skipped: {reason}", flush=True)
                    break
                for name, (fixed, moving, *labels) in pairs:
                    if (search.name, text, name) in done:
                        continue
                    begin = time.perf_counter()
                    found = [WorldTransform(np.eye(4))] if method is None else method(fixed, moving, 1).transform
                    seconds = time.perf_counter() - begin
                    row = {"method": search.name, "setting": text, "pair": name, "seconds": round(seconds, 3)}
                    measured = measure(found, fixed, labels)
                    writer.writerow({**row, "dice": round(measured["dice"], 5), "folds": measured["folds"]})
                    stream.flush()
                print(f"{search.name} {text}", flush=True)


def markdown(rows: Sequence[dict[str, str]], options: argparse.Namespace) -> str:
    """The rows as a document; each method's best mean Dice is set in bold."""
    groups: dict[str, dict[str, list[dict[str, str]]]] = {}
    for row in rows:
        groups.setdefault(row["method"], {}).setdefault(row["setting"], []).append(row)
    # Settings that not all pairs have been measured for would be compared on other pairs than the rest.
    groups = {
        name: {text: found for text, found in settings.items() if len(found) == options.pairs}
        for name, settings in groups.items()
    }
    waiting = [
        f"{search.name} ({json.dumps(setting)[1:-1]})".replace('"', "")
        for search in searches()
        for setting in search.settings
        if json.dumps(setting) not in groups.get(search.name, {})
    ]
    groups = {name: settings for name, settings in groups.items() if settings}
    lines = [
        "# Tuning of the peers",
        "",
        f"A small search for the main parameter of each peer: mean Dice over {options.pairs} pairs of training",
        f"subjects of the hippocampus data (drawn with seed {options.seed}; none of them occurs in the pairs of the",
        "tables), labels moved by the nearest voxel onto the fixed image's own grid, one thread. Folds are voxels of",
        "that grid at which any of the eight corner determinants is negative. In bold: what was chosen, the setting of",
        f"fewest folds among those within {NEAR} of a method's highest mean Dice, which so few pairs do not tell",
        "apart, and of these the highest.",
        "",
        "| method | setting | Dice (mean ± std) | folds a pair | pairs |",
        "|---|---|---|---|---|",
    ]
    for name, settings in groups.items():
        means = {text: _mean(found, "dice") for text, found in settings.items()}
        for text, found in settings.items():
            scores = [float(row["dice"]) for row in found]
            shown = f"{means[text]:.3f} ± {statistics.pstdev(scores):.3f}"
            done = not any(line.startswith(f"{name} (") for line in waiting)
            if done and len(means) > 1 and text == choice(settings):
                shown = f"**{shown}**"
            words = ", ".join(f"{key} {value}" for key, value in json.loads(text).items()) or "none"
            lines.append(f"| {name} | {words} | {shown} | {_mean(found, 'folds'):.1f} | {len(found)} |")
    left = [f"- Not measured yet: {', '.join(waiting)}."] if waiting else []
    return "\n".join([*lines, "", *NOTES, *left]) + "\n"


def choice(settings: dict[str, list[dict[str, str]]]) -> str:
    """The setting that is chosen of those of one method, by the rule that the document states."""
    best = max(_mean(found, "dice") for found in settings.values())
    near = [text for text, found in settings.items() if _mean(found, "dice") >= best - NEAR]
    return min(near, key=lambda text: (_mean(settings[text], "folds"), -_mean(settings[text], "dice")))


def _mean(rows: Sequence[dict[str, str]], column: str) -> float:
    return statistics.mean(float(row[column]) for row in rows)


def machine() -> str:
    """Processor and Python, for the log."""
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = os.environ.get("AVSM_DATA")
    parser.add_argument("--data", type=Path, default=data, required=data is None, help="holds Task04_Hippocampus")
    parser.add_argument("--pairs", type=int, default=6, help="training pairs")
    parser.add_argument("--seed", type=int, default=7, help="of the drawing of pairs")
    parser.add_argument("--methods", nargs="+", help="names of searches; all where not given")
    parser.add_argument("--output", type=Path, default=Path("bench/tuning"), help="folder")
    options = parser.parse_args(arguments)
    if options.pairs < 1:
        parser.error("--pairs must be at least 1")
    if not (Path(options.data) / "Task04_Hippocampus").is_dir():
        parser.error(f"--data: {options.data} holds no folder Task04_Hippocampus")
    options.data = Path(options.data)
    return options


def main(arguments: list[str] | None = None) -> int:
    """Search and write."""
    options = parse(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    print(machine(), flush=True)
    run(options)
    rows = list(read_rows(options.output / "tuning.csv").values())
    (options.output / "tuning.md").write_text(markdown(rows, options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
