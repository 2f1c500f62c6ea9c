"""How good a registration is, in the world: labels, landmarks, and the Jacobian of the whole transform."""

from ..lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "doubt": ("Doubt", "doubt_of", "settled"),
        "labels": ("label_metrics", "mean_metrics"),
        "landmarks": ("target_registration_error",),
        "regularity": ("WorldJacobian", "world_jacobian"),
    },
)
