"""The vSVF unit: multi-Gaussian smoothing of a momentum, integration of the velocity, composition of the map."""

from .allocator import hand_back, keep_large_blocks
from .checkpointing import checkpointed, uses_checkpointing
from .gaussian import MultiGaussianSmoother, multi_gaussian_smooth
from .integrate import Flow
from .integrator import Integrator
from .pooling import AdaptiveMean
from .rk4 import RK4, advect
from .scaling_squaring import ScalingSquaring, exponential
from .vsvf import VSVF
