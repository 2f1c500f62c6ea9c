"""Greedy (PICSL), through picsl-greedy: affine, then a stationary velocity or a greedy composition."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from registration.method import Method
from scripts.formats import Image
from scripts.spatial import WorldTransform

from .base import Found, Peer, affine_inverse, undo_field
from .itk_affine import ItkAffine
from .sitk_images import field_to_world, to_sitk

__all__ = ["Greedy"]


class Greedy(Peer):
    """Greedy; the numbers of its own tutorial but for the width of its Gaussians.

    Args:
        name: how tables call it.
        deformable: False for the affine alone.
        radius: of the correlation's windows, voxels.
        iterations: of each level of every stage, coarse to fine; each level halves the grid of the next.
        smoothing: standard deviations in voxels of the Gaussians that smooth each update and the whole warp (Greedy's:
            √3, √½).
        velocity: optimise a stationary velocity (Greedy's ``-sv``) in place of composing updates.
        own_affine: begin with its own rigid and affine stages, from the middles of both grids. On small images they
            lose their way now and then.
        affine: what aligns the images first otherwise; its transform must be a single affine.
        metric: ``"NCC"``, ``"NMI"`` or ``"MI"``.
    """

    module = "picsl_greedy"
    distribution = "picsl-greedy"

    def __init__(
        self,
        name: str = "Greedy",
        deformable: bool = True,
        radius: int = 2,
        iterations: Sequence[int] = (100, 50, 10),
        smoothing: Sequence[float] = (1.0, 0.7071),
        velocity: bool = True,
        own_affine: bool = False,
        affine: Method | None = None,
        metric: str = "NCC",
    ) -> None:
        settings: dict[str, Any] = {"deformable": deformable, "radius": radius, "iterations": list(iterations)}
        if metric != "NCC":
            settings |= {"metric": metric}
        settings["own_affine"] = own_affine
        if deformable:
            settings |= {"smoothing": list(smoothing), "velocity": velocity}
        super().__init__(name, **settings)
        self.affine = None if own_affine else affine or ItkAffine()

    def missing(self) -> str | None:
        """Greedy, or what the affine stage lacks."""
        return super().missing() or (self.affine and self.affine.missing())

    def parameters(self) -> dict[str, Any]:
        """Those of the affine stage with them."""
        return {**super().parameters(), "affine": self.affine and self.affine.parameters()}

    def register(self, fixed: Image, moving: Image, threads: int) -> Found:
        """Register in memory, but for a matrix, which Greedy takes from a file alone."""
        from picsl_greedy import Greedy3D

        settings, greedy = self.settings, Greedy3D()
        greedy["fixed"], greedy["moving"] = to_sitk(fixed), to_sitk(moving)
        iterations = "x".join(map(str, settings["iterations"]))
        metric = settings.get("metric") or "NCC " + "x".join([str(settings["radius"])] * 3)
        common = f"-V 0 -i fixed moving -m {metric} -n {iterations} -threads {threads} -seed 4"
        # Its matrices are of RAS mm, its fields of LPS.
        if self.affine is None:
            greedy.execute(f"-a -dof 6 {common} -ia-image-centers -o rigid", rigid=None)
            greedy.execute(f"-a -dof 12 {common} -ia rigid -o affine", affine=None)
            linear = WorldTransform(np.asarray(greedy["affine"], dtype=np.float64))
        else:
            (linear,) = self.affine(fixed, moving, threads).transform
        if not settings["deformable"]:
            return Found([linear], [affine_inverse(linear)], [linear])
        with tempfile.TemporaryDirectory(prefix="greedy_") as folder:
            matrix = Path(folder) / "affine.mat"
            np.savetxt(matrix, linear.linear)
            first, second = settings["smoothing"]
            way = f"-it {matrix} -s {first}vox {second}vox {'-sv' if settings['velocity'] else ''}"
            greedy.execute(f"{common} {way} -o warp -oinv inverse", warp=None, inverse=None)
        back = field_to_world(greedy["inverse"], np.eye(4))
        return Found([field_to_world(greedy["warp"], linear.linear)], undo_field(linear.linear, back), [linear])
