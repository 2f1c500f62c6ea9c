"""The Jacobian of whole world transforms: closed forms, other grids, and what geometry says of the network's map."""

import warnings

import numpy as np
import pytest
import torch

from scripts.errors import InputError
from scripts.geometry import apply_affine, count_folds, identity_map, jacobian_determinant, resize_map, std_log_jacobian
from scripts.metrics import world_jacobian
from scripts.spatial.resampling import OutsideFieldWarning
from scripts.spatial.transform import WorldTransform
from world_cases import AFFINE, FRAMES, LOW, OBLIQUE, OTHER, SHAPE, displacement, frame, positions

PLACES = {name: pair[0] for name, pair in FRAMES.items()} | {"other": OTHER}


@pytest.mark.parametrize("name", PLACES)
def test_affine_in_any_orientation(name):
    matrix = np.eye(4)
    matrix[:3, :3] = [[1.2, 0.1, -0.2], [0.05, 0.7, 0.1], [-0.1, 0.2, 1.9]]
    matrix[:3, 3] = (5, -300, 20)
    jacobian = world_jacobian([WorldTransform(matrix)], PLACES[name])
    np.testing.assert_allclose(jacobian.determinant, np.linalg.det(matrix), rtol=1e-9)
    assert jacobian.determinant.shape == PLACES[name].shape
    assert jacobian.measures["folds"] == 0 and jacobian.measures["std_log_jacobian"] < 1e-9
    assert world_jacobian([], PLACES[name]).measures["jacobian_mean"] == pytest.approx(1, abs=1e-9)


def test_a_mirror_image_is_no_fold_but_a_field_that_mirrors_is():
    affine = WorldTransform(np.diag((-2.0, 1, 1, 1)))
    measures = world_jacobian([affine], OBLIQUE).measures
    assert measures["folds"] == measures["folds_central"] == 0 and measures["jacobian_max"] == pytest.approx(2)
    points = OBLIQUE.voxel_to_world(np.stack(np.indices(OBLIQUE.shape), axis=-1))
    field = WorldTransform(np.eye(4), points * (-3.0, 0, 0), OBLIQUE)
    size = int(np.prod(OBLIQUE.shape))
    for linear, volume in ((np.eye(4), 2), (affine.linear, 4)):  # mirrored twice, the field's own counts
        measures = world_jacobian([WorldTransform(linear, field.displacement, OBLIQUE)], OBLIQUE).measures
        assert measures["folds"] == measures["folds_central"] == measures["voxels"] == size
        assert measures["jacobian_max"] == pytest.approx(-volume)
        assert measures["folds_sum"] == pytest.approx(volume * size)


@pytest.mark.parametrize(("fixed", "moving"), FRAMES.values(), ids=FRAMES)
def test_as_geometry_on_the_networks_grid(fixed, moving):
    """On the fixed network grid, geometry's determinant is that in mm but for the ratio of the two voxels' volumes."""
    bend = 2 * displacement().roll(1, dims=1)  # each axis along itself, so that volumes change
    transform = WorldTransform.from_network(fixed, moving, AFFINE, bend)
    network = resize_map(apply_affine(AFFINE, identity_map(list(LOW)) + bend), list(SHAPE)).double()
    ratio = abs(np.linalg.det(moving.normalised_affine) / np.linalg.det(fixed.normalised_affine))
    jacobian = world_jacobian([transform], fixed)
    np.testing.assert_allclose(jacobian.determinant, ratio * jacobian_determinant(network)[0, 0].numpy(), rtol=1e-3)
    assert np.ptp(np.abs(jacobian.determinant / ratio)) > 0.5
    assert jacobian.measures["std_log_jacobian"] == pytest.approx(std_log_jacobian(network).item(), rel=1e-3)


def test_folds_as_geometry_counts_them():
    fixed = frame(spacing=(0.7, 1.3, 3))
    strong = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 3, *SHAPE)) * 0.05)
    transform = WorldTransform.from_network(fixed, fixed, AFFINE, strong)
    network = torch.from_numpy(fixed.world_to_normalised(transform.apply(positions(fixed)))).permute(3, 0, 1, 2)[None]
    folds, folds_sum = count_folds(network)
    measures = world_jacobian([transform], fixed).measures
    assert 100 < folds.item() < np.prod(SHAPE) and measures["folds"] == folds.item() > measures["folds_central"] > 0
    assert measures["folds_sum"] == pytest.approx(folds_sum.item())


def quadratic(where):
    """q = p + b x² e with x along the grid's first axis: |J| = 1 + 2 b x (e · axis), exact for central differences."""
    axis = where.direction[:, 0]
    x = (positions(where) - where.origin) @ axis
    return WorldTransform(np.eye(4), 0.01 * x[..., None] ** 2 * axis, where), 1 + 0.02 * x


def test_closed_form_and_composition():
    transform, expected = quadratic(OBLIQUE)
    inner = (slice(1, -1), slice(None), slice(None))
    np.testing.assert_allclose(world_jacobian([transform], OBLIQUE).determinant[inner], expected[inner], rtol=1e-9)
    double = WorldTransform(np.diag((2.0, 3.0, 0.5, 1.0)))
    both = world_jacobian([transform, double], OBLIQUE).determinant
    np.testing.assert_allclose(both[inner], 3 * expected[inner], rtol=1e-9)


@pytest.mark.parametrize("block", [1, 1000, 3000])
def test_blocks_do_not_show(block):
    fixed, moving = FRAMES["oblique, other size"]
    transform = WorldTransform.from_network(fixed, moving, AFFINE, displacement(size=0.4))
    whole, parts = world_jacobian([transform], fixed), world_jacobian([transform], fixed, block)
    np.testing.assert_allclose(parts.determinant, whole.determinant, atol=1e-9)
    assert parts.folds == whole.folds > 0 and parts.folds_sum == pytest.approx(whole.folds_sum)


def test_outside_is_told_once():
    fixed, moving = FRAMES["shifted"]
    transform = WorldTransform.from_network(fixed, moving, AFFINE, displacement())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        world_jacobian([transform], fixed, 1000)
    larger = fixed.padded((2, 0, 0))
    count = 2 * fixed.shape[1] * fixed.shape[2]
    with pytest.warns(OutsideFieldWarning, match=rf"transforms\[0\]: {count} of \d+ voxels of the ref") as caught:
        world_jacobian([transform], larger, 1000)
    assert len(caught) == 1 and caught[0].filename == __file__


def test_a_slice_is_refused():
    with pytest.raises(InputError, match=r"at least 2 voxels along each axis, got \(5, 1, 5\)"):
        world_jacobian([], frame((5, 1, 5)))
