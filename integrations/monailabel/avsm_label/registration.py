"""The infer task ``registration``: two images of the datastore in; moved image, transforms and measures out."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monailabel.interfaces.tasks.infer_v2 import InferTask

from scripts.registration.write import METRICS

from .engine import SETTINGS, Engine
from .errors import RequestError
from .parameters import Parameter, read_parameters
from .studies import FINAL, ORIGINAL, StudyDatastore

__all__ = ["OUTPUTS", "RegistrationTask"]

OUTPUTS: Mapping[str, str] = {
    "moved": "moved.nii.gz",
    "moved_label": "moved_label.nii.gz",
    "transform": "transform.h5",
    "inverse_transform": "inverse_transform.h5",
    "affine": "affine.tfm",
    "displacement": "displacement.nii.gz",
    "jacobian": "jacobian.nii.gz",
    "report": "report.html",
    "metrics": METRICS,
}
"""Kind of a result → its file of ``avsm register``. Its tag is ``KIND_to_FIXED``, a label of the moving image."""

PARAMETERS: Mapping[str, Parameter] = {
    "fixed": Parameter("", "id of the fixed image, onto which the request's image is moved"),
    "result": Parameter("moved", "kind of the file that comes back", choices=tuple(OUTPUTS)),
    "save_label": Parameter(True, "whether all results are kept in the datastore", bool),
    "report": Parameter(True, "whether the report is made as well", bool),
    **SETTINGS,
}


class RegistrationTask(InferTask):
    """Registers the request's image (moving) to another one of the datastore (``fixed``).

    Args:
        datastore: of the studies.
        engine: registers.
    """

    def __init__(self, datastore: StudyDatastore, engine: Engine) -> None:
        super().__init__(
            "registration",
            [],
            3,
            "Registers an image of the datastore (moving) to another one (fixed), affine and deformable",
        )
        self.datastore = datastore
        self.engine = engine
        self.parameters = PARAMETERS

    def config(self) -> dict[str, Any]:
        """The options that clients show."""
        return {name: parameter.option() for name, parameter in PARAMETERS.items() if parameter.shown}

    def is_valid(self) -> bool:
        """Whether the task is offered."""
        return True

    def check(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of a request, checked against the datastore as well.

        Raises:
            RequestError: for what cannot be served.
        """
        settings = read_parameters(_without(request, "label_tag", "result_extension", "result_dtype"), PARAMETERS)
        if not settings["fixed"]:
            raise RequestError("fixed: is missing; give the id of the fixed image in params")
        self.datastore.get_image_uri(settings["fixed"])
        if settings["fixed"] == request.get("image"):
            raise RequestError(f"fixed: {settings['fixed']!r} is the moving image itself; give another image")
        if settings["result"] == "report" and not settings["report"]:
            raise RequestError("result: the report is asked for, but report is false; set it to true")
        return settings

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Register.

        Args:
            request: ``image``, the id of the moving image, and `PARAMETERS`.

        Returns:
            Path of the file asked for, and what is told of the result: measures, weights, what was stored where.

        Raises:
            RequestError: for a bad request.
            InputError: for files that cannot be used.
        """
        settings, moving = self.check(request), request["image"]
        fixed = settings["fixed"]
        files = {
            "fixed": self.datastore.get_image_uri(fixed),
            "moving": self.datastore.get_image_uri(moving),
            "fixed_label": self.datastore.final_label(fixed),
            "moving_label": self.datastore.final_label(moving),
        }
        if settings["result"] == "moved_label" and files["moving_label"] is None:
            raise RequestError(f"result: {moving!r} has no final label to move; give another result")
        facts = self.engine.facts(settings)
        with tempfile.TemporaryDirectory(prefix="avsm_") as name:
            folder = Path(name)
            metrics = self.engine.register_to_folder(files, settings, folder, report=settings["report"])
            told = {
                "fixed": fixed,
                "moving": moving,
                **facts,
                "metrics": {key: metrics[key] for key in _TOLD if key in metrics},
                "verdict": metrics["verdict"],
                "notes": metrics["warnings"],
                "stored": {},
            }
            if settings["save_label"]:
                told["stored"] = self._store(folder, fixed, moving, told)
            # MONAI Label removes the file when it has been sent, but not a folder.
            source = folder / OUTPUTS[settings["result"]]
            suffix = "".join(source.suffixes)
            with tempfile.NamedTemporaryFile(
                prefix=f"{source.name[: -len(suffix)]}_", suffix=suffix, delete=False
            ) as to:
                shutil.copy(source, to.name)
        return to.name, told

    def _store(self, folder: Path, fixed: str, moving: str, told: dict[str, Any]) -> dict[str, str]:
        """Keep the results as labels of the moving image; returns kind → tag."""
        tags = {kind: f"{kind}_to_{fixed}" for kind, name in OUTPUTS.items() if (folder / name).is_file()}
        facts = {key: told[key] for key in ("fixed", "moving", "weights")}
        for kind, tag in tags.items():
            self.datastore.save_label(moving, str(folder / OUTPUTS[kind]), tag, {"model": "registration", **facts})
        return tags


_TOLD = ("similarity", "folds", "jacobian", "inverse_consistency_mm", "labels", "seconds")


def _without(request: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """A request without keys that clients send to every task, and that say nothing to this one.

    Raises:
        RequestError: when a tag is one for annotations, which no result of a registration is.
    """
    tag = request.get("label_tag")
    if tag not in (None, "", ORIGINAL):
        word = "is for annotations" if tag == FINAL else "cannot be chosen"
        raise RequestError(f"label_tag: {tag!r} {word}; the tags of a registration's results are KIND_to_FIXED")
    return {key: value for key, value in request.items() if key not in names}
