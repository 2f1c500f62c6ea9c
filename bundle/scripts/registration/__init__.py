"""Any two images in one call: read, lay the network's grid on both, register, and say it all in millimetres.

What the configs name of it: `single_pair` and `list_pairs`, the transforms of a pair (`ReadPaird`,
`SampleOnNetworkGridd`; then `WorldTransformsd`, `NativeOutputsd`, `MeasurePaird`), the iteration (`PairUpdate`), the
writer (`PairWriter`) and the loop over pairs (`Cohort`).
"""

from .cohort import Cohort
from .grids import EXTENTS, INITIALISATIONS, NetworkGrids, foreground_box, grid_shape, lay_grids
from .likeness import NativeLikeness
from .measure import MeasurePaird
from .options import (
    METHODS,
    instance_optimiser,
    method_network,
    method_settings,
    method_twin,
    requested_pairs,
    usable_device,
)
from .pair import PairRegistrar, RegisteredPair
from .read import ReadPaird, only_item, pair_notes, single_pair
from .round_trip import round_trip
from .sample import SampleOnNetworkGridd, normalise, sample
from .update import PairUpdate, Registered
from .world import NativeOutputsd, WorldTransformsd, world_transforms
from .write import METRICS, PairWriter, versions

__all__ = [
    "EXTENTS",
    "INITIALISATIONS",
    "METHODS",
    "METRICS",
    "Cohort",
    "MeasurePaird",
    "NativeLikeness",
    "NativeOutputsd",
    "NetworkGrids",
    "PairRegistrar",
    "PairUpdate",
    "PairWriter",
    "ReadPaird",
    "Registered",
    "RegisteredPair",
    "SampleOnNetworkGridd",
    "WorldTransformsd",
    "foreground_box",
    "grid_shape",
    "instance_optimiser",
    "lay_grids",
    "method_network",
    "method_settings",
    "method_twin",
    "normalise",
    "only_item",
    "pair_notes",
    "requested_pairs",
    "round_trip",
    "sample",
    "single_pair",
    "usable_device",
    "versions",
    "world_transforms",
]
