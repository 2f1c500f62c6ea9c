"""Physical space: `Frame` places a grid in it, `WorldTransform` moves points through it, both without any file."""

from ..lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "arrays": ("as_map", "as_volume"),
        "frame": ("LPS_FLIP", "Frame", "apply_matrix", "convert_points", "network_frame", "ras_to_lps"),
        "inversion": ("NumericalInverse", "invert_transforms"),
        "kinds": ("KINDS", "is_of_kind", "nearest_of_kind"),
        "resampling": ("OutsideFieldWarning", "resample_image", "resample_labels", "transform_points"),
        "transform": ("WorldTransform", "linear_of"),
    },
)
