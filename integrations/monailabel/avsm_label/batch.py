"""Batch inference over many images: a bad image costs its own result only."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.batch_infer import BatchInferTask

from .errors import refusal

__all__ = ["BatchInference"]

logger = logging.getLogger(__name__)


class BatchInference(BatchInferTask):
    """MONAI Label's batch inference, which needs a GPU by default, for any machine.

    Labels are propagated to images without a final label, whatever images are asked for; a registration leaves its
    fixed image out.
    """

    def get_images(self, request: Mapping[str, Any], datastore: Datastore) -> list[str]:
        """Ids of the images to work on."""
        images = super().get_images(request, datastore)
        if request.get("model") == "label_propagation":
            unlabelled = set(datastore.get_unlabeled_images())
            return [image for image in images if image in unlabelled]
        return [image for image in images if image != request.get("fixed")]

    def __call__(self, request: dict[str, Any], datastore: Datastore, infer: Callable) -> dict[str, Any]:
        """Run.

        Args:
            request: ``model``, ``images`` and the task's parameters.
            datastore: of the studies.
            infer: runs the task for one image.

        Returns:
            Image id → result, or ``{"error": reason}``.
        """
        device = request.get("device")
        if not torch.cuda.is_available() or device in (None, "cuda"):
            # MONAI Label shares images out over GPUs, of which there may be none; our tasks know their devices.
            request.pop("device", None)
        device = request.pop("device", None)

        def guarded(one: dict[str, Any], store: Datastore) -> dict[str, Any]:
            one.pop("device", None)
            if device is not None:
                one["device"] = device
            try:
                return infer(one, store)
            except Exception as error:
                reason = refusal(error)
                if reason is None:
                    raise
                logger.warning(f"{one['image']}: {reason}")
                return {"error": str(reason)}

        return super().__call__({**request, "multi_gpu": False, "device": "cpu", "max_workers": 1}, datastore, guarded)
