"""Lists of pairs, and data sets of pairs for training and evaluation."""

from ..lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "augmented": ("AugmentedPairs",),
        "build": ("generated_dataset", "registration_dataset"),
        "dataset": ("PairDataset",),
        "lists": ("read_datalist",),
        "pairs": ("evaluation_pairs", "list_pairs", "training_pairs"),
        "sampler": ("EpochSampler",),
        "transforms": ("CentreOnGridd", "RandGreysd"),
    },
)
