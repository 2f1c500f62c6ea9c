"""Files: volumes and world displacement fields, each written whole or not at all."""

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
from .volumes import check_affine, save_volume

__all__ = [
    "as_map",
    "as_volume",
    "atomic_path",
    "check_affine",
    "load_displacement",
    "map_from_world_displacement",
    "ras_to_lps",
    "save_displacement",
    "save_volume",
    "save_world_displacement",
    "voxel_displacement",
    "world_displacement",
]
