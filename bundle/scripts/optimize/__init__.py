"""Optimisation of one pair: instance optimisation on top of the network."""

from .instance import InstanceOptimiser, Refinement

__all__ = ["InstanceOptimiser", "Refinement"]
