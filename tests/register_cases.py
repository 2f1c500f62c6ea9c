"""Pairs of files for tests of whole registrations: knees on grids of every kind, registered in a second."""

import json
from pathlib import Path

import numpy as np

from scripts.cli import main
from scripts.formats.images import Image
from scripts.formats.volumes import save_volume
from scripts.spatial.frame import Frame
from scripts.spatial.resampling import resample_image, resample_labels
from scripts.synthetic.phantom import KneePhantom
from world_cases import frame

GRID = ("--grid", "48", "64", "48")
# fixed, moving: shape, angles, spacing, origin, flip, order of the world axes.
GRIDS = {
    "alike": (((28, 32, 30),), ((28, 32, 30),)),
    "oblique and anisotropic": (((30, 36, 18), (12, -9, 20), (3.1, 3.4, 7.0), (-40.0, 31.0, 300.0)),
        ((30, 36, 18), (12, -9, 20), (3.1, 3.4, 7.0), (-44.0, 28.0, 296.0))),
    "other sizes, spacings and axes": (((26, 34, 40), (6, -11, 4), (4.2, 3.6, 3.0), (-90.0, 20.5, -310.0)),
        ((40, 24, 37), (-14, 3, 9), (3.0, 5.5, 3.3), (71.0, -42.0, 12.0), (-1, 1, -1), (2, 0, 1))),
}  # fmt: skip


def grid(shape, angles=(0, 0, 0), spacing=(4.0, 4.0, 4.0), origin=(0, 0, 0), flip=(1, 1, 1), order=(0, 1, 2)):
    """A frame of a case."""
    return frame(shape, angles, spacing, origin, flip, order)


def write_pair(folder: Path, name: str = "oblique and anisotropic", seed: int = 3) -> dict[str, Path]:
    """Write a knee's two scans with labels and masks on the grids of a case; returns the files by role."""
    knees = KneePhantom((48, 64, 48), noise=0.0).pair(seed, "cross_subject")
    files = {}
    for role, parts in zip(("fixed", "moving"), GRIDS[name], strict=True):
        where = grid(*parts)
        # The knee, 112 x 140 x 140 mm, is laid in the middle of the grid, along the world's axes.
        source = Frame.from_parts((48, 64, 48), (112 / 48, 140 / 64, 140 / 48), (0, 0, 0), np.eye(3))
        affine = source.affine.copy()
        affine[:3, 3] += where.centre - source.centre
        source = Frame(source.shape, affine)
        image = resample_image(knees[role].numpy().astype(np.float32), source, where)
        label = resample_labels(knees[f"{role}_label"].numpy().astype(np.uint8), source, where)
        mask = np.zeros(where.shape, np.uint8)
        mask[3:-3, 3:-3, 2:-2] = 1
        for kind, array in (("", 1000 * image), ("_label", label), ("_mask", mask)):
            files[role + kind] = folder / f"{role}{kind}.nii.gz"
            save_volume(array, where.affine, files[role + kind])
    return files


def register(files: dict[str, Path], output: Path, *options: str, labels: bool = True, masks: bool = False) -> dict:
    """Run ``avsm register`` in this process; returns ``metrics.json``."""
    roles = ["fixed", "moving"]
    roles += ["fixed_label", "moving_label"] if labels else []
    roles += ["fixed_mask", "moving_mask"] if masks else []
    arguments = ["register", "--output", str(output), "--threads", "1", *GRID]
    for role in roles:
        arguments += [f"--{role.replace('_', '-')}", str(files[role])]
    assert main([*arguments, *options]) == 0
    return json.loads((output / "metrics.json").read_text())


def reoriented(item, order, flips):
    """The same image with its array axes permuted and flipped, the header following."""
    change = np.eye(4)
    shape = np.asarray(item.frame.shape)
    array = item.array
    for axis, flip in enumerate(flips):
        if flip:
            array = np.flip(array, axis)
            step = np.eye(4)
            step[axis, axis], step[axis, 3] = -1, shape[axis] - 1
            change = change @ step
    permutation = np.zeros((4, 4))
    permutation[3, 3] = 1
    for new, old in enumerate(order):
        permutation[old, new] = 1
    array = np.ascontiguousarray(array.transpose(order))
    return Image(array, Frame(array.shape, item.frame.affine @ change @ permutation), item.path)
