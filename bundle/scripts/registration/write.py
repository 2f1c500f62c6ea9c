"""The files of a registration, all of them or none; ``metrics.json`` comes last and says that the others are there."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np

from ..errors import InputError
from ..formats.displacement import save_displacement_blocks
from ..formats.transform_files import write_transform
from ..formats.volumes import check_holds, save_volume, write_nifti
from ..settings import DTYPES
from ..spatial.frame import Frame
from ..spatial.transform import WorldTransform
from ..storage import guarded, output_folder, staged, write_json
from .pair import Pair
from .result import Result
from .voxels import VoxelField, rounded

if TYPE_CHECKING:
    from ..report import ReportData

__all__ = ["METRICS", "PairWriter"]

METRICS = "metrics.json"
OUTPUTS = (
    "moved.nii.gz",
    "moved_label.nii.gz",
    "transform.h5",
    "inverse_transform.h5",
    "affine.tfm",
    "displacement.nii.gz",
    "displacement_voxel.nii.gz",
    "jacobian.nii.gz",
    "uncertainty.nii.gz",
    "report.png",
    "report.html",
    METRICS,
)
logger = logging.getLogger(__name__)


class PairWriter:
    """Writes the files of registered pairs: ``moved.nii.gz``, ``transform.h5`` and the rest (README, "What comes out").

    Args:
        output_dir: folder, created if need be; a pair with a name (one of a list) gets a folder of its name in it.
        dtype: type of ``moved.nii.gz``: a NIfTI type, or ``"same"`` for the moving image's own.
        learn2reg: also write ``displacement_voxel.nii.gz`` ``(D, H, W, 3)``: the voxel looked at less the voxel looked
            from, as Learn2Reg keeps it.
        report: also write the report.
        uncertainty: also write ``uncertainty.nii.gz``: how far structures may be off, mm.

    Raises:
        InputError: for another ``dtype``.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        dtype: str = "float32",
        learn2reg: bool = False,
        report: bool = True,
        uncertainty: bool = False,
    ) -> None:
        if dtype not in DTYPES:
            raise InputError(f"output_dtype={dtype}: must be one of {', '.join(DTYPES)}; correct the option")
        self.output_dir = Path(output_dir)
        self.dtype, self.learn2reg, self.report, self.uncertainty = dtype, learn2reg, report, uncertainty

    def folder(self, name: str | None) -> Path:
        """Where the files of a pair of this name lie."""
        return self.output_dir / name if name else self.output_dir

    def check(self, pair: Pair) -> None:
        """Refuse, before any work, a pair whose results could not be written.

        Raises:
            InputError: when the results would overwrite a file of the pair, or a type can't hold their values.
        """
        folder = self.folder(pair.name).resolve()
        for image in pair.images.values():
            path = Path(image.path).resolve()
            if path.parent == folder and path.name in OUTPUTS:
                raise InputError(f"{image.path}: would be overwritten by the result; write to another folder")
        if self.dtype != "same":
            check_holds(pair.moving.array, self.dtype, f"{pair.moving.path}: output_dtype={self.dtype}")

    def write(self, result: Result, request: str | None = None) -> Path:
        """Write the files of a pair, all or none; returns their folder.

        Args:
            result: of the registration.
            request: what was asked for, in short; kept in ``metrics.json``, to know the result again.

        Raises:
            InputError: when a file can't be written (disk full, no permission); it names the file.
        """
        start = time.perf_counter()
        with output_folder(self.folder(result.pair.name)) as folder, staged(folder, METRICS, OUTPUTS) as stage:
            for name, save in self._files(result).items():
                guarded(folder / name, stage, save)
            metrics = dict(result.metrics)
            if request is not None:
                metrics["request"] = request
            seconds = dict(metrics["seconds"], write=time.perf_counter() - start)
            if self.report:
                from ..report import write_report  # loads matplotlib

                begin = time.perf_counter()
                metrics["seconds"] = {**seconds, "total": sum(seconds.values())}
                data = _report_data(result, metrics)
                guarded(folder / "report.html", stage, lambda path: write_report(data, path.parent))
                seconds["report"] = time.perf_counter() - begin
            metrics["seconds"] = {**seconds, "total": sum(seconds.values())}
            guarded(folder / METRICS, stage, lambda path: write_json(metrics, path))
        _tell(metrics, folder)
        return folder

    def _files(self, result: Result) -> dict[str, Callable[[Path], None]]:
        """File name → what writes it."""
        fixed, moving, accepted = result.pair.fixed.frame, result.pair.moving, result.accepted
        moved, dtype = (
            result.warped.moved["final"],
            moving.array.dtype if self.dtype == "same" else np.dtype(self.dtype),
        )
        files: dict[str, Callable[[Path], None]] = {
            "moved.nii.gz": lambda path: save_volume(moved, fixed.affine, path, dtype, clip=True),
            "transform.h5": lambda path: write_transform(accepted.chain, path),
            "inverse_transform.h5": lambda path: write_transform(accepted.inverse, path),
            "displacement.nii.gz": lambda path: save_displacement_blocks(
                _lps_blocks(accepted.chain, fixed), fixed, path
            ),
            "jacobian.nii.gz": lambda path: save_volume(accepted.jacobian.determinant, fixed.affine, path, np.float32),
        }
        if not accepted.after:  # else fields follow the affine
            files["affine.tfm"] = lambda path: write_transform(accepted.affine, path)
        if result.warped.moved_label:
            label = result.warped.moved_label["final"]
            files["moved_label.nii.gz"] = lambda path: save_volume(label, fixed.affine, path)
        if self.uncertainty:
            files["uncertainty.nii.gz"] = lambda path: save_volume(result.doubt_map(), fixed.affine, path, np.float32)
        if self.learn2reg:
            field = VoxelField(accepted.chain, fixed, np.linalg.inv(moving.frame.affine), np.eye(4))
            header = nib.Nifti1Image(np.broadcast_to(np.float32(0), (*fixed.shape, 3)), fixed.affine)
            blocks = (block for _, block in field.blocks())
            files["displacement_voxel.nii.gz"] = lambda path: write_nifti(header, path, blocks)
        return files


def _tell(metrics: Mapping[str, Any], folder: Path) -> None:
    """Log the outcome in a line, and every warning."""
    for note in metrics["warnings"]:
        logger.warning(f"warning: {note}")
    for reason in metrics["verdict"]["reasons"]:
        logger.warning(f"{metrics['verdict']['outcome']}: {reason['what']}. {reason['advice']}")
    words = [f"{folder}: {metrics['verdict']['outcome']};"]
    for name, values in (
        ("Dice", metrics.get("labels", {}).get("mean", {}).get("dice")),
        ("landmarks (mm)", metrics.get("landmarks_mm", {}).get("mean")),
        ("NCC", metrics["similarity"]["ncc"]),
    ):
        if values is not None:
            words.append(f"{name} {values['before']:.3f}, affine {values['affine']:.3f}, final {values['final']:.3f};")
    error = metrics["inverse_consistency_mm"]["mean"]
    words.append(f"folds {metrics['folds']}; inverse consistency {error:.3f} mm; {metrics['seconds']['total']:.1f} s")
    logger.info(" ".join(words))


def _lps_blocks(transforms: Sequence[WorldTransform], fixed: Frame) -> Iterator[np.ndarray]:
    """The displacement of the fixed voxels in LPS mm, block by block."""
    for component, block in VoxelField(transforms, fixed).blocks():
        yield rounded(block if component == 2 else -block, fixed.spacing.min())


def _report_data(result: Result, metrics: Mapping[str, Any]) -> ReportData:
    """What the report shows of a pair."""
    from ..report import ReportData

    pair, accepted, warped = result.pair, result.accepted, result.warped
    fixed, labels = pair.fixed, warped.moved_label
    # Without the initialisation, in the fixed image's voxels: the identity registration gives each voxel itself.
    to_fixed = np.linalg.inv(fixed.frame.affine) @ np.linalg.inv(result.initial.linear)
    both = bool(labels) and pair.fixed_label is not None
    return ReportData(
        name=pair.name or f"{Path(pair.moving.path).name} to {Path(fixed.path).name}",
        fixed=fixed.array,
        moving=warped.moved["before"],
        moved=warped.moved["final"],
        voxel_map=VoxelField(accepted.chain, fixed.frame, to_fixed, np.zeros((4, 4))),
        jacobian=accepted.jacobian.determinant,
        spacing=tuple(fixed.frame.spacing.tolist()),
        orientation="".join(nib.aff2axcodes(fixed.frame.affine)),
        fixed_label=pair.fixed_label.array if both else None,
        moving_label=labels["before"] if both else None,
        moved_label=labels["final"] if both else None,
        mask=None if pair.fixed_mask is None else pair.fixed_mask.array,
        uncertainty=result.doubt_map(),
        metrics=metrics,
        warnings=metrics["warnings"],
    )
