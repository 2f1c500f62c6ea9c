"""The losses room: every equation of the paper that is minimised, as a function or a module of its own.

Similarity: Equations 2 and 3. Regularity: 4, 9 and 13. Symmetry: 5, 10 and Figure 7. Overlap: the label loss.
"""

from .kernels import Kernel, easyreg_kernels, paper_kernels
from .objectives import AffineObjective, FeatureObjective, VSVFObjective, affine_distance, common_view, opposite
from .overlap import LabelDice, MembershipLoss
from .regularisation import affine_factor, affine_regularisation, folding, vsvf_regularisation
from .similarity import (
    LocalNormalizedCrossCorrelation,
    MeanSquaredError,
    MultiKernelLNCC,
    NormalizedCrossCorrelation,
    global_correlation,
    local_correlation,
)
from .symmetry import affine_symmetry, inverse_consistency, map_symmetry, round_trip_error

__all__ = [
    "AffineObjective",
    "FeatureObjective",
    "Kernel",
    "LabelDice",
    "LocalNormalizedCrossCorrelation",
    "MeanSquaredError",
    "MembershipLoss",
    "MultiKernelLNCC",
    "NormalizedCrossCorrelation",
    "VSVFObjective",
    "affine_distance",
    "affine_factor",
    "affine_regularisation",
    "affine_symmetry",
    "common_view",
    "easyreg_kernels",
    "folding",
    "global_correlation",
    "inverse_consistency",
    "local_correlation",
    "map_symmetry",
    "opposite",
    "paper_kernels",
    "round_trip_error",
    "vsvf_regularisation",
]
