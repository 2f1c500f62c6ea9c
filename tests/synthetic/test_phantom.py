import nibabel as nib
import numpy as np
import pytest
import torch

from scripts.data.pairs import evaluation_pairs, read_datalist, training_pairs
from scripts.formats.images import read_image, read_label
from scripts.synthetic.phantom import KneePhantom, write_phantom_pair
from scripts.synthetic.warps import AffineStep, ShearStep, StretchStep, Warp

SHAPE = (48, 64, 48)
SEEDS = range(6)
MODES = ("cross_subject", "longitudinal")


@pytest.fixture(scope="module")
def phantom():
    return KneePhantom(SHAPE)


@pytest.mark.parametrize("step", [
    AffineStep(torch.tensor([[1.1, 0.1, 0], [0, 0.9, 0.2], [0.1, 0, 1]], dtype=torch.float64), torch.ones(3).double()),
    ShearStep(1, 0.3, (2.0, 1.0), 0.4),
    StretchStep(2, 0.3, (2.0, 1.0), 0.4, rate=7.0, shift=1.0),
], ids=["affine", "shear", "stretch"])  # fmt: skip
def test_step_inverse(step):
    points = torch.rand(3, 500, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 4 - 2
    assert (step(points) - points).abs().max() > 0.1 and (step.inverse()(step(points)) - points).abs().max() < 1e-12
    assert (step(step.inverse()(points)) - points).abs().max() < 1e-12


def test_stretch_is_the_flow_of_its_velocity():
    step = StretchStep(0, 0.2, (1.0, -2.0), 0.3, rate=2.5, shift=0.7)
    points = torch.rand(3, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 4 - 2
    height = 0.2 * torch.sin(points[1] - 2 * points[2] + 0.3)
    x, h = points[0], 1 / 200

    def velocity(x):
        return height * torch.sin(2.5 * x + 0.7)

    for _ in range(200):  # Runge-Kutta of fourth order
        a = velocity(x)
        b = velocity(x + h / 2 * a)
        c = velocity(x + h / 2 * b)
        x = x + h / 6 * (a + 2 * b + 2 * c + velocity(x + h * c))
    flowed = step(points)
    assert (flowed[0] - x).abs().max() < 1e-10 and torch.equal(flowed[1:], points[1:])


@pytest.mark.parametrize("mode", MODES)
def test_warps_are_inverted_and_consistent(phantom, mode):
    points = torch.rand(3, 2000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    for seed in SEEDS:
        fixed, moving, mapping = phantom.pair_warps(seed, mode)
        for chain in (fixed, moving, mapping):
            assert (chain.inverse()(chain(points)) - points).abs().max() < 1e-9
        # both scans see the same point of the template
        assert (moving(mapping(points)) - fixed(points)).abs().max() < 1e-9
        single = mapping(points.float())
        assert (single - mapping(points)).abs().max() < 1e-5


def test_identity_warp_is_the_template():
    phantom = KneePhantom((33, 33, 33), noise=0.0, bias=0.0)
    image, label = phantom.scan(Warp(), 0)
    assert label.unique().tolist() == [0, 1, 2, 3, 4]
    top, bottom = label[:, :, -1], label[:, :, 0]
    assert set(top.unique().tolist()) == {0, 3}  # axis 2 points up: femur above, tibia below
    assert set(bottom.unique().tolist()) == {0, 4}
    centroid = [(label == v).nonzero()[:, 2].float().mean() for v in (4, 2, 1, 3)]
    assert centroid == sorted(centroid)
    cartilage, bone, rest = (image[mask].mean() for mask in ((label == 1) | (label == 2), label >= 3, label == 0))
    assert cartilage > bone > rest and 0 <= image.min() < 0.1 and image.max() == 1


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("mode", MODES)
def test_written_pair_is_a_data_set(tmp_path, mode):
    listing = write_phantom_pair(tmp_path / "demo", (24, 30, 24), seed=2, mode=mode)
    (pair,) = evaluation_pairs(tmp_path / "demo")
    expected = KneePhantom((24, 30, 24)).pair(2, mode)
    for role in ("fixed", "moving"):
        image = read_image(pair[role])
        assert image.frame.spacing == pytest.approx((112 / 23, 140 / 29, 140 / 23), rel=1e-6)
        assert set(np.unique(read_label(pair[f"{role}_label"], image).array)) == {0, 1, 2, 3, 4}
        assert np.array_equal(np.asarray(nib.load(pair[role]).dataobj), expected[role].numpy())
    assert len(read_datalist(listing)["training"]) == 2 and len(training_pairs(listing, mode=mode)) == 2
    files = contents(tmp_path)
    assert len(files) == 5 and not [path for path in files if path.suffix == ".part"]
    write_phantom_pair(tmp_path / "demo", (24, 30, 24), seed=2, mode=mode)
    assert files == contents(tmp_path)
