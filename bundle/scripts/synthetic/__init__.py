"""Generated pairs: the knee phantom, random shapes, knees from a label map; all of them functions of a seed."""

from ..lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "generated": ("GeneratedPairs", "PairGenerator", "generated_pairs"),
        "knee_labels": ("KneeLabels",),
        "mixture": ("MixtureDataset",),
        "phantom": ("KneePhantom", "write_phantom_pair"),
        "shapes": ("RandomShapes",),
    },
)
