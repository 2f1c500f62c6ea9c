"""The infer task ``label_propagation``: the labels of a labelled image, moved onto one that has none."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from numpy.typing import DTypeLike

from scripts.cli.files import write_volume
from scripts.errors import InputError
from scripts.spatial.resampling import resample_labels

from .engine import SETTINGS, Engine
from .errors import RequestError
from .labels import label_names, label_values
from .parameters import Parameter, read_parameters
from .similarity import Similarities
from .studies import FINAL, ORIGINAL, SUFFIXES, StudyDatastore, plain_name

__all__ = ["AUTO", "PropagationTask"]

AUTO = "auto"
_DTYPES = ("uint8", "uint16", "int16", "uint32", "int32")


class PropagationTask(InferTask):
    """Moves the final labels of an atlas, a labelled image, onto the request's image, as its pre-annotation.

    The atlas is registered to the image in the world, and its labels are looked up there by nearest neighbour. The
    result is kept under the tag ``original``, where annotation tools look for what an annotator begins with.

    Its type is ``segmentation``, which 3D Slicer's and OHIF's plugins list.

    Args:
        datastore: of the studies.
        engine: registers.
        similarities: choose the atlas where the request names none.
        names: names of label values that the server was started with.
    """

    def __init__(
        self, datastore: StudyDatastore, engine: Engine, similarities: Similarities, names: Mapping[str, int]
    ) -> None:
        super().__init__(
            InferType.SEGMENTATION,
            {},
            3,
            "Moves the labels of a labelled image onto this one, by registration; a start for the annotator",
        )
        self.datastore = datastore
        self.engine = engine
        self.similarities = similarities
        self.names = names

    @property
    def parameters(self) -> dict[str, Parameter]:
        """The task's parameters; the atlases to choose from are the images labelled by now."""
        return {
            "atlas": Parameter(AUTO, "id of a labelled image, or auto for the most similar one"),
            "save_label": Parameter(True, "whether the result is kept in the datastore", bool),
            "label_tag": Parameter(ORIGINAL, "tag under which the result is kept", shown=False),
            "result_extension": Parameter(".nii.gz", "kind of the file that comes back", choices=SUFFIXES, shown=False),
            "result_dtype": Parameter("uint8", "type of the labels, if it holds them", choices=_DTYPES, shown=False),
            **SETTINGS,
        }

    def info(self) -> dict[str, Any]:
        """What clients are told: type, names of the labels, options."""
        return {**super().info(), "labels": label_names(self.datastore, self.names)}

    def config(self) -> dict[str, Any]:
        """The options that clients show."""
        options = {name: parameter.option() for name, parameter in self.parameters.items() if parameter.shown}
        return {**options, "atlas": [AUTO, *self.datastore.labelled()]}

    def is_valid(self) -> bool:
        """Whether the task is offered."""
        return True

    def check(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of a request, checked against the datastore as well.

        Raises:
            RequestError: for what cannot be served.
        """
        request = dict(request)
        if isinstance(request.get("atlas"), list) and request["atlas"]:
            request["atlas"] = request["atlas"][0]  # a menu that a client has sent back as it came
        settings = read_parameters(request, self.parameters)
        if settings["label_tag"] == FINAL:
            raise RequestError(f"label_tag: {FINAL!r} is for what an annotator has approved; give another tag")
        plain_name("label_tag", settings["label_tag"])
        atlas, image = settings["atlas"], request.get("image")
        if atlas == AUTO:
            if not [name for name in self.datastore.labelled() if name != image]:
                raise RequestError(
                    "atlas: no other image has a final label yet; label one and save it with the tag 'final'"
                )
            return settings
        self.datastore.get_image_uri(atlas)
        if self.datastore.final_label(atlas) is None:
            raise RequestError(f"atlas: {atlas!r} has no final label; give a labelled image, or auto")
        if atlas == image:
            raise RequestError(f"atlas: {atlas!r} is the image itself; give another image, or auto")
        return settings

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Propagate.

        Args:
            request: ``image``, the id of the image to be labelled, and the task's parameters.

        Returns:
            Path of the label map on the image's own grid, and what is told of it: ``label_names``, ``atlas``,
            ``similarity`` (mk-LNCC after registration, 1 is best), ``verdict``, ``weights``, ``notes``, ``stored``.

        Raises:
            RequestError: for a bad request.
            InputError: for files that cannot be used.
        """
        settings, image = self.check(request), request["image"]
        atlas, target = settings["atlas"], self.datastore.get_image_uri(image)
        if atlas == AUTO:
            others = [name for name in self.datastore.labelled() if name != image]
            atlas = others[0] if len(others) == 1 else self.similarities.best_atlas(image, others)[0]
        label_file = self.datastore.final_label(atlas)
        result = self.engine.register(target, self.datastore.get_image_uri(atlas), settings, label_file)
        label, frame, notes = result.pair.moving_label, result.pair.fixed.frame, list(result.warnings)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            moved = resample_labels(label.array, label.frame, frame, result.accepted.chain)
        notes += [str(warning.message) for warning in caught if isinstance(warning.message, UserWarning)]
        suffix, dtype = settings["result_extension"], _holding(settings["result_dtype"], label.array, label_file)
        with tempfile.NamedTemporaryFile(prefix="labels_", suffix=suffix, delete=False) as to:
            pass
        write_volume(moved, frame, to.name, dtype)
        present = set(label_values(label_file))
        told = {
            "atlas": atlas,
            "label_names": {n: v for n, v in label_names(self.datastore, self.names).items() if v in present},
            "similarity": result.metrics["similarity"]["mk_lncc"]["final"],
            "similarity_before": result.metrics["similarity"]["mk_lncc"]["before"],
            **self.engine.facts(settings),
            "result_dtype": str(np.dtype(dtype)),
            "verdict": result.metrics["verdict"],
            "notes": notes,
            "stored": {},
        }
        if settings["save_label"]:
            facts = {"model": "label_propagation", "params": dict(told)}
            self.datastore.save_label(image, to.name, settings["label_tag"], facts)
            told["stored"] = {"label": settings["label_tag"]}
        return to.name, told


def _holding(wanted: str, labels: np.ndarray, path: str) -> DTypeLike:
    """The type asked for if it holds the labels, else the smallest that does.

    Raises:
        InputError: where no type that files and tools know does.
    """
    low, high = int(labels.min()), int(labels.max())
    for name in (wanted, *_DTYPES):
        limits = np.iinfo(name)
        if limits.min <= low and high <= limits.max:
            return np.dtype(name)
    raise InputError(f"{path}: labels from {low} to {high} fit no type of 32 bits; number them anew")
