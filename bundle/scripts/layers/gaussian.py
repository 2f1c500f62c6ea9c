"""Multi-Gaussian smoothing: the operator (L†L)⁻¹ of Equations 8 and 9, v = (L†L)⁻¹ m.

The smoother is the sum of heat kernels with reflecting faces, diagonal in the cosine basis (DCT-II). This is the choice
under which all four hold: nothing leaks to the opposite face as in a periodic FFT; the operator is symmetric and
positive, so ⟨m, v⟩ is a norm; constants pass unchanged; its cost does not depend on the widths. The basis change is six
small matrix products.
"""

from __future__ import annotations

import math
from typing import List, Optional, Sequence

import torch
from torch import Tensor, nn

PAPER_STDS = (0.05, 0.1, 0.15, 0.2, 0.25)
PAPER_WEIGHTS = (0.067, 0.133, 0.2, 0.267, 0.333)


def cosine_basis(size: int, device: Optional[torch.device] = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Orthonormal DCT-II matrix ``(size, size)``: row k is the k-th cosine sampled at the voxels."""
    voxel = torch.arange(size, device=device, dtype=torch.float64) + 0.5
    order = torch.arange(size, device=device, dtype=torch.float64).unsqueeze(1)
    basis = torch.cos(order * voxel * (math.pi / size)) * math.sqrt(2.0 / size)
    basis[0] = math.sqrt(1.0 / size)
    return basis.to(dtype)


def multi_gaussian_transfer(shape: List[int], stds: Tensor, weights: Tensor) -> Tensor:
    """Transfer function Σᵢ wᵢ exp(-|σᵢ ω|² / 2) over the cosine orders of a grid.

    Args:
        shape: grid ``(D, H, W)``.
        stds: ``(G, 3)`` standard deviations along D, H, W as parts of the image's extent (the paper's [0, 1] units).
        weights: ``(G,)`` weights.

    Returns:
        ``(D, H, W)``, 1 at the constant when the weights sum to 1.
    """
    factors: List[Tensor] = []
    for axis in range(3):
        size = shape[axis]
        omega = torch.arange(size, device=stds.device, dtype=stds.dtype) * (math.pi / size)
        voxels = stds[:, axis] * float(size - 1)
        factors.append(torch.exp(-0.5 * (voxels.unsqueeze(1) * omega.unsqueeze(0)) ** 2))
    return torch.einsum("g,gd,gh,gw->dhw", weights, factors[0], factors[1], factors[2])


def _smooth(field: Tensor, stds: Tensor, weights: Tensor) -> Tensor:
    size_d, size_h, size_w = field.shape[2:]
    basis_d = cosine_basis(size_d, field.device, field.dtype)
    basis_h = cosine_basis(size_h, field.device, field.dtype)
    basis_w = cosine_basis(size_w, field.device, field.dtype)
    transfer = multi_gaussian_transfer([size_d, size_h, size_w], stds.to(field.dtype), weights.to(field.dtype))
    batch = field.shape[0] * field.shape[1]
    spectrum = torch.matmul(basis_h, torch.matmul(field, basis_w.t()))
    spectrum = torch.matmul(basis_d, spectrum.reshape(batch, size_d, size_h * size_w))
    spectrum = spectrum.view(batch, size_d, size_h, size_w) * transfer
    smooth = torch.matmul(basis_d.t(), spectrum.view(batch, size_d, size_h * size_w))
    smooth = torch.matmul(basis_h.t(), torch.matmul(smooth.view(batch, size_d, size_h, size_w), basis_w))
    return smooth.view(field.shape)


def multi_gaussian_smooth(field: Tensor, stds: Tensor, weights: Tensor) -> Tensor:
    """Smooth a field ``(B, C, D, H, W)`` with a weighted sum of normalised Gaussians, faces reflecting.

    ``stds`` and ``weights`` are as of `multi_gaussian_transfer`; it runs in float32 at least.
    """
    if field.dtype != torch.float64:
        field = field.float()
    if torch.jit.is_scripting():
        return _smooth(field, stds, weights)
    else:
        # Matrix products of a smoothing of up to six orders of magnitude do not survive half precision.
        with torch.autocast(device_type=field.device.type, enabled=False):
            return _smooth(field, stds, weights)


class MultiGaussianSmoother(nn.Module):
    """(L†L)⁻¹ as a multi-Gaussian kernel; see `multi_gaussian_smooth`.

    Args:
        stds: standard deviations in units where the image is [0, 1]³ (the paper: 0.05 to 0.25). Each is a number, for
            the same part of every axis, or three numbers for D, H, W.
        weights: one weight a Gaussian; they must be positive and sum to 1 (to 2e-3, as the paper's rounded weights do)
            and are normalised exactly.

    Raises:
        ValueError: when numbers of stds and weights differ, or a value is not positive, or weights do not sum to 1.
    """

    def __init__(
        self,
        stds: Sequence[float | Sequence[float]] = PAPER_STDS,
        weights: Sequence[float] = PAPER_WEIGHTS,
    ) -> None:
        super().__init__()
        if len(stds) == 0 or len(stds) != len(weights):
            raise ValueError(f"smoother: {len(stds)} stds but {len(weights)} weights; give one weight for each std.")
        triples = [[s] * 3 if isinstance(s, (int, float)) else list(s) for s in stds]
        if any(len(t) != 3 or not all(0 < s < math.inf for s in t) for t in triples):
            raise ValueError(f"smoother: stds must be positive, one or three numbers each, got {list(stds)}.")
        table = torch.tensor(triples, dtype=torch.float64)
        total = math.fsum(weights)
        # Written so that NaN fails it too.
        if not (min(weights) > 0 and abs(total - 1) <= 2e-3):
            raise ValueError(f"smoother: weights must be positive and sum to 1, got {list(weights)}.")
        # Kept in checkpoints: a momentum means nothing without the kernel that it was trained with.
        self.register_buffer("stds", table.float())
        self.register_buffer("weights", (torch.tensor(list(weights)) / total).float())

    def forward(self, momentum: Tensor) -> Tensor:
        """Velocity v = (L†L)⁻¹ m of a momentum ``(B, 3, D, H, W)``, same shape and units."""
        return multi_gaussian_smooth(momentum, self.stds, self.weights)
