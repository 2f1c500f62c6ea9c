"""The vSVF unit: multi-Gaussian smoothing of a momentum, integration of the velocity, composition of the map."""

from .allocator import hand_back, keep_large_blocks
from .flow import flow_displacements
from .frugal import call, is_frugal
from .gaussian import MultiGaussianSmoother, multi_gaussian_smooth
from .pooling import AdaptiveMean
from .rk4 import advect
from .scaling_squaring import exponential
from .vsvf import VSVF, bound_velocity

__all__ = [
    "VSVF",
    "AdaptiveMean",
    "MultiGaussianSmoother",
    "advect",
    "bound_velocity",
    "call",
    "exponential",
    "flow_displacements",
    "hand_back",
    "is_frugal",
    "keep_large_blocks",
    "multi_gaussian_smooth",
]
