"""Large images: fields are worked out part by part, no finer than they need be, and a bound of memory is kept."""

import json
import subprocess
import sys
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch

from flows import vortex
from scripts.errors import InputError
from scripts.formats.displacement import read_field, save_displacement_blocks
from scripts.formats.images import Image
from scripts.layers import VSVF, Flow
from scripts.registration import sampling as sampling_room
from scripts.registration.grids import NetworkGrids
from scripts.registration.memory import check_memory, needed_memory
from scripts.registration.pair import FILES, Pair
from scripts.registration.sampling import SamplePaird
from scripts.registration.voxels import VoxelField
from scripts.registration.world import world_transform
from scripts.registration.write import _lps_blocks
from scripts.settings import BUNDLE
from scripts.spatial.frame import Frame
from scripts.spatial.transform import WorldTransform
from world_cases import AFFINE, OBLIQUE, OTHER, displacement

SPACING = 4.0
FRAME = Frame((24, 28, 20), np.diag([SPACING, SPACING, SPACING, 1.0]), "image")
ALL = slice(None)
# Linux counts what a process was forked from, and these tests' own process may be large.
_LAUNCH = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); "
_LAUNCH += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"


def peak_of(*options):
    """The most memory of ``avsm register`` on one thread, MB."""
    words = [sys.executable, "-m", "scripts.cli", "register", "--threads=1", *options]
    launch = [sys.executable, "-S", "-c", _LAUNCH, *words]
    return int(subprocess.run(launch, cwd=BUNDLE, check=True, capture_output=True).stdout.split()[-1]) / 1e3


def pair(*shape):
    """Two images that take no memory, whatever their size."""
    images = {
        name: Image(np.broadcast_to(np.int16(1), shape), Frame(shape, np.eye(4)), f"{name}.nii.gz")
        for name in ("fixed", "moving")
    }
    return SimpleNamespace(**images, images=images, moving_label=None, fixed_channels=(), moving_channels=())


@pytest.mark.parametrize(
    ("to_target", "start"), [(None, None), (np.linalg.inv(OTHER.affine), np.eye(4)), (np.eye(4), np.zeros((4, 4)))]
)
def test_parts_of_a_field_are_those_of_the_whole(monkeypatch, to_target, start):
    monkeypatch.setattr("scripts.registration.voxels._BLOCK", 1500)
    transform = WorldTransform.from_network(OBLIQUE, OTHER, AFFINE, displacement())
    field = VoxelField([transform], OBLIQUE, to_target, start)
    index = np.stack(np.indices(OBLIQUE.shape), -1)
    there = transform.apply(OBLIQUE.voxel_to_world(index)) @ (np.eye(4) if to_target is None else to_target)[:3, :3].T
    there += 0 if to_target is None else to_target[:3, 3]
    matrix = OBLIQUE.affine if start is None else start
    whole = field.whole()
    np.testing.assert_allclose(whole, there - index @ matrix[:3, :3].T - matrix[:3, 3], atol=1e-4)
    part = field[slice(1, 3), ALL, slice(4, 5), slice(3, 9)]
    np.testing.assert_allclose(part, np.moveaxis(whole, -1, 0)[1:3, :, 4:5, 3:9], atol=1e-4)
    blocks = [[block for component, block in field.blocks() if component == c] for c in range(3)]
    assert len(blocks[0]) > 1
    np.testing.assert_allclose(np.stack([np.concatenate(b, axis=2) for b in blocks], -1), whole, atol=1e-4)


@pytest.mark.parametrize("name", ["field.nii", "field.nii.gz"])
def test_a_field_written_in_parts_is_read_as_one(tmp_path, name):
    transform = WorldTransform.from_network(OBLIQUE, OTHER, AFFINE, displacement())
    save_displacement_blocks(_lps_blocks([transform], OBLIQUE), OBLIQUE, tmp_path / name)
    found = read_field(tmp_path / name)
    points = OBLIQUE.voxel_to_world(np.stack(np.indices(OBLIQUE.shape), -1))
    np.testing.assert_allclose(found.apply(points), transform.apply(points), atol=1e-4 * OBLIQUE.spacing.min())
    header = nib.load(tmp_path / name).header
    assert header["vox_offset"] in (0, 352) and header.get_slope_inter() in ((1, 0), (None, None))


@pytest.mark.parametrize("strength", [0.05, 0.3])
def test_a_smooth_flow_takes_a_coarser_grid(strength):
    grids, small = NetworkGrids(FRAME, FRAME, "header"), FRAME.resized([8 * n for n in FRAME.shape])
    found = vortex(strength, FRAME.shape)
    written, finest = (world_transform(found, VSVF(), grids, small, small, tolerance) for tolerance in (0.02, 0.0))
    assert written.frame.spacing.max() > 1.2 * finest.frame.spacing.max()
    points = FRAME.normalised_to_world(np.random.default_rng(0).uniform(-0.95, 0.95, (4000, 3)))
    assert np.linalg.norm(written.apply(points) - finest.apply(points), axis=1).max() < 0.025  # mm


@pytest.mark.parametrize("factor", [1, 2, 3, 5])
def test_the_error_of_a_grid_is_known_before_it_is_made(factor):
    flow = Flow(VSVF(), vortex(0.6, (16, 20, 12)).velocities)
    told = flow.error(factor).norm(dim=1).max().item()
    many = flow.at(4 * factor)
    linear = torch.nn.functional.interpolate(flow.at(factor), size=many.shape[2:], mode="trilinear", align_corners=True)
    found = (many - linear).norm(dim=1).max().item()
    assert found / 1.3 < told < 1.05 * found


def test_what_takes_more_than_allowed_is_refused_before_the_work(monkeypatch):
    large = pair(512, 512, 300)
    assert 2000 < needed_memory(large) < 4000
    assert needed_memory(large, spline=True) > needed_memory(large) > needed_memory(large, 1000)
    check_memory(large, None)
    check_memory(large, 4000)
    check_memory(pair(20, 23, 18), 1000)
    step = SamplePaird(None, 150_000, "geometry", "common", "RAS", None, 0.1, 99.9, max_memory=1500)
    monkeypatch.setattr(sampling_room, "lay_grids", None)
    with pytest.raises(InputError, match=r"fixed.nii.gz, moving.nii.gz: take about \d+ MB together, more than max_mem"):
        step({"pair": large})


@pytest.mark.slow
@pytest.mark.parametrize(("size", "further"), [(72, 0), (100, 0), (72, 2)])
def test_the_engine_takes_about_what_is_told(tmp_path, size, further):
    x = np.random.default_rng(0).random((9, 9, 9))
    volume = torch.nn.functional.interpolate(torch.from_numpy(x)[None, None], (size,) * 3, mode="trilinear")[0, 0]
    for name, shift in (("fixed", 0), ("moving", 2)):
        array = np.roll((1000 * volume.numpy()).astype(np.int16), shift, axis=0)
        nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / f"{name}.nii")
    files = {name: str(tmp_path / f"{name}.nii") for name in ("fixed", "moving")}
    if further:
        files |= {f"{name}_channels": [file] * further for name, file in files.items()}
    words = [word for name, file in files.items() for word in (f"--{name.replace('_', '-')}", *np.atleast_1d(file))]
    peak = peak_of(*words, "--no-report", f"--output={tmp_path}/out")
    images = Pair.read(files)
    told = needed_memory(images, grid_voxels=1_000_000)
    assert 0.6 * told < peak < told


@pytest.mark.slow
def test_a_large_ct_takes_less_than_four_gigabytes(tmp_path):
    """512 x 512 x 300 voxels with labels and the report, the whole command in a process of its own."""
    shape, affine = (512, 512, 300), np.diag([-0.8, -0.8, 1.0, 1.0])
    axes = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in shape)]
    for name, bend in (("fixed", 0.0), ("moving", 0.05)):
        x, y, z = (axis + bend * np.sin(3 * other + 1) for axis, other in zip(axes, (*axes[1:], axes[0]), strict=True))
        body = (x / 0.85) ** 2 + (y / 0.6) ** 2 + (z / 1.3) ** 2 < 1
        texture = 40 + 200 * (np.sin(9 * x) * np.cos(11 * y) * np.sin(7 * z) > 0.2)
        for kind, array in (("", np.where(body, texture, -1000).astype(np.int16)), ("_label", body.astype(np.uint8))):
            nib.save(nib.Nifti1Image(array, affine), tmp_path / f"{name}{kind}.nii")
        del x, y, z, body, texture, array
    files = [f"--{name.replace('_', '-')}={tmp_path}/{name}.nii" for name in list(FILES)[:4]]
    assert peak_of(*files, "--max-memory=4000", f"--output={tmp_path}/out") < 4000
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["folds"] == 0 and metrics["labels"]["1"]["dice"]["final"] > 0.97
    assert max(value for stage, value in metrics["seconds"].items() if stage not in ("network", "total")) < 180
