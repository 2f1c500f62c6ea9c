"""Knee phantom pairs whose true map is known: every scan is the template knee seen through a closed-form warp.

Scan k is `image_k(x) = K(T_k(x))` with the template K and `T_k` a composition of affine maps and smooth flows, so the
map from the fixed to the moving scan is `T_moving^-1(T_fixed(x))`, exact up to rounding. Positions are normalised
coordinates, [-1, 1] per axis with corners aligned.
"""

import gzip
import json
import os
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
import torch

from ..errors import InputError
from .phantom_knee import EXTENT_MM, LABELS, Contrast, knee_tissues
from .phantom_warp import AffineStep, Warp, random_flows

__all__ = ["KneePhantom", "write_phantom_pair"]

Mode = Literal["cross_subject", "longitudinal"]
MODES = ("cross_subject", "longitudinal")


def _generator(*key: int) -> torch.Generator:
    """A generator seeded from whole numbers, independent for each key."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))


def _affine_step(generator: torch.Generator, degrees: float, shift: float, scale: float, shear: float) -> AffineStep:
    """A random affine map: standard deviations of rotation (degree), shift (normalised), log scale and shear."""
    angles, shifts, scales, shears = torch.randn(4, 3, generator=generator, dtype=torch.float64).clamp_(-2, 2)
    skew = torch.zeros(3, 3, dtype=torch.float64)
    skew[[0, 0, 1], [1, 2, 2]] = torch.deg2rad(angles * degrees)
    upper = torch.zeros_like(skew)
    upper[[0, 0, 1], [1, 2, 2]] = shears * shear
    matrix = torch.matrix_exp(skew - skew.T) @ torch.diag(torch.exp(scales * scale)) @ torch.matrix_exp(upper)
    # Rotation and shear are meant in mm; the field of view is not a cube.
    half = torch.tensor(EXTENT_MM, dtype=torch.float64) / 2
    return AffineStep(matrix * half[None, :] / half[:, None], shifts * shift)


class KneePhantom:
    """Generator of schematic knee MR scans on one grid.

    The knee is a function of normalised coordinates, so one seed gives the same knee at any size; only the noise,
    drawn per voxel, differs.

    Args:
        shape: grid size (D, H, W), axes in (R, A, S) order.
        spacing: voxel size in mm written to the affine; None spreads a knee's field of view, 112 x 140 x 140 mm.
        noise: standard deviation of the Rician noise, as a part of the signal range.
        bias: strength of the bias field, as a standard deviation of the log signal.

    Raises:
        InputError: the shape is not three sizes of at least 8, or the spacing not three positive numbers.
    """

    def __init__(
        self,
        shape: Sequence[int] = (48, 64, 48),
        spacing: Sequence[float] | None = None,
        noise: float = 0.03,
        bias: float = 0.12,
    ):
        self.shape = tuple(int(n) for n in shape)
        if len(self.shape) != 3 or min(self.shape) < 8:
            raise InputError(f"shape={tuple(shape)}; give three grid sizes of at least 8")
        if spacing is None:
            spacing = [extent / (n - 1) for extent, n in zip(EXTENT_MM, self.shape, strict=True)]
        if len(spacing) != 3 or min(spacing) <= 0:
            raise InputError(f"spacing={tuple(spacing)}; give three positive voxel sizes in mm")
        self.spacing = tuple(float(s) for s in spacing)
        self.noise, self.bias = noise, bias
        axes = [torch.linspace(-1, 1, n) for n in self.shape]
        self._grid = torch.stack([c.reshape(-1) for c in torch.meshgrid(*axes, indexing="ij")])

    @property
    def affine(self) -> np.ndarray:
        """(4, 4) voxel index to world (RAS, mm), the origin in the middle of the grid."""
        affine = np.diag((*self.spacing, 1.0))
        affine[:3, 3] = [-s * (n - 1) / 2 for s, n in zip(self.spacing, self.shape, strict=True)]
        return affine

    def subject_warp(self, seed: int) -> Warp:
        """The warp of one random subject, from its coordinates to the template's (bone width, pose, condyles)."""
        generator = _generator(seed, 1)
        affine = _affine_step(generator, degrees=5.0, shift=0.06, scale=0.07, shear=0.05)
        return Warp((*random_flows(generator, shear=0.035, stretch=0.035, count=1), affine))

    def followup_warp(self, seed: int) -> Warp:
        """A small change of one knee between two visits: pose and a slight deformation."""
        generator = _generator(seed, 2)
        pose = _affine_step(generator, degrees=1.7, shift=0.018, scale=0.0, shear=0.0)
        return Warp((*random_flows(generator, shear=0.010, stretch=0.010, count=1), pose))

    def pair_warps(self, seed: int, mode: Mode) -> tuple[Warp, Warp, Warp]:
        """The warps of a pair.

        Args:
            seed: of the pair.
            mode: two subjects, or two visits of one.

        Returns:
            `T_fixed`, `T_moving` (scan to template) and the true map `T_moving^-1 after T_fixed`.

        Raises:
            InputError: the mode is unknown.
        """
        if mode not in MODES:
            raise InputError(f"mode={mode!r}; give one of {MODES}")
        if mode == "cross_subject":
            fixed, moving = (self.subject_warp(_seed(seed, role)) for role in (0, 1))
            return fixed, moving, fixed.then(moving.inverse())
        subject = self.subject_warp(_seed(seed, 0))
        fixed, moving = (self.followup_warp(_seed(seed, role)) for role in (2, 3))
        # The subject's own warp cancels in the true map.
        return fixed.then(subject), moving.then(subject), fixed.then(moving.inverse())

    def scan(self, warp: Warp, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One scan of a knee: contrast, bias field and noise are drawn anew from the seed.

        Args:
            warp: from the scan's normalised coordinates to the template's.
            seed: of the scan.

        Returns:
            image (D, H, W) float32 in [0, 1], label (D, H, W) uint8.
        """
        generator = _generator(seed, 3)
        wobble = torch.randn(8, generator=generator).clamp_(-2, 2).tolist()
        contrast = Contrast(
            fat=0.68 + 0.07 * wobble[0],
            muscle=0.38 + 0.04 * wobble[1],
            marrow=0.55 + 0.06 * wobble[2],
            cortex=0.10 + 0.02 * wobble[3],
            cartilage=0.90 + 0.04 * wobble[4],
            meniscus=0.20 + 0.03 * wobble[5],
        )
        half = torch.tensor(EXTENT_MM)[:, None] / 2
        signal, label = knee_tissues(warp(self._grid) * half, contrast)
        waves = torch.randn(3, 3, generator=generator)
        phases, heights = torch.rand(3, generator=generator) * 6.3, torch.randn(3, generator=generator)
        log_bias = heights @ torch.sin(waves @ self._grid + phases[:, None])
        signal = signal * torch.exp(log_bias * (self.bias / 3**0.5))
        noise = torch.randn(2, signal.numel(), generator=generator) * self.noise
        image = torch.sqrt((signal + noise[0]) ** 2 + noise[1] ** 2)
        image = (image / torch.quantile(image[:: max(1, image.numel() // 50000)], 0.999)).clamp_(0, 1)
        return image.reshape(self.shape), label.reshape(self.shape)

    def true_map(self, warp: Warp) -> torch.Tensor:
        """A warp on the grid, (3, D, H, W) float32, normalised coordinates in (D, H, W) order."""
        return warp(self._grid).reshape(3, *self.shape)

    def pair(self, seed: int, mode: Mode) -> dict[str, torch.Tensor]:
        """A pair of scans and the true map between them.

        Args:
            seed: of the pair; equal seeds give equal pairs.
            mode: "cross_subject" (two knees) or "longitudinal" (one knee twice).

        Returns:
            `fixed`, `moving` (D, H, W) float32; `fixed_label`, `moving_label` (D, H, W) uint8;
            `true_map` (3, D, H, W) float32, fixed to moving, normalised coordinates.
        """
        fixed, moving, mapping = self.pair_warps(seed, mode)
        fixed_image, fixed_label = self.scan(fixed, _seed(seed, 4))
        moving_image, moving_label = self.scan(moving, _seed(seed, 5))
        return {
            "fixed": fixed_image,
            "moving": moving_image,
            "fixed_label": fixed_label,
            "moving_label": moving_label,
            "true_map": self.true_map(mapping),
        }


def _seed(seed: int, role: int) -> int:
    """The seed of one part of a pair."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed={seed!r}; give a whole number of at least 0")
    return int(np.random.SeedSequence((seed, role)).generate_state(1, np.uint64)[0] >> 1)


def _write_atomically(path: Path, content: bytes) -> None:
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_phantom_pair(
    directory: str | PathLike,
    shape: Sequence[int] = (48, 64, 48),
    seed: int = 0,
    mode: Mode = "cross_subject",
    spacing: Sequence[float] | None = None,
) -> Path:
    """Write a phantom pair as NIfTI files with labels and a `dataset.json` in the Learn2Reg layout.

    The same arguments write the same bytes. Each file appears whole or not at all.

    Args:
        directory: folder to write to; made if absent, files of the same names are replaced.
        shape: grid size (D, H, W), axes in (R, A, S) order.
        seed: of the pair.
        mode: "cross_subject" or "longitudinal".
        spacing: voxel size, mm; None spreads a knee's field of view over the grid.

    Returns:
        Path of the `dataset.json`; its `registration_val` lists the pair, its `training` both images.

    Raises:
        InputError: a bad argument, or the directory is a file.
    """
    root = Path(directory).expanduser().absolute()
    if root.exists() and not root.is_dir():
        raise InputError(f"{root}: a file is in the way of this folder; choose another directory")
    phantom = KneePhantom(shape, spacing)
    pair = phantom.pair(seed, mode)
    visits = ("fixed", "moving")
    entries = {}
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for visit in visits:
        name = f"knee_{mode}_{seed}_{visit}.nii.gz"
        for folder, key in (("imagesTr", visit), ("labelsTr", f"{visit}_label")):
            image = nib.Nifti1Image(pair[key].numpy(), phantom.affine)
            image.header.set_xyzt_units("mm")
            _write_atomically(root / folder / name, gzip.compress(image.to_bytes(), compresslevel=6, mtime=0))
        subject = "knee" if mode == "longitudinal" else visit
        entries[visit] = {"image": f"imagesTr/{name}", "label": f"labelsTr/{name}", "subject": subject}
    listing = {
        "name": "KneePhantom",
        "description": f"Computed knee phantom, {mode} pair, seed {seed}",
        "tensorImageSize": "3D",
        "modality": {"0": "MR"},
        "labels": {str(value): text for value, text in LABELS.items()},
        "numTraining": 2,
        "training": list(entries.values()),
        "numRegistration_val": 1,
        "registration_val": [{visit: entries[visit]["image"] for visit in visits}],
    }
    _write_atomically(root / "dataset.json", (json.dumps(listing, indent=1) + "\n").encode())
    return root / "dataset.json"
