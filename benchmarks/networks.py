"""The engine alone, a network alone, and the engine after the network, on pairs that no training has seen.

    python benchmarks/networks.py --data DATA --output FOLDER [--sets NAME...] [--model NAME --weights FILE]

Knees and phantoms are of 96×96×40 voxels. What is told is the Dice of labels or how far landmarks end from where they
belong, mm; what the engine's objective falls to; and processor seconds of one thread. The engine is measured twice: on
its own grid, and on the network's, where the engine that follows a network goes on from it. Each result is a line of
``FOLDER/networks.jsonl``: run again to resume.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contrasts import Case, heads, measured, ours
from poses import BRAINS
from registration.datasets import Places, data_sets
from verdict import liver, read_rows

from scripts.formats import read_image, read_points
from scripts.settings import PRESETS

_SIZE, _COUNT = (96, 96, 40), 4
_LIVERS = (("18", "cyc_3_10"), ("19", "cyc_1_6"), ("19", "cyc_1_9"))
COLUMNS = ("before", "affine", "final", "objective", "std log J", "folds", "cpu")


def listed(name: str, root: Path, count: int | None = _COUNT) -> Iterator[Case]:
    """The first pairs of a set of the registration benchmark, with labels."""
    pairs = data_sets(Places(root, _SIZE))[name]
    for index in range(len(pairs.names()))[:count]:
        case = pairs.case(index)
        yield Case(case.name, case.fixed, case.moving, labels=(case.fixed_label, case.moving_label))


def brains(root: Path) -> Iterator[Case]:
    """The template that no network was trained on and the two others, with their landmarks."""
    folder = root / "brain_templates"
    for names in (("pd25", "colin27"), ("mni2009c", "pd25")):
        images, points = zip(*(BRAINS[name] for name in names), strict=True)
        images = [read_image(str(folder / image)) for image in images]
        points = tuple(read_points(folder / file).coordinates for file in points)
        yield Case(f"{names[1]} to {names[0]}", *images, points=points)


def livers(root: Path) -> Iterator[Case]:
    """Breathing states of two people's livers, with landmarks inside."""
    for subject, state in _LIVERS:
        fixed, moving = (liver(root, subject, name) for name in ("exhMaster", state))
        yield Case(f"{subject} {state}", fixed.image, moving.image, points=(fixed.points, moving.points))


SETS: dict[str, Callable[[Path], Iterator[Case]]] = {
    "hippocampus": partial(listed, "hippocampus", count=None),
    "bent knees": partial(listed, "bent_cross"),
    "phantoms": partial(listed, "phantom_cross"),
    "brains": brains,
    "livers": livers,
    "heads T1 and FLAIR": partial(heads, seed=0, repeats=1),
}


def methods(model: str, weights: Path | None) -> dict[str, Callable]:
    """What is compared, by name."""
    network: dict[str, Any] = {"model": model} | ({"ckpt_path": str(weights)} if weights else {})
    return {
        "engine": partial(ours, preset="default"),
        "engine, network's grid": partial(
            ours, preset="default", grid_voxels=PRESETS["instance"].grid_voxels, native_grid=False
        ),
        "network": partial(ours, preset="fast", **network),
        "network, engine": partial(ours, preset="instance", **network),
    }


def report(rows: list[dict[str, Any]]) -> str:
    """A table of the means of each set."""
    lines = ["| set, pairs | method | " + " | ".join(COLUMNS) + " |", "|---|---|" + "---|" * len(COLUMNS)]
    for name, method in dict.fromkeys((row["set"], row["method"]) for row in rows):
        some = [row for row in rows if (row["set"], row["method"]) == (name, method)]
        found = [[row[column] for row in some if row.get(column) is not None] for column in COLUMNS]
        cells = [f"{np.mean(values):.3f}" if values else "" for values in found]
        lines.append(f"| {name}, {len(some)} | {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--model", default="general")
    parser.add_argument("--weights", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "networks.jsonl"
    rows = read_rows(file)
    done = {(row["set"], row["case"], row["method"]) for row in rows}
    for name in options.sets:
        for case in SETS[name](options.data):
            for method, register in methods(options.model, options.weights).items():
                if (name, case.name, method) in done:
                    continue
                rows.append({"set": name, "case": case.name, "method": method, **measured(case, register)})
                print(json.dumps(rows[-1]), flush=True)
                with file.open("a") as stream:
                    stream.write(json.dumps(rows[-1]) + "\n")
    (options.output / "networks.md").write_text(report(rows) + "\n")


if __name__ == "__main__":
    main()
