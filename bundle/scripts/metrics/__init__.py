"""How good a registration is, in the world: labels, landmarks, intensities, and the Jacobian of the whole transform."""

from .labels import label_metrics, mean_metrics
from .landmarks import target_registration_error
from .regularity import WorldJacobian, displacement_jacobian, world_jacobian

__all__ = [
    "WorldJacobian",
    "displacement_jacobian",
    "label_metrics",
    "mean_metrics",
    "target_registration_error",
    "world_jacobian",
]
