"""What the engines compare by: derivatives against differences, values against other tools."""

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from scripts.losses import COMPARISONS, Correlation, comparison_of, self_similarity

NAMES = ["lncc", *COMPARISONS]


def volumes(count, shape=(9, 8, 10), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(1, 1, *shape, dtype=torch.float64, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("block", [1, 2**18])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_value_and_derivative(name, masked, block, monkeypatch):
    monkeypatch.setattr("scripts.losses.similarity._BLOCK", block)
    moving, fixed, mask = volumes(3)
    comparison = comparison_of(name, Correlation(radii=(1,)))
    moving, fixed = comparison.channels(moving), comparison.channels(fixed)
    seen, compared = comparison.on(moving, fixed, mask if masked else None)
    both = torch.cat([seen, comparison.on(fixed, fixed, None)[0]])
    loss = compared.loss(compared.moments(both))
    derivative, curvature = compared.derivative(both, compared.moments(both))
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        way = 1e-6 * torch.randn(both.shape, dtype=both.dtype, generator=generator)
        ahead, behind = (compared.loss(compared.moments(both + sign * way)) for sign in (1, -1))
        torch.testing.assert_close((derivative * way).flatten(1).sum(1), (ahead - behind) / 2, rtol=2e-3, atol=1e-11)
    assert (curvature.expand_as(both) >= 0).all() and curvature.max() > 0
    # Nothing is lost to the width of bins alone.
    assert loss[0] > 0.3 and loss[1] < (0.3 if name == "nmi" else 1e-2)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_mask_leaves_out_does_not_matter(name):
    moving, fixed, other = volumes(3)
    mask = torch.zeros_like(fixed)
    mask[..., 2:-2, 2:-2, 2:-2] = 1
    comparison = comparison_of(name, Correlation(radii=(1,), edges=0.0))
    seen, compared = comparison.on(moving, fixed, mask)
    changed = torch.where(mask > 0, seen, other.expand_as(seen))
    losses = [compared.loss(compared.moments(one)).item() for one in (seen, changed)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-9)
    assert (compared.derivative(changed, compared.moments(changed))[0][(mask == 0).expand_as(seen)] == 0).all()


def test_mutual_information_is_that_of_another_tool():
    bins, generator = 24, np.random.default_rng(0)
    fixed = generator.integers(0, bins, (12, 11, 10))
    moved = (fixed * fixed // 3 + generator.integers(0, 4, fixed.shape)) % bins
    fixed[0, 0, :2], moved[0, 0, :2] = (0, bins - 1), (0, bins - 1)
    one, other = (torch.from_numpy(array / (bins - 1))[None, None] for array in (moved, fixed))
    compared = comparison_of("nmi", Correlation()).on(one, other, None)[1]
    joint = np.histogram2d(fixed.ravel(), moved.ravel(), bins)[0]
    theirs = entropy(joint.sum(0)) + entropy(joint.sum(1)) - entropy(joint.ravel())
    theirs *= 2 / (entropy(joint.sum(0)) + entropy(joint.sum(1)))
    assert compared.loss(compared.moments(one)).item() == pytest.approx(1 - theirs, abs=1e-6)


@pytest.mark.parametrize("change", [lambda v: 1 - v, lambda v: 0.3 * v + 0.2, lambda v: v.square()])
@pytest.mark.parametrize("name", ["mind", "nmi"])
def test_contrast_matters_little(name, change):
    (fixed,) = volumes(1)
    comparison = comparison_of(name, Correlation())
    losses = []
    for one in (change(fixed), fixed.flip(3)):
        seen, compared = comparison.on(one, fixed, None)
        losses.append(compared.loss(compared.moments(seen)).item())
    assert losses[0] < 0.5 * losses[1]


def test_self_similarity_by_its_definition():
    (volume,) = volumes(1, (6, 5, 7))
    array = np.pad(volume[0, 0].numpy(), 2, mode="edge")
    steps = [np.array(one) for one in [(-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1)]]
    place, patch = np.array([4, 4, 5]), np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), -1).reshape(-1, 3)
    distances = [
        np.mean([(array[tuple(place + p + a)] - array[tuple(place + p + b)]) ** 2 for p in patch])
        for i, a in enumerate(steps)
        for b in steps[:i]
        if a @ b == 0
    ]
    excess = np.array(distances) - min(distances)
    expected = np.exp(-excess / excess.mean())
    np.testing.assert_allclose(self_similarity(volume)[0, :, 2, 2, 3], expected, rtol=1e-6)


def test_refuses_other_names():
    with pytest.raises(ValueError, match="one of lncc, mind, nmi, ssd"):
        comparison_of("ncc", Correlation())
