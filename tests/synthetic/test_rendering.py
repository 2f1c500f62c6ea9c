import pytest
import torch

from scripts.synthetic.fields import blur_matrix, separable, slice_matrices, smooth_noise
from scripts.synthetic.rendering import Contrast, Scanner, acquire, change_contrast, draw_contrast, tissue_signal
from scripts.synthetic.seeded import seeded

SHAPE = (20, 24, 16)
NONE = Scanner(**dict.fromkeys(("bias", "noise", "grain", "blur", "gamma", "thick_slices", "empty_air", "cut_view"), 0))


@pytest.fixture
def label():
    volume = torch.zeros(SHAPE, dtype=torch.uint8)
    volume[4:16, 4:20, 3:13] = 1
    volume[8:14, 8:14, 6:10] = 2
    return volume


def scan(label, generator, scanner=None, contrast=None):
    """An image of a label map of three tissues, the first of them air."""
    volumes = torch.stack([(label == v).float() for v in range(3)])
    contrast = contrast or draw_contrast(generator, 3)
    return acquire(
        tissue_signal(volumes, contrast, torch.zeros(0, *SHAPE)), generator, scanner or Scanner(), volumes[0]
    )


def test_scanner_of_nothing_gives_the_means_scaled(label):
    image = scan(label, seeded(1), NONE, Contrast(torch.tensor([0.1, 0.3, 0.6]), torch.zeros(3, 0)))
    assert [round(float(image[label == v].mean()), 3) for v in (0, 1, 2)] == [0.0, 0.4, 1.0]
    assert max(float(image[label == v].std()) for v in (0, 1, 2)) < 1e-6


@pytest.mark.parametrize("seed", range(4))
def test_range_type_and_determinism(label, seed):
    image = scan(label, seeded(seed))
    assert image.shape == SHAPE and image.dtype == torch.float32 and torch.isfinite(image).all()
    assert (image.min(), image.max()) == (0, 1) and torch.equal(image, scan(label, seeded(seed)))
    assert not torch.equal(image, scan(label, seeded(seed + 100)))


def test_signal_is_the_mean_of_each_tissue_and_its_gains_of_the_textures(label):
    contrast = draw_contrast(seeded(3), 3, textures=2)
    texture = smooth_noise(seeded(4), 2, 6, SHAPE)
    volumes = torch.stack([(label == v).float() for v in range(3)])
    index = label.long()
    expected = contrast.means[index] + sum(contrast.gains[:, t][index] * texture[t] for t in range(2))
    assert torch.allclose(tissue_signal(volumes, contrast, texture), expected.clamp(min=0), atol=1e-6)


def test_change_of_contrast():
    first = draw_contrast(seeded(0), 8, 2)
    same = torch.stack([change_contrast(seeded(s), first, False).means - first.means for s in range(30)])
    other = torch.stack([change_contrast(seeded(s), first, True).means - first.means for s in range(30)])
    assert same.abs().mean() < 0.05 < 0.2 < other.abs().mean()
    assert (first.means[0], same[:, 0].abs().max(), other[:, 0].abs().max()) == (0, 0, 0)
    inverse = [change_contrast(seeded(s), first, True, jitter=0.0) for s in range(60)]
    hits = sum(torch.allclose(c.means[1:], 1 - first.means[1:], atol=0.021) for c in inverse)
    assert 5 <= hits <= 30


def test_empty_air_is_zero_and_noisy_air_is_not(label):
    contrast = Contrast(torch.tensor([0.0, 0.5, 0.9]), torch.zeros(3, 0))
    for empty in (0, 1):
        scanner = Scanner(noise=0.3, cut_view=0, empty_air=empty, rician=1, thick_slices=0)
        image = scan(label, seeded(5), scanner, contrast)
        assert (image[label == 0] == 0).float().mean() == 1 if empty else (image[label == 0] > 0).float().mean() > 0.9


def test_cut_view_empties_faces(label):
    signal = torch.full(SHAPE, 0.5)
    signal[::2] = 0.9
    counts = set()
    for seed in range(12):
        image = acquire(signal, seeded(seed), Scanner(cut_view=1, cut=0.3, noise=0.0))
        faces = [bool((image.select(axis, place) == 0).all()) for axis in range(3) for place in (0, -1)]
        counts.add(sum(faces))
    assert counts <= {0, 1, 2, 3} and max(counts) >= 2


def test_blur_keeps_constants_and_spreads_a_point():
    matrices = [blur_matrix(n, 1.2) for n in SHAPE]
    constant = separable(torch.full((1, *SHAPE), 0.7), matrices)
    assert torch.allclose(constant, torch.full_like(constant, 0.7), atol=1e-6)
    point = torch.zeros(1, *SHAPE)
    point[0, 10, 12, 8] = 1
    profile = separable(point, matrices).sum((0, 2, 3))
    place = torch.arange(SHAPE[0]) - 10.0
    assert float((profile * place**2).sum() ** 0.5) == pytest.approx(1.2, abs=0.02)


@pytest.mark.parametrize("factor", [1.0, 1.7, 3.0, 4.0])
def test_slices_keep_constants_and_ramps(factor):
    down, up = slice_matrices(33, factor)
    assert down.shape[0] == max(2, round(32 / factor) + 1)
    ramp = torch.linspace(0, 1, 33)
    again = up @ (down @ ramp)
    inner = slice(6, -6)
    assert torch.allclose(again[inner], ramp[inner], atol=5e-3)
    assert torch.allclose(up @ (down @ torch.ones(33)), torch.ones(33), atol=1e-5)


def test_smooth_noise_is_smooth_and_of_unit_variance():
    fields = smooth_noise(seeded(0), 60, 8, (30, 30, 30))
    assert float(fields.std()) == pytest.approx(1, abs=0.08) and abs(float(fields.mean())) < 0.05
    assert float(fields.diff(dim=1).square().mean().sqrt()) < 0.4
    # separable sums as the tensor product does
    volume, matrices = torch.randn(2, 3, 4, 5), [torch.randn(6, 3), torch.randn(7, 4), torch.randn(8, 5)]
    assert torch.allclose(
        separable(volume, matrices), torch.einsum("cdhw,ad,bh,ew->cabe", volume, *matrices), atol=1e-4
    )
