"""What all optimisers share: any callable is a similarity, and settings are checked."""

import pytest
import torch

from scripts.geometry import identity_affine, identity_map
from scripts.losses import MeanSquaredError
from scripts.optimize import AffineOptimiser, InstanceOptimiser, VSVFOptimiser, bare_network

SHAPE = [12, 14, 13]


def each(moved, fixed, mask=None):
    return (moved - fixed).square().flatten(1).mean(1)


def mean(moved, fixed, mask=None):
    return each(moved, fixed, mask).mean()


def blob(centre):
    return torch.exp(-4 * (identity_map(SHAPE) - centre).square().sum(1, keepdim=True))


@pytest.mark.parametrize("similarity", [each, mean])
def test_a_similarity_is_any_callable(similarity):
    """One that gives a value for each pair, and one that gives the mean over them."""
    moving, fixed, network = blob(0.1), blob(-0.05), bare_network()
    affine = AffineOptimiser((0.5, 1.0), (20, 5), similarity)(moving, fixed)
    assert affine.after.shape == (1,) and affine.after < 0.5 * affine.before
    whole = VSVFOptimiser(AffineOptimiser((1.0,), (0,)), (0.5, 1.0), (10, 5), similarity, regularisation=0.1)(
        network, moving, fixed
    )
    assert whole.after.shape == (1,) and whole.after < 0.5 * whole.before
    first = network.integrate(moving, identity_affine(1), [torch.zeros(1, 3, 6, 7, 7)])
    found = InstanceOptimiser(10, similarity, regularisation=0.1)(network, moving, fixed, first)
    assert found.after.shape == (1,) and found.after < 0.5 * found.before


@pytest.mark.parametrize(
    ("optimiser", "options", "message"),
    [
        (AffineOptimiser, {"scales": (0.5, 1.0), "steps": (10,)}, "as many of each"),
        (VSVFOptimiser, {"scales": (0.5, 1.5), "iterations": (10, 10)}, "as many of each"),
        (VSVFOptimiser, {"iterations": (10, 10, -1)}, "as many of each"),
        (AffineOptimiser, {"scales": (), "steps": ()}, "as many of each"),
        (VSVFOptimiser, {"scales": (1.0, 0.5), "iterations": (10, 10)}, "rising order"),
        (AffineOptimiser, {"optimiser": "lbfgs"}, "optimiser='lbfgs'; give one of adam, sgd"),
        (VSVFOptimiser, {"optimiser": "sgd"}, "optimiser='sgd'; give one of adam, lbfgs"),
        (AffineOptimiser, {"sgd_momentum": 1.0}, "sgd_momentum=1.0; give a number below 1"),
        (AffineOptimiser, {"rate": 0}, "rate=0; give a number above 0"),
        (VSVFOptimiser, {"steps": 0}, "steps=0; give a number above 0"),
        (VSVFOptimiser, {"regularisation": -1.0}, "regularisation=-1.0; give a number from 0 on"),
        (VSVFOptimiser, {"fold_weight": -1.0}, "fold_weight=-1.0; give a number from 0 on"),
        (InstanceOptimiser, {"steps": -1}, "steps=-1; give a number from 0 on"),
        (InstanceOptimiser, {"patience": 0}, "patience=0; give a number above 0"),
        (InstanceOptimiser, {"momentum_rate": 0.0}, "momentum_rate=0.0; give a number above 0"),
        (VSVFOptimiser, {"similarity": [MeanSquaredError("none")] * 2}, "2 similarities for 3 scales"),
    ],
)
def test_refuses_settings(optimiser, options, message):
    with pytest.raises(ValueError, match=f"{optimiser.__name__}: .*{message}"):
        optimiser(**options)
