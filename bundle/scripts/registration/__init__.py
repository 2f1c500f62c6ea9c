"""Any two images in one call: read, sample on the network's grids, register, accept, and say it all in millimetres.

One way through: `Pair` → `lay_grids` → `SampledPair` → a method (`NetworkMethod`, `OptimiserMethod`) → `accept` →
`Result` → `PairWriter`. `Registrar` goes that way in Python; ``configs/inference.json`` declares the same steps for
MONAI, and `Batch` runs them over a list.
"""

from .accept import Accepted, NativeSimilarity, accept
from .batch import Batch, only_item
from .grids import NetworkGrids, foreground_box, grid_shape, lay_grids
from .methods import Found, NetworkMethod, OptimiserMethod, PairUpdate, chosen_method, chosen_network
from .pair import FILES, Pair, ReadPaird, requested_pairs
from .registrar import Registrar, inference_parser, usable_device
from .result import STAGES, AcceptPaird, MeasurePaird, Result, Warped, WarpPaird, versions
from .sampling import SampledPair, SamplePaird, normalise, sample
from .world import inverse_consistency, world_transforms
from .write import METRICS, OUTPUTS, PairWriter

__all__ = [
    "FILES",
    "METRICS",
    "OUTPUTS",
    "STAGES",
    "AcceptPaird",
    "Accepted",
    "Batch",
    "Found",
    "MeasurePaird",
    "NativeSimilarity",
    "NetworkGrids",
    "NetworkMethod",
    "OptimiserMethod",
    "Pair",
    "PairUpdate",
    "PairWriter",
    "ReadPaird",
    "Registrar",
    "Result",
    "SamplePaird",
    "SampledPair",
    "WarpPaird",
    "Warped",
    "accept",
    "chosen_method",
    "chosen_network",
    "foreground_box",
    "grid_shape",
    "inference_parser",
    "inverse_consistency",
    "lay_grids",
    "normalise",
    "only_item",
    "requested_pairs",
    "sample",
    "usable_device",
    "versions",
    "world_transforms",
]
