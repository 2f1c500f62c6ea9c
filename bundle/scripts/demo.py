"""The demo: make a pair of knee phantoms, register it, tell what came out.

Run from the bundle's folder: ``python -m scripts.demo --output FOLDER``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from .data.pairs import evaluation_pairs
from .registration.write import METRICS
from .synthetic.phantom import write_phantom_pair

BUNDLE = Path(__file__).resolve().parents[1]
FILES = ("fixed", "moving", "fixed_label", "moving_label")


def register(pair: Mapping[str, Path], output: Path) -> dict:
    """Register a pair (the files of `FILES`) by ``monai.bundle run`` in a process of its own, as a user would.

    Returns the content of ``metrics.json``; CalledProcessError when the run fails, whose own message stands above.
    """
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.json"]
    command += ["--meta_file", "configs/metadata.json", "--logging_file", "configs/logging.conf"]
    for key, path in pair.items():
        command += [f"--{key}", str(path)]
    command += ["--output_dir", str(output)]
    print("$ " + " ".join(["python", *command[1:]]), flush=True)
    # MONAI warns of every config that it may hold code; this one is the bundle's own.
    environment = {**os.environ, "PYTHONWARNINGS": "ignore:parsing config_file"}
    subprocess.run(command, cwd=BUNDLE, check=True, env=environment)
    return json.loads((output / METRICS).read_text(encoding="utf-8"))


def main() -> None:
    """Generate, register, report."""
    parser = argparse.ArgumentParser(description="Register a generated pair of knees.")
    parser.add_argument("--output", default="demo", help="folder for the pair and the results")
    parser.add_argument("--seed", type=int, default=27, help="which pair of knees")
    options = parser.parse_args()
    output = Path(options.output).resolve()
    dataset = write_phantom_pair(output / "pair", seed=options.seed, mode="cross_subject").parent
    (pair,) = evaluation_pairs(dataset)
    metrics = register({key: Path(pair[key]) for key in FILES}, output / "result")
    print("\nWhat lies in the output folder:")
    for path in sorted(output.rglob("*")):
        if path.is_file():
            print(f"  {path.relative_to(output)}")
    dice, folds, seconds = metrics["labels"]["mean"]["dice"], metrics["folds"], metrics["seconds"]
    print("\nDice", *(f" {stage} {value:.3f}" for stage, value in dice.items()), end="")
    print(f"   folds {folds}   registration {seconds['optimise']:.2f} s, all {seconds['total']:.1f} s")
    print(f"Open {output / 'result' / 'report.html'} in a browser.")
    shown = {f"dice_{stage}": value for stage, value in dice.items()}
    print(json.dumps({**shown, "folds": folds, "seconds": seconds["optimise"]}))


if __name__ == "__main__":
    main()
