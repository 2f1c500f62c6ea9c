"""The losses room: every equation of the paper that is minimised, as a function or a module of its own.

Similarity: Equations 2 and 3. Regularity: 4, 9 and 13. Symmetry: 5, 10 and Figure 7. Overlap: the label loss.
Objectives: 6, 11 and 12, which weigh and add the others.
"""

from ..lazy import lazy_names

# fmt: off
__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "comparison": (
            "COMPARISONS", "Compared", "Comparison", "Correlation", "MutualInformation", "alikeness", "box_means",
            "central_differences", "comparison_of", "self_similarity",
        ),
        "objectives": (
            "AffineObjective", "FeatureObjective", "VSVFObjective", "affine_distance", "common_view", "opposite",
        ),
        "overlap": ("LabelDice", "MembershipDice", "MembershipLoss"),
        "regularisation": (
            "affine_factor", "affine_regularisation", "affine_symmetry", "folding", "inverse_consistency",
            "inverse_consistency_error", "map_symmetry", "vsvf_regularisation",
        ),
        "similarity": (
            "AnySimilarity", "BoxCorrelation", "Kernel", "MultiKernelLNCC", "NormalizedCrossCorrelation", "box_sums",
            "global_correlation", "reach", "row_blocks", "volume_sums",
        ),
    },
)
