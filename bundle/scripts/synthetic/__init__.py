"""Generated pairs: the knee phantom, random shapes, knees from a label map; all of them functions of a seed."""

from .generated import GeneratedPairs, generated_pairs
from .knee_labels import KneeLabels
from .mixture import MixtureDataset
from .phantom import KneePhantom, write_phantom_pair
from .phantom_dataset import PhantomPairs, phantom_pairs
from .rendering import Scanner, render_label
from .synthetic import RandomShapes

__all__ = [
    "GeneratedPairs",
    "KneeLabels",
    "KneePhantom",
    "MixtureDataset",
    "PhantomPairs",
    "RandomShapes",
    "Scanner",
    "generated_pairs",
    "phantom_pairs",
    "render_label",
    "write_phantom_pair",
]
