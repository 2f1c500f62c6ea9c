"""vSVF-opt: recovers known warps over both optimisers, starts from affine-opt, never folds, never worse, repeatable."""

import pytest
import torch

from scripts.geometry import affine_map, compose, count_folds, identity_affine, identity_map, warp
from scripts.layers import VSVF
from scripts.losses import MeanSquaredError, MultiKernelLNCC
from scripts.networks import AVSM
from scripts.optimize import AffineOptimiser, AffineResult, VSVFOptimiser, bare_network

SHAPE = [24, 28, 26]
NO_AFFINE = AffineOptimiser(scales=(1.0,), steps=(0,))
QUICK = {"affine_optimiser": NO_AFFINE, "scales": (0.5, 1.0), "iterations": (12, 8)}


def blobs(seed=0, count=1):
    """Smooth bumps all over the image, ``(count, 1, D, H, W)``."""
    generator = torch.Generator().manual_seed(seed)
    x = identity_map(SHAPE)
    image = torch.zeros(count, 1, *SHAPE)
    for _ in range(40):
        centre = 1.6 * torch.rand(count, 3, 1, 1, 1, generator=generator) - 0.8
        height = torch.rand(count, 1, 1, 1, 1, generator=generator)
        image = image + height * torch.exp(-((x - centre).square().sum(1, keepdim=True)) / (2 * 0.15**2))
    return image / image.amax(dim=(1, 2, 3, 4), keepdim=True)


def smooth_map(seed=0, voxels=2.0):
    """A diffeomorphism of up to ``voxels`` voxels, ``(1, 3, D, H, W)``."""
    unit = VSVF(stds=(0.12,), weights=(1.0,))
    momentum = torch.randn(1, 3, *SHAPE, generator=torch.Generator().manual_seed(seed))
    velocity = unit.smoother(momentum)
    return identity_map(SHAPE) + unit.advance(None, velocity * (2 * voxels / max(SHAPE) / velocity.abs().max()))


def noise(seed):
    return torch.rand(1, 1, *SHAPE, generator=torch.Generator().manual_seed(seed))


def optimise(moving, fixed, mask=None, moving_mask=None, **options):
    return VSVFOptimiser(**{**QUICK, **options})(bare_network(), moving, fixed, mask=mask, moving_mask=moving_mask)


@pytest.mark.parametrize(
    ("options", "part"),
    [({}, 0.25), ({"optimiser": "lbfgs"}, 0.3), ({"steps": 2}, 0.45)],
    ids=["adam", "L-BFGS", "two steps"],
)
def test_recovers_a_known_smooth_warp(options, part):
    moving, known = blobs(1), smooth_map(1)
    fixed = warp(moving, known)
    found = optimise(moving, fixed, scales=(0.5, 1.0), iterations=(40, 40), regularisation=1.0, **options)
    inner = (..., *(slice(4, -4) for _ in SHAPE))
    error, size = ((m - known)[inner].norm(dim=1).mean() for m in (found.registration.map, identity_map(SHAPE)))
    assert error < part * size
    assert found.after < 0.4 * found.before and found.folds == 0


def test_begins_with_the_affine_that_affine_opt_finds():
    moving = blobs(2)
    known = torch.tensor([[[1.05, 0.04, 0, 0.1], [0, 0.95, 0, -0.06], [0, 0, 1, 0.04]]])
    fixed = warp(moving, compose(affine_map(known, SHAPE), smooth_map(2, 1.0)))
    affine_optimiser = AffineOptimiser((0.5, 1.0), (60, 20))
    found = optimise(moving, fixed, affine_optimiser=affine_optimiser)
    expected = affine_optimiser(moving, fixed)
    torch.testing.assert_close(found.registration.affine, expected.affine, rtol=0, atol=0)
    assert found.affine.steps == expected.steps and found.after < found.before
    assert (found.registration.affine - known).abs().max() < (identity_affine(1) - known).abs().max()


def test_start_is_handed_to_affine_opt():
    start, seen = identity_affine(1) + 0.01, []

    def affine_optimiser(moving, fixed, affine, mask, moving_mask):
        seen.append(affine)
        return AffineResult(affine, torch.zeros(1), torch.zeros(1), [0])

    options = {**QUICK, "affine_optimiser": affine_optimiser, "iterations": (0, 0)}
    found = VSVFOptimiser(**options)(bare_network(), blobs(1), blobs(2), start)
    assert torch.equal(seen[0], start)
    torch.testing.assert_close(found.registration.map, affine_map(start, SHAPE), rtol=0, atol=1e-6)
    assert found.evaluations == [0, 0] and torch.equal(found.before, found.after)


@pytest.mark.parametrize("optimiser", ["adam", "lbfgs"])
def test_same_input_gives_the_same_bits(optimiser):
    moving, fixed = blobs(3), blobs(4)
    first, second = (optimise(moving, fixed, optimiser=optimiser).registration for _ in range(2))
    assert torch.equal(first.map, second.map) and torch.equal(first.momenta[0], second.momenta[0])


@pytest.mark.parametrize(("optimiser", "rate"), [("adam", 50.0), ("adam", 1e4), ("lbfgs", 1e6)])
def test_never_worse_than_the_affine_with_an_absurd_rate(optimiser, rate):
    moving, fixed = blobs(5), blobs(6)
    found = optimise(moving, fixed, optimiser=optimiser, rate=rate)
    assert found.after <= found.before and found.folds == 0
    torch.testing.assert_close(VSVFOptimiser().objective(found.registration, fixed), found.after)


@pytest.mark.parametrize("fold_weight", [0.0, 500.0])
@pytest.mark.parametrize("optimiser", ["adam", "lbfgs"])
def test_no_folds_between_images_of_noise(optimiser, fold_weight):
    """Without regularisation noise asks for any deformation."""
    options = {"regularisation": 0.0, "fold_weight": fold_weight, "patience": None, "iterations": (20, 20)}
    found = optimise(noise(1), noise(2), optimiser=optimiser, **options)
    assert found.after < found.before, "the search must get somewhere"
    assert found.folds == 0 and count_folds(found.registration.low_maps[-1])[0] == 0


def test_what_it_guards_against_is_there():
    """The images of the test above do make folds where nobody chooses among what was seen."""
    network, momentum = bare_network(), torch.zeros(1, 3, 12, 14, 13, requires_grad=True)
    optimiser = torch.optim.Adam([momentum], lr=0.02)
    similarity = MultiKernelLNCC((0.5, 0.5), (9, 21), dilation=1)
    for _ in range(60):
        found = network.integrate(noise(1), identity_affine(1), [momentum])
        optimiser.zero_grad()
        similarity(found.moved, noise(2)).backward()
        optimiser.step()
    assert count_folds(found.map.detach())[0] > 0


def test_objective_of_any_registration():
    """Of the result what was reported, of shorter momenta more, of none what the affine alone gives."""
    moving, fixed = torch.cat([blobs(1), blobs(2)]), torch.cat([blobs(2), blobs(3)])
    optimiser, network = VSVFOptimiser(**QUICK), bare_network()
    found = optimiser(network, moving, fixed)
    affine, momenta = found.affine.affine, found.registration.momenta
    half, none = (network.integrate(moving, affine, [length * m for m in momenta]) for length in (0.5, 0.0))
    torch.testing.assert_close(optimiser.objective(found.registration, fixed), found.after)
    assert bool((found.after < optimiser.objective(half, fixed)).all())
    torch.testing.assert_close(optimiser.objective(none, fixed), found.before)


def test_momenta_are_carried_from_scale_to_scale():
    moving, fixed = blobs(7), warp(blobs(7), smooth_map(7))
    found = optimise(moving, fixed, iterations=(30, 0), regularisation=1.0)
    assert found.after < 0.7 * found.before
    assert found.evaluations == [30, 0]
    assert list(found.registration.momenta[0].shape[2:]) == [12, 14, 13]


def test_pairs_of_a_batch_do_not_touch():
    moving, fixed = blobs(8, 2), blobs(9, 2)
    both = optimise(moving, fixed)
    for index in range(2):
        one = slice(index, index + 1)
        alone = optimise(moving[one], fixed[one])
        torch.testing.assert_close(both.registration.map[one], alone.registration.map, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(both.after[one], alone.after)


def test_masks_limit_the_similarity():
    """What lies outside of a mask may be anything."""
    moving = blobs(10)
    fixed = warp(moving, smooth_map(10))
    mask = torch.ones_like(fixed)
    mask[..., 18:] = 0
    spoiled = torch.where(mask > 0, fixed, noise(3))
    clean, dirty = (optimise(moving, image, mask).registration.map for image in (fixed, spoiled))
    seen = mask.expand_as(clean).clone()
    seen[..., 12:] = 0  # coarse voxels at the mask's edge see a little of either side
    assert ((clean - dirty) * seen).abs().max() < 0.2 * (clean - identity_map(SHAPE)).abs().max()
    free = optimise(moving, spoiled).registration.map
    assert ((clean - dirty) * seen).abs().mean() < 0.5 * ((clean - free) * seen).abs().mean()
    moving_mask = torch.zeros_like(moving)
    moving_mask[:, :, :12] = 1
    found = optimise(moving, fixed, moving_mask=moving_mask, similarity=MeanSquaredError(reduction="none"))
    objective = VSVFOptimiser(similarity=MeanSquaredError(reduction="none")).objective
    torch.testing.assert_close(objective(found.registration, fixed, moving_mask=moving_mask), found.after)


def test_a_similarity_for_each_scale():
    moving, fixed = blobs(11), blobs(12)
    seen = []

    def similarity(name):
        loss = MeanSquaredError(reduction="none")
        return lambda *images: (seen.append((name, list(images[0].shape[2:]))), loss(*images))[1]

    optimise(moving, fixed, similarity=[similarity("coarse"), similarity("fine")])
    assert dict(seen) == {"coarse": [12, 14, 13], "fine": SHAPE}


def test_works_with_any_network_and_leaves_it_alone():
    torch.manual_seed(0)
    network, moving, fixed = AVSM(), blobs(13), blobs(14)
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    found = VSVFOptimiser(**QUICK)(network, moving, fixed)
    assert found.after < found.before
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not list(bare_network().parameters())


def test_the_papers_integrator():
    moving, fixed = blobs(15), warp(blobs(15), smooth_map(15))
    network = bare_network((0.05, 0.1, 0.15, 0.2, 0.25), (0.067, 0.133, 0.2, 0.267, 0.333), "rk4")
    found = VSVFOptimiser(**QUICK)(network, moving, fixed)
    assert found.after < found.before and found.folds == 0


def test_stops_early_on_flat_images():
    flat = torch.zeros(1, 1, *SHAPE)
    for optimiser in ("adam", "lbfgs"):
        options = {"iterations": (30, 30), "patience": 3, "similarity": MeanSquaredError(reduction="none")}
        found = optimise(flat, flat, optimiser=optimiser, **options)
        assert max(found.evaluations) < 10


@pytest.mark.parametrize("shape", [(1, 1, 24, 28, 25), (2, 1, *SHAPE), (1, 2, *SHAPE), (24, 28, 26)])
def test_refuses_images_that_do_not_go_together(shape):
    with pytest.raises(ValueError, match="on one grid"):
        VSVFOptimiser(**QUICK)(bare_network(), torch.zeros(shape), blobs())
