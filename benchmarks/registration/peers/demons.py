"""Demons by ITK, through SimpleITK: fast symmetric forces, or diffeomorphic, multi-resolution, after an affine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from registration.method import Method
from scripts.formats import Image

from .base import Found, Peer
from .itk_affine import ItkAffine, pyramid
from .sitk_images import affine_to_sitk, field_to_world, to_sitk

__all__ = ["Demons"]

FILTERS = {
    "fast symmetric": "FastSymmetricForcesDemonsRegistrationFilter",
    "diffeomorphic": "DiffeomorphicDemonsRegistrationFilter",
}


class Demons(Peer):
    """Demons on the fixed image's grid, mean squares as the paper has them.

    Args:
        name: how tables call it.
        forces: ``"fast symmetric"`` (the paper's) or ``"diffeomorphic"``.
        sigma: standard deviation in voxels of the Gaussian that smooths the displacement field (the paper: 1.2).
        iterations: at each level.
        match: match the histogram of the moving image to that of the fixed one first.
        factors: shrink factors, coarse to fine; those that an image is too small for are left out.
        affine: what aligns the images first; its transform must be a single affine.
    """

    module = "SimpleITK"
    distribution = "SimpleITK"

    def __init__(
        self,
        name: str = "Demons",
        forces: str = "fast symmetric",
        sigma: float = 1.5,
        iterations: int = 100,
        match: bool = True,
        factors: Sequence[int] = (4, 2, 1),
        affine: Method | None = None,
    ) -> None:
        if forces not in FILTERS:
            raise ValueError(f"Demons: forces must be one of {tuple(FILTERS)}, got '{forces}'.")
        super().__init__(name, forces=forces, sigma=sigma, iterations=iterations, match=match, factors=list(factors))
        self.affine = ItkAffine() if affine is None else affine

    def missing(self) -> str | None:
        """SimpleITK, or what the affine stage lacks."""
        return super().missing() or self.affine.missing()

    def parameters(self) -> dict[str, Any]:
        """Those of the affine stage with them."""
        return {**super().parameters(), "affine": self.affine.parameters()}

    def register(self, fixed: Image, moving: Image, threads: int) -> Found:
        """Affine, then demons between the fixed and the aligned moving image."""
        import SimpleITK as sitk

        (linear,) = self.affine(fixed, moving, threads).transform
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
        target, source = to_sitk(fixed), to_sitk(moving)
        aligned = sitk.Resample(source, target, affine_to_sitk(linear), sitk.sitkLinear, 0.0)
        if self.settings["match"]:
            aligned = sitk.HistogramMatching(aligned, target, 128, 7, True)
        field = None
        for factor in pyramid(target.GetSize(), self.settings["factors"]):
            field = self._level(target, aligned, factor, field)
        return Found([field_to_world(field, linear.linear)], None, [linear])

    def _level(self, fixed: Any, moving: Any, factor: int, before: Any) -> Any:
        """The displacement field of one level, begun with that of the level before."""
        import SimpleITK as sitk

        if factor > 1:
            fixed, moving = (
                sitk.Shrink(
                    sitk.SmoothingRecursiveGaussian(image, [s * factor / 2 for s in image.GetSpacing()]), [factor] * 3
                )
                for image in (fixed, moving)
            )
        demons = getattr(sitk, FILTERS[self.settings["forces"]])()
        demons.SetNumberOfIterations(self.settings["iterations"])
        demons.SetSmoothDisplacementField(True)
        demons.SetStandardDeviations(self.settings["sigma"])
        if before is None:
            return demons.Execute(fixed, moving)
        resample = sitk.ResampleImageFilter()
        resample.SetReferenceImage(fixed)
        resample.SetInterpolator(sitk.sitkLinear)
        # The finer grid's outermost voxels lie beyond the coarser one's.
        resample.SetUseNearestNeighborExtrapolator(True)
        return demons.Execute(fixed, moving, resample.Execute(before))
