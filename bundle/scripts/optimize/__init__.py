"""Optimisation of one pair, from coarse to fine, by analytic derivatives: `AffineEngine`, then `RegistrationEngine`."""

from .affine_engine import AffineEngine, AffineResult
from .engine import OPTIMISERS, PRESETS, EngineResult, EngineSettings, RegistrationEngine, Start, level_shape, shrunk
from .guides import Guides, Landmarks
