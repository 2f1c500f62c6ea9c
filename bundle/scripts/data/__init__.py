"""Lists of pairs, checks of their files, and data sets of pairs for training and evaluation."""

from .build import generated_dataset, list_pairs, registration_dataset
from .checks import ImageInfo, check_dataset_dir, check_image, check_label
from .dataset import PairDataset
from .pairs import (
    cross_subject_pairs,
    evaluation_pairs,
    longitudinal_pairs,
    read_datalist,
    split_subjects,
    training_pairs,
)
from .posed import PosedPairs, field_of_view
from .sampler import EpochSampler
from .transforms import CentreOnGridd

__all__ = [
    "CentreOnGridd",
    "EpochSampler",
    "ImageInfo",
    "PairDataset",
    "PosedPairs",
    "check_dataset_dir",
    "check_image",
    "check_label",
    "cross_subject_pairs",
    "evaluation_pairs",
    "field_of_view",
    "generated_dataset",
    "list_pairs",
    "longitudinal_pairs",
    "read_datalist",
    "registration_dataset",
    "split_subjects",
    "training_pairs",
]
