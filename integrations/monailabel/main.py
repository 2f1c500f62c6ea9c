"""Where MONAI Label looks for the app: a subclass of ``MONAILabelApp`` in the ``main.py`` of the app's folder."""

from avsm_label.app import AVSMApp

__all__ = ["AVSMApp"]
