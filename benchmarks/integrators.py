"""Measure the two integrators of the vSVF unit and print the Markdown tables of ``benchmarks/results/integrators.md``.

Run from the repository root, nothing else running: ``PYTHONPATH=bundle python benchmarks/integrators.py``.

White-noise momenta go through the paper's kernel and are scaled to a largest velocity. Errors are distances in voxels
of the velocity's own grid to a reference that shares nothing with either integrator: the characteristics of the
velocity's cosine series (not of its trilinear interpolant), followed by many fine steps in float64. Beyond the faces
the two continue the field differently, so errors and round trips are over the voxels whose characteristics stay inside
for both signs of the velocity; folds are counted over the whole grid.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from scripts.geometry import compose_displacements, count_folds, identity_map, voxels_per_unit, warp
from scripts.layers import RK4, VSVF, ScalingSquaring

SHAPES = ((20, 48, 48), (40, 96, 96))
SPEEDS = (2.0, 5.0, 10.0, 20.0, 30.0)
METHODS = (
    ("RK4", 10, RK4(10)),
    *(("squaring, midpoint", n, ScalingSquaring(n)) for n in (2, 3, 4, 5)),
    *(("squaring, Euler", n, ScalingSquaring(n, midpoint=False)) for n in (4, 5, 6, 7, 8)),
)
REFINEMENT = 3
REFERENCE_STEPS = 96
DIVERGED = 1e3


def series_matrix(size: int, positions: Tensor) -> Tensor:
    """Interpolation of one axis by its cosine series: ``(positions, size)``, for positions in voxels."""
    order = torch.arange(size, dtype=torch.float64)
    weight = torch.full((size,), 2.0 / size, dtype=torch.float64)
    weight[0] = 1.0 / size
    voxels = torch.arange(size, dtype=torch.float64)
    synthesis = torch.cos((positions.unsqueeze(1) + 0.5) * order * (math.pi / size))
    analysis = torch.cos((voxels.unsqueeze(1) + 0.5) * order * (math.pi / size))
    return (synthesis * weight) @ analysis.T


def refine(field: Tensor) -> Tensor:
    """The cosine series of a field ``(B, 3, D, H, W)`` sampled on a grid `REFINEMENT` times as fine, in float64."""
    fine = field.double()
    for axis in range(2, 5):
        size = field.shape[axis]
        positions = torch.arange((size - 1) * REFINEMENT + 1, dtype=torch.float64) / REFINEMENT
        fine = torch.tensordot(fine, series_matrix(size, positions), dims=([axis], [1])).movedim(-1, axis)
    return fine.contiguous()


def characteristics(velocity: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Follow dx/dt = v(x) from every voxel over unit time.

    Args:
        velocity: ``(1, 3, D, H, W)`` normalised units per unit time.
        steps: RK4 steps.

    Returns:
        The displacement ``(1, 3, D, H, W)`` in float64, and where the path stayed inside the grid ``(1, D, H, W)``.
    """
    fine = refine(velocity)
    start = identity_map(list(velocity.shape[2:]), dtype=torch.float64)
    x, h = start, 1.0 / steps
    inside = torch.ones(start[:, 0].shape, dtype=torch.bool)

    def rate(where: Tensor) -> Tensor:
        return warp(fine, where, padding="border")

    for _ in range(steps):
        k1 = rate(x)
        k2 = rate(x + 0.5 * h * k1)
        k3 = rate(x + 0.5 * h * k2)
        k4 = rate(x + h * k3)
        x = x + (h / 6) * (k1 + 2 * k2 + 2 * k3 + k4)
        inside &= (x.abs() <= 1).all(dim=1)
    return x - start, inside


def velocities(shape: tuple[int, ...], seeds: int) -> Iterator[Tensor]:
    """Smoothed random momenta, largest length 1 voxel per unit time, each ``(1, 3, D, H, W)`` float32."""
    smoother = VSVF().smoother
    scale = voxels_per_unit(list(shape)).view(1, 3, 1, 1, 1)
    for seed in range(seeds):
        momentum = torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(seed))
        velocity = smoother(momentum)
        yield velocity / velocity.norm(dim=1).max() / scale


def cpu_seconds(work: Callable[[], object], repeats: int) -> float:
    """Smallest processor time of a few calls; wall time would count what else runs on the machine."""
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        work()
        times.append(time.process_time() - begin)
    return min(times)


def timings(shape: tuple[int, ...], repeats: int) -> None:
    """Print the cost of each method on one grid as parts of RK4's."""
    velocity = 5.0 * next(velocities(shape, 1))
    zero = torch.zeros_like(velocity)
    rows = []
    for name, steps, integrator in METHODS:
        unit = VSVF(integrator=integrator)
        leaf = velocity.clone().requires_grad_()

        def both(unit: VSVF = unit, leaf: Tensor = leaf) -> None:
            unit.advance(zero, leaf).square().sum().backward()

        with torch.no_grad():
            forward = cpu_seconds(lambda unit=unit: unit.advance(zero, velocity), repeats)
        rows.append((name, steps, forward, cpu_seconds(both, repeats)))
    _, _, forward, both = rows[0]
    print(f"\nCost on {shape}, as a part of RK4's {forward:.3f} s forward, {both:.3f} s forward + backward:\n")
    print("| integrator | steps | forward | forward + backward |\n|---|---|---|---|")
    for name, steps, f, b in rows:
        print(f"| {name} | {steps} | {f / forward:.2f} | {b / both:.2f} |")


def number(value: float) -> str:
    """A figure for the table; a blown-up or undefined one is called so."""
    return f"{value:.3f}" if value < DIVERGED else "diverged"


def errors(shape: tuple[int, ...], seeds: int) -> None:
    """Print errors, round trips and folds of each method on one grid."""
    scale = voxels_per_unit(list(shape)).view(1, 3, 1, 1, 1)
    units = [(name, steps, VSVF(integrator=integrator)) for name, steps, integrator in METHODS]
    print(f"\nErrors in voxels on {shape}, {seeds} random fields:\n")
    print("| largest velocity | integrator | steps | error, mean | error, 99th | round trip, mean | folds |")
    print("|---|---|---|---|---|---|---|")
    unscaled = list(velocities(shape, seeds))
    for speed in SPEEDS:
        sums = torch.zeros(len(units), 4, dtype=torch.float64)
        for direction in unscaled:
            velocity = speed * direction
            truth, inside = characteristics(-velocity, REFERENCE_STEPS)
            inside &= characteristics(velocity, REFERENCE_STEPS)[1]
            zero = torch.zeros_like(velocity)
            for row, (_, _, unit) in enumerate(units):
                forward, backward = unit.advance(zero, velocity), unit.advance(zero, -velocity)
                error = ((forward - truth) * scale).norm(dim=1)[inside]
                trip = (compose_displacements(backward, forward) * scale).norm(dim=1)[inside].double()
                folds = count_folds(identity_map(list(shape)) + forward)[0]
                figures = [error.mean(), error.nan_to_num(math.inf).quantile(0.99), trip.mean(), folds.double()[0]]
                sums[row] += torch.stack(figures) / seeds
        for (name, steps, _), (mean, high, trip, folds) in zip(units, sums.tolist(), strict=True):
            cells = [f"{speed:g}", name, steps, number(mean), number(high), number(trip), f"{folds:.0f}"]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def main() -> None:
    """Read the command line and print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="random velocity fields for each figure")
    parser.add_argument("--repeats", type=int, default=5, help="repeats of each timing, of which the smallest counts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        for shape in SHAPES:
            errors(shape, arguments.seeds)
    for shape in SHAPES:
        timings(shape, arguments.repeats)


if __name__ == "__main__":
    main()
