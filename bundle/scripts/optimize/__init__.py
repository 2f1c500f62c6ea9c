"""Optimisation of one pair: one engine (`PyramidOptimiser`) and its presets.

`AffineOptimiser` and `VSVFOptimiser` are the paper's affine-opt and vSVF-opt, which need no trained network;
`InstanceOptimiser` goes on from what a network found.
"""

from .affine_opt import AffineOptimiser, AffineResult
from .instance import InstanceOptimiser, Refinement
from .pyramid import PyramidOptimiser, bare_network
from .vsvf_opt import VSVFOptimiser, VSVFResult

__all__ = [
    "AffineOptimiser",
    "AffineResult",
    "InstanceOptimiser",
    "PyramidOptimiser",
    "Refinement",
    "VSVFOptimiser",
    "VSVFResult",
    "bare_network",
]
