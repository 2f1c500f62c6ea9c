"""The similarity losses against dense and numpy oracles, at their extremes, and their gradients."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from scripts.losses import (
    BoxCorrelation,
    MultiKernelLNCC,
    NormalizedCrossCorrelation,
    box_sums,
    global_correlation,
)
from tensor_cases import local_correlation

EPS = 1e-5
EACH = {  # name -> loss of each pair
    "lncc": MultiKernelLNCC((1.0,), (3,), 2 / 3, dilation=1),
    "lncc-squared": MultiKernelLNCC((1.0,), (4,), 1 / 4, dilation=1, squared=True),
    "mk-lncc": MultiKernelLNCC(),
    "mk-lncc-squared": MultiKernelLNCC(squared=True),
    "ncc": NormalizedCrossCorrelation(),
    "ncc-squared": NormalizedCrossCorrelation(squared=True),
}


def mean(loss):
    return lambda *images: loss(*images).mean()


LOSSES = {name: mean(loss) for name, loss in EACH.items()}

# shape, window, stride, dilation, the window after clipping
ORACLE_CASES = [
    ((9, 9, 9), 3, 1, 1, (3, 3, 3)), ((11, 8, 14), 4, 3, 1, (4, 4, 4)), ((12, 17, 10), 5, 2, 2, (5, 5, 5)),
    ((16, 9, 7), 4, 3, 2, (4, 4, 4)), ((20, 6, 13), 6, 4, 2, (6, 3, 6)), ((5, 12, 1), 9, 2, 1, (5, 9, 1)),
]  # fmt: skip


def images(shape, batch=2, channels=1, dtype=torch.float64, seed=0):
    """Two unlike textured images in [0, 1] that share some structure."""
    generator = torch.Generator().manual_seed(seed)
    x, z = torch.rand(2, batch, channels, *shape, generator=generator, dtype=dtype)
    return x, 0.6 * x + 0.4 * z


def dense_lncc(x, y, window, stride, dilation, squared=False):
    """Equation 2 by dense convolutions with ones, for windows that fit."""
    stride, dilation = (stride,) * 3, (dilation,) * 3
    free = [n - (w - 1) * d - 1 for n, w, d in zip(x.shape[2:], window, dilation, strict=True)]
    crop = tuple(slice(f % s // 2, None) for f, s in zip(free, stride, strict=True))
    ones = torch.full((1, 1, *window), 1 / np.prod(window), dtype=x.dtype)

    def mean(values):
        return F.conv3d(values[(..., *crop)], ones, stride=stride, dilation=dilation)

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    score = (cov + EPS) / ((vx + EPS) * (vy + EPS)).sqrt()
    return (score**2 if squared else score).flatten(1).mean(1)


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize(("shape", "window", "stride", "dilation", "clipped"), ORACLE_CASES)
def test_local_correlation_equals_dense_convolution(shape, window, stride, dilation, clipped, squared):
    x, y = images(shape)
    expected = dense_lncc(x, y, clipped, stride, dilation, squared)
    torch.testing.assert_close(local_correlation(x, y, window, stride, dilation, squared), expected)
    ones = torch.ones_like(x)
    torch.testing.assert_close(local_correlation(x, y, window, stride, dilation, squared, mask=ones), expected)


def test_local_correlation_equals_numpy_in_each_window():
    x, y = images((7, 6, 8), batch=1)
    scores = []
    for d in (0, 2, 4):
        for h in (0, 2):
            for w in (0, 2, 4):
                a, b = (i[0, 0, d : d + 3, h : h + 3, w : w + 3].numpy().ravel() for i in (x, y))
                cov = np.cov(a, b, bias=True) + EPS
                scores.append(cov[0, 1] / np.sqrt(cov[0, 0] * cov[1, 1]))
    # Along the axis of 6 one voxel is left over: the windows start at 0.
    assert local_correlation(x, y, 3, 2).item() == pytest.approx(np.mean(scores), abs=1e-12)


@pytest.mark.parametrize("squared", [False, True])
def test_global_correlation_equals_numpy(squared):
    x, y = images((6, 5, 7), batch=3)
    expected = []
    for a, b in zip(x.flatten(1).numpy(), y.flatten(1).numpy(), strict=True):
        value = np.corrcoef(a, b)[0, 1]
        expected.append(value**2 if squared else value)
    np.testing.assert_allclose(global_correlation(x, y, squared, eps=0.0).numpy(), expected, atol=1e-12)


def test_multi_kernel_is_the_weighted_sum_of_its_windows():
    x, y = images((16, 20, 24))
    expected = 1 - 0.3 * local_correlation(x, y, 4, 1, 2) - 0.7 * local_correlation(x, y, 8, 2, 2)
    torch.testing.assert_close(MultiKernelLNCC()(x, y), expected)
    torch.testing.assert_close(MultiKernelLNCC(windows=(4, 8))(x, y), expected)


@pytest.mark.parametrize(("loss", "smallest", "expected"), [
    (MultiKernelLNCC(), 80, [(0.3, 20, 5, 2), (0.7, 40, 10, 2)]),
    (MultiKernelLNCC(stride_of="smallest_dimension"), 80, [(0.3, 20, 20, 2), (0.7, 40, 20, 2)]),
    (MultiKernelLNCC(), 4, [(0.3, 3, 1, 2), (0.7, 3, 1, 2)]),
    (MultiKernelLNCC((1.0,), (9,), dilation=1), 40, [(1.0, 9, 2, 1)]),
], ids=["the paper's, its code's stride", "the paper's stride", "small image", "voxels"])  # fmt: skip
def test_kernels(loss, smallest, expected):
    assert [tuple(kernel) for kernel in loss.kernels((smallest + 10, smallest, smallest + 20))] == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("content", ["texture", "flat", "half flat", "noise of rounding"])
@pytest.mark.parametrize("name", LOSSES)
def test_identical_images_cost_nothing(name, content, dtype):
    x = images((10, 12, 9), dtype=dtype)[0]
    if content == "flat":
        x = torch.full_like(x, 0.7)
    elif content == "half flat":
        x[..., :5, :] = 0.3
    elif content == "noise of rounding":
        x = 0.7 + 1e-7 * x
    assert LOSSES[name](x, x).item() == pytest.approx(0, abs=2e-7)


@pytest.mark.parametrize(("gain", "offset"), [(2.0, 0.0), (1.0, 5.0), (3.0, -1.0)])
@pytest.mark.parametrize("name", LOSSES)
def test_correlations_ignore_brightness_and_contrast(name, gain, offset):
    x, y = images((10, 12, 9))
    loss = LOSSES[name]
    # The regulariser is a constant, so a gain keeps the value only about as well as eps is small against variances.
    assert loss(gain * x + offset, y).item() == pytest.approx(loss(x, y).item(), abs=1e-3 if gain != 1 else 1e-10)


def test_flat_windows():
    flat, texture = torch.full((1, 1, 8, 8, 8), 0.4), images((8, 8, 8), batch=1, dtype=torch.float32)[0]
    assert local_correlation(flat, torch.full_like(flat, 0.9), 4, 2).item() == pytest.approx(1, abs=1e-3)
    assert abs(local_correlation(flat, texture, 4, 2).item()) < 0.02
    assert global_correlation(flat, torch.full_like(flat, 0.9)).item() == pytest.approx(1, abs=1e-3)
    assert abs(global_correlation(flat, texture).item()) < 0.02


@pytest.mark.parametrize("kind", ["both", "moved", "fixed"])
@pytest.mark.parametrize("name", LOSSES)
def test_flat_windows_have_finite_gradients(name, kind):
    x, y = images((10, 12, 9), dtype=torch.float32)
    x = torch.zeros_like(x) if kind in ("both", "moved") else x
    y = torch.ones_like(y) if kind in ("both", "fixed") else y
    x.requires_grad_()
    LOSSES[name](x, y).backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_gradcheck(name, masked):
    x, y = images((6, 5, 7), batch=2)
    mask = images((6, 5, 7), seed=1)[0].round(decimals=1) if masked else None
    loss = EACH[name]
    assert torch.autograd.gradcheck(lambda a: loss(a, y, mask), x.requires_grad_())


@pytest.mark.parametrize("name", LOSSES)
def test_each_pair_has_its_loss(name):
    x, y = images((10, 12, 9), batch=3)
    each = EACH[name](x, y)
    assert each.shape == (3,)
    alone = torch.stack([LOSSES[name](x[[i]], y[[i]]) for i in range(3)])
    torch.testing.assert_close(each, alone)


@pytest.mark.parametrize("name", LOSSES)
def test_mask_restricts(name):
    x, y = images((12, 10, 11))
    mask = torch.zeros(2, 1, 12, 10, 11)
    mask[:, :, 3:9, 2:9, 2:9] = torch.tensor([1.0, 0.5]).view(2, 1, 1, 1, 1)
    loss = LOSSES[name]
    before = loss(x, y, mask)
    outside = x + 3 * (mask == 0)
    torch.testing.assert_close(loss(outside, y, mask), before, atol=0, rtol=0)
    assert not torch.isclose(loss(x + 0.3 * mask * (x > 0.5), y, mask), before)
    assert not torch.isclose(loss(x, y), before)


def test_masked_windows_weigh_as_their_mass():
    x, y = images((4, 4, 8), batch=1)
    mask = torch.ones(1, 1, 4, 4, 8, dtype=torch.float64)
    mask[..., 4:] = 0.25
    left, right = (local_correlation(x[..., part], y[..., part], 4, 4) for part in (slice(4), slice(4, 8)))
    torch.testing.assert_close(local_correlation(x, y, 4, 4, mask=mask), 0.8 * left + 0.2 * right)


@pytest.mark.parametrize("offset", [0.0, 5.0])
def test_float32_keeps_its_digits(offset):
    x, y = images((40, 48, 32))
    x, y = x + offset, 0.1 * y + offset
    loss = LOSSES["mk-lncc"]
    exact, single = loss(x, y), loss(x.float(), y.float())
    assert single.dtype == torch.float32 and single.item() == pytest.approx(exact.item(), abs=1e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_raw_intensities_stay_finite(name):
    # In nearly flat windows of such intensities rounding makes some variances negative, by far more than eps.
    x, y = (1000 * i for i in images((10, 12, 9), dtype=torch.float32))
    x[..., :6, :] = 1234.5 + 1e-4 * x[..., :6, :]
    y[..., 8:, :] = 3210.9 + 1e-4 * y[..., 8:, :]
    x.requires_grad_()
    loss = LOSSES[name](x, y)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(x.grad).all()
    assert 0 <= loss.item() <= 2
    exact = LOSSES[name](x.detach().double(), y.double()).item()
    assert loss.item() == pytest.approx(exact, rel=1e-5) or "lncc" in name


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_computed_in_float32(name):
    x, y = (i.to(torch.bfloat16) for i in images((10, 12, 9)))
    expected = LOSSES[name](x.float(), y.float())
    with torch.autocast("cpu", torch.bfloat16):
        actual = LOSSES[name](x, y)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("name", ["lncc", "mk-lncc", "ncc"])
def test_refuses_images_and_masks_that_do_not_go_together(name):
    x, y = images((8, 8, 8))
    for moved, fixed in ((x, y[..., 1:]), (x[:1], y), (x[:, 0], y[:, 0])):
        with pytest.raises(ValueError, match="moved and fixed"):
            LOSSES[name](moved, fixed)
    for mask in (torch.zeros_like(x), -torch.ones_like(x), torch.ones_like(x)[..., 1:]):
        with pytest.raises(ValueError, match="mask"):
            LOSSES[name](x, y, mask)


def test_mask_between_the_windows():
    x, y = images((7, 7, 7), batch=1)
    mask = torch.zeros(1, 1, 7, 7, 7)
    mask[..., 3] = 1
    with pytest.raises(ValueError, match="no weight in any window"):
        MultiKernelLNCC((1.0,), (3,), 4 / 7, dilation=1, stride_of="smallest_dimension")(x, y, mask)


@pytest.mark.parametrize(("loss", "arguments", "match"), [
    (MultiKernelLNCC, {"weights": (0.5, 0.6)}, "weights"),
    (MultiKernelLNCC, {"weights": (1.0,)}, "one entry each"),
    (MultiKernelLNCC, {"windows": (0.5, 1.5)}, "windows"),
    (MultiKernelLNCC, {"stride": 0.0}, "stride"),
    (MultiKernelLNCC, {"dilation": (2, 0)}, "dilation"),
    (MultiKernelLNCC, {"stride_of": "image"}, "stride_of"),
    (MultiKernelLNCC, {"windows": (0, 3)}, "windows"),
])  # fmt: skip
def test_ill_arguments(loss, arguments, match):
    with pytest.raises(ValueError, match=match):
        loss(**arguments)


class TestBoxCorrelation:
    """The optimiser's correlation: its value in plain windows, and its derivative."""

    @pytest.mark.parametrize("radius", [1, 2, 4, 9])
    def test_box_sums_are_those_of_a_convolution(self, radius):
        volumes = torch.rand(2, 3, 7, 9, 8, dtype=torch.float64)
        size = 2 * radius + 1
        wide = F.pad(volumes, [radius] * 6)
        expected = torch.nn.functional.avg_pool3d(wide, size, 1, divisor_override=1)
        torch.testing.assert_close(box_sums(volumes, radius), expected)

    def test_inside_the_image_it_is_the_local_correlation(self):
        moved, fixed = (torch.rand(1, 1, 12, 12, 12, dtype=torch.float64) for _ in range(2))
        similarity = BoxCorrelation(fixed, None, radii=(2,), eps=1e-5)
        ((_, _, covariance, towards),) = similarity.moments(moved)
        inner = (covariance * towards)[..., 2:-2, 2:-2, 2:-2].mean().item()
        assert inner == pytest.approx(local_correlation(moved, fixed, 5).item(), abs=1e-4)

    def test_refuses_windows_of_nothing(self):
        with pytest.raises(ValueError, match="radii"):
            BoxCorrelation(torch.rand(1, 1, 4, 4, 4), radii=())
