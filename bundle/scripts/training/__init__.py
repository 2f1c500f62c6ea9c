"""What the configs name: curriculum, iteration updates, measures, handlers."""

from ..processes import (
    data_parallel,
    is_another,
    is_first,
    join_processes,
    launched,
    leave_processes,
    own_device,
    share_of,
)
from ..tracking import sqlite_uri
from ..workflow import begin
from .checkpoints import Checkpoints
from .curriculum import Curriculum, CurriculumHandler, Phase
from .evaluation import EvaluationUpdate, PairMean, measure_means
from .pictures import ValidationPicture
from .progress import Progress
from .start import EpochSetter, bfloat16_pays, run_name
from .tables import PairTable
from .tracking import EvaluationTracker, TrainingTracker, ValidationTracker
from .training import TrainingUpdate

__all__ = [
    "Checkpoints",
    "Curriculum",
    "CurriculumHandler",
    "EpochSetter",
    "EvaluationTracker",
    "EvaluationUpdate",
    "PairMean",
    "PairTable",
    "Phase",
    "Progress",
    "TrainingTracker",
    "TrainingUpdate",
    "ValidationPicture",
    "ValidationTracker",
    "begin",
    "bfloat16_pays",
    "data_parallel",
    "is_another",
    "is_first",
    "join_processes",
    "launched",
    "leave_processes",
    "measure_means",
    "own_device",
    "run_name",
    "share_of",
    "sqlite_uri",
]
