"""Pairs and data lists, input checks, the pair dataset and the knee phantom."""

from .build import generated_dataset, list_pairs, registration_dataset
from .checks import ImageInfo, check_dataset_dir, check_image, check_label
from .dataset import PairDataset
from .errors import InputError
from .generated import GeneratedPairs, generated_pairs
from .knee_labels import KneeLabels
from .mixture import MixtureDataset
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
from .posed import PosedPairs, field_of_view
from .rendering import Scanner, render_label
from .sampler import EpochSampler
from .synthetic import RandomShapes
from .transforms import CentreOnGridd

__all__ = [
    "CentreOnGridd",
    "EpochSampler",
    "GeneratedPairs",
    "ImageInfo",
    "InputError",
    "KneeLabels",
    "KneePhantom",
    "MixtureDataset",
    "PairDataset",
    "PhantomPairs",
    "PosedPairs",
    "RandomShapes",
    "Scanner",
    "check_dataset_dir",
    "check_image",
    "check_label",
    "cross_subject_pairs",
    "evaluation_pairs",
    "field_of_view",
    "generated_dataset",
    "generated_pairs",
    "list_pairs",
    "longitudinal_pairs",
    "phantom_pairs",
    "read_datalist",
    "registration_dataset",
    "render_label",
    "split_subjects",
    "training_pairs",
    "write_phantom_pair",
]
