"""ConvexAdam: coupled convex optimisation of MIND features over discrete displacements, then Adam."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch

from registration.method import Method
from scripts.formats import Image
from scripts.spatial import resample_image

from .base import Found, Peer, from_positions, intensities, positions
from .itk_affine import ItkAffine

__all__ = ["ConvexAdam"]


class ConvexAdam(Peer):
    """ConvexAdam on the fixed image's grid, after an affine.

    Args:
        name: how tables call it.
        smoothness: weight of the diffusion penalty of Adam's stage (``lambda_weight``).
        grid_spacing: voxels between the control points of the discrete stage (convexAdam: 6).
        search: half width of the discrete search, in control points.
        iterations: of Adam.
        smoothing: width in voxels, odd, of the box filters that smooth the result; 0 for none.
        affine: what aligns the images first; its transform must be a single affine.
    """

    module = "convexAdam"
    distribution = "convexAdam"

    def __init__(
        self,
        name: str = "ConvexAdam",
        smoothness: float = 1.25,
        grid_spacing: int = 4,
        search: int = 4,
        iterations: int = 80,
        smoothing: int = 0,
        affine: Method | None = None,
    ) -> None:
        super().__init__(
            name,
            smoothness=smoothness,
            grid_spacing=grid_spacing,
            search=search,
            iterations=iterations,
            smoothing=smoothing,
        )
        self.affine = ItkAffine() if affine is None else affine

    def missing(self) -> str | None:
        """convexAdam, or what the affine stage lacks."""
        return super().missing() or self.affine.missing()

    def parameters(self) -> dict[str, Any]:
        """Those of the affine stage with them."""
        return {**super().parameters(), "affine": self.affine.parameters()}

    def load(self, threads: int) -> None:
        """Import it; it would silence all of Python's warnings for good."""
        with warnings.catch_warnings():
            import convexAdam.convex_adam_MIND  # noqa: F401

    def register(self, fixed: Image, moving: Image, threads: int) -> Found:
        """Affine, then ConvexAdam between the fixed and the aligned moving image."""
        (linear,) = self.affine(fixed, moving, threads).transform
        aligned = resample_image(intensities(moving), moving.frame, fixed.frame, [linear])
        displacement = self._displacement(intensities(fixed), aligned, threads)
        shifted = positions(fixed.frame) + displacement @ fixed.frame.affine[:3, :3].T
        return Found([from_positions(linear.apply(shifted), fixed.frame, linear.linear)], None, [linear])

    def _displacement(self, fixed: np.ndarray, moving: np.ndarray, threads: int) -> np.ndarray:
        """Displacement in voxels ``(D, H, W, 3)``, fixed to moving, components in the axes' order."""
        from convexAdam.convex_adam_MIND import convex_adam_pt

        step = self.settings["grid_spacing"]
        # What is left over at an axis' end would shift and stretch the whole field: its grids are scaled to fit.
        multiple = int(np.lcm(step, 2))
        width = [(0, -n % multiple) for n in fixed.shape]
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            with warnings.catch_warnings():
                # It leaves `align_corners` of grid_sample and affine_grid to torch's default, which is what it means.
                warnings.filterwarnings("ignore", "Default grid_sample", UserWarning)
                found = convex_adam_pt(
                    *(torch.from_numpy(np.pad(array, width, mode="edge")) for array in (fixed, moving)),
                    lambda_weight=self.settings["smoothness"],
                    grid_sp=step,
                    disp_hw=self.settings["search"],
                    selected_niter=self.settings["iterations"],
                    selected_smooth=self.settings["smoothing"],
                    dtype=torch.float32,
                    device=torch.device("cpu"),
                )
        finally:
            torch.set_num_threads(before)
        return found[tuple(slice(n) for n in fixed.shape)]
