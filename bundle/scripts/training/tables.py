"""What an evaluation leaves on disk: a row a pair, a summary, and the registered images."""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from ignite.engine import Engine, Events

from ..formats.displacement import save_displacement
from ..formats.volumes import save_volume
from ..geometry import warp
from ..metrics.summary import PAIRS, SUMMARY, summarise
from ..processes import in_turn, is_first
from ..report import pair_figure, save_figure
from ..storage import atomic_path, make_output_dir


class PairTable:
    """Writes ``pairs.csv`` (a row a pair) and ``summary.json`` (mean and standard deviation) when a run completes.

    Of several processes the first one writes, for all.

    Args:
        output_dir: folder, created if need be.
        facts: further entries of ``summary.json`` (weights, steps, data).

    Raises:
        InputError: when the folder can't be written to.
    """

    def __init__(self, output_dir: str | os.PathLike, facts: dict | None = None) -> None:
        self.output_dir = make_output_dir(output_dir)
        self.facts = {} if facts is None else dict(facts)
        self.rows: list[dict] = []
        self.logger = logging.getLogger(__name__)

    def attach(self, engine: Engine) -> None:
        """Register on an evaluator."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def start(self, engine: Engine) -> None:
        """Forget rows of an earlier run."""
        self.rows = []

    def collect(self, engine: Engine) -> None:
        """Take the rows of a batch."""
        output = engine.state.output
        for index, name in enumerate(output["names"]):
            self.rows.append({"name": name, **{k: v[index].item() for k, v in output["measures"].items()}})

    def write(self, engine: Engine) -> None:
        """Write both files."""
        self.rows = in_turn(self.rows)
        if not is_first():
            return
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        with atomic_path(self.output_dir / PAIRS) as path, open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(
                {k: (f"{v:.6g}" if isinstance(v, float) else v) for k, v in row.items()} for row in self.rows
            )
        summary = {**summarise(self.rows), **self.facts}
        with atomic_path(self.output_dir / SUMMARY) as path:
            Path(path).write_text(json.dumps(summary, indent=2) + "\n")
        shown = ("dice_before", "dice_affine", "dice_vsvf", "folds", "std_log_jacobian", "seconds")
        text = ", ".join(f"{key} {summary[key]:.4g}" for key in shown if summary.get(key) is not None)
        self.logger.info(f"{len(self.rows)} pairs: {text}")


class RegistrationWriter:
    """Writes each registered pair into a folder of its name: moved image and label, map, picture.

    ``moved.nii.gz`` (and ``moved_label.nii.gz``) lie on the network grid in the fixed image's world.
    ``displacement.nii.gz`` is the map as an ITK/ANTs vector displacement field (LPS, mm) on the same grid.
    ``pair.png`` shows moving, fixed, moved, deformation grid and differences.

    Args:
        output_dir: folder, created if need be.
        picture: also write the picture.

    Raises:
        InputError: when the folder can't be written to.
    """

    def __init__(self, output_dir: str | os.PathLike, picture: bool = True) -> None:
        self.output_dir = make_output_dir(output_dir)
        self.picture = picture

    def attach(self, engine: Engine) -> None:
        """Register on an evaluator."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the pairs of a batch."""
        registration, batch = engine.state.output["registration"], engine.state.batch
        for index, name in enumerate(engine.state.output["names"]):
            folder = self.output_dir / name
            folder.mkdir(exist_ok=True)
            coordinates = registration.map[index].cpu()
            fixed_affine, moving_affine = (_affine(batch[role], index) for role in ("fixed", "moving"))
            save_volume(registration.moved[index, 0].cpu().numpy(), fixed_affine, folder / "moved.nii.gz")
            save_displacement(coordinates, fixed_affine, moving_affine, folder / "displacement.nii.gz")
            moved_label = None
            if "moving_label" in batch:
                moved_label = _moved_label(batch, index, coordinates)
                save_volume(moved_label[0].numpy(), fixed_affine, folder / "moved_label.nii.gz", dtype=np.int16)
            if self.picture:
                save_figure(batch_figure(engine, index, moved_label), folder / "pair.png")


def _affine(batch: torch.Tensor, index: int) -> np.ndarray:
    """Voxel → RAS mm matrix (4, 4) of an item of a collated MetaTensor."""
    affine = torch.as_tensor(batch.affine)
    return (affine[index] if affine.ndim == 3 else affine).double().cpu().numpy()


def _moved_label(batch: Mapping, index: int, coordinates: torch.Tensor) -> torch.Tensor:
    """Moving label of an item under its map ``(3, D, H, W)``, by nearest neighbour, ``(1, D, H, W)``."""
    label = torch.as_tensor(batch["moving_label"][index : index + 1]).float().cpu()
    return warp(label, coordinates.unsqueeze(0), mode="nearest")[0]


def batch_figure(engine: Engine, index: int = 0, moved_label: torch.Tensor | None = None):
    """Figure of one pair of the batch that an evaluator has just registered.

    Args:
        engine: the evaluator.
        index: which pair of the batch.
        moved_label: moving label under the map, ``(1, D, H, W)``; made here where needed and None.

    Returns:
        A matplotlib figure.
    """
    registration, batch = engine.state.output["registration"], engine.state.batch
    measures = engine.state.output["measures"]
    coordinates = registration.map[index].cpu()
    fixed_label = None
    if "fixed_label" in batch and "moving_label" in batch:
        fixed_label = torch.as_tensor(batch["fixed_label"][index]).cpu()
        if moved_label is None:
            moved_label = _moved_label(batch, index, coordinates)
    words = [engine.state.output["names"][index]]
    if "dice_vsvf" in measures:
        stages = ("before", "affine", "vsvf")
        words.append("Dice " + " → ".join(f"{measures[f'dice_{stage}'][index]:.3f}" for stage in stages))
    words.append(f"folds {int(measures['folds'][index])}")
    affine = _affine(batch["fixed"], index)
    return pair_figure(
        torch.as_tensor(batch["fixed"][index]).cpu(),
        torch.as_tensor(batch["moving"][index]).cpu(),
        registration.moved[index].cpu(),
        coordinates,
        fixed_label=fixed_label,
        moved_label=moved_label,
        title="    ".join(words),
        spacing=np.linalg.norm(affine[:3, :3], axis=0),
        orientation="".join(nib.aff2axcodes(affine)),
    )
