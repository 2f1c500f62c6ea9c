"""What the configs name: curriculum, iteration updates, measures, handlers."""

from ..lazy import lazy_names

# fmt: off
__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        ".processes": (
            "data_parallel", "is_another", "is_first", "join_processes", "launched", "leave_processes", "own_device",
            "share_of",
        ),
        ".tracking": ("sqlite_uri",),
        ".workflow": ("begin",),
        "checkpoints": ("Checkpoints",),
        "curriculum": ("Curriculum", "CurriculumHandler", "Phase"),
        "handlers": ("EpochSetter", "PairTable", "Progress", "ValidationLog", "ValidationPicture"),
        "tracking": ("EvaluationTracker", "TrainingTracker", "ValidationTracker", "run_name"),
        "updates": ("EvaluationUpdate", "PairMean", "TrainingUpdate", "measure_means"),
    },
)
