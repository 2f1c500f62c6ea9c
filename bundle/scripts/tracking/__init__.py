"""MLflow: the store in a run's folder, its copies on servers and in databases, and the network as a registered model.

Commands, from the bundle's folder: ``python -m scripts.tracking upload`` and ``register`` (``--help``).
"""

from ..lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "model": ("complete", "inference_settings", "read_settings", "register_weights", "signature"),
        "server": ("checked_uri", "connect", "experiment_id", "own_store", "reason", "shown", "sqlite_uri"),
        "store": ("MODEL_TAG", "Copy", "executed_config", "upload"),
    },
)
