"""Tensors that the tests of maps, layers and losses share."""

import torch

from scripts.geometry import voxels_per_unit
from scripts.losses import MultiKernelLNCC


def noise(*shape, seed=0, dtype=torch.float64):
    """Normal noise of a shape, drawn in double precision."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def scale(shape, dtype=torch.float64):
    """Voxels per unit, ``(1, 3, 1, 1, 1)``."""
    return voxels_per_unit(list(shape), dtype=dtype).view(1, 3, 1, 1, 1)


def local_correlation(x, y, window, stride=1, dilation=1, squared=False, eps=1e-5, mask=None):
    """Equation 2 with one window and so many voxels between its places, ``(B,)``."""
    how = {"stride": stride / window, "dilation": dilation, "squared": squared, "eps": eps}
    return 1 - MultiKernelLNCC((1.0,), (window,), **how)(x, y, mask)


def squared_error(moved, fixed, mask=None):
    """A similarity of one's own: the mean squared difference ``(B,)``, over the mask."""
    weight = torch.ones_like(fixed) if mask is None else mask.expand_as(fixed).to(fixed)
    return ((moved - fixed).square() * weight).flatten(1).sum(1) / weight.flatten(1).sum(1)
