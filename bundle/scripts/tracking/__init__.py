"""MLflow: the log of a run, kept in its folder and sent to a server or database, and the network as a registered model.

Commands, from the bundle's folder: ``python -m scripts.tracking upload`` and ``register`` (``--help``).
"""

from .connection import checked_uri
from .journal import FINISHED, Journal
from .model import inference_settings, log_model, read_settings, register_weights, signature
from .sender import Sender, upload

__all__ = [
    "FINISHED",
    "Journal",
    "Sender",
    "checked_uri",
    "inference_settings",
    "log_model",
    "read_settings",
    "register_weights",
    "signature",
    "upload",
]
