"""The multi-Gaussian smoother: scipy's reflecting Gaussians, symmetry, positivity, faces, physical axes, errors."""

import pytest
import torch
from scipy.ndimage import gaussian_filter

from scripts.layers import MultiGaussianSmoother, multi_gaussian_smooth
from tensor_cases import noise

PAPER_STDS = (0.05, 0.1, 0.15, 0.2, 0.25)
PAPER_WEIGHTS = (0.067, 0.133, 0.2, 0.267, 0.333)


def table(*stds):
    return torch.tensor(stds, dtype=torch.float64)


@pytest.mark.parametrize(("shape", "stds", "weights"), [
    ((24, 32, 41), ((0.1, 0.1, 0.1),), (1.0,)),
    ((31, 20, 26), ((0.08, 0.2, 0.3),), (1.0,)),
    ((30, 41, 27), ((0.1, 0.08, 0.1), (0.25, 0.25, 0.25)), (0.3, 0.7)),
])  # fmt: skip
def test_agrees_with_scipy(shape, stds, weights):
    field = noise(1, 2, *shape)
    expected = torch.zeros_like(field)
    for std, weight in zip(stds, weights, strict=True):
        voxels = [s * (n - 1) for s, n in zip(std, shape, strict=True)]
        for channel in range(2):
            smooth = gaussian_filter(field[0, channel].numpy(), voxels, mode="reflect", truncate=8.0)
            expected[0, channel] += weight * torch.from_numpy(smooth)
    result = multi_gaussian_smooth(field, table(*stds), torch.tensor(weights, dtype=torch.float64))
    # scipy samples the Gaussian in space, this in frequency: they agree as no std is below 2 voxels.
    torch.testing.assert_close(result, expected, atol=1e-6, rtol=0)


def test_means_are_kept():
    field = noise(2, 3, 9, 7, 8)
    smooth = MultiGaussianSmoother()(field)
    torch.testing.assert_close(smooth.mean(dim=(2, 3, 4)), field.mean(dim=(2, 3, 4)))
    assert smooth.std() < 0.2 * field.std()


@pytest.mark.parametrize("shape", [(6, 7, 5), (3, 9, 4)])
def test_operator_is_symmetric_and_positive(shape):
    stds, weights = table((0.05,) * 3, (0.25,) * 3), torch.tensor([0.3, 0.7], dtype=torch.float64)
    count = shape[0] * shape[1] * shape[2]
    columns = multi_gaussian_smooth(torch.eye(count, dtype=torch.float64).view(count, 1, *shape), stds, weights)
    matrix = columns.view(count, count)
    torch.testing.assert_close(matrix, matrix.T)
    eigenvalues = torch.linalg.eigvalsh(matrix)
    assert eigenvalues[0] > 0 and eigenvalues[-1].item() == pytest.approx(1.0)


@pytest.mark.parametrize("axis", [2, 3, 4])
def test_nothing_leaks_to_the_opposite_face(axis):
    shape, std = (40, 40, 40), 0.05
    field = torch.zeros(1, 1, *shape, dtype=torch.float64)
    centre = [0, 0, 20, 20, 20]
    centre[axis] = 0
    field[tuple(centre)] = 1.0
    smooth = multi_gaussian_smooth(field, table((std,) * 3), torch.ones(1, dtype=torch.float64))
    frequency = torch.fft.fftfreq(40, dtype=torch.float64) * 2 * torch.pi
    transfer = torch.exp(-0.5 * (std * 39 * frequency) ** 2)
    transfer = transfer.view(-1, 1, 1) * transfer.view(-1, 1) * transfer
    periodic = torch.fft.ifftn(torch.fft.fftn(field, dim=(2, 3, 4)) * transfer, dim=(2, 3, 4)).real
    far = [0, 0, 20, 20, 20]
    far[axis] = -1
    peak = smooth[tuple(centre)]
    assert smooth[tuple(far)].abs() < 1e-12 * peak and periodic[tuple(far)] > 0.5 * periodic[tuple(centre)]
    # What reflects at its own face stays: the peak there is about twice the periodic one.
    assert 1.5 < peak / periodic[tuple(centre)] < 2.0


def test_rounded_weights_are_normalised():
    smoother = MultiGaussianSmoother([0.1, 0.2], [0.333, 0.666])
    assert smoother.weights.sum().item() == pytest.approx(1.0) and smoother.weights[0].item() == pytest.approx(1 / 3)


def test_settings_are_kept_with_the_weights_but_not_trained():
    state = MultiGaussianSmoother([0.1, (0.2, 0.3, 0.4)], [0.25, 0.75]).state_dict()
    torch.testing.assert_close(state["stds"], torch.tensor([[0.1, 0.1, 0.1], [0.2, 0.3, 0.4]]))
    torch.testing.assert_close(state["weights"], torch.tensor([0.25, 0.75]))
    assert list(MultiGaussianSmoother().parameters()) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_smooths_in_float32_at_least(dtype):
    field = noise(1, 3, 9, 8, 7, dtype=dtype)
    expected = multi_gaussian_smooth(field.double(), table((0.1,) * 3), torch.ones(1))
    smoother = MultiGaussianSmoother([0.1], [1.0])
    for result in (smoother(field), torch.autocast("cpu", dtype=torch.bfloat16)(smoother)(field)):
        assert result.dtype == torch.float32
        torch.testing.assert_close(result.double(), expected, atol=1e-5, rtol=1e-5)


def test_gradcheck():
    field = noise(1, 2, 3, 4, 2).requires_grad_()
    stds = table((0.1, 0.2, 0.3), (0.4, 0.2, 0.1)).requires_grad_()
    weights = torch.tensor([0.4, 0.6], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(multi_gaussian_smooth, (field, stds, weights))


@pytest.mark.parametrize(("stds", "weights", "message"), [
    ((), (), "one weight for each std"),
    ((0.1, 0.2), (1.0,), "2 stds but 1 weights"),
    ((0.0,), (1.0,), "stds must be positive"),
    ((-0.1,), (1.0,), "stds must be positive"),
    (((0.1, 0.2),), (1.0,), "one or three numbers"),
    ((0.1, (0.1, 0.2)), (0.5, 0.5), "one or three numbers"),
    ((float("nan"),), (1.0,), "stds must be positive"),
    ((float("inf"),), (1.0,), "stds must be positive"),
    ((0.1, 0.2), (0.5, 0.4), "sum to 1"),
    ((0.1, 0.2), (1.5, -0.5), "weights must be positive"),
    ((0.1,), (float("nan"),), "sum to 1"),
])  # fmt: skip
def test_refuses_settings_without_sense(stds, weights, message):
    with pytest.raises(ValueError, match=message):
        MultiGaussianSmoother(stds, weights)


def test_the_papers_kernel_is_the_default():
    smoother = MultiGaussianSmoother()
    torch.testing.assert_close(smoother.stds, torch.tensor(PAPER_STDS).unsqueeze(1).expand(5, 3))
    torch.testing.assert_close(smoother.weights, torch.tensor(PAPER_WEIGHTS), atol=1e-6, rtol=0)
