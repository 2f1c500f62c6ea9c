"""Which image to label next: the one that is explained worst by those that are labelled."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from .errors import RequestError, refusal
from .parameters import Parameter, read_parameters
from .propagation import AUTO
from .similarity import Similarities
from .studies import StudyDatastore

__all__ = ["LowestSimilarity"]

PARAMETERS: Mapping[str, Parameter] = {
    "atlas": Parameter(AUTO, "id of a labelled image to compare with, or auto for the most similar one of all")
}
logger = logging.getLogger(__name__)


class LowestSimilarity(Strategy):
    """Picks the unlabelled image whose best atlas is least similar to it after registration.

    That is where propagated labels are likely to be worst, and a new atlas helps most. While nothing is labelled, the
    first image in order of names is given. Images that cannot be registered are left out and named in ``failed``.

    Args:
        datastore: of the studies.
        similarities: of pairs, remembered.
    """

    def __init__(self, datastore: StudyDatastore, similarities: Similarities) -> None:
        super().__init__("The image least similar to the labelled ones after registration")
        self.datastore = datastore
        self.similarities = similarities
        self.parameters = PARAMETERS

    def check(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of a request, checked against the datastore as well.

        Raises:
            RequestError: for what cannot be served.
        """
        settings = read_parameters(request, PARAMETERS)
        if settings["atlas"] != AUTO:
            self.datastore.get_image_uri(settings["atlas"])
            if self.datastore.final_label(settings["atlas"]) is None:
                raise RequestError(f"atlas: {settings['atlas']!r} has no final label; give a labelled image, or auto")
        return settings

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """Choose.

        Args:
            request: ``atlas``.
            datastore: not looked at: it is the app's own.

        Returns:
            ``id``, and where there is an atlas: ``atlas``, ``similarity``, ``similarities`` of all candidates,
            ``failed``. None where every image is labelled.

        Raises:
            RequestError: for a bad request, or where no image can be registered.
        """
        settings = self.check(request)
        images, labelled = self.datastore.unlabelled(), self.datastore.labelled()
        if not images:
            return None
        if not labelled:
            return {"id": images[0], "reason": "no image is labelled yet: the first one in order of names"}
        atlases = labelled if settings["atlas"] == AUTO else [settings["atlas"]]
        found: dict[str, tuple[str, float]] = {}
        failed: dict[str, str] = {}
        for image in images:
            try:
                found[image] = self.similarities.best_atlas(image, atlases)
            except Exception as error:
                reason = refusal(error)
                if reason is None:
                    raise
                failed[image] = str(reason)
        if not found:
            raise RequestError(f"no unlabelled image can be registered; {next(iter(failed.values()))}")
        chosen = min(found, key=lambda image: found[image][1])
        logger.info(f"{chosen}: similarity {found[chosen][1]:.3f} to {found[chosen][0]}, lowest of {len(found)}")
        return {
            "id": chosen,
            "atlas": found[chosen][0],
            "similarity": found[chosen][1],
            "similarities": {image: similarity for image, (_, similarity) in found.items()},
            "failed": failed,
        }
