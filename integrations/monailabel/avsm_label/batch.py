"""Batch inference over many images: a bad image costs its own result only."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

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
        # MONAI Label shares images out over GPUs, of which there may be none; its default stands for our tasks' own.
        device = request.get("device")
        chosen = {} if device in (None, "cuda") else {"device": device}

        def guarded(one: dict[str, Any], store: Datastore) -> dict[str, Any]:
            asked = {key: value for key, value in one.items() if key != "device"}
            try:
                return infer({**asked, **chosen}, store)
            except Exception as error:
                reason = refusal(error)
                if reason is None:
                    raise
                logger.warning(f"{one['image']}: {reason}")
                return {"error": str(reason)}

        return super().__call__({**request, "multi_gpu": False, "device": "cpu", "max_workers": 1}, datastore, guarded)
