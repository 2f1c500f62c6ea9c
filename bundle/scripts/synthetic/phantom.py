"""Knee phantom pairs whose true map is known: every scan is the template knee seen through a closed-form warp.

Scan k is `image_k(x) = K(T_k(x))` with the template K and `T_k` a composition of affine maps and smooth flows, so the
map from the fixed to the moving scan is `T_moving^-1(T_fixed(x))`, exact up to rounding. Positions are normalised
coordinates, [-1, 1] per axis with corners aligned.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import nibabel as nib
import torch
from torch import Tensor

from ..storage import atomic_path, make_output_dir, write_json
from .generated import PairGenerator
from .phantom_knee import EXTENT_MM, LABELS, Contrast, knee_tissues
from .seeded import derived_seed, seeded
from .warps import AffineStep, Warp, affine_step, grid_points, random_waves

__all__ = ["KneePhantom", "write_phantom_pair"]


def _normal_affine(generator: torch.Generator, degrees: float, shift: float, scale: float, shear: float) -> AffineStep:
    """A random affine map: standard deviations of rotation (degree), shift (normalised), log scale and shear."""
    angles, shifts, scales, shears = torch.randn(4, 3, generator=generator, dtype=torch.float64).clamp_(-2, 2)
    return affine_step(angles * degrees, shifts * shift, scales * scale, shears * shear, EXTENT_MM)


class KneePhantom(PairGenerator):
    """Generator of schematic knee MR scans on one grid.

    The knee is a function of normalised coordinates, so one seed gives the same knee at any size; only the noise,
    drawn per voxel, differs.

    Args:
        shape: grid size (D, H, W), axes in (R, A, S) order.
        spacing: voxel size in mm written to the affine; None spreads a knee's field of view, 112 x 140 x 140 mm.
        noise: standard deviation of the Rician noise, as a part of the signal range.
        bias: strength of the bias field, as a standard deviation of the log signal.

    Raises:
        InputError: as `PairGenerator`.
    """

    name = "knee"

    def __init__(
        self,
        shape: Sequence[int] = (48, 64, 48),
        spacing: Sequence[float] | None = None,
        noise: float = 0.03,
        bias: float = 0.12,
    ) -> None:
        super().__init__(shape, spacing)
        self.noise, self.bias = noise, bias
        self._grid = grid_points(self.shape)

    def fresh_seed(self, key: tuple[int, int, int], listed: int) -> int:
        """The seed of an endless stream; lists of phantoms are kept apart by their own seeds, not by a split."""
        return derived_seed(*key)

    def subject_warp(self, seed: int) -> Warp:
        """The warp of one random subject, from its coordinates to the template's (bone width, pose, condyles)."""
        generator = seeded(seed, 1)
        affine = _normal_affine(generator, degrees=5.0, shift=0.06, scale=0.07, shear=0.05)
        return Warp((*random_waves(generator, 0.035), affine))

    def followup_warp(self, seed: int) -> Warp:
        """A small change of one knee between two visits: pose and a slight deformation."""
        generator = seeded(seed, 2)
        pose = _normal_affine(generator, degrees=1.7, shift=0.018, scale=0.0, shear=0.0)
        return Warp((*random_waves(generator, 0.010), pose))

    def pair_warps(self, seed: int, mode: str) -> tuple[Warp, Warp, Warp]:
        """`T_fixed`, `T_moving` (scan to template) and the true map `T_moving^-1 after T_fixed` of a pair."""
        if mode == "cross_subject":
            fixed, moving = (self.subject_warp(derived_seed(seed, role)) for role in (0, 1))
            return fixed, moving, fixed.then(moving.inverse())
        subject = self.subject_warp(derived_seed(seed, 0))
        fixed, moving = (self.followup_warp(derived_seed(seed, role)) for role in (2, 3))
        # The subject's own warp cancels in the true map.
        return fixed.then(subject), moving.then(subject), fixed.then(moving.inverse())

    def scan(self, warp: Warp, seed: int) -> tuple[Tensor, Tensor]:
        """One scan of a knee: contrast, bias field and noise are drawn anew from the seed.

        Args:
            warp: from the scan's normalised coordinates to the template's.
            seed: of the scan.

        Returns:
            image (D, H, W) float32 in [0, 1], label (D, H, W) uint8.
        """
        generator = seeded(seed, 3)
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

    def _pair(self, seed: int, mode: str, true_map: bool) -> dict[str, Tensor]:
        fixed, moving, mapping = self.pair_warps(seed, mode)
        pair = {}
        for role, chain, part in (("fixed", fixed, 4), ("moving", moving, 5)):
            pair[role], pair[f"{role}_label"] = self.scan(chain, derived_seed(seed, part))
        if true_map:
            pair["true_map"] = mapping(self._grid).reshape(3, *self.shape)
        return pair


def write_phantom_pair(
    directory: str | PathLike,
    shape: Sequence[int] = (48, 64, 48),
    seed: int = 0,
    mode: str = "cross_subject",
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
    phantom = KneePhantom(shape, spacing)
    pair = phantom.pair(seed, mode, true_map=False)
    root = make_output_dir(Path(directory).expanduser().absolute())
    visits = ("fixed", "moving")
    entries = {}
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(exist_ok=True)
    for visit in visits:
        name = f"knee_{mode}_{seed}_{visit}.nii.gz"
        for folder, key in (("imagesTr", visit), ("labelsTr", f"{visit}_label")):
            image = nib.Nifti1Image(pair[key].numpy(), phantom.affine)
            image.header.set_xyzt_units("mm")
            with atomic_path(root / folder / name) as part:
                part.write_bytes(gzip.compress(image.to_bytes(), compresslevel=6, mtime=0))
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
    write_json(listing, root / "dataset.json")
    return root / "dataset.json"
