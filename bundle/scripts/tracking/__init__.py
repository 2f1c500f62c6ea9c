"""MLflow: the store in a run's folder, its copies on servers and in databases, and the network as a registered model.

Commands, from the bundle's folder: ``python -m scripts.tracking upload`` and ``register`` (``--help``).
"""

from .model import complete, inference_settings, read_settings, register_weights, signature
from .server import checked_uri, connect, experiment_id, own_store, reason, shown, sqlite_uri
from .store import MODEL_TAG, Copy, executed_config, upload

__all__ = [
    "MODEL_TAG",
    "Copy",
    "checked_uri",
    "complete",
    "connect",
    "executed_config",
    "experiment_id",
    "inference_settings",
    "own_store",
    "read_settings",
    "reason",
    "register_weights",
    "shown",
    "signature",
    "sqlite_uri",
    "upload",
]
