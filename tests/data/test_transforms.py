"""Random greys: a function of the grey alone, another for each key, repeated by its seed."""

import pytest
import torch
from monai.data import MetaTensor

from scripts.data import RandGreysd

LADDER = torch.linspace(0, 1, 201)[1:].view(1, 200, 1, 1)


def other(seed, prob=1.0, **items):
    transform = RandGreysd(keys=list(items), prob=prob)
    transform.set_random_state(seed)
    return transform(items)


@pytest.mark.parametrize("seed", range(4))
def test_greys_are_replaced_by_others(seed):
    image = MetaTensor(torch.cat([LADDER, LADDER.flip(1), torch.zeros_like(LADDER)], dim=2))
    found = other(seed, fixed=image, moving=image)
    for greys in found.values():
        assert isinstance(greys, MetaTensor) and greys.shape == image.shape and greys.dtype == torch.float32
        assert torch.equal(greys[:, :, 0], greys[:, :, 1].flip(1)) and (greys[:, :, 2] == 0).all()
        assert greys[:, :, :2].min() > 0 and greys.max() <= 1
        assert greys[:, :, 0].max() - greys[:, :, 0].min() > 0.5  # tissues are told apart
        assert greys[0, :, 0, 0].diff().abs().max() < 0.05
    assert (found["fixed"] - found["moving"]).abs().max() > 0.1
    assert all(torch.equal(greys, found[key]) for key, greys in other(seed, fixed=image, moving=image).items())


def test_order_is_not_kept_and_some_images_are():
    slopes = [other(seed, fixed=LADDER)["fixed"].flatten().diff() for seed in range(8)]
    assert all((slope > 0).any() and (slope < 0).any() for slope in slopes)
    kept = [torch.equal(other(seed, 0.5, fixed=LADDER)["fixed"], LADDER) for seed in range(20)]
    assert 3 < sum(kept) < 17
