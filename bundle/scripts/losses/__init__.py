"""The losses room: every equation of the paper that is minimised, as a function or a module of its own.

Similarity: Equations 2 and 3. Regularity: 4, 9 and 13. Symmetry: 5, 10 and Figure 7. Overlap: the label loss.
Objectives: 6, 11 and 12, which weigh and add the others.
"""

from .objectives import AffineObjective, FeatureObjective, VSVFObjective, affine_distance, common_view, opposite
from .overlap import LabelDice, MembershipLoss
from .regularisation import affine_factor, affine_regularisation, folding, vsvf_regularisation
from .similarity import (
    BoxCorrelation,
    Kernel,
    LocalNormalizedCrossCorrelation,
    MeanSquaredError,
    MultiKernelLNCC,
    NormalizedCrossCorrelation,
    box_sums,
    global_correlation,
    local_correlation,
    volume_sums,
)
from .symmetry import affine_symmetry, inverse_consistency, inverse_consistency_error, map_symmetry

__all__ = [
    "AffineObjective",
    "BoxCorrelation",
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
    "box_sums",
    "common_view",
    "folding",
    "global_correlation",
    "inverse_consistency",
    "inverse_consistency_error",
    "local_correlation",
    "map_symmetry",
    "opposite",
    "volume_sums",
    "vsvf_regularisation",
]
