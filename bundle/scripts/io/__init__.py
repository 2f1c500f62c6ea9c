"""Files: volumes, world displacement fields, transforms and points, each written whole or not at all.

The world is true physical space here: `Frame` places a grid in it, `WorldTransform` moves points through it.
"""

from .apply import OutsideFieldWarning, resample_image, resample_labels, transform_points
from .arrays import as_map, as_volume
from .atomic import atomic_path
from .displacement import (
    load_displacement,
    map_from_world_displacement,
    ras_to_lps,
    save_displacement,
    save_world_displacement,
    voxel_displacement,
    world_displacement,
)
from .frame import Frame, convert_points, network_frame
from .images import Image, check_grid, read_image, read_label, read_mask
from .points import Points, read_points, write_points
from .transform_files import from_itk, read_transforms, to_itk, write_transform
from .transforms import WorldTransform
from .volumes import check_affine, save_volume

__all__ = [
    "Frame",
    "Image",
    "OutsideFieldWarning",
    "Points",
    "WorldTransform",
    "as_map",
    "as_volume",
    "atomic_path",
    "check_affine",
    "check_grid",
    "convert_points",
    "from_itk",
    "load_displacement",
    "map_from_world_displacement",
    "network_frame",
    "ras_to_lps",
    "read_image",
    "read_label",
    "read_mask",
    "read_points",
    "read_transforms",
    "resample_image",
    "resample_labels",
    "save_displacement",
    "save_volume",
    "save_world_displacement",
    "to_itk",
    "transform_points",
    "voxel_displacement",
    "world_displacement",
    "write_points",
    "write_transform",
]
