"""How alike an image is to a labelled one after registration; each pair is registered once and remembered."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path

from scripts.errors import InputError
from scripts.storage import atomic_path

from .engine import SETTINGS, Engine
from .errors import RequestError, refusal
from .studies import StudyDatastore

__all__ = ["Similarities"]

logger = logging.getLogger(__name__)


class Similarities:
    """Multi-kernel local correlation (1 is best) of an image with labelled ones that were registered to it.

    Kept in ``similarities.json`` of the app's folder. An entry holds as long as both files, the weights and the configs
    are the same.

    Args:
        engine: registers.
        datastore: of the studies.
    """

    def __init__(self, engine: Engine, datastore: StudyDatastore) -> None:
        self.engine = engine
        self.datastore = datastore
        self.file = datastore.home / "similarities.json"

    def between(self, image: str, atlas: str) -> float:
        """Similarity of an image and an atlas registered to it.

        Args:
            image: id of the fixed image.
            atlas: id of the moving image.

        Raises:
            InputError: for files that cannot be used.
            RequestError: for images that are not in the datastore.
        """
        fixed, moving = (self.datastore.get_image_uri(name) for name in (image, atlas))
        settings = {name: parameter.default for name, parameter in SETTINGS.items()}
        stamp = self._stamp(fixed, moving)
        known = self._read()
        key = json.dumps([atlas, image])
        if known.get(key, {}).get("stamp") == stamp:
            return known[key]["similarity"]
        result = self.engine.register(fixed, moving, settings)
        similarity = result.metrics["similarity"]["mk_lncc"]["final"]
        if not math.isfinite(similarity):
            raise InputError(f"{image}, {atlas}: no similarity is defined for them; look at both images")
        # Another process (batch inference) may have added entries meanwhile.
        known = self._read()
        known[key] = {"similarity": similarity, "stamp": stamp}
        with atomic_path(self.file) as temporary:
            temporary.write_text(json.dumps(known, indent=1) + "\n")
        return similarity

    def best_atlas(self, image: str, atlases: Sequence[str]) -> tuple[str, float]:
        """The atlas that is most alike to an image, and its similarity.

        Args:
            image: id of the image.
            atlases: ids to choose from; those that cannot be registered are left out, with a line in the log.

        Raises:
            RequestError: where none can be registered; the reason is that of the first.
        """
        found: dict[str, float] = {}
        reasons: list[str] = []
        for atlas in atlases:
            try:
                found[atlas] = self.between(image, atlas)
            except Exception as error:
                reason = refusal(error)
                if reason is None:
                    raise
                logger.warning(f"{image}, {atlas}: {reason}")
                reasons.append(str(reason))
        if not found:
            raise RequestError(reasons[0] if reasons else f"{image}: there is no labelled image to compare it with")
        best = max(found, key=lambda atlas: found[atlas])
        return best, found[best]

    def _read(self) -> dict[str, dict]:
        try:
            known = json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def _stamp(self, *paths: str) -> str:
        """What a similarity depends on, in short."""
        weights = self.engine.weights("auto").path
        files = [*map(Path, paths), weights, self.engine.network_file, *self.engine.config_files]
        facts = [[file.name, os.stat(file).st_size, os.stat(file).st_mtime_ns] for file in files]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
