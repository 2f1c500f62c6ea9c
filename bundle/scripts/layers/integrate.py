"""The flows of velocities on a given grid: what written fields and the optimiser are made of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..geometry import compose_displacements, identity_map, resize_volume, voxels_per_unit, warp
from .scaling_squaring import exponential
from .vsvf import VSVF

__all__ = ["Field", "Flows", "integrate"]

# The flow of nodes' B-spline is smooth on the scale of half their distance: a finer grid for the integration changes
# it by some hundredths of a voxel and costs 8 times as much.
_INTEGRATED = 2
_INVERSIONS = 6
_SQUARINGS = 4
_NEAR = 0.01


def integrate(vsvf: VSVF, velocities: Sequence[Tensor], factor: int = 1) -> tuple[Tensor, Tensor]:
    """ψ_T - id and ψ_T⁻¹ - id of the velocities' flows, on a grid ``factor`` times finer than theirs: `Flows.at`.

    Raises:
        ValueError: without a velocity.
    """
    return Flows(vsvf, velocities).at(factor)


class Flows:
    """The flows of velocities, on grids as fine as asked for; what these share is integrated once.

    The field that is written and the folds that the optimiser counts come from here.

    ψ_T = exp(-v(1)) ∘ ... ∘ exp(-v(T)) is integrated on a grid at most twice as fine and interpolated by the cubic
    spline. For its inverse exp(v(T)) ∘ ... ∘ exp(v(1)) is integrated on the velocities' own grid and mended by Newton
    steps, until at the nodes of the finer grid it undoes ψ_T as it is interpolated there; between them they undo each
    other up to what interpolation leaves, which falls with the square of the spacing. The velocity is the cubic
    B-spline whose coefficients are the nodes: a piecewise linear one would leave kinks, and the spline through the
    nodes swings beyond them where they alternate. On held-out hippocampi the latter's flows had more folds on the
    images' own grids, took longer to agree, and lost 0.001 to 0.002 of Dice.

    Args:
        vsvf: the unit that integrates.
        velocities: v₀(1) ... v₀(T), ``(1, 3, d, h, w)``, normalised.

    Raises:
        ValueError: without a velocity.
    """

    def __init__(self, vsvf: VSVF, velocities: Sequence[Tensor]) -> None:
        if not velocities:
            raise ValueError("integrate: there is no velocity; an affine registration has no flow.")
        self.vsvf, self.velocities = vsvf, list(velocities)
        self._forward: dict[int, Tensor] = {}
        self._backward: Tensor | None = None

    def at(self, factor: int) -> tuple[Tensor, Tensor]:
        """ψ_T - id and ψ_T⁻¹ - id.

        Args:
            factor: intervals of the finer grid for one of the velocities' grid.

        Returns:
            Both ``(1, 3, d', h', w')``, normalised, n' = (n - 1) factor + 1.
        """
        shape = _refined(self.velocities[0], factor)
        if self._backward is None:
            integrator = self.vsvf.integrator.refined(1)
            for velocity in self.velocities:
                self._backward = integrator.retreat(self._backward, _spline(velocity, velocity.shape[2:], False))
        forward = _spline(self._integrated(factor), shape, through=True)
        return forward, _inverted(forward, _spline(self._backward, shape, through=True))

    def error(self, factor: int, places: int = 40) -> Tensor:
        """What linear interpolation between the nodes of a finer grid leaves of ψ_T's spline.

        Args:
            factor: of the finer grid, 2 or more.
            places: evenly spaced along each axis, at whose lattice the two are compared.

        Returns:
            ``(1, 3, places, places, places)``, normalised.
        """
        nodes = self._integrated(factor)
        spline, linear = nodes, nodes
        for axis, count in enumerate(self.velocities[0].shape[2:], start=2):
            between = nodes.shape[axis]
            fine = np.linspace(0, between - 1, (count - 1) * factor + 1)
            where = (np.arange(places) + 0.5) / places * (len(fine) - 1)
            low = np.minimum(where.astype(int), len(fine) - 2)
            part = (where - low)[:, None]
            exact = _weights(between, where / (len(fine) - 1) * (between - 1), through=True)
            ends = [_weights(between, fine[low + end], through=True) for end in (0, 1)]
            spline = _weighted(spline, axis, exact)
            linear = _weighted(linear, axis, (1 - part) * ends[0] + part * ends[1])
        return linear - spline

    def _integrated(self, factor: int) -> Tensor:
        """ψ_T - id on the grid on which it is integrated for a finer one."""
        between = min(factor, _INTEGRATED)
        if between not in self._forward:
            integrator, forward = self.vsvf.integrator.refined(between), None
            for velocity in self.velocities:
                forward = integrator.advance(forward, _spline(velocity, _refined(velocity, between), through=False))
            self._forward[between] = forward
        return self._forward[between]


class Field:
    """A displacement that is written as it is, linear between its nodes, and its inverse; on grids as `Flows` has them.

    Args:
        displacement: ψ - id, ``(1, 3, d, h, w)``, normalised.
        velocities: v(1) ... v(T) behind it, of any size, over the same extent: ψ = exp(-v(1)) ∘ ... ∘ exp(-v(T)). The
            flows against them are where the inverse is sought from.
    """

    def __init__(self, displacement: Tensor, velocities: Sequence[Tensor]) -> None:
        self.displacement, self._backward = displacement, torch.zeros_like(displacement)
        for velocity in velocities:
            flow = exponential(resize_volume(velocity, list(displacement.shape[2:])), _SQUARINGS)
            self._backward = compose_displacements(flow, self._backward)
        self._backward = _inverted(displacement, self._backward)

    def at(self, factor: int) -> tuple[Tensor, Tensor]:
        """ψ - id and ψ⁻¹ - id, as `Flows.at`."""
        forward, start = (resize_volume(one, _refined(one, factor)) for one in (self.displacement, self._backward))
        return forward, _inverted(forward, start)

    def error(self, factor: int) -> Tensor:
        """Nothing: the nodes are among those of every finer grid."""
        return torch.zeros_like(self.displacement)


def _refined(volume: Tensor, factor: int) -> list[int]:
    """Size of the grid that is ``factor`` times finer than a volume's."""
    return [(n - 1) * factor + 1 for n in volume.shape[2:]]


def _spline(volume: Tensor, shape: Sequence[int], through: bool) -> Tensor:
    """A cubic spline on a grid with the same corners: ``through`` a volume's nodes, or with them for coefficients."""
    for axis, size in enumerate(shape, start=2):
        count = volume.shape[axis]
        if not (through and size == count):
            volume = _weighted(volume, axis, _weights(count, np.linspace(0, count - 1, size), through))
    return volume.contiguous()


def _weights(count: int, places: np.ndarray, through: bool) -> np.ndarray:
    """Of so many nodes in a cubic spline at places among them, ``(places, nodes)``; see `_spline`."""
    nodes = np.eye(count)
    if through:
        degree, within = min(3, count - 1), np.arange(2.0, count - 2)
        knots = np.concatenate([np.zeros(degree + 1), within, np.full(degree + 1, count - 1.0)])
        return _basis(knots, degree, places) @ np.linalg.inv(_basis(knots, degree, np.arange(count)))
    # Continued linearly by a node beyond either end; the spline meets the corners.
    ends = [2 * nodes[0] - nodes[min(1, count - 1)], 2 * nodes[-1] - nodes[max(0, count - 2)]]
    return _basis(np.arange(-3.0, count + 3), 3, places) @ np.vstack([ends[0], nodes, ends[1]])


def _basis(knots: np.ndarray, degree: int, places: np.ndarray) -> np.ndarray:
    """B-splines on knots at places, ``(places, splines)``, by Cox and de Boor; SciPy's take long to import."""
    last = len(knots) - degree - 2
    interval = np.clip(np.searchsorted(knots, places, side="right") - 1, degree, last)
    basis, places = (np.arange(len(knots) - 1) == interval[:, None]).astype(float), places[:, None]
    for k in range(1, degree + 1):
        # Where knots coincide the spline is 0 and so is its part.
        widths = np.where(knots[k:] > knots[:-k], knots[k:] - knots[:-k], 1.0)
        rising = (places - knots[: -k - 1]) / widths[:-1] * basis[:, :-1]
        basis = rising + (knots[k + 1 :] - places) / widths[1:] * basis[:, 1:]
    return basis


def _weighted(volume: Tensor, axis: int, weights: np.ndarray) -> Tensor:
    """Sums of a volume's nodes along an axis."""
    return torch.tensordot(volume, torch.from_numpy(weights).to(volume), dims=([axis], [1])).movedim(-1, axis)


def _inverted(forward: Tensor, start: Tensor) -> Tensor:
    """The displacement w with w(y) + u(y + w(y)) = 0 at the nodes, sought from ``start``.

    A Newton step takes the inverse of the derivative of y + u from what is known of w: I + ∇w. Where it brings nothing
    nearer, as in a fold, the node stays where it was. Nodes that are near enough are left alone.

    Args:
        forward: u, ``(1, 3, D, H, W)`` normalised, continued beyond its faces.
        start: near w, as ``forward``.
    """
    shape = list(forward.shape[2:])
    voxels = voxels_per_unit(shape, forward.device, forward.dtype).view(3, 1)
    nodes = identity_map(shape, forward.device, forward.dtype).view(3, -1)
    left = compose_displacements(forward, start).view(3, -1)
    error = _length(left * voxels)
    found = start.clone().view(3, -1)
    for _ in range(_INVERSIONS):
        if error.max() <= _NEAR:
            break
        off = (error > _NEAR / 4).nonzero().squeeze(1)
        step = left[:, off] + _along(found, shape, off, left[:, off] * voxels)
        trial = found[:, off] - step
        where = (nodes[:, off] + trial).view(1, 3, -1, 1, 1)
        rest = trial + warp(forward, where, padding="border").view(3, -1)
        rest_error = _length(rest * voxels)
        better = rest_error < error[off]
        off = off[better]
        found[:, off], left[:, off], error[off] = trial[:, better], rest[:, better], rest_error[better]
    return found.view_as(forward)


def _along(volume: Tensor, shape: Sequence[int], nodes: Tensor, vectors: Tensor) -> Tensor:
    """The derivative of a volume ``(3, D * H * W)`` at some nodes along vectors ``(3, n)`` in nodes: ``(3, n)``."""
    result = torch.zeros_like(vectors)
    stride = 1
    for axis in (2, 1, 0):
        place = nodes // stride % shape[axis]
        low, high = (place > 0).long(), (place < shape[axis] - 1).long()
        # Central differences, one-sided at the faces.
        slope = (volume[:, nodes + stride * high] - volume[:, nodes - stride * low]) / (low + high)
        result += slope * vectors[axis]
        stride *= shape[axis]
    return result


def _length(vectors: Tensor) -> Tensor:
    """Lengths ``(n,)`` of ``(3, n)``."""
    # Over channels that lie far apart `norm` takes so long that it doubles the time of a flow.
    return vectors.square().sum(dim=0).sqrt()
