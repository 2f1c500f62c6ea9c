"""The engine: derivatives against automatic ones, known warps and affines, no folds, monotone, any thread count."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from scripts.errors import InputError
from scripts.geometry import (
    affine_map,
    apply_affine,
    identity_affine,
    identity_map,
    resize_map,
    smallest_jacobian_determinant,
    warp,
)
from scripts.layers import VSVF
from scripts.losses import AnySimilarity, BoxCorrelation, MultiKernelLNCC
from scripts.networks import AVSM
from scripts.networks.momentum_net import half_shape
from scripts.optimize import OPTIMISERS, PRESETS, AffineEngine, EngineSettings, RegistrationEngine
from scripts.optimize.affine_engine import strain
from scripts.optimize.engine import _Level, _Newton, fold_penalty_derivative
from tensor_cases import squared_error

SHAPE = [26, 30, 27]
INNER = (..., *(slice(4, -4) for _ in SHAPE))


def blobs(seed=0):
    """Smooth bumps all over the image, ``(1, 1, D, H, W)``."""
    generator = torch.Generator().manual_seed(seed)
    x, image = identity_map(SHAPE), torch.zeros(1, 1, *SHAPE)
    for _ in range(60):
        centre = 2 * torch.rand(1, 3, 1, 1, 1, generator=generator) - 1
        height = torch.rand(1, 1, 1, 1, 1, generator=generator)
        image = image + height * torch.exp(-((x - centre).square().sum(1, keepdim=True)) / (2 * 0.15**2))
    return image / image.max()


def noise(seed):
    return torch.rand(1, 1, *SHAPE, generator=torch.Generator().manual_seed(seed))


def smooth_map(seed=0, voxels=2.0):
    """A diffeomorphism of up to ``voxels`` voxels, ``(1, 3, D, H, W)``."""
    unit = VSVF(stds=(0.12,), weights=(1.0,))
    velocity = unit.smoother(torch.randn(1, 3, *SHAPE, generator=torch.Generator().manual_seed(seed)))
    return identity_map(SHAPE) + unit.advance(None, velocity * (2 * voxels / max(SHAPE) / velocity.abs().max()))


def full_map(result):
    low = identity_map(list(result.displacement.shape[2:])) + result.displacement
    return torch.nn.functional.interpolate(
        apply_affine(result.affine, low), size=SHAPE, mode="trilinear", align_corners=True
    )


def level(moving, fixed, before=None, **changes):
    of = _Level(RegistrationEngine(**changes), moving, fixed)
    of.begin(identity_affine(1), before)
    return of


def error_of(result, known):
    """The mean error of a result's map inside the image, as part of that of the identity."""
    error, size = ((m - known)[INNER].norm(dim=1).mean() for m in (full_map(result), identity_map(SHAPE)))
    return float(error / size)


# Images without noise bear less of both.
CLEAN = {"regularisation": 1.65, "eps": 1e-4}
OWN = [
    {"similarity": MultiKernelLNCC((0.5, 0.5), (5, 9), dilation=1)},
    # Squared differences are small numbers.
    {"similarity": squared_error, "regularisation": 0.02, "tolerance": 1e-7, "fold_weight": 0.05},
]
SEARCHES = [
    *((preset, {}) for preset in sorted(set(PRESETS) - {"affine-opt"})),
    *(("default", {"optimiser": optimiser, "one_step": False}) for optimiser in OPTIMISERS),
    ("default", {"edges": 0.0}),
    *(("vsvf-opt", {"optimiser": optimiser}) for optimiser in ("newton", "sgd")),
    *(("default", {**own, "optimiser": optimiser}) for own in OWN for optimiser in ("newton", "lbfgs")),
]


@pytest.mark.parametrize(("preset", "changes"), SEARCHES)
@pytest.mark.parametrize("seed", [1, 2])
def test_recovers_a_known_smooth_warp(preset, changes, seed):
    moving, known = blobs(seed), smooth_map(seed)
    result = RegistrationEngine(preset, **(CLEAN | changes))(moving, warp(moving, known))
    # Few steps, and those of SGD, come less far.
    assert error_of(result, known) < (0.5 if preset == "fast" or changes.get("optimiser") == "sgd" else 0.4)
    assert result.after < 0.5 * result.before and len(result.momenta) == (1 if changes.get("one_step", True) else 3)


def test_optimisers_find_the_same():
    moving, known = blobs(1), smooth_map(1)
    changes = {"iterations": (80, 80, 80), "tolerance": 0.0, **CLEAN}
    found = [RegistrationEngine(optimiser=name, **changes)(moving, warp(moving, known)) for name in OPTIMISERS]
    values = torch.cat([one.after for one in found])
    assert values.max() < 1.1 * values.min() < 0.35 * found[0].before
    size = (known - identity_map(SHAPE))[INNER].norm(dim=1).mean()
    for one in found[1:]:
        assert (full_map(one) - full_map(found[0]))[INNER].norm(dim=1).mean() < 0.25 * size


def a_start(known, share, seed=0):
    """A network's result: the known map's displacement, of which it has found a share, and a step that says so."""
    displacement = share * resize_map(known - identity_map(SHAPE), half_shape(SHAPE))
    return AVSM(nn.Identity(), nn.Identity(), VSVF(), 0, 0).composed(
        blobs(seed), identity_affine(1), displacement, [0.01 * displacement], [-displacement]
    )


@pytest.mark.parametrize("preset", ["instance", "vsvf-opt"])
def test_goes_on_from_a_start(preset):
    moving, known = blobs(1), smooth_map(1)
    fixed, start, engine = warp(moving, known), a_start(known, 0.6), RegistrationEngine(preset, **CLEAN)
    far = identity_affine(1)
    far[0, 0, 3] = 0.1
    result = engine(moving, fixed, far, start=start)
    assert torch.equal(result.affine, start.affine)
    assert torch.equal(result.momenta[0], start.momenta[0]) and torch.equal(result.velocities[0], start.velocities[0])
    assert len(result.momenta) == 2
    alone = engine(moving, fixed)
    assert result.before < alone.before and result.after < result.before
    assert error_of(result, known) < error_of(alone, known)
    # With nothing to find the start comes back as it is.
    kept = engine(moving, moving, start=a_start(identity_map(SHAPE), 0.0))
    assert kept.displacement.abs().max() < 1e-3


def test_of_each_pair_the_better_of_affine_and_start_goes_on():
    moving, known = blobs(1), smooth_map(1)
    good, bad = a_start(known, 0.6), a_start(known, -1.0)
    names = ("affine", "displacement")
    both = SimpleNamespace(**{name: torch.cat([getattr(good, name), getattr(bad, name)]) for name in names})
    both.momenta, both.velocities = (
        [torch.cat([getattr(one, name)[0] for one in (good, bad)])] for name in ("momenta", "velocities")
    )
    pair = torch.cat([moving, moving]), torch.cat([warp(moving, known)] * 2)
    result = RegistrationEngine("fast")(*pair, identity_affine(2), start=both)
    alone = RegistrationEngine("fast")(*(one[1:] for one in pair))
    assert torch.equal(result.displacement[1:], alone.displacement)
    assert result.momenta[0][0].abs().max() > 0 and result.momenta[0][1].abs().max() == 0
    assert (result.after < result.before).all() and result.before[0] < result.before[1]


def test_a_start_that_folds_is_left():
    moving, known = blobs(1), smooth_map(1)
    start = a_start(known, 0.6)
    start.displacement[..., 6:8, 6:8, 6:8] += 0.5
    result = RegistrationEngine("fast")(moving, warp(moving, known), start=start)
    assert result.momenta[0].abs().max() == 0 and smallest_jacobian_determinant(full_map(result)).min() > 0


def test_without_steps_the_start_or_the_affine_comes_back():
    moving, known = blobs(1), smooth_map(1)
    fixed, start = warp(moving, known), a_start(known, 0.6)
    for iterations in ((), (0, 0)):
        result = RegistrationEngine(iterations=iterations)(moving, fixed, start=start)
        torch.testing.assert_close(result.displacement, start.displacement)
        assert result.after == result.before
    result = RegistrationEngine("affine-opt")(moving, fixed)
    assert result.displacement.abs().max() == 0 and result.momenta == [] and result.evaluations == []


def test_tells_of_each_level():
    told = []
    moving = torch.cat([blobs(1), blobs(2)])
    RegistrationEngine("fast")(moving, moving.flip(0), progress=lambda *of: told.append(of))
    levels, parts = [level for level, _, _ in told], [part for _, _, part in told]
    assert set(levels) == {1, 2, 3} and {count for _, count, _ in told} == {3}
    assert parts == sorted(parts) and 0 < parts[0] < 0.5 < parts[-1] <= 1


def test_goes_on_from_the_affine_and_keeps_it():
    moving = blobs(3)
    affine = identity_affine(1)
    affine[0, 0, 3], affine[0, 1, 1] = 0.1, 0.9
    result = RegistrationEngine(regularisation=13.0)(moving, warp(moving, affine_map(affine, SHAPE)), affine)
    assert torch.equal(result.affine, affine)
    # Beyond the moving image there is nothing, so the faces need not fit.
    assert (full_map(result) - affine_map(affine, SHAPE))[INNER].abs().max() < 0.02


@pytest.mark.parametrize("radii", [(1,), (2, 4)])
def test_slope_is_that_of_the_objective(radii):
    # Nothing at the faces, where what comes in from outside is no difference of the image's own voxels.
    window = torch.exp(-identity_map(SHAPE).square().sum(1, keepdim=True) / (2 * 0.3**2))
    moving, fixed = blobs(4) * window, blobs(5) * window
    of = level(moving, fixed, radii=radii, fold_weight=0.0)
    zero = torch.zeros(1, 3, *of.low)
    state, _ = of.evaluate(zero, zero)
    slope, curvature = of.slope(state)
    direction = of.smooth(torch.randn(zero.shape, generator=torch.Generator().manual_seed(0)))
    direction = direction * (0.02 / direction.abs().max())
    values = [of.evaluate(zero, length * direction)[0].objective for length in (0.5, -0.5)]
    expected = (slope * direction).sum().item()
    assert values[0] - values[1] == pytest.approx(expected, rel=0.05)
    a, b, c, ab, ac, bc = curvature[0].flatten(1)
    matrices = torch.stack([a, ab, ac, ab, b, bc, ac, bc, c], dim=1).view(-1, 3, 3)
    assert torch.linalg.eigvalsh(matrices.double()).min() > -1e-6 * matrices.abs().max()


def test_the_penalty_on_folds_has_its_derivative():
    coordinates = identity_map(SHAPE) + 0.05 * torch.randn(1, 3, *SHAPE, generator=torch.Generator().manual_seed(1))
    coordinates = coordinates.double().requires_grad_()
    (0.3 - smallest_jacobian_determinant(coordinates)).clamp(min=0).square().mean().backward()
    found = fold_penalty_derivative(coordinates.detach(), 0.3)
    assert coordinates.grad.abs().max() > 0
    torch.testing.assert_close(found, coordinates.grad, rtol=1e-9, atol=1e-12)


def test_each_direction_descends_and_each_step_lowers_the_objective():
    moving, fixed = noise(1), noise(2)
    of = level(moving, fixed, krylov=4)
    state, values, _ = of.search(8, of.begin(identity_affine(1)))
    assert len(values) > 2 and values == sorted(values, reverse=True)
    momentum, velocity = _Newton(of)(state)
    slope = of.slope(state)[0] + of.stiffness * state.momentum
    assert (slope * velocity).sum() < 0
    torch.testing.assert_close(of.smooth(momentum), velocity, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("seed", [0, 1])
def test_images_that_do_not_belong_together_do_not_fold_the_map(seed):
    result = RegistrationEngine(regularisation=0.1, fold_weight=0.0, reach=10.0)(noise(seed), noise(seed + 10))
    floor = EngineSettings().fold_floor
    coarse = identity_map(list(result.displacement.shape[2:])) + result.displacement
    assert smallest_jacobian_determinant(coarse).min() > floor
    assert smallest_jacobian_determinant(full_map(result)).min() > 0 and result.after <= result.before


def test_regularity_grows_with_the_voxels_along_an_axis():
    engine = RegistrationEngine()
    small, large = (engine.scaled([n, n, n]).settings.regularisation for n in (45, 90))
    assert small == pytest.approx(engine.settings.regularisation) and large == pytest.approx(2 * small)


def test_equal_images_and_no_iterations_give_the_identity():
    moving = blobs(6)
    for result in (RegistrationEngine()(moving, moving), RegistrationEngine(iterations=(0, 0))(moving, blobs(7))):
        assert result.displacement.abs().max() < 1e-3 and result.after <= result.before


def test_pairs_of_a_batch_do_not_touch_each_other():
    moving, fixed = torch.cat([blobs(1), blobs(2)]), torch.cat([blobs(3), blobs(4)])
    both = RegistrationEngine("fast")(moving, fixed)
    alone = RegistrationEngine("fast")(moving[1:], fixed[1:])
    assert torch.equal(both.displacement[1:], alone.displacement) and [m.shape[0] for m in both.momenta] == [2]


def test_masks_hide_what_they_cover():
    moving, known = blobs(8), smooth_map(8)
    fixed, mask = warp(moving, known), torch.ones(1, 1, *SHAPE)
    mask[:, :, :10] = 0
    spoilt = torch.where(mask > 0, fixed, noise(3))
    seen = (..., slice(12, -4), slice(4, -4), slice(4, -4))
    engine = RegistrationEngine(**CLEAN)
    hidden, shown = (
        (full_map(engine(moving, spoilt, mask=one)) - known)[seen].norm(dim=1).mean() for one in (mask, None)
    )
    # Not nothing: on coarse levels voxels at the mask's edge hold some of what it hides.
    assert hidden < 0.5 * shown and hidden < (identity_map(SHAPE) - known)[seen].norm(dim=1).mean()


def test_a_moving_mask_of_ones_changes_only_what_lies_outside():
    moving, known = blobs(8), smooth_map(8)
    result = RegistrationEngine("fast")(moving, warp(moving, known), moving_mask=torch.ones(1, 1, *SHAPE))
    assert result.after < 0.5 * result.before


@pytest.mark.parametrize("kind", ["deformable", "affine"])
def test_the_same_for_any_number_of_threads(kind):
    moving, fixed = (torch.nn.functional.interpolate(blobs(n), scale_factor=2.2, mode="trilinear") for n in (1, 2))
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            if kind == "affine":
                found.append(AffineEngine()(moving, fixed).affine)
            else:
                found.append(RegistrationEngine("fast")(moving, fixed).displacement)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize(("preset", "changes", "message"), [
    ("slow", {}, "preset='slow'; give one of fast, default, best, affine-opt"),
    ("default", {"krylov": 0}, "krylov=0; give a number above 0"),
    ("default", {"fold_weight": -1.0}, "fold_weight=-1.0; give a number from 0 on"),
    ("default", {"iterations": (3, -1)}, r"iterations=\(3, -1\); give a number from 0 on for each level"),
    ("default", {"optimiser": "adam"}, "optimiser='adam'; give one of newton, lbfgs, sgd"),
    ("default", {"sgd_momentum": 1.0}, "sgd_momentum=1.0; give a number below 1"),
])  # fmt: skip
def test_refuses_bad_settings(preset, changes, message):
    with pytest.raises(ValueError, match=message):
        RegistrationEngine(preset, **changes)


def test_refuses_other_shapes():
    with pytest.raises(ValueError, match="must both be"):
        RegistrationEngine()(blobs(), blobs()[..., 1:])


AFFINES = {
    "shift": [[1, 0, 0, 0.2], [0, 1, 0, -0.15], [0, 0, 1, 0.1]],
    "scales": [[0.8, 0, 0, 0], [0, 1.2, 0, 0], [0, 0, 0.9, 0.1]],
    "turn of 40 degrees": [[0.766, -0.643, 0, 0], [0.643, 0.766, 0, 0], [0, 0, 1, 0]],
}


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("name", sorted(AFFINES))
def test_finds_an_affine(name, optimiser):
    known = torch.tensor(AFFINES[name], dtype=torch.float32)[None]
    centre = torch.exp(-identity_map(SHAPE).square().sum(1, keepdim=True) / (2 * 0.4**2))
    moving = blobs(9) * centre
    engine = AffineEngine(regularisation=0.0, optimiser=optimiser, iterations=(60, 30), last=0)
    result = engine(moving, warp(moving, affine_map(known, SHAPE)))
    assert (affine_map(result.affine, SHAPE) - affine_map(known, SHAPE))[INNER].norm(dim=1).mean() < 0.03
    assert result.after < 0.2 * result.before


def test_the_affine_s_regularity_leaves_people_of_different_size():
    known = torch.tensor(AFFINES["scales"])[None]
    moving = blobs(9) * torch.exp(-identity_map(SHAPE).square().sum(1, keepdim=True) / (2 * 0.4**2))
    found = AffineEngine()(moving, warp(moving, affine_map(known, SHAPE))).affine
    assert (affine_map(found, SHAPE) - affine_map(known, SHAPE))[INNER].norm(dim=1).mean() < 0.04


def test_the_strain_of_affines_and_its_derivatives():
    """A turn in mm and a shift cost nothing; the Gauss-Newton matrix is twice the squared derivative of the strain."""
    extent, generator = torch.tensor([12.0, 18.0, 15.0]).double(), torch.Generator().manual_seed(0)
    affines = (identity_affine(2).double() + 0.2 * torch.randn(2, 3, 4, generator=generator)).requires_grad_()
    value, slope, _ = strain(affines, extent)
    linear = (affines[0, :, :3] * extent[:, None] / extent).detach()
    assert value[0].item() == pytest.approx(((linear.T @ linear - torch.eye(3)) / 2).square().sum().item())
    (expected,) = torch.autograd.grad(value.sum(), affines)
    torch.testing.assert_close(slope, expected.flatten(1))
    turn = torch.matrix_exp(torch.tensor([[0.0, 0.3, -0.2], [-0.3, 0.0, 0.5], [0.2, -0.5, 0.0]]).double())
    turned = torch.cat([turn * extent / extent[:, None], torch.ones(3, 1).double()], dim=1)[None]
    assert strain(turned, extent)[0].item() < 1e-12
    (exact,) = torch.autograd.functional.hessian(lambda one: strain(one, extent)[0].sum(), turned).view(1, 12, 12)
    torch.testing.assert_close(strain(turned, extent)[2][0], exact)


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_the_affine_is_never_worse_than_its_start(optimiser):
    start = identity_affine(1)
    start[0, 0, 3] = 0.1
    result = AffineEngine(optimiser=optimiser)(noise(4), noise(5), start)
    assert result.after <= result.before
    moving = torch.cat([blobs(1), blobs(2)])
    both, alone = AffineEngine()(moving, moving.flip(0)), AffineEngine()(moving[1:], moving[:1])
    torch.testing.assert_close(both.affine[1:], alone.affine)


@pytest.mark.parametrize(("changes", "message"), [
    ({"halvings": (1,), "iterations": (1, 2)}, "give as many of each"),
    ({"optimiser": "adam"}, "optimiser='adam'; give one of newton, lbfgs, sgd"),
])  # fmt: skip
def test_the_affine_refuses_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        AffineEngine(**changes)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_turns_that_are_tried_are_turns_in_space(axis):
    spacing, angle = (1.0, 1.6, 2.7), 0.3
    half = torch.tensor([(n - 1) / 2 * mm for n, mm in zip(SHAPE, spacing, strict=True)])
    a, b = (axis + 1) % 3, (axis + 2) % 3
    turn = torch.eye(3)
    turn[a, a] = turn[b, b] = math.cos(angle)
    turn[a, b], turn[b, a] = -math.sin(angle), math.sin(angle)
    known = torch.cat([turn * half[None, :] / half[:, None], torch.zeros(3, 1)], dim=1)[None]
    moving = blobs()
    fixed = warp(moving, affine_map(known, SHAPE))
    angles = (math.degrees(angle),)
    engine = AffineEngine(halvings=(0,), iterations=(0,), windows=(0.2,), angles=angles, regularisation=0.0)
    assert torch.allclose(engine(moving, fixed, spacing=spacing).affine, known, atol=1e-5)


def test_blocks_of_rows_change_nothing(monkeypatch):
    mask = (identity_map(SHAPE)[:, :1] < 0.3).float()
    results = []
    for block in (2**18, 1):
        monkeypatch.setattr("scripts.losses.similarity._BLOCK", block)
        results.append(RegistrationEngine("fast", radii=(1, 2))(blobs(1), blobs(0), None, mask, mask))
    assert results[0].after < 0.9 * results[0].before
    torch.testing.assert_close(results[1].displacement, results[0].displacement, rtol=0, atol=1e-4)
    torch.testing.assert_close(results[1].after, results[0].after, rtol=1e-4, atol=0)


@pytest.mark.parametrize("masked", [False, True])
def test_any_similarity_has_the_derivative_that_is_known(masked):
    fixed, moved = blobs(0), blobs(1)
    mask = (identity_map(SHAPE)[:, :1] < 0.3).float() if masked else None

    def similarity(moved, fixed, mask):
        of = BoxCorrelation(fixed, mask)
        return of.loss(of.moments(moved))

    known, any_one = BoxCorrelation(fixed, mask), AnySimilarity(similarity, fixed, mask)
    expected, _ = known.derivative(moved, known.moments(moved))
    found, curvature = any_one.derivative(moved, any_one.moments(moved))
    assert (found - expected).abs().max() < 1e-3 * expected.abs().max()
    assert (curvature >= 0).all() and curvature.max() > 0


@pytest.mark.parametrize("wrong", [torch.mean, torch.square])
def test_a_similarity_gives_one_loss_for_each_pair(wrong):
    any_one = AnySimilarity(lambda moved, fixed, mask: wrong(moved - fixed), blobs(0))
    with pytest.raises(InputError, match=r"give one loss for each, \(B,\)"):
        any_one.loss(blobs(1))


def test_the_curvature_of_squared_differences_is_exact():
    fixed, moved = blobs(0), blobs(1)
    _, curvature = AnySimilarity(squared_error, fixed).derivative(moved, moved)
    assert torch.allclose(curvature, torch.full_like(moved, 2 / moved.numel()), rtol=1e-3)
