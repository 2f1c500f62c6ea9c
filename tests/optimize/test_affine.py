"""affine-opt: finds known affines, never makes one worse, keeps pairs apart."""

import pytest
import torch

from scripts.geometry import affine_map, apply_affine, identity_affine, identity_map, warp
from scripts.losses import MeanSquaredError, NormalizedCrossCorrelation
from scripts.optimize import AffineOptimiser

SHAPE = [24, 28, 26]


def blobs(count=1, seed=0):
    """Smooth bumps inside [-0.6, 0.6]³, ``(count, 1, D, H, W)``."""
    generator = torch.Generator().manual_seed(seed)
    x = identity_map(SHAPE)
    image = torch.zeros(count, 1, *SHAPE)
    for _ in range(12):
        centre = 1.2 * torch.rand(count, 3, 1, 1, 1, generator=generator) - 0.6
        height = 0.3 + 0.7 * torch.rand(count, 1, 1, 1, 1, generator=generator)
        image = image + height * torch.exp(-((x - centre).square().sum(1, keepdim=True)) / (2 * 0.18**2))
    return image / image.amax(dim=(1, 2, 3, 4), keepdim=True)


KNOWN = {
    "shift": [[1, 0, 0, 0.15], [0, 1, 0, -0.1], [0, 0, 1, 0.08]],
    "turn": [[0.985, -0.17, 0, 0], [0.17, 0.985, 0, 0], [0, 0, 1, 0]],
    "stretch and shear": [[1.12, 0.05, 0, 0.02], [0, 0.9, 0.06, 0], [0, 0, 1.05, -0.03]],
}


@pytest.mark.parametrize("name", list(KNOWN))
@pytest.mark.parametrize("similarity", [None, MeanSquaredError(reduction="none")], ids=["mk-LNCC", "MSE"])
def test_finds_a_known_affine(name, similarity):
    moving = blobs(seed=1)
    known = torch.tensor([KNOWN[name]])
    fixed = warp(moving, affine_map(known, SHAPE))
    found = AffineOptimiser(similarity=similarity)(moving, fixed)
    points = 0.6 * identity_map([5, 5, 5])
    error = (apply_affine(found.affine, points) - apply_affine(known, points)).norm(dim=1)
    assert error.max() < 0.02  # a quarter of a voxel
    assert (found.after < found.before).all()


def test_pairs_of_a_batch_do_not_touch_each_other():
    moving = blobs(2, seed=2)
    affines = torch.tensor([KNOWN["shift"], KNOWN["turn"]])
    fixed = torch.cat([warp(moving[i : i + 1], affine_map(affines[i : i + 1], SHAPE)) for i in range(2)])
    # No early stop, which looks at the mean over the batch.
    optimiser = AffineOptimiser(scales=(0.5,), steps=(20,), patience=1000)
    both = optimiser(moving, fixed)
    for i in range(2):
        one = optimiser(moving[i : i + 1], fixed[i : i + 1])
        torch.testing.assert_close(both.affine[i : i + 1], one.affine, rtol=0, atol=1e-4)


def test_never_worse_than_the_start():
    moving = blobs(seed=3)
    known = torch.tensor([KNOWN["turn"]])
    fixed = warp(moving, affine_map(known, SHAPE))
    # A rate at which every step overshoots.
    found = AffineOptimiser(scales=(1.0,), steps=(3,), rate=2.0)(moving, fixed, affine=known)
    torch.testing.assert_close(found.affine, known)
    assert (found.after <= found.before).all()


def test_mask_leaves_out_what_it_leaves_out():
    moving = blobs(seed=4)
    known = torch.tensor([KNOWN["shift"]])
    fixed = warp(moving, affine_map(known, SHAPE))
    spoiled, mask = fixed.clone(), torch.ones_like(fixed)
    spoiled[..., 16:] = 1.0
    mask[..., 16:] = 0.0
    similarity = NormalizedCrossCorrelation(reduction="none")
    with_mask = AffineOptimiser(similarity=similarity)(moving, spoiled, mask=mask).affine
    without = AffineOptimiser(similarity=similarity)(moving, spoiled).affine
    assert (with_mask - known).abs().max() < 0.05 < (without - known).abs().max()


def test_moving_mask_follows_the_map():
    moving = blobs(seed=5)
    known = torch.tensor([KNOWN["shift"]])
    fixed = warp(moving, affine_map(known, SHAPE))
    spoiled, mask = moving.clone(), torch.ones_like(moving)
    spoiled[:, :, :5] = 1.0
    mask[:, :, :6] = 0.0
    optimiser = AffineOptimiser((1.0,), (60,), NormalizedCrossCorrelation(reduction="none"))
    start = known + 0.02
    with_mask = optimiser(spoiled, fixed, start, moving_mask=mask).affine
    without = optimiser(spoiled, fixed, start).affine
    assert (with_mask - known).abs().max() < 0.02 < (without - known).abs().max()


def test_no_steps_leave_the_start():
    moving = blobs()
    found = AffineOptimiser(scales=(1.0,), steps=(0,))(moving, moving)
    torch.testing.assert_close(found.affine, identity_affine(1))
    assert found.steps == [0]


def test_sgd_the_papers_optimiser():
    moving = blobs(seed=6)
    known = torch.tensor([KNOWN["shift"]])
    fixed = warp(moving, affine_map(known, SHAPE))
    found = AffineOptimiser(optimiser="sgd", rate=0.05, similarity=MeanSquaredError(reduction="none"))(moving, fixed)
    assert (found.after < 0.2 * found.before).all()


def test_objective_is_similarity_and_equation_4():
    moving, fixed, affine = blobs(seed=7), blobs(seed=8), torch.tensor([KNOWN["stretch and shear"]])
    optimiser = AffineOptimiser((1.0,), (0,), MeanSquaredError(reduction="none"), regularisation=2.0)
    expected = (warp(moving, affine_map(affine, SHAPE)) - fixed).square().mean()
    expected = expected + 2.0 * (affine - identity_affine(1)).square().sum()
    torch.testing.assert_close(optimiser(moving, fixed, affine).before, expected[None])
