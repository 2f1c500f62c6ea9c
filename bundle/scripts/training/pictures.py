"""The picture of a validation."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from ignite.engine import Engine, Events

from ..geometry import warp
from ..metrics.maps import STAGES
from ..processes import is_first
from ..report import pair_figure, save_figure
from ..storage import make_output_dir

PICTURES = "pictures"


def picture_path(output_dir: str | os.PathLike, epoch: int) -> Path:
    """Where the picture of an epoch's validation lies."""
    return Path(output_dir) / PICTURES / f"validation_{epoch:04d}.png"


class ValidationPicture:
    """Saves the picture of the first validation pair, with its deformation grid, at every validation.

    Args:
        output_dir: the folder of the run; pictures go to its ``pictures``.
    """

    def __init__(self, output_dir: str | os.PathLike) -> None:
        self.output_dir = make_output_dir(output_dir)
        make_output_dir(self.output_dir / PICTURES)

    def attach(self, engine: Engine) -> None:
        """Register on a validator."""
        if is_first():
            engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Draw the first pair."""
        if (engine.state.iteration - 1) % engine.state.epoch_length == 0:
            save_figure(batch_figure(engine), picture_path(self.output_dir, engine.state.epoch))


def batch_figure(engine: Engine):
    """Figure of the first pair of the batch that an evaluator has just registered, a matplotlib figure."""
    output, batch = engine.state.output, engine.state.batch
    measures, coordinates = output["measures"], output["registration"].map[0].cpu()
    fixed_label = moved_label = None
    if "fixed_label" in batch and "moving_label" in batch:
        fixed_label, label = (torch.as_tensor(batch[f"{role}_label"][:1]).float().cpu() for role in ("fixed", "moving"))
        fixed_label, moved_label = fixed_label[0], warp(label, coordinates.unsqueeze(0), mode="nearest")[0]
    words = [output["names"][0]]
    if "dice_final" in measures:
        words.append("Dice " + " → ".join(f"{measures[f'dice_{stage}'][0]:.3f}" for stage in STAGES))
    words.append(f"folds {int(measures['folds'][0])}")
    affine = torch.as_tensor(batch["fixed"].affine)
    affine = (affine[0] if affine.ndim == 3 else affine).double().cpu().numpy()
    return pair_figure(
        torch.as_tensor(batch["fixed"][0]).cpu(),
        torch.as_tensor(batch["moving"][0]).cpu(),
        output["registration"].moved[0].cpu(),
        coordinates,
        fixed_label=fixed_label,
        moved_label=moved_label,
        title="    ".join(words),
        spacing=np.linalg.norm(affine[:3, :3], axis=0),
        orientation="".join(nib.aff2axcodes(affine)),
    )
