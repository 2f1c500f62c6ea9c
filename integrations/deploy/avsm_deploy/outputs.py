"""The output folder: all of a run's results or none.

``itk/`` holds what ``avsm register`` writes. For DICOM there are also ``moved/`` (a file a slice),
``spatial_registration.dcm`` (the affine part) and ``deformable_spatial_registration.dcm`` (the whole; absent where the
registration is affine).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np

from scripts.errors import InputError
from scripts.formats.dicom_objects import Run, save
from scripts.formats.dicom_registration import affine_registration, deformable_registration
from scripts.formats.images import read_image
from scripts.formats.transform_files import read_transforms
from scripts.registration import METRICS
from scripts.storage import output_folder
from scripts.storage import staged as stage_of

from .moved_series import contributing_slices, write_moved_series
from .pair import Pair

__all__ = ["AFFINE", "DEFORMABLE", "ITK", "MOVED", "check_output", "staged", "summary", "write_dicom"]

ITK = "itk"
MOVED = "moved"
AFFINE = "spatial_registration.dcm"
DEFORMABLE = "deformable_spatial_registration.dcm"


def check_output(folder: Path) -> None:
    """Refuse an output folder with an earlier result: slices of two runs in one place would be taken for one series.

    Raises:
        InputError: when it holds one.
    """
    for name in (ITK, MOVED, AFFINE, DEFORMABLE):
        if (folder / name).exists():
            raise InputError(f"{folder / name}: a result is there already; give another output folder, or remove it")


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A folder to write results into, which come into ``folder`` when the block ends well and vanish when it raises.

    Meanwhile no other run can write to ``folder``.

    Raises:
        InputError: when ``folder`` holds an earlier result, cannot be written to, or another run is writing to it.
    """
    with output_folder(folder):
        check_output(folder)
        with stage_of(folder) as stage:
            yield stage


def summary(folder: Path) -> str:
    """How a registration went, in a line."""
    metrics = json.loads((folder / ITK / METRICS).read_text(encoding="utf-8"))
    ncc = metrics["similarity"]["ncc"]
    # Where the images do not meet there is none.
    known = {stage: "unknown" if ncc[stage] is None else f"{ncc[stage]:.3f}" for stage in ("before", "affine", "final")}
    values = ", ".join(f"{stage} {value}" for stage, value in known.items())
    verdict = metrics["verdict"]
    reasons = "".join(f"; {reason['what']}" for reason in verdict["reasons"])
    return f"{folder}: {verdict['outcome']}: NCC {values}; folds {metrics['folds']}{reasons}"


def write_dicom(pair: Pair, images: tuple[Path, Path], folder: Path) -> None:
    """Write the DICOM objects of a registration whose ITK files are there.

    Args:
        pair: the two series.
        images: fixed and moving series as the bundle reads them, see `Pair.paths`.
        folder: holds ``itk/``.
    """
    itk = folder / ITK
    (transform,) = read_transforms(itk / "transform.h5")
    (affine,) = read_transforms(itk / "affine.tfm")
    metrics = json.loads((itk / METRICS).read_text(encoding="utf-8"))
    weights = metrics["weights_sha256"]
    by = f"weights {weights[:16]}" if weights else f"preset {metrics['settings']['preset']}"
    run = Run(pair.fixed.in_order(), pair.moving.in_order(), _next_series_number(pair), by)
    fixed, moving = (read_image(path).frame for path in images)
    displacement = np.asarray(nib.load(itk / "displacement.nii.gz").dataobj)[:, :, :, 0, :]
    sources = contributing_slices(displacement, fixed, moving)
    moved = np.asarray(nib.load(itk / "moved.nii.gz").dataobj)
    deformed = transform.frame is not None
    write_moved_series(run, moved, sources, deformed, folder / MOVED)
    save(affine_registration(run, affine), folder / AFFINE)
    if deformed:
        save(deformable_registration(run, transform), folder / DEFORMABLE)


def _next_series_number(pair: Pair) -> int:
    """The first Series Number that no series of the fixed one's study has."""
    numbers = [
        int(series.header.get("SeriesNumber") or 0)
        for series in pair.study
        if series.header.StudyInstanceUID == pair.fixed.header.StudyInstanceUID
    ]
    return max(numbers) + 1
