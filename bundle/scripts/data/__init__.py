"""Lists of pairs, and data sets of pairs for training and evaluation."""

from .augmented import AugmentedPairs
from .build import generated_dataset, list_pairs, registration_dataset
from .dataset import PairDataset
from .pairs import evaluation_pairs, read_datalist, training_pairs
from .sampler import EpochSampler
from .transforms import CentreOnGridd

__all__ = [
    "AugmentedPairs",
    "CentreOnGridd",
    "EpochSampler",
    "PairDataset",
    "evaluation_pairs",
    "generated_dataset",
    "list_pairs",
    "read_datalist",
    "registration_dataset",
    "training_pairs",
]
