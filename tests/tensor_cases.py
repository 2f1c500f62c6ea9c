"""Tensors that the tests of maps, layers and losses share."""

import torch

from scripts.geometry import voxels_per_unit


def noise(*shape, seed=0, dtype=torch.float64):
    """Normal noise of a shape, drawn in double precision."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def scale(shape, dtype=torch.float64):
    """Voxels per unit, ``(1, 3, 1, 1, 1)``."""
    return voxels_per_unit(list(shape), dtype=dtype).view(1, 3, 1, 1, 1)
