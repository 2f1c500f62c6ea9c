"""Two visits of one person: no order is preferred, and growth is told from noise and other grids."""

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

from scripts.cli import main

GROWTH = 0.2  # of lengths, in the middle


def visit(path, seed, spacing, turn=(0, 0, 0), growth=0.0):
    """A body of smooth texture, seen on a grid of its own with noise of its own; it grows in its middle."""
    random, size = np.random.default_rng(seed), np.array((48.0, 52.0, 44.0))
    texture = gaussian_filter(np.random.default_rng(99).normal(size=(60, 60, 60)), 2.5)
    shape = np.ceil(size / spacing).astype(int)
    at = (np.stack(np.indices(shape), axis=-1) - (shape - 1) / 2) * spacing
    at = at @ Rotation.from_rotvec(turn).as_matrix().T
    body = 1 / (1 + np.exp((np.linalg.norm(at / size, axis=-1, keepdims=True) - 0.36) * 30))
    inside = at * (1 - growth * np.exp(-np.square(at).sum(-1, keepdims=True) / (2 * 9.0**2)))
    seen = map_coordinates(texture, np.moveaxis(inside + 29.5, -1, 0), order=3)
    image = body[..., 0] * (1.5 + 2 * seen / np.abs(texture).max()) + 0.02 * random.normal(size=shape)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = random.normal(size=3) * 20
    nib.save(nib.Nifti1Image((500 * image).astype(np.float32), affine), path)


@pytest.fixture(scope="module")
def change(tmp_path_factory):
    """``change.nii.gz`` and the average of visits by name, in an order."""
    folder, done = tmp_path_factory.mktemp("visits"), {}
    visit(folder / "a.nii.gz", 0, (1.5, 1.5, 1.5))
    visit(folder / "b.nii.gz", 1, (1.4, 1.6, 1.55), (0.05, 0.1, -0.08))
    visit(folder / "c.nii.gz", 2, (1.4, 1.6, 1.55), (0.05, 0.1, -0.08), GROWTH)

    def run(order):
        if order not in done:
            files, out = [str(folder / f"{name}.nii.gz") for name in order], folder / order
            assert main(["longitudinal", *files, "--output", str(out), "--threads", "1"]) == 0
            average = nib.load(out / "template.nii.gz").get_fdata()
            done[order] = nib.load(out / "change.nii.gz").get_fdata(), average
        return done[order]

    return run


def test_exchanged_visits_give_the_inverse(change):
    (one, average), (other, _) = change("ac"), change("ca")
    inside = average > average.mean()
    assert np.abs(one * other - 1)[inside].mean() < 0.005


def test_a_change_is_more_than_noise_and_other_grids_make(change):
    found, average = change("ab")
    none = np.log(found[average > average.mean()])
    assert np.abs(none).mean() < 0.01
    grown, _ = change("ac")
    middle = tuple(slice(n // 2 - 2, n // 2 + 2) for n in grown.shape)
    assert np.log(grown[middle]).mean() > 3 * np.abs(none).mean()
