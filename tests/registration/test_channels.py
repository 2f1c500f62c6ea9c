"""Several pairs of images under one transform: what a further one adds, by files, lists and Python; what is refused."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

from motion_cases import FIXED, head, motion
from scripts.api import register
from scripts.cli import main
from scripts.errors import InputError
from scripts.losses import Correlation, comparison_of
from scripts.optimize import AffineEngine, RegistrationEngine
from scripts.spatial import apply_matrix

PLACES = np.stack(np.indices(FIXED.shape), axis=-1).astype(float)
INSIDE = head() > 0.1


def shift():
    """A smooth warp of 5 voxels at most."""
    random = np.random.default_rng(1)
    field = np.stack([gaussian_filter(random.normal(size=FIXED.shape), 6) for _ in range(3)], axis=-1)
    return 5 * field / np.linalg.norm(field, axis=-1).max()


def under(array, places):
    return map_coordinates(array, np.moveaxis(places, -1, 0), order=1).astype(np.float32)


def pairs():
    """Two images of one body, and both under the warp; the first shows little but the body's outline."""
    random, plain = np.random.default_rng(2), gaussian_filter(INSIDE.astype(np.float32), 1.0)
    found = [(image, under(image, PLACES + shift())) for image in (plain, head())]
    return [[one + random.normal(0, 0.01, one.shape).astype(np.float32) for one in pair] for pair in found]


def off(transform, sign=1):
    """Mean distance in mm of the body's points from where they belong."""
    here = (PLACES + shift())[INSIDE]
    there = transform.points(FIXED.voxel_to_world(here))
    return np.linalg.norm(there - FIXED.voxel_to_world(PLACES[INSIDE]), axis=1).mean()


def volumes(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(1, count, 12, 11, 10, dtype=torch.float64, generator=generator) for _ in range(3)]


@pytest.mark.parametrize("unit", ["scale", "stiffness"])
@pytest.mark.parametrize("names", [("lncc", "mind"), ("nmi", "ssd"), ("mind", "nmi", "lncc")])
def test_the_sum_has_its_derivative(names, unit):
    weights = [1.0, 0.5, 2.0][: len(names)]
    moving, fixed, masks = volumes(len(names))
    several = comparison_of(list(zip(names, weights, strict=True)), Correlation(radii=(1,)), unit)
    seen, compared = several.on(several.channels(moving), several.channels(fixed), masks)
    losses, inside, first = 0, 0, comparison_of(names[0], Correlation(radii=(1,)))
    for number, (name, weight) in enumerate(zip(names, weights, strict=True)):
        one = comparison_of(name, Correlation(radii=(1,)))
        images = [volume[:, number : number + 1] for volume in (moving, fixed)]
        part, of = one.on(*(one.channels(image) for image in images), masks[:, number : number + 1])
        share = weight * getattr(first, unit) / getattr(one, unit)
        losses += share * of.loss(of.moments(part))
        of = one.on(*(one.channels(image) for image in images), None)[1].within(masks[:, number : number + 1])
        inside += share * of.loss(of.moments(part))
    torch.testing.assert_close(compared.loss(compared.moments(seen)), losses)
    slope, bend = compared.derivative(seen, compared.moments(seen))
    assert slope.shape == bend.shape == seen.shape and (bend >= 0).all()
    way = 1e-6 * torch.randn(seen.shape, dtype=seen.dtype, generator=torch.Generator().manual_seed(1))
    ahead, behind = (compared.loss(compared.moments(seen + sign * way)) for sign in (1, -1))
    torch.testing.assert_close((slope * way).sum(), ((ahead - behind) / 2).sum(), rtol=2e-3, atol=1e-11)
    again = several.on(several.channels(moving), several.channels(fixed), None)[1].within(masks)
    torch.testing.assert_close(again.loss(again.moments(seen)), inside)


@pytest.mark.parametrize("name", ["lncc", "ssd"])
@pytest.mark.parametrize("kind", ["affine", "rigid", "deformable"])
def test_a_constant_second_pair_changes_nothing(kind, name):
    fixed, moving = (torch.from_numpy(one.copy())[None, None] for one in pairs()[1])
    flat = torch.zeros_like(fixed)
    two = [torch.cat([one, flat], dim=1) for one in (moving, fixed)]
    by = [(name, 1.0), (name, 1.0)]
    if kind == "deformable":
        alone, both = (RegistrationEngine("fast", similarity=one) for one in (name, by))
        results = [alone(moving, fixed).displacement, both(*two).displacement]
    else:
        alone, both = (AffineEngine(similarity=one, last_similarity=None) for one in (name, by))
        results = [alone(moving, fixed, kind=kind).affine, both(*two, kind=kind).affine]
    assert not torch.allclose(results[0], torch.zeros_like(results[0]))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_a_further_pair_determines_the_deformation():
    (fixed, moving), others = pairs()
    images = ((fixed, FIXED.affine), (moving, FIXED.affine))
    further = {f"{role}_channels": [(one, FIXED.affine)] for role, one in zip(("fixed", "moving"), others, strict=True)}
    options = {"initialisation": "header", "device": "cpu", "threads": 1}
    alone, both = register(*images, **options), register(*images, **further, **options)
    none = register(*images, **further, channel_weights=[0.0], **options)
    ends = [off(result.transform) for result in (alone, both, none)]
    assert ends[1] < 0.75 * ends[0] and both.metrics["folds"] == 0
    assert ends[2] == pytest.approx(ends[0], abs=0.02)
    assert both.metrics["optimisation"]["channels"] == [{"similarity": "lncc", "weight": 1.0}]


def test_contrasts_are_told_apart_pair_by_pair_on_grids_of_their_own():
    """A second pair of two contrasts, on another grid, is compared by self-similarity; the transform is rigid."""
    truth = motion((6, 0, 4))
    affine = truth @ FIXED.affine @ np.diag((1.5, 1.5, 1.5, 1.0))
    coarse = under(head(), np.stack(np.indices((27, 31, 24)), axis=-1) * 1.5)
    inverted = np.where(coarse > 0.05, 1.1 - coarse, 0).astype(np.float32)
    result = register(
        (head(), FIXED.affine),
        (head(), truth @ FIXED.affine),
        fixed_channels=[(head(), FIXED.affine)],
        moving_channels=[(inverted, affine)],
        transform="rigid",
        device="cpu",
        threads=1,
    )
    points = FIXED.voxel_to_world(np.argwhere(INSIDE))
    found = result.transform.points(points)
    assert np.linalg.norm(found - apply_matrix(truth, points), axis=1).mean() < 0.2
    facts = result.metrics["optimisation"]
    assert facts["similarity"] == "lncc" and facts["channels"][0]["similarity"] == "mind"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("channels")
    for number, pair in enumerate(pairs()):
        for role, array in zip(("fixed", "moving"), pair, strict=True):
            nib.save(nib.Nifti1Image(array, FIXED.affine), folder / f"{role}{number}.nii.gz")
    return folder


WORDS = ["--grid", "24", "32", "24", "--threads", "1", "--no-report", "--transform", "affine"]


def test_command_and_list_and_python_give_the_same(files, tmp_path):
    named = {role: str(files / f"{role}0.nii.gz") for role in ("fixed", "moving")}
    further = {f"{role}_channels": [str(files / f"{role}1.nii.gz")] * 2 for role in named}
    words = [word for name, path in named.items() for word in (f"--{name}", path)]
    for name, paths in further.items():
        words += [f"--{name.replace('_', '-')}", *paths]
    words += ["--channel-weights", "0.5", "2"]
    assert main(["register", *words, "--output", str(tmp_path / "one"), *WORDS]) == 0
    table = tmp_path / "pairs.csv"
    rows = {**named, **{name: ";".join(paths) for name, paths in further.items()}, "name": "a"}
    table.write_text(",".join(rows) + "\n" + ",".join(rows.values()) + "\n")
    (tmp_path / "pairs.json").write_text(json.dumps([{**named, **further, "name": "a"}]))
    for kind in ("csv", "json"):
        listed = ["--pairs", str(tmp_path / f"pairs.{kind}"), "--channel-weights", "0.5", "2"]
        assert main(["register", *listed, "--output", str(tmp_path / kind), *WORDS]) == 0
    result = register(
        *named.values(), **further, channel_weights=[0.5, 2], grid=[24, 32, 24], threads=1, transform="affine"
    )
    after = [
        json.loads((tmp_path / place / "metrics.json").read_text())["optimisation"]["affine_after"]
        for place in ("one", "csv/a", "json/a")
    ]
    assert after == [result.metrics["optimisation"]["affine_after"]] * 3


BAD = {
    "one side": ({"fixed_channels": ["fixed1"]}, {}, "fixed_channels: 1 images, but 0 moving_channels"),
    "weights": (
        {"fixed_channels": ["fixed1"], "moving_channels": ["moving1"]},
        {"channel_weights": [1.0, 2.0]},
        "channel_weights: 2 for 1 images of fixed_channels; give one for each",
    ),
    "no images": ({}, {"channel_weights": [1.0]}, "channel_weights: 1 for 0 images"),
    "missing": ({"fixed_channels": ["none"], "moving_channels": ["moving1"]}, {}, "none.nii.gz"),
    "a network": (
        {"fixed_channels": ["fixed1"], "moving_channels": ["moving1"]},
        {"preset": "fast"},
        "fixed_channels: the network of this preset sees one image",
    ),
    "negative": ({}, {"channel_weights": [-1.0]}, "channel_weights=[-1.0]: give a number from 0 on"),
}


@pytest.mark.parametrize(("channels", "options", "words"), BAD.values(), ids=BAD)
def test_refused_in_one_line(channels, options, words, files):
    given = {name: [str(files / f"{one}.nii.gz") for one in some] for name, some in channels.items()}
    with pytest.raises(InputError) as error:
        register(str(files / "fixed0.nii.gz"), str(files / "moving0.nii.gz"), **given, **options, threads=1)
    assert words in str(error.value) and "\n" not in str(error.value)
