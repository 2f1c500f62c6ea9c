"""Physical space: `Frame` places a grid in it, `WorldTransform` moves points through it, both without any file."""

from .arrays import as_map, as_volume
from .frame import LPS_FLIP, Frame, apply_matrix, convert_points, network_frame, ras_to_lps
from .inversion import NumericalInverse, invert_transforms
from .resampling import OutsideFieldWarning, resample_image, resample_labels, transform_points
from .transform import WorldTransform

__all__ = [
    "LPS_FLIP",
    "Frame",
    "NumericalInverse",
    "OutsideFieldWarning",
    "WorldTransform",
    "apply_matrix",
    "as_map",
    "as_volume",
    "convert_points",
    "invert_transforms",
    "network_frame",
    "ras_to_lps",
    "resample_image",
    "resample_labels",
    "transform_points",
]
