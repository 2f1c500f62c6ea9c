"""Pairs and data lists, input checks, the pair dataset and the knee phantom."""

from .build import list_pairs, registration_dataset
from .checks import ImageInfo, check_dataset_dir, check_image, check_label
from .dataset import PairDataset
from .errors import InputError
from .pairs import (
    cross_subject_pairs,
    evaluation_pairs,
    longitudinal_pairs,
    read_datalist,
    split_subjects,
    training_pairs,
)
from .phantom import KneePhantom, write_phantom_pair
from .phantom_dataset import PhantomPairs, phantom_pairs
from .sampler import EpochSampler
from .transforms import CentreOnGridd

__all__ = [
    "CentreOnGridd",
    "EpochSampler",
    "ImageInfo",
    "InputError",
    "KneePhantom",
    "PairDataset",
    "PhantomPairs",
    "check_dataset_dir",
    "check_image",
    "check_label",
    "cross_subject_pairs",
    "evaluation_pairs",
    "list_pairs",
    "longitudinal_pairs",
    "phantom_pairs",
    "read_datalist",
    "registration_dataset",
    "split_subjects",
    "training_pairs",
    "write_phantom_pair",
]
