"""elastix with its default parameter maps, through itk-elastix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from scripts.formats import Image
from scripts.spatial import LPS_FLIP, Frame, WorldTransform, ras_to_lps

from .base import Found, Peer, affine_inverse, from_positions, intensities, positions

__all__ = ["Elastix"]

STAGES = ("affine", "bspline")
SEED = 121212  # elastix's own default, said aloud


class Elastix(Peer):
    """elastix: affine, then cubic B-splines; its default maps, beginning with the middles of both grids.

    Args:
        name: how tables call it.
        stages: of ``"affine"`` and ``"bspline"``, in order.
        grid_spacing: mm between control points at the finest level (elastix's default map: 10).
        iterations: of the stochastic optimiser at each of the four levels.
        bending: weight of the bending energy against the mutual information of 1 (elastix's default map: 1); 0 leaves
            the penalty out, which is some seven times faster.
    """

    module = "itk.ElastixPython"
    distribution = "itk-elastix"

    def __init__(
        self,
        name: str = "elastix",
        stages: Sequence[str] = STAGES,
        grid_spacing: float = 10.0,
        iterations: int = 256,
        bending: float = 1.0,
    ) -> None:
        if tuple(stages) not in (STAGES, STAGES[:1]):
            raise ValueError(f"Elastix: stages must be {STAGES} or {STAGES[:1]}, got {tuple(stages)}.")
        settings: dict[str, Any] = {"stages": list(stages), "iterations": iterations, "seed": SEED}
        if "bspline" in stages:
            settings |= {"grid_spacing": grid_spacing, "bending": bending}
        super().__init__(name, **settings)

    def load(self, threads: int) -> None:
        """ITK loads a module's classes when one of them is first named."""
        import itk

        itk.ElastixRegistrationMethod  # noqa: B018

    def register(self, fixed: Image, moving: Image, threads: int) -> Found:
        """Register, then ask transformix where the fixed voxels go."""
        import itk

        images = _to_itk(fixed), _to_itk(moving)
        kind = type(images[0])
        elastix = itk.ElastixRegistrationMethod[kind, kind].New(*images)
        elastix.SetParameterObject(self._maps())
        elastix.SetNumberOfThreads(threads)
        elastix.SetLogToConsole(False)
        elastix.UpdateLargestPossibleRegion()
        found = elastix.GetTransformParameterObject()
        linear = _affine(found.GetParameterMap(0))
        if "bspline" not in self.settings["stages"]:
            return Found([linear], [affine_inverse(linear)], [linear])
        transformix = itk.TransformixFilter[kind].New(images[1])
        transformix.SetTransformParameterObject(found)
        transformix.ComputeDeformationFieldOn()
        transformix.SetLogToConsole(False)
        transformix.UpdateLargestPossibleRegion()
        field = itk.array_from_image(transformix.GetOutputDeformationField()).transpose(2, 1, 0, 3)
        target = positions(fixed.frame) + ras_to_lps(field.astype(np.float64))
        return Found([from_positions(target, fixed.frame, linear.linear)], None, [linear])

    def _maps(self) -> Any:
        import itk

        parameters = itk.ParameterObject.New()
        for stage in self.settings["stages"]:
            default = parameters.GetDefaultParameterMap(stage, 4, self.settings.get("grid_spacing", 10.0))
            default["MaximumNumberOfIterations"] = [str(self.settings["iterations"])]
            default["RandomSeed"] = [str(SEED)]
            default["WriteResultImage"] = ["false"]
            if stage == "affine":
                default["AutomaticTransformInitialization"] = ["true"]
                default["AutomaticTransformInitializationMethod"] = ["GeometricalCenter"]
            elif self.settings["bending"] > 0:
                default["Metric1Weight"] = [str(self.settings["bending"])]
            else:
                default["Metric"] = ["AdvancedMattesMutualInformation"]
                default["Registration"] = ["MultiResolutionRegistration"]
            parameters.AddParameterMap(default)
        return parameters


def _to_itk(image: Image) -> Any:
    """An ITK image with `intensities`, LPS."""
    import itk

    frame: Frame = image.frame
    result = itk.image_from_array(np.ascontiguousarray(intensities(image).transpose(2, 1, 0)))
    result.SetSpacing(frame.spacing.tolist())
    result.SetOrigin(ras_to_lps(frame.origin).tolist())
    result.SetDirection(itk.matrix_from_array(np.ascontiguousarray(LPS_FLIP[:3, :3] @ frame.direction)))
    return result


def _affine(parameters: Any) -> WorldTransform:
    """An elastix ``AffineTransform``: nine numbers by rows about a centre, then a translation; LPS."""
    numbers = np.array([float(x) for x in parameters["TransformParameters"]])
    centre = np.array([float(x) for x in parameters["CenterOfRotationPoint"]])
    matrix = np.eye(4)
    matrix[:3, :3] = numbers[:9].reshape(3, 3)
    matrix[:3, 3] = numbers[9:] + centre - matrix[:3, :3] @ centre
    return WorldTransform(LPS_FLIP @ matrix @ LPS_FLIP)
