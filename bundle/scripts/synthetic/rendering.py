"""Images of tissues under strong domain randomisation: contrast, texture, and what a scanner does to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .fields import blur_matrix, separable, slice_matrices, smooth_noise
from .seeded import draw


@dataclass(frozen=True, eq=False)
class Contrast:
    """What each tissue looks like: `means` (K,), about 0 to 1, and `gains` (K, T) of each texture field in it.

    Tissue 0 is what surrounds the body, or background tissue.
    """

    means: Tensor
    gains: Tensor


@dataclass(frozen=True)
class Scanner:
    """Bounds of what is drawn for every scan; strengths are drawn from 0 to these.

    Attributes:
        bias: standard deviation of the log of the bias field.
        noise: standard deviation of the noise, as a part of the signal range.
        grain: standard deviation of smooth texture that no other scan shares.
        blur: standard deviation of a Gaussian along each axis, voxels.
        thickness: thickest slice, voxels; slices lie along one random axis.
        gamma: logarithm of the exponent, on either side of 0.
        cut: largest part of an axis that is missing at a face.
        thick_slices: probability of thick slices.
        rician: probability of Rician instead of Gaussian noise.
        empty_air: probability that air is exactly 0, as after masking, and not noisy.
        cut_view: probability that the field of view is cut at one to three faces.
    """

    bias: float = 0.35
    noise: float = 0.08
    grain: float = 0.05
    blur: float = 0.9
    thickness: float = 4.0
    gamma: float = 0.4
    cut: float = 0.15
    thick_slices: float = 0.35
    rician: float = 0.6
    empty_air: float = 0.5
    cut_view: float = 0.25


def draw_contrast(generator: torch.Generator, tissues: int, textures: int = 0, air: bool = True) -> Contrast:
    """A contrast of random means of K tissues, with T textures; `air`: tissue 0 is dark and without texture."""
    # One in each of K equal steps, so that some tissues always differ.
    ladder = torch.randperm(tissues, generator=generator) + torch.rand(tissues, generator=generator)
    means = ladder / tissues * 0.95 + 0.05
    gains = torch.randn(tissues, textures, generator=generator) * draw(generator, 0.0, 0.08)
    if air:
        means[0], gains[0] = 0.0, 0.0
    return Contrast(means, gains)


def change_contrast(
    generator: torch.Generator, contrast: Contrast, multimodal: bool, air: bool = True, jitter: float = 0.04
) -> Contrast:
    """The contrast of the second scan of a pair; `air`: tissue 0 stays dark.

    `multimodal`: new means, or in a quarter of the cases the inverse; else the same, each mean changed with a standard
    deviation of `jitter`.
    """
    tissues, textures = contrast.gains.shape
    if multimodal and draw(generator, 0, 1) > 0.25:
        return draw_contrast(generator, tissues, textures, air)
    means = 1 - contrast.means if multimodal else contrast.means
    gains = -contrast.gains if multimodal else contrast.gains
    means = (means + torch.randn(tissues, generator=generator) * jitter).clamp(0.02, 1)
    if air:
        means[0] = 0.0
    return Contrast(means, gains)


def tissue_signal(tissues: Tensor, contrast: Contrast, texture: Tensor) -> Tensor:
    """The signal (D, H, W), at least 0, of partial volumes (K, D, H, W) and textures (T, D, H, W)."""
    # The values are first in the product, so that no volume per tissue and texture is made.
    values = torch.cat([contrast.means[:, None], contrast.gains], dim=1)
    fields = (values.T @ tissues.flatten(1)).unflatten(1, tissues.shape[1:])
    return (fields[0] + (fields[1:] * texture).sum(0)).clamp(min=0)


def acquire(signal: Tensor, generator: torch.Generator, scanner: Scanner, air: Tensor | None = None) -> Tensor:
    """What a scanner makes of a signal (D, H, W), about 0 to 1: float32 in [0, 1].

    Grain and bias field, blur and thick slices, noise in the slices, interpolation, gamma, empty air, a cut field of
    view; then the 0.1th and 99.9th percentiles become 0 and 1. `air` is the part of air in each voxel, which empty air
    is taken from.
    """
    shape = signal.shape
    controls = [max(4, int(n / draw(generator, 2.5, 6.0))) for n in shape]
    grain = smooth_noise(generator, 1, controls, shape)[0] * draw(generator, 0, scanner.grain)
    if air is not None:
        grain = grain * (1 - air)
    log_bias = smooth_noise(generator, 1, int(torch.randint(4, 7, (), generator=generator)), shape)[0]
    image = (signal + grain).clamp_(min=0) * torch.exp(log_bias * draw(generator, 0, scanner.bias))

    down = [blur_matrix(n, draw(generator, 0, scanner.blur)) for n in shape]
    up = [torch.eye(n) for n in shape]
    if draw(generator, 0, 1) < scanner.thick_slices:
        axis = int(torch.randint(3, (), generator=generator))
        thick, up[axis] = slice_matrices(shape[axis], draw(generator, 1.5, scanner.thickness))
        down[axis] = thick @ down[axis]
    image = separable(image[None], down)[0]
    strength = draw(generator, 0, scanner.noise)
    noise = torch.randn((2, *image.shape), generator=generator) * strength
    if draw(generator, 0, 1) < scanner.rician:
        image = torch.sqrt((image + noise[0]) ** 2 + noise[1] ** 2)
    else:
        image = (image + noise[0]).clamp_(min=0)
    if image.shape != shape:
        image = separable(image[None], up)[0]
    image = _scaled(image) ** torch.exp(torch.tensor(draw(generator, -scanner.gamma, scanner.gamma)))
    if air is not None and draw(generator, 0, 1) < scanner.empty_air:
        image = image * (air < 0.5)
    if draw(generator, 0, 1) < scanner.cut_view:
        image = _cut(image, generator, scanner.cut)
    return _scaled(image)


def _scaled(image: Tensor, quantiles: Sequence[float] = (0.001, 0.999)) -> Tensor:
    """Percentiles brought to 0 and 1, clamped; a constant image becomes 0."""
    values = image.flatten()
    # A large image's percentile is that of every n-th voxel.
    values = values[:: max(1, values.numel() // 16_000)].sort().values
    low, high = (values[round(q * (len(values) - 1))] for q in quantiles)
    return ((image - low) / (high - low).clamp(min=1e-6)).clamp_(0, 1)


def _cut(image: Tensor, generator: torch.Generator, part: float) -> Tensor:
    """Zero beyond one to three random faces."""
    image = image.clone()
    faces = torch.randperm(6, generator=generator)[: int(torch.randint(1, 4, (), generator=generator))]
    for face in faces.tolist():
        axis, last = face // 2, face % 2
        count = int(draw(generator, 0.03, part) * image.shape[axis])
        image.narrow(axis, image.shape[axis] - count if last else 0, count).zero_()
    return image
