"""Files: images, labels, transforms, displacement fields and points, each written whole or not at all."""

from .displacement import load_displacement, save_world_displacement
from .images import Image, check_grid, read_image, read_label, read_mask, read_volume
from .objects import image_from, image_like, itk_image
from .points import Points, read_points, write_points
from .transform_files import from_itk, read_transforms, to_itk, write_transform
from .volumes import check_affine, save_volume

__all__ = [
    "Image",
    "Points",
    "check_affine",
    "check_grid",
    "from_itk",
    "image_from",
    "image_like",
    "itk_image",
    "load_displacement",
    "read_image",
    "read_label",
    "read_mask",
    "read_points",
    "read_transforms",
    "read_volume",
    "save_volume",
    "save_world_displacement",
    "to_itk",
    "write_points",
    "write_transform",
]
