"""Registration by optimisation of one pair: affine-opt, and instance optimisation after the network."""

from .affine_opt import AffineOptimiser, AffineResult
from .instance import InstanceOptimiser, Refinement

__all__ = ["AffineOptimiser", "AffineResult", "InstanceOptimiser", "Refinement"]
