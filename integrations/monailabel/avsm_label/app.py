"""The MONAI Label app: a studies folder, two infer tasks, a training task and strategies, over one bundle."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.tasks.activelearning.first import First
from monailabel.tasks.activelearning.random import Random

from scripts.errors import InputError

from .batch import BatchInference
from .engine import Engine
from .errors import NOT_FOUND, RequestError
from .labels import read_names
from .propagation import PropagationTask
from .registration import RegistrationTask
from .similarity import Similarities
from .strategy import LowestSimilarity
from .studies import ORIGINAL, StudyDatastore
from .training import TrainingTask

__all__ = ["AVSMApp"]

CONF = frozenset(("config_files", "labels", "model", "threads"))


class AVSMApp(MONAILabelApp):
    """Serves the AVSM bundle.

    Args:
        app_dir: folder of ``main.py``.
        studies: folder of images; a DICOMweb address is refused.
        conf: of ``--conf KEY VALUE``: ``model``, a network of the bundle; ``config_files``, comma-separated configs of
            the bundle that come after the network's file; ``labels``, names of label values as JSON; ``threads`` of
            torch.

    Raises:
        InputError: for settings or a folder that cannot be used.
    """

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str]) -> None:
        unknown = sorted(set(conf or {}) - CONF)
        if unknown:
            raise InputError(f"--conf {unknown[0]}: no such setting; give {', '.join(sorted(CONF))}")
        threads = (conf or {}).get("threads")
        if threads and (not threads.isdecimal() or int(threads) < 1):
            raise InputError(f"--conf threads {threads}: give a whole number of at least 1")
        self.threads = int(threads) if threads else None
        if self.threads:
            torch.set_num_threads(self.threads)
        super().__init__(
            app_dir,
            studies,
            dict(conf or {}),
            name="AVSM",
            description="Registration, label propagation and training on 3D studies. Not a medical device.",
            version="0.2.0",
        )

    def init_datastore(self) -> Datastore:
        """The studies folder."""
        if self.studies.startswith(("http://", "https://")):
            raise InputError(f"{self.studies}: DICOMweb is not served; give a folder of images")
        datastore = StudyDatastore(
            self.studies,
            auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY,
        )
        files = [file.strip() for file in self.conf.get("config_files", "").split(",") if file.strip()]
        self.engine = Engine(datastore.home, self.conf.get("model"), files, self.threads)
        self.engine.weights("bundle")
        self.similarities = Similarities(self.engine, datastore)
        self.names = read_names(self.conf.get("labels"))
        return datastore

    def init_infers(self) -> dict[str, InferTask]:
        """The infer tasks."""
        return {
            "label_propagation": PropagationTask(self._datastore, self.engine, self.similarities, self.names),
            "registration": RegistrationTask(self._datastore, self.engine),
        }

    def init_trainers(self) -> dict[str, TrainTask]:
        """The training task."""
        return {"registration": TrainingTask(self._datastore, self.engine)}

    def init_strategies(self) -> dict[str, Strategy]:
        """The strategies; clients preselect the first."""
        return {
            "lowest_similarity": LowestSimilarity(self._datastore, self.similarities),
            "first": First(),
            "random": Random(),
        }

    def init_batch_infer(self) -> BatchInference:
        """Batch inference."""
        return BatchInference()

    def infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Run an infer task on an image of the datastore, by its id and nothing else.

        MONAI Label's own would take the path of any file of this machine for an image. Tasks here store their results
        themselves, as a registration has several.

        Args:
            request: ``model``, ``image`` and the task's parameters.
            datastore: not looked at: it is the app's own.

        Returns:
            ``file`` (the path of the result), ``label``, ``tag``, ``params`` (what is told of the result).

        Raises:
            RequestError: for a bad request.
        """
        task = self.task("models", request.get("model"))
        self._datastore.get_image_uri(request.get("image"))
        file, told = task(copy.deepcopy(request))
        return {"file": file, "label": file, "tag": request.get("label_tag", ORIGINAL), "params": told}

    def train(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run the training task.

        Raises:
            RequestError: for a bad request.
        """
        self.task("trainers", request.get("model"))
        return super().train(request)

    def next_sample(self, request: dict[str, Any]) -> dict[str, Any]:
        """The next image to label.

        Raises:
            RequestError: for a bad request.
        """
        self.task("strategies", request.get("strategy"))
        return super().next_sample(request)

    def task(self, kind: str, name: Any) -> Any:
        """A task by its name.

        Args:
            kind: ``models``, ``trainers``, ``strategies`` or ``scoring``.
            name: the client's.

        Raises:
            RequestError: where there is none of that name.
        """
        tasks = {
            "models": self._infers,
            "trainers": self._trainers,
            "strategies": self._strategies,
            "scoring": self._scoring_methods,
        }[kind]
        if name not in tasks:
            known = ", ".join(tasks) or "none"
            raise RequestError(f"{kind}: there is no {name!r}; this server has {known}", NOT_FOUND)
        return tasks[name]
