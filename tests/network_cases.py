"""Images, and how far a map moves them, that the tests of networks share."""

import torch

from scripts.geometry import identity_map, voxels_per_unit

SHAPE = (13, 18, 16)


def images(batch=1, shape=SHAPE, seed=0):
    """Smooth blobs in [0, 1], ``(batch, 1, D, H, W)``."""
    centres = 0.35 * torch.randn(batch, 4, 3, 1, 1, 1, generator=torch.Generator().manual_seed(seed))
    squares = (identity_map(shape).unsqueeze(1) - centres).square().sum(dim=2)
    return torch.exp(-squares / 0.15).amax(dim=1, keepdim=True)


def assert_moves(map, voxels=0.3):
    displacement = (map - identity_map(list(map.shape[2:]))) * voxels_per_unit(list(map.shape[2:])).view(1, 3, 1, 1, 1)
    assert displacement.norm(dim=1).flatten(1).amax(1).min() > voxels


def assert_same_gradients(plain, saved):
    """Of a loss and its gradients; a bias before a normalisation has none but rounding: compare with the largest."""
    largest = max(value.abs().max().item() for value in plain)
    for one, other in zip(plain, saved, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-5 * largest)
