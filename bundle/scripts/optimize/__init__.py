"""Optimisation of one pair: one engine (`PyramidOptimiser`) and its presets.

`AffineOptimiser` and `VSVFOptimiser` are the paper's affine-opt and vSVF-opt, which need no trained network;
`InstanceOptimiser` goes on from what a network found. `RegistrationEngine` does vSVF-opt's work by analytic derivatives
and Gauss-Newton steps, at the images' own resolution, in a tenth of the time.
"""

from .affine_engine import AffineEngine, AffineResult
from .affine_opt import AffineOptimiser
from .engine import OPTIMISERS, PRESETS, EngineResult, EngineSettings, RegistrationEngine, Start
from .instance import InstanceOptimiser, Refinement
from .pyramid import PyramidOptimiser, bare_network
from .vsvf_opt import VSVFOptimiser, VSVFResult

__all__ = [
    "OPTIMISERS",
    "PRESETS",
    "AffineEngine",
    "AffineOptimiser",
    "AffineResult",
    "EngineResult",
    "EngineSettings",
    "InstanceOptimiser",
    "PyramidOptimiser",
    "Refinement",
    "RegistrationEngine",
    "Start",
    "VSVFOptimiser",
    "VSVFResult",
    "bare_network",
]
