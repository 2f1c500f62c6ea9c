"""Generated pairs: the knee phantom, random shapes, knees from a label map; all of them functions of a seed."""

from .generated import GeneratedPairs, PairGenerator, generated_pairs
from .knee_labels import KneeLabels
from .mixture import MixtureDataset
from .phantom import KneePhantom, write_phantom_pair
from .shapes import RandomShapes

__all__ = [
    "GeneratedPairs",
    "KneeLabels",
    "KneePhantom",
    "MixtureDataset",
    "PairGenerator",
    "RandomShapes",
    "generated_pairs",
    "write_phantom_pair",
]
