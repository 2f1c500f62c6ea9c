"""The peers of the registration benchmark: each undoes a known warp, the right way, and says when it is absent."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

import tiny_bundle as tiny
from world_cases import frame

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from registration.peers import worker
from registration.peers.ants_syn import Ants
from registration.peers.convexadam import ConvexAdam
from registration.peers.demons import Demons
from registration.peers.elastix import Elastix
from registration.peers.greedy import Greedy
from registration.peers.itk_affine import ItkAffine
from registration.peers.niftyreg import NiftyReg
from registration.peers.voxelmorph import VoxelMorphNet, voxels
from registration.peers.voxelmorph_peer import VoxelMorphPeer

from registration import tune
from scripts.formats import Image
from scripts.registration import Pair, inference_parser
from scripts.spatial import Frame, WorldTransform, resample_image, resample_labels
from scripts.spatial.inversion import invert_transforms

BODY = np.array([24.0, 21.0, 26.0])  # half axes of the body, mm
ALWAYS = ("SimpleITK", "antspyx")  # in the dev extra; the others may be absent


def centred(shape, angles, spacing, centre, **options):
    """A frame whose middle lies at a point."""
    first = frame(shape, angles, spacing, **options)
    affine = first.affine.copy()
    affine[:3, 3] += np.asarray(centre) - first.centre
    return Frame(shape, affine)


FIXED = centred((30, 34, 28), (10, -15, 20), (2.0, 1.7, 2.3), (1.0, 0.5, -1.0))
MOVING = centred((33, 30, 31), (-8, 5, 12), (1.9, 2.1, 2.0), (-1.0, 1.0, 0.5), flip=(-1, 1, 1), order=(2, 0, 1))
WORLD = centred((72, 72, 72), (0, 0, 0), (1, 1, 1), (0, 0, 0))


def world_points(grid):
    return grid.voxel_to_world(np.stack(np.indices(grid.shape, dtype=float), axis=-1))


def known_warp():
    """Fixed to moving points, RAS mm: a turn of 5 degrees, a shift, and a bending."""
    linear = np.eye(4)
    linear[:3, :3] = Rotation.from_euler("xyz", (3, -4, 5), degrees=True).as_matrix()
    linear[:3, 3] = (2.5, -2.0, 2.0)
    grid = centred((24, 24, 24), (0, 0, 0), (4, 4, 4), (0, 0, 0))
    x = world_points(grid)
    bend = 2.5 * np.stack([np.sin(x[..., 1] / 9), np.cos(x[..., 2] / 10), np.sin(x[..., 0] / 11 + 1)], axis=-1)
    return WorldTransform(linear, bend, grid)


WARP = known_warp()


@pytest.fixture(scope="module")
def pair():
    """Fixed and moving image, fixed and moving label: one textured body, on two oblique grids."""
    rng = np.random.default_rng(3)
    texture = sum(
        weight * _unit(gaussian_filter(rng.normal(size=WORLD.shape), std)) for std, weight in ((2, 1), (4, 2))
    )
    inside = 1 - np.linalg.norm(world_points(WORLD) / BODY, axis=-1)
    volume = 200 * np.clip(4 * inside, 0, 1) * (3 + texture)
    label = np.where(inside > 0.25, 1 + (texture > 0), 0).astype(np.uint8)
    images = [
        Image(resample_image(volume, WORLD, grid, chain).astype(np.float32), grid, Path(f"{role}.nii"))
        for role, grid, chain in (("fixed", FIXED, [WARP]), ("moving", MOVING, []))
    ]
    labels = [
        Image(resample_labels(label, WORLD, grid, chain), grid, Path(f"{role}_label.nii"))
        for role, grid, chain in (("fixed", FIXED, [WARP]), ("moving", MOVING, []))
    ]
    return (*images, *labels)


def _unit(x):
    return x / x.std()


def body_points():
    """Voxels of the fixed grid that lie in the body, RAS mm."""
    points = world_points(FIXED).reshape(-1, 3)
    return points[np.linalg.norm(WARP.apply(points) / BODY, axis=-1) < 0.9]


def carry(points, transforms):
    for transform in transforms:
        points = transform.apply(points)
    return points


def error(transforms, truth):
    """Mean distance in mm of where points of the body go and should go."""
    points = body_points()
    return np.linalg.norm(carry(points, transforms) - carry(points, truth), axis=-1).mean()


# What a peer must leave of the distance between the images. An affine cannot undo the bending.
AFFINE, DEFORMABLE = 0.62, 0.42
CASES = {
    "ITK affine": (ItkAffine, {}, AFFINE),
    "ITK affine, mutual information": (ItkAffine, {"metric": "mattes", "starts": ["moments"]}, AFFINE),
    "ANTs affine": (Ants, {"stage": "affine"}, AFFINE),
    "NiftyReg affine": (NiftyReg, {"similarity": None}, AFFINE),
    "elastix affine": (Elastix, {"stages": ["affine"]}, AFFINE),
    "Demons": (Demons, {"affine": ItkAffine(starts=["geometry"])}, DEFORMABLE),
    "Demons diffeomorphic": (Demons, {"forces": "diffeomorphic", "affine": ItkAffine(starts=["geometry"])}, DEFORMABLE),
    "SyN": (Ants, {}, DEFORMABLE),
    "SyN CC": (Ants, {"metric": "CC", "sampling": 4, "iterations": (40, 20, 5)}, DEFORMABLE),
    "NiftyReg NMI": (NiftyReg, {"similarity": "nmi"}, DEFORMABLE),
    "NiftyReg LNCC": (NiftyReg, {"similarity": "lncc"}, DEFORMABLE),
    "elastix": (Elastix, {"bending": 0.0, "iterations": 100}, DEFORMABLE),
    "elastix, bending energy": (Elastix, {"iterations": 100}, DEFORMABLE),
    "Greedy affine": (Greedy, {"deformable": False, "own_affine": True, "radius": 4}, AFFINE),
    "Greedy own affine": (Greedy, {"own_affine": True, "radius": 4}, DEFORMABLE),
    "Greedy": (Greedy, {"affine": ItkAffine(starts=["geometry"])}, DEFORMABLE),
    "ConvexAdam": (ConvexAdam, {"affine": ItkAffine(starts=["geometry"])}, DEFORMABLE),
}


# Each takes many seconds, and says little that a quicker sibling does not.
SLOW = ("NiftyReg affine", "NiftyReg LNCC", "elastix, bending energy", "SyN CC")


def marked(names):
    return [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in names]


def build(name):
    kind, settings, _ = CASES[name]
    method = kind(**settings)
    reason = method.missing()
    if reason is not None and method.distribution not in ALWAYS:
        pytest.skip(reason)
    return method


@pytest.mark.parametrize("name", marked(CASES))
def test_recovers_a_known_warp(name, pair):
    fixed, moving, fixed_label, moving_label = pair
    method = build(name)
    answer = method(fixed, moving)
    before, after = error([], [WARP]), error(answer.transform, [WARP])
    assert after < CASES[name][2] * before
    assert error(answer.transform, [WARP]) < 0.5 * error(answer.transform, invert_transforms([WARP]))
    assert after <= error(answer.affine, [WARP])
    moved, start = (
        tune.measure(chain, fixed, (fixed_label, moving_label))["dice"]
        for chain in (answer.transform, [WorldTransform(np.eye(4))])
    )
    assert moved > start + 0.1 and 0 < answer.seconds < 300
    # The engine's own process, where it has one, is counted; on one thread no second has more than a second's work.
    assert 0.05 < answer.cpu_seconds < 1.1 * answer.seconds + 0.5
    if answer.inverse is not None:
        there = carry(body_points(), answer.transform)
        assert np.linalg.norm(carry(there, answer.inverse) - body_points(), axis=-1).mean() < 0.25
    parameters = json.loads(json.dumps(method.parameters()))
    assert parameters["version"] and set(method.settings) <= set(parameters)


def test_a_worker_that_dies_is_replaced():
    first = worker.call("json", 1, os.getpid)
    assert first != os.getpid() and worker.call("json", 1, os.getpid) == first
    assert worker.call("json", 1, os.getenv, "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS") == "1"
    with pytest.raises(RuntimeError, match="json: its process died"):
        worker.call("json", 1, os._exit, 1)
    assert worker.call("json", 1, os.getpid) != first


def small_network(steps=7, std=0.0, **options):
    torch.manual_seed(0)
    network = VoxelMorphNet(integration_steps=steps, **options)
    if std:
        head = [module for module in network.momentum_net.modules() if isinstance(module, torch.nn.Conv3d)][-1]
        torch.nn.init.normal_(head.weight, std=std)
        torch.nn.init.normal_(network.affine_net.head.weight, std=0.01)
    return network.eval()


@pytest.mark.parametrize("steps", [7, 0])
def test_voxelmorph_is_monais(steps):
    network = small_network(steps, std=0.3)
    moving, fixed = torch.rand(2, 2, 1, 16, 24, 16)
    with torch.no_grad():
        found = network.register(moving, fixed, affine_steps=2)
        seen = network.register(moving, fixed, affine_steps=2, vsvf_steps=0).moved
        _, flow = network.momentum_net(seen, fixed)
    assert flow.abs().max() > 0.02
    torch.testing.assert_close(found.displacement * voxels((16, 24, 16)), flow, atol=1e-5, rtol=1e-4)
    assert len(found.affines) == 2 and found.map.shape == (2, 3, 16, 24, 16)


@pytest.mark.parametrize(("steps", "affine_steps"), [(7, 2), (0, 2), (7, 0)])
def test_voxelmorph_in_the_world(steps, affine_steps, pair, tmp_path):
    network = small_network(steps, std=0.6)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    fixed, moving = pair[:2]
    method = VoxelMorphPeer("VoxelMorph", tmp_path, steps, affine_steps, (32, 32, 32), None)
    assert method.missing() is None and len(method.parameters()["weights_sha256"]) == 64
    answer = method(fixed, moving)
    sample = inference_parser(grid=[32, 32, 32]).get_parsed_content("sampling")
    sampled = sample({"pair": Pair(fixed, moving)})["sampled"]
    with torch.no_grad():
        found = network.register(sampled.moving, sampled.fixed, affine_steps)
    grids = sampled.grids
    centre = (slice(4, -4),) * 3
    target = grids.moving.normalised_to_world(found.map[0].movedim(0, -1).double().numpy())
    np.testing.assert_allclose(carry(world_points(grids.fixed)[centre], answer.transform), target[centre], atol=2e-3)
    assert (answer.affine is None) == (affine_steps == 0) and (answer.inverse is None) == (steps == 0)
    if answer.inverse:
        points = world_points(grids.fixed)[8:-8, 8:-8, 8:-8]
        there = carry(points, answer.transform)
        gap = np.linalg.norm(carry(there, answer.inverse) - points, axis=-1).mean()
        assert gap < 0.1 * np.linalg.norm(answer.transform[0].displacement, axis=-1).mean() + 1e-3


@pytest.mark.parametrize(
    ("extra", "phases"), [((), 2), (("voxelmorph_alone.json",), 1), (("voxelmorph_given_affine.json",), 1)]
)
def test_voxelmorph_is_trained_by_our_engine(extra, phases, tmp_path):
    folder = ROOT / "benchmarks" / "registration" / "peers"
    files = [str(folder / name) for name in ("voxelmorph.json", *extra)]
    own = json.loads((folder / (extra[0] if extra else "voxelmorph.json")).read_text())["phases"][-phases:]
    small = {"phases": [{**phase, "epochs": 1} for phase in own], "network_def#affine_net#channels": [4, 4]}
    small["affine_weights"] = None
    # Random poses bring masks with them, as in hippocampus_labels.json.
    small["pose"] = {"bounds": {"degrees": 10.0, "shift": 0.08}}
    (tmp_path / "small.json").write_text(json.dumps(small))
    tiny.run("train", tmp_path, tmp_path / "run", [*files, str(tmp_path / "small.json")])
    weights = torch.load(tmp_path / "run" / "model.pt", weights_only=True)
    head = [name for name in weights if name.startswith("momentum_net") and name.endswith("weight")][-1]
    # The last convolution began at a standard deviation of 1e-5.
    assert weights[head].abs().max() > 2e-4 and tiny.last(tmp_path / "run")["epoch"] == phases
