"""The demo: make a pair of knee phantoms, register it with the shipped weights, tell what came out.

Run from the bundle's folder: ``python -m scripts.demo --output FOLDER``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from .data import write_phantom_pair

BUNDLE = Path(__file__).resolve().parents[1]
SHOWN = ("dice_before", "dice_affine", "dice_vsvf", "folds", "seconds")


def register(dataset: Path, output: Path) -> dict:
    """Register the pairs of a data set by ``monai.bundle run`` in a process of its own, as a user would.

    Args:
        dataset: folder with ``dataset.json``.
        output: folder for the results.

    Returns:
        The content of ``summary.json``.

    Raises:
        subprocess.CalledProcessError: when the run fails; its own message stands above.
    """
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.json"]
    command += ["--meta_file", "configs/metadata.json", "--logging_file", "configs/logging.conf"]
    command += ["--dataset_dir", str(dataset), "--output_dir", str(output)]
    print("$ " + " ".join(["python", *command[1:]]), flush=True)
    subprocess.run(command, cwd=BUNDLE, check=True)
    return json.loads((output / "summary.json").read_text())


def main() -> None:
    """Generate, register, report."""
    parser = argparse.ArgumentParser(description="Register a generated pair of knees with the shipped weights.")
    parser.add_argument("--output", default="demo", help="folder for the pair and the results")
    parser.add_argument("--seed", type=int, default=2019, help="which pair of knees")
    options = parser.parse_args()
    output = Path(options.output).resolve()
    dataset = write_phantom_pair(output / "pair", seed=options.seed, mode="cross_subject").parent
    summary = register(dataset, output / "result")
    print("\nWhat lies in the output folder:")
    for path in sorted(output.rglob("*")):
        if path.is_file():
            print(f"  {path.relative_to(output)}")
    print(f"\nDice  before {summary['dice_before']:.3f}  affine {summary['dice_affine']:.3f}", end="")
    print(f"  vSVF {summary['dice_vsvf']:.3f}   folds {summary['folds']:.0f}   {summary['seconds']:.2f} s")
    print(json.dumps({key: summary[key] for key in SHOWN}))


if __name__ == "__main__":
    main()
