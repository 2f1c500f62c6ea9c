"""Physical invariance: how voxels are stored, cut out or numbered must not change where tissue goes in the world.

The tolerance is half a voxel of the coarser image. Reorienting, padding, cropping and shifting give the same samples up
to rounding, and are held to a fiftieth of that. Resampling gives other samples: the image loses detail and its box
moves by a fraction of a voxel, to which the network answers. There 95 % of the interior is held to the tolerance and
the mean to three quarters of it, by the network that was trained on such knees; the default network, whose finer kernel
answers to finer detail, to three times as much. The interior is the inner 80 % of the fixed foreground's box, as the
network's grid ends where the box ends.
"""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import zoom

import tiny_bundle as tiny
from register_cases import reoriented
from scripts.formats.images import Image
from scripts.networks import load_weights
from scripts.networks.inferer import RegistrationInferer
from scripts.registration.grids import foreground_box
from scripts.registration.methods import Method, NetworkStage
from scripts.registration.pair import Pair
from scripts.registration.sampling import SamplePaird
from scripts.registration.world import world_transform
from scripts.spatial.frame import Frame
from scripts.synthetic.phantom import KneePhantom
from world_cases import frame

GRID = (24, 32, 24)
FINE = (48, 64, 48)
EXAMPLES = 2
INITIALISATIONS = ("header", "geometry", "moments")
REORIENTATIONS = list(itertools.product(itertools.permutations(range(3)), itertools.product((0, 1), repeat=3)))


@pytest.fixture(scope="module")
def network():
    """The default network."""
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(str(tiny.CONFIGS / "inference.json"))
    parser.update({"bundle_root": str(tiny.BUNDLE), "preset": "fast"})
    return load_weights(parser.get_parsed_content("network_def"), parser.get_parsed_content("ckpt_path")).eval()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two knees of one size in a box of exact background, oblique and anisotropic, not far apart in the world."""
    folder = tmp_path_factory.mktemp("pair")
    item = KneePhantom((36, 44, 40), noise=0.0).pair(5, "longitudinal")
    images = []
    for role, origin in (("fixed", (-40, 30, 210)), ("moving", (-36, 27, 213))):
        array = item[role].numpy().astype(np.float32)
        array = np.pad(np.clip(array - 0.05, 0, None), 4)
        images.append(Image(array, frame(array.shape, (8, -5, 14), (2.6, 2.4, 3.0), origin), folder / f"{role}.nii.gz"))
    return images


def sampled(fixed, moving, grid=GRID, initialisation="geometry"):
    step = SamplePaird(grid, 0, initialisation, "common", "RAS", None, 0.1, 99.9)
    return step({"pair": Pair(fixed, moving)})["sampled"]


def register(network, fixed, moving, initialisation, grid=GRID):
    pair = sampled(fixed, moving, grid, initialisation)
    # Which affine step is the best is a choice that rounding can turn where two are nearly equal, as they are on the
    # coarse grid; there all steps are taken.
    stage = NetworkStage(network, RegistrationInferer(3, 2), newton=grid == FINE)
    found = Method(network, [stage], [stage], keep_best_affine=grid == FINE)(pair)
    assert found.affine_steps > 0  # a transform that is nothing but the initialisation would test nothing
    transform = world_transform(found.registration, network.vsvf, pair.grids, fixed.frame, moving.frame)
    return transform.covering(fixed.frame)


@pytest.fixture(scope="module")
def expected(network, pair):
    return {method: register(network, *pair, method) for method in INITIALISATIONS}


def interior(image):
    """Points of the inner 80 % of the foreground's box, RAS mm."""
    low, high = foreground_box(image.array)
    part = np.stack(np.meshgrid(*[np.linspace(0.1, 0.9, 9)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    return image.frame.voxel_to_world(low + part * (high - low))


def changes(found, expected, points, shift=0.0, moved=0.0):
    """How far ``found`` at points + shift is from ``expected`` + moved, mm."""
    return np.linalg.norm(found.apply(points + shift) - (expected.apply(points) + moved), axis=1)


def cut(image, margins):
    """The array between margins, which are negative where background is added, in the same place of the world."""
    array = np.pad(image.array, [(max(0, -a), max(0, -b)) for a, b in margins])
    inner = tuple(slice(max(0, a), n - max(0, b)) for (a, b), n in zip(margins, array.shape, strict=True))
    affine = image.frame.affine.copy()
    affine[:3, 3] = image.frame.voxel_to_world([a for a, _ in margins])
    array = np.ascontiguousarray(array[inner])
    return Image(array, Frame(array.shape, affine), image.path)


def shifted(image, shift):
    affine = image.frame.affine.copy()
    affine[:3, 3] += shift
    return Image(image.array, Frame(image.frame.shape, affine), image.path)


def resampled(image, factor):
    """The image with voxels ``factor`` times as long, over the same box from face to face."""
    shape = [max(8, round(n / f)) for n, f in zip(image.array.shape, factor, strict=True)]
    scale = np.asarray(image.array.shape) / shape
    array = zoom(image.array, 1 / scale, order=1, grid_mode=True, mode="nearest")
    affine = image.frame.affine.copy()
    affine[:3, :3] *= scale
    affine[:3, 3] = image.frame.voxel_to_world(scale / 2 - 0.5)
    return Image(np.clip(array, 0, None), Frame(array.shape, affine), image.path)


def half_voxel(*images):
    """Half the shortest side of a voxel of the coarser image, mm."""
    return max(image.frame.spacing.min() for image in images) / 2


@pytest.mark.parametrize("role", [0, 1])
@pytest.mark.parametrize(("order", "flips"), REORIENTATIONS)
def test_reorienting_changes_no_sample(pair, role, order, flips):
    changed = list(pair)
    changed[role] = reoriented(pair[role], order, flips)
    first, second = sampled(*pair), sampled(*changed)
    for key in ("fixed", "moving", "mask"):
        torch.testing.assert_close(getattr(first, key), getattr(second, key), rtol=0, atol=2e-5)
    assert first.grids.fixed.same_as(second.grids.fixed, 1e-6) and first.grids.moving.same_as(second.grids.moving, 1e-6)


def margins(least, most):
    return st.tuples(*[st.tuples(st.integers(least, most), st.integers(least, most))] * 3)


STORED = {  # what changes how an image is stored, and by how much
    "reoriented": (lambda image, change: reoriented(image, *change), st.sampled_from(REORIENTATIONS)),
    "padded": (cut, margins(-9, 0)),
    "background cropped": (cut, margins(0, 4)),
}


@pytest.mark.parametrize("method", INITIALISATIONS)
@pytest.mark.parametrize("role", [0, 1])
@pytest.mark.parametrize(("change", "amounts"), STORED.values(), ids=STORED)
@settings(max_examples=EXAMPLES, deadline=None)
@given(data=st.data())
def test_storage_changes_nothing(network, pair, expected, method, role, change, amounts, data):
    images = list(pair)
    images[role] = change(pair[role], data.draw(amounts))
    found = register(network, *images, method)
    assert changes(found, expected[method], interior(pair[0])).max() < 0.02 * half_voxel(*pair)


SHIFTS = st.tuples(*[st.floats(-400, 400)] * 3).map(np.asarray)


@pytest.mark.parametrize("method", ["geometry", "moments"])
@settings(max_examples=EXAMPLES, deadline=None)
@given(SHIFTS, SHIFTS)
def test_shifting_the_origin_of_either(network, pair, expected, method, fixed_shift, moving_shift):
    """The centres find each other wherever the origins are: tissue goes to the same tissue."""
    found = register(network, shifted(pair[0], fixed_shift), shifted(pair[1], moving_shift), method)
    error = changes(found, expected[method], interior(pair[0]), fixed_shift, moving_shift)
    assert error.max() < 0.02 * half_voxel(*pair)


@settings(max_examples=EXAMPLES, deadline=None)
@given(SHIFTS)
def test_shifting_the_world_of_both_under_header(network, pair, expected, shift):
    """Trusting the world means that the two may only be shifted together."""
    found = register(network, shifted(pair[0], shift), shifted(pair[1], shift), "header")
    assert changes(found, expected["header"], interior(pair[0]), shift, shift).max() < 0.02 * half_voxel(*pair)


@pytest.fixture(scope="module")
def fine(network, pair):
    """The registrations of the pair as it is."""
    return {method: register(network, *pair, method, FINE) for method in INITIALISATIONS}


@pytest.mark.parametrize("method", INITIALISATIONS)
@pytest.mark.parametrize("role", [0, 1])
@settings(max_examples=EXAMPLES, deadline=None)
@given(factor=st.tuples(*[st.floats(0.6, 1.4)] * 3))
def test_resampling(network, pair, fine, method, role, factor):
    slack = 3.0  # times the tolerance
    images = list(pair)
    images[role] = resampled(pair[role], factor)
    error = changes(register(network, *images, method, FINE), fine[method], interior(pair[0]))
    assert np.percentile(error, 95) < slack * half_voxel(*images) and error.mean() < 0.75 * slack * half_voxel(*images)
