"""Optimisation of one pair: the twins affine-opt and vSVF-opt, and instance optimisation after a network."""

from .affine_opt import AffineOptimiser, AffineResult
from .instance import InstanceOptimiser, Refinement
from .objective import pair_objective
from .vsvf_opt import VSVFOptimiser, VSVFResult, bare_network

__all__ = [
    "AffineOptimiser",
    "AffineResult",
    "InstanceOptimiser",
    "Refinement",
    "VSVFOptimiser",
    "VSVFResult",
    "bare_network",
    "pair_objective",
]
