"""Optimisation of one pair, from coarse to fine, by analytic derivatives: `AffineEngine`, then `RegistrationEngine`."""

from .affine_engine import AffineEngine, AffineResult
from .engine import OPTIMISERS, PRESETS, EngineResult, EngineSettings, RegistrationEngine, Start
from .guides import Guides, Landmarks
