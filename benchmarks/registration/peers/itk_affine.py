"""Affine registration by ITK's registration framework, through SimpleITK."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scripts.formats import Image

from .base import Found, Peer, affine_inverse
from .sitk_images import affine_to_world, to_sitk

__all__ = ["ItkAffine", "pyramid"]

METRICS = ("mattes", "correlation")
STARTS = ("geometry", "moments")
_FEWEST = 12  # voxels that the shortest axis keeps at the coarsest level


def pyramid(shape: Sequence[int], factors: Sequence[int]) -> list[int]:
    """Those of the shrink factors, coarse to fine, that leave enough of an image; always full resolution."""
    return [n for n in factors if n > 1 and min(shape) // n >= _FEWEST] + [1]


class ItkAffine(Peer):
    """Twelve parameters, multi-resolution, from several starts of which the best final metric wins.

    Every voxel is sampled, so that nothing is random.

    Args:
        name: how tables call it.
        metric: ``"mattes"`` (mutual information) or ``"correlation"``.
        starts: of ``"geometry"`` (middles of the two grids) and ``"moments"`` (centres of mass).
        iterations: most of gradient descent at each level.
        bins: of mutual information.
        factors: shrink factors, coarse to fine; those that an image is too small for are left out.
    """

    module = "SimpleITK"
    distribution = "SimpleITK"

    def __init__(
        self,
        name: str = "ITK affine",
        metric: str = "correlation",
        starts: Sequence[str] = STARTS,
        iterations: int = 200,
        bins: int = 32,
        factors: Sequence[int] = (4, 2, 1),
    ) -> None:
        if metric not in METRICS or not starts or set(starts) - set(STARTS):
            raise ValueError(f"ItkAffine: metric must be one of {METRICS}, starts some of {STARTS}.")
        super().__init__(
            name, metric=metric, starts=list(starts), iterations=iterations, bins=bins, factors=list(factors)
        )

    def register(self, fixed: Image, moving: Image, threads: int) -> Found:
        """Register from each start."""
        import SimpleITK as sitk

        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
        images = to_sitk(fixed), to_sitk(moving)
        runs = [(*self._descend(*images, start), start) for start in self.settings["starts"]]
        value, transform, start = min(runs, key=lambda run: run[0])
        world = affine_to_world(transform)
        extra = {"metric": value, "start": start}
        return Found([world], [affine_inverse(world)], [world], extra=extra)

    def _descend(self, fixed: Any, moving: Any, start: str) -> tuple[float, Any]:
        """Metric (lower is better) and transform, fixed to moving, reached from one start."""
        import SimpleITK as sitk

        first = getattr(sitk.CenteredTransformInitializerFilter, start.upper())
        transform = sitk.AffineTransform(
            sitk.CenteredTransformInitializer(fixed, moving, sitk.AffineTransform(3), first)
        )
        method = sitk.ImageRegistrationMethod()
        if self.settings["metric"] == "mattes":
            method.SetMetricAsMattesMutualInformation(self.settings["bins"])
        else:
            method.SetMetricAsCorrelation()
        factors = pyramid(fixed.GetSize(), self.settings["factors"])
        method.SetMetricSamplingStrategy(method.NONE)
        method.SetInterpolator(sitk.sitkLinear)
        method.SetShrinkFactorsPerLevel(factors)
        method.SetSmoothingSigmasPerLevel([(n - 1) / 2 for n in factors])
        method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetOptimizerAsRegularStepGradientDescent(
            learningRate=1.0,
            minStep=1e-4,
            numberOfIterations=self.settings["iterations"],
            relaxationFactor=0.5,
            gradientMagnitudeTolerance=1e-6,
        )
        method.SetInitialTransform(transform, inPlace=True)
        method.Execute(fixed, moving)
        return method.GetMetricValue(), transform
