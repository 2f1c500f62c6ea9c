"""Files: images, labels, transforms, displacement fields and points, each written whole or not at all."""

from ..lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "displacement": ("read_field", "save_displacement_blocks"),
        "frames": ("Frames",),
        "images": ("Image", "check_grid", "files_of", "read_image", "read_label", "read_mask", "read_volume"),
        "label_names": ("names_of", "read_label_names"),
        "objects": ("image_from", "image_like", "itk_image"),
        "points": ("Points", "points_from", "read_points", "write_points"),
        "transform_files": ("convert_transform", "read_transforms", "to_sitk", "write_transform"),
        "volumes": ("save_volume",),
    },
)
