"""Steps computed from two images without learning: forces on each voxel, and an affine's Gauss-Newton step."""

from __future__ import annotations

from typing import List, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry import identity_map, voxels_per_unit


def _window_means(shape: List[int], window: int, like: Tensor) -> List[Tensor]:
    """Matrices ``(windows, size)``, one an axis, of means over windows a quarter of one apart, cut off at the faces."""
    stride = max(1, (window + 1) // 4)
    matrices: List[Tensor] = []
    for size in shape:
        place = torch.arange(size, device=like.device)
        centres = place[(size - 1) % stride // 2 :: stride]
        inside = ((place[None, :] - centres[:, None]).abs() <= window // 2).to(like.dtype)
        matrices.append(inside / inside.sum(dim=1, keepdim=True))
    return matrices


def _along_axes(volume: Tensor, matrices: List[Tensor]) -> Tensor:
    """Each matrix ``(n, size)`` applied along its axis of ``(B, C, D, H, W)``."""
    volume = torch.matmul(volume, matrices[2].t())
    volume = torch.matmul(matrices[1], volume)
    flat = torch.matmul(matrices[0], volume.flatten(3))
    return flat.view(flat.shape[0], flat.shape[1], flat.shape[2], volume.shape[3], volume.shape[4])


def _gradient(image: Tensor) -> Tensor:
    """Central differences ``(B, 3, D, H, W)`` of ``(B, 1, D, H, W)``, each voxel to voxel, faces continued."""
    wide = F.pad(image, [1, 1, 1, 1, 1, 1], mode="replicate")
    d, h, w = image.shape[2:]
    parts = [
        wide[:, :, 2:, 1 : h + 1, 1 : w + 1] - wide[:, :, :d, 1 : h + 1, 1 : w + 1],
        wide[:, :, 1 : d + 1, 2:, 1 : w + 1] - wide[:, :, 1 : d + 1, :h, 1 : w + 1],
        wide[:, :, 1 : d + 1, 1 : h + 1, 2:] - wide[:, :, 1 : d + 1, 1 : h + 1, :w],
    ]
    return torch.cat(parts, dim=1) / 2


def edges(image: Tensor) -> Tensor:
    """Where an image ``(B, 1, D, H, W)`` changes, in [0, 1), whichever way: what two contrasts of a body share.

    The gradient's length g as g / (g + its mean).
    """
    # The root of nothing has no derivative.
    length = (_gradient(image).square().sum(dim=1, keepdim=True) + 1e-6).sqrt()
    mean = length.mean(dim=[1, 2, 3, 4], keepdim=True)
    return length / (length + mean)


class _Windows(NamedTuple):
    """Moments of two images in windows, ``(B, 1, d, h, w)`` each, and the matrices that took them."""

    means: List[Tensor]
    mass: Tensor
    moved_mean: Tensor
    fixed_mean: Tensor
    moved_variance: Tensor
    fixed_variance: Tensor
    covariance: Tensor


def _windows(
    moved: Tensor, fixed: Tensor, mask: Tensor, window: int, eps: float, any_contrast: bool = False
) -> _Windows:
    """Moments of ``(B, 1, D, H, W)`` in windows of so many voxels within a mask; ``eps`` regularises (co)variances.

    ``any_contrast``: covariances of either sign alike.
    """
    means = _window_means(fixed.shape[2:], window, fixed)
    products = torch.cat([torch.ones_like(fixed), moved, fixed, moved * moved, fixed * fixed, moved * fixed], dim=1)
    moments = _along_axes(products * mask, means)
    mass = moments[:, :1]
    moments = moments[:, 1:] / mass.clamp(min=1e-3)
    m, f = moments[:, 0:1], moments[:, 1:2]
    moved_variance = (moments[:, 2:3] - m * m).clamp(min=0.0) + eps
    fixed_variance = (moments[:, 3:4] - f * f).clamp(min=0.0) + eps
    covariance = moments[:, 4:5] - m * f
    sign = covariance.sign() if any_contrast else torch.ones_like(covariance)
    covariance = covariance + sign * eps
    return _Windows(means, mass, m, f, moved_variance, fixed_variance, covariance)


def _correlation_derivative(
    moved: Tensor, fixed: Tensor, mask: Tensor, of: _Windows, any_contrast: bool = False
) -> Tensor:
    """Derivative by each voxel of the moved image of the sum of Equation 2 over windows, weighted by their mass.

    Images and mask are ``(B, 1, D, H, W)``, ``of`` their moments. ``any_contrast``: of half the sum of squared
    correlations, which takes greys that are opposite in a window for as alike as equal ones.
    """
    back = [matrix.t() for matrix in of.means]
    towards = (of.moved_variance * of.fixed_variance).rsqrt()
    away = of.covariance * towards / of.moved_variance
    if any_contrast:
        correlation = of.covariance * towards
        towards, away = towards * correlation, away * correlation
    terms = _along_axes(torch.cat([towards, away, away * of.moved_mean - towards * of.fixed_mean], dim=1), back)
    return mask * (terms[:, 0:1] * fixed - terms[:, 1:2] * moved + terms[:, 2:3])


def correlation_forces(
    moved: Tensor,
    fixed: Tensor,
    windows: List[int],
    damping: float = 0.1,
    eps: float = 1e-4,
    view: Optional[Tensor] = None,
    longest: float = 0.0,
    any_contrast: bool = False,
) -> Tuple[Tensor, Tensor]:
    """Two forces of the local correlation (Equation 2, mean over sizes) on the map, without gradient.

    The first is its derivative by the moved image, times ∇moved. Along it a displacement of the map gains similarity
    fastest, voxel by voxel. At the minimum of Equation 11 momentum and force balance (λvr m₀ is the force, carried
    along the flow), which is why a network that predicts momenta is given it.

    The second is the first over its own curvature: the Gauss-Newton step of each voxel, if it moved alone. The
    correlation of a window is a sum of squared differences between intensities that the window normalises, whose
    curvature along ∇moved is |∇moved|² over the window's variance. It has the length of a displacement where edges are
    clear and none where there are none, whatever the contrast.

    Args:
        moved: ``(B, 1, D, H, W)``, intensities of about [0, 1], as ``fixed``.
        fixed: ``(B, 1, D, H, W)``.
        windows: sizes in voxels, odd; they lie a quarter of their size apart and are cut off at the faces.
        damping: is added to the curvature of the correlation, whose order is 1 where edges are clear.
        eps: regulariser of variances and covariance, squared intensity.
        view: ``(B, 1, D, H, W)``, 1 where both fields of view are; moments are taken there, and elsewhere there is
            no force. None for everywhere.
        longest: bound on the length of the first force's direction at every voxel; 0 for none. At thin, bright
            structures it has no other.
        any_contrast: of squared correlations, see `_correlation_derivative`.

    Returns:
        The direction of a displacement, ``(B, 3, D, H, W)`` in normalised coordinates but for a factor of half the
        grid's mean size, so that its size does not depend on the grid's, of the order of 0.1 at edges that do not
        match; and the step, ``(B, 3, D, H, W)``, voxels: what is to be added to the moved image's coordinates.
    """
    moved, fixed = moved.detach().float(), fixed.detach().float()
    shape = fixed.shape[2:]
    mask = torch.ones_like(fixed)
    if view is not None:
        mask = view.to(fixed.dtype)
    derivative, curvature = torch.zeros_like(moved), torch.zeros_like(moved)
    for window in windows:
        # Scales the sum to what a window around every voxel would give.
        density = max(1, (window + 1) // 4) ** 3
        of = _windows(moved, fixed, mask, window, eps, any_contrast)
        back = [matrix.t() for matrix in of.means]
        derivative = derivative + density * _correlation_derivative(moved, fixed, mask, of, any_contrast)
        curvature = curvature + density * _along_axes(of.mass / of.moved_variance, back)
    gradient = _gradient(moved)
    steepness = gradient.square().sum(dim=1, keepdim=True)
    direction = derivative / len(windows) * gradient * _direction_scale(shape, moved)
    if longest > 0:
        length = direction.square().sum(dim=1, keepdim=True).sqrt()
        direction = direction * (longest / length.clamp(min=1e-12)).clamp(max=1.0)
    return direction, derivative * gradient / (curvature * steepness + len(windows) * damping)


def _direction_scale(shape: List[int], like: Tensor) -> Tensor:
    """From differences voxel to voxel to a direction in normalised coordinates that does not depend on the size."""
    per_unit = voxels_per_unit(shape, like.device, like.dtype)
    return (per_unit.mean() / per_unit.clamp(min=0.5)).view(1, 3, 1, 1, 1)


def foreground_box_mask(image: Tensor) -> Tensor:
    """The box around an image's non-zero voxels, without its outermost layer, where differences would cross its edge.

    Of an image ``(B, 1, D, H, W)``, zero outside its field of view; ones inside and zeros.
    """
    inside = torch.ones_like(image)
    inside_view = (image != 0).to(image.dtype)
    for axis in (2, 3, 4):
        other: List[int] = [2 + (axis - 1) % 3, 2 + axis % 3]
        profile = inside_view.amax(dim=other, keepdim=True)
        first, last = profile.cumsum(dim=axis), profile.flip([axis]).cumsum(dim=axis).flip([axis])
        inside = inside * ((first > 0) & (last > 0)).to(image.dtype)
    # Beyond the grid lies nothing of the field of view either.
    padded = F.pad(inside, [1, 1, 1, 1, 1, 1])
    return -F.max_pool3d(-padded, 3, stride=1)


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    """The x of A x = b, ``(B, n)``, of positive definite ``(B, n, n)`` and ``(B, n)``, by elimination.

    Not ``torch.linalg.solve``, which no ONNX operator stands for; such matrices need no pivoting.
    """
    count = matrix.shape[2]
    system = torch.cat([matrix, right.unsqueeze(2)], dim=2)
    unit = torch.eye(count, device=matrix.device, dtype=matrix.dtype)
    for k in range(count):
        row = system[:, k : k + 1] / system[:, k : k + 1, k : k + 1]
        system = system - (system[:, :, k : k + 1] - unit[:, k : k + 1]) * row
    return system[:, :, count]


def newton_step(
    moved: Tensor,
    fixed: Tensor,
    view: Tensor,
    window: int,
    damping: float = 0.01,
    eps: float = 1e-4,
    any_contrast: bool = False,
) -> Tensor:
    """The affine's Gauss-Newton step towards the largest local correlation (Equation 2).

    The correlation of a window is a sum of squared differences between intensities that the window normalises. Their
    derivatives by the twelve parameters are ∇moved · (P x) without what the window's own mean and contrast take away;
    the normal equations of that, damped, give the step. It carries no gradient. A few steps remove small misalignments;
    large ones only as far as structures overlap.

    Args:
        moved: ``(B, 1, D, H, W)``, intensities of about [0, 1].
        fixed: ``(B, 1, D, H, W)``.
        view: ``(B, 1, D, H, W)``, 1 where both fields of view are, 0 elsewhere.
        window: voxels, odd.
        damping: part of itself that is added to the diagonal of the equations.
        eps: regulariser of variances and covariance, squared intensity.
        any_contrast: of squared correlations, see `_correlation_derivative`.

    Returns:
        P, ``(B, 3, 4)``, normalised coordinates: what is to be added to the identity on the inside of the map; zero
        where the images determine nothing, and never more than 0.3 at any voxel.
    """
    moved, fixed = moved.detach().float(), fixed.detach().float()
    shape = fixed.shape[2:]
    of = _windows(moved, fixed, view, window, eps, any_contrast)
    per_unit = voxels_per_unit(shape, moved.device, moved.dtype).view(1, 3, 1, 1, 1)
    x = identity_map(shape, moved.device, moved.dtype)
    x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
    gradient = _gradient(moved) * per_unit * view
    derivative = (gradient.unsqueeze(2) * x.unsqueeze(1)).flatten(1, 2)
    force = _correlation_derivative(moved, fixed, view, of, any_contrast)
    slope = (derivative * force).flatten(2).sum(dim=2)

    weight = _along_axes(of.mass / of.moved_variance, [matrix.t() for matrix in of.means])
    rows = derivative.flatten(2)
    normal = torch.matmul(rows * weight.flatten(2), rows.transpose(1, 2))
    # A little of the identity keeps the equations solvable where an image has no contrast.
    ridge = 1e-3 * view.flatten(1).sum(dim=1).clamp(min=1.0).view(-1, 1)
    diagonal = torch.diagonal(normal, dim1=1, dim2=2) * damping + ridge
    step = _solve(normal + torch.diag_embed(diagonal), slope).view(-1, 3, 4)
    length = step.abs().sum(dim=2).amax(dim=1).clamp(min=1e-12)
    return step * (0.3 / length).clamp(max=1.0).view(-1, 1, 1)
