"""Knee phantom pairs whose true map is known: every scan is the template knee seen through a closed-form warp.

Scan k is `image_k(x) = K(T_k(x))` with the template K and `T_k` a composition of affine maps and smooth flows, so the
map from the fixed to the moving scan is `T_moving^-1(T_fixed(x))`, exact up to rounding. Positions are normalised
coordinates, [-1, 1] per axis with corners aligned.

The template is a schematic right knee as implicit functions of position: millimetres in (R, A, S) order from the centre
of the joint, inside the field of view of `EXTENT_MM`. Distances are approximate signed distances, negative inside. It
is anatomy only in outline; what counts for registration is thin bright cartilage on large bones in soft tissue of other
contrast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from ..formats.volumes import save_volume
from ..storage import make_output_dir, write_json
from .generated import EXTENT_MM, PairGenerator
from .seeded import derived_seed, seeded
from .warps import AffineStep, Warp, affine_step, grid_points, random_waves

LABELS = {0: "background", 1: "femoral cartilage", 2: "tibial cartilage", 3: "femur", 4: "tibia"}

CARTILAGE_MM = 4.0
CORTEX_MM = 2.0
# Width of the ramp between two tissues. It stands for the partial volume effect, and is fixed in mm so that a knee
# looks the same at all grid sizes.
EDGE_MM = 0.7


def _normal_affine(generator: torch.Generator, degrees: float, shift: float, scale: float, shear: float) -> AffineStep:
    """A random affine map: standard deviations of rotation (degree), shift (normalised), log scale and shear."""
    angles, shifts, scales, shears = torch.randn(4, 3, generator=generator, dtype=torch.float64).clamp_(-2, 2)
    return affine_step(angles * degrees, shifts * shift, scales * scale, shears * shear, EXTENT_MM)


class KneePhantom(PairGenerator):
    """Generator of schematic knee MR scans on one grid.

    The knee is a function of normalised coordinates, so one seed gives the same knee at any size; only the noise,
    drawn per voxel, differs.

    Args:
        shape, spacing: see `PairGenerator`.
        noise: standard deviation of the Rician noise, as a part of the signal range.
        bias: strength of the bias field, as a standard deviation of the log signal.
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
        """Image (D, H, W) float32 in [0, 1] and label uint8 of a knee; contrast, bias field and noise are drawn."""
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
    """Write a phantom pair as NIfTI files with labels and a `dataset.json` in the Learn2Reg layout; gives its path.

    Its `registration_val` lists the pair, its `training` both images. The same arguments write the same bytes; each
    file appears whole or not at all, and the directory is made if absent. InputError for a bad argument.
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
            save_volume(pair[key], phantom.affine, root / folder / name)
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


@dataclass(frozen=True)
class Contrast:
    """Signal of each tissue before bias and noise, about 0 to 1, in the manner of DESS."""

    air: float = 0.02
    fat: float = 0.68
    muscle: float = 0.38
    marrow: float = 0.55
    cortex: float = 0.10
    cartilage: float = 0.90
    meniscus: float = 0.20
    texture: float = 0.06


def _ellipsoid(x, y, z, centre, radii):
    """Distance to an ellipsoid, scaled by its gradient so that it is true to first order at the surface."""
    u, v, w = (x - centre[0]) / radii[0], (y - centre[1]) / radii[1], (z - centre[2]) / radii[2]
    size = torch.sqrt(u * u + v * v + w * w).clamp_min_(1e-6)
    slope = torch.sqrt((u / radii[0]) ** 2 + (v / radii[1]) ** 2 + (w / radii[2]) ** 2).clamp_min_(1e-7)
    return size * (size - 1) / slope


def _tube(x, y, centre, radii):
    """Distance to an upright elliptic cylinder whose centre and radii may vary with height."""
    u, v = (x - centre[0]) / radii[0], (y - centre[1]) / radii[1]
    size = torch.sqrt(u * u + v * v).clamp_min_(1e-6)
    slope = torch.sqrt((u / radii[0]) ** 2 + (v / radii[1]) ** 2).clamp_min_(1e-7)
    return size * (size - 1) / slope


def _join(a, b, width):
    """Smooth minimum: the union of two bodies with a fillet of about `width` mm."""
    gap = (width - (a - b).abs()).clamp_min_(0)
    return torch.minimum(a, b) - gap * gap / (4 * width)


def _meet(a, b, width):
    """Smooth maximum: the common part of two bodies with a rounded edge."""
    return -_join(-a, -b, width)


def _femur(x, y, z):
    shaft = _tube(x, y, (1.0, 2.0), (14.5, 13.5))
    shaft = torch.maximum(shaft, 26.0 - z)
    flare = _ellipsoid(x, y, z, (0.0, 2.0, 27.0), (33.0, 20.0, 21.0))
    medial = _ellipsoid(x, y, z, (-21.0, -6.0, 19.0), (15.0, 29.0, 19.0))
    lateral = _ellipsoid(x, y, z, (21.0, -4.0, 18.5), (16.0, 27.0, 18.0))
    # The notch keeps the condyles apart below and behind; the trochlear groove is the dent in front.
    notch = _ellipsoid(x, y, z, (0.0, -16.0, 4.0), (7.5, 24.0, 19.0))
    body = _join(_join(shaft, flare, 16.0), _join(medial, lateral, 3.0), 7.0)
    return _meet(body, -notch, 4.0)


def _tibia(x, y, z):
    depth = (-z - 8.0).clamp_min_(0)
    width = 13.0 + 24.0 * torch.exp(-((depth / 21.0) ** 2))
    thick = 13.0 + 13.0 * torch.exp(-((depth / 19.0) ** 2))
    shaft = _tube(x, y, (0.0, -4.0 + 2.0 * (width - 13.0) / 24.0), (width, thick))
    # The plateau sags a little under each condyle, and the eminence stands between them.
    dents = torch.exp(-(((x.abs() - 20.0) / 10.0) ** 2) - ((y + 4.0) / 16.0) ** 2)
    ridge = torch.exp(-((x / 6.0) ** 2) - ((y + 5.0) / 10.0) ** 2)
    return _meet(shaft, z + 7.0 + 2.0 * dents - 5.0 * ridge, 5.0)


def knee_tissues(points: Tensor, contrast: Contrast) -> tuple[Tensor, Tensor]:
    """Signal and label (see `LABELS`, uint8) of the template knee, (N,) each, at points (3, N), mm."""
    x, y, z = points
    femur, tibia = _femur(x, y, z), _tibia(x, y, z)

    # Joint cartilage: a layer on each bone, cut off where the joint surface ends.
    notch = 9.0 - x.abs() + 0.9 * (y - 4.0).clamp_min(0)
    femoral_area = _meet(_meet(z - 20.0 - 0.35 * y.clamp_min(0), (-40.0 - y), 3.0), torch.minimum(notch, 12.0 - y), 3.0)
    femoral = torch.maximum(_meet(femur - CARTILAGE_MM, femoral_area, 2.0), -femur)
    compartments = torch.minimum(_tube(x, y, (-20.0, -4.0), (15.0, 20.0)), _tube(x, y, (20.0, -4.0), (15.0, 19.0)))
    tibial = torch.maximum(_meet(tibia - CARTILAGE_MM, compartments, 2.0), torch.maximum(-tibia, -13.0 - z))
    tibial = torch.maximum(tibial, -torch.minimum(femur, femoral))
    rim = torch.maximum(z - 4.0, -5.5 - z)
    meniscus = torch.maximum(
        torch.maximum((_tube(x, y, (0.0, -4.0), (34.0, 25.0)) + 4.0).abs() - 5.0, rim), -x.abs() + 6
    )

    patella = _ellipsoid(x, y, z, (1.0, 38.0, 22.0), (20.0, 8.5, 19.0))
    patellar = torch.maximum(
        _ellipsoid(x, y, z, (1.0, 37.0, 22.0), (18.0, 11.5, 15.0)), torch.maximum(-patella, y - 37.0)
    )
    tendon = torch.maximum(((y - 43.0 - 0.10 * z).abs() - 2.2), torch.maximum(x.abs() - 13.0, -(z + 38.0)))

    skin = _tube(x, y, (0.0, 0.0), (51.0, 56.0 + 0.06 * z))
    fascia = skin + 8.0
    # Muscle fills the back and the sides inside the fascia; in front of the joint lies the fat pad.
    pad = _ellipsoid(x, y, z, (0.0, 30.0, -6.0), (27.0, 17.0, 22.0))
    fossa = _ellipsoid(x, y, z, (0.0, -34.0, 12.0), (11.0, 12.0, 42.0))
    muscle = torch.maximum(fascia, -torch.minimum(pad, fossa))
    muscle = torch.maximum(muscle, 1.2 - (x + 3.0 - 0.1 * y).abs())

    grain = torch.sin(0.21 * x + 0.13 * y + 1.0) * torch.sin(0.17 * z - 0.11 * y) * contrast.texture
    signal = torch.full_like(x, contrast.air)
    for distance, value in (
        (skin, contrast.fat),
        (muscle, contrast.muscle + grain),
        (tendon, contrast.cortex),
        (meniscus, contrast.meniscus),
        (patellar, contrast.cartilage),
        (tibial, contrast.cartilage),
        (femoral, contrast.cartilage),
        (torch.minimum(patella, torch.minimum(tibia, femur)), contrast.cortex),
        (torch.minimum(patella, torch.minimum(tibia, femur)) + CORTEX_MM, contrast.marrow + grain),
    ):
        signal += torch.sigmoid(distance / -EDGE_MM) * (value - signal)

    label = torch.zeros_like(x, dtype=torch.uint8)
    for value, distance in ((2, tibial), (1, femoral), (4, tibia), (3, femur)):
        label[distance < 0] = value
    return signal, label
