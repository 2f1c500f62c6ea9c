"""Any two images in one call: read, sample on the network's grids, register, accept, and say it all in millimetres.

One way through: `Pair` → `lay_grids` → `SampledPair` → `Method` → `accept` →
`Result` → `PairWriter`. `Registrar` goes that way in Python; ``configs/inference.json`` declares the same steps for
MONAI, and `Batch` runs them over a list.
"""

from ..lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "accept": ("Accepted", "NativeSimilarity", "accept"),
        "batch": ("Batch",),
        "evaluator": ("ByEvaluator", "PairUpdate", "only_item"),
        "driving": ("Driving",),
        "grids": ("NetworkGrids", "Pose", "foreground_box", "grid_shape", "lay_grids"),
        "intensities": ("normalise", "sample"),
        "methods": ("EngineStage", "Found", "Method", "NetworkStage", "Stage", "chosen_method", "chosen_network"),
        "pair": ("Pair", "ReadPaird", "requested_pairs"),
        "registrar": ("Registrar", "inference_parser", "usable_device"),
        "result": ("AcceptPaird", "MeasurePaird", "Result", "Warped", "WarpPaird", "versions"),
        "sampling": ("SampledPair", "SamplePaird"),
        "series": ("Series", "register_series"),
        "start": ("Start",),
        "template": ("Subject", "Template", "round_settings", "subjects_of", "visit_settings"),
        "world": ("inverse_consistency", "inverse_transform", "world_transform"),
        "write": ("METRICS", "OUTPUTS", "PairWriter"),
    },
)
