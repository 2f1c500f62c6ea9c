"""The training task: the bundle's own training, by ``monai.bundle run``, on the datastore's pairs."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask

from scripts.networks.weights import weights_hash
from scripts.settings import BUNDLE
from scripts.storage import atomic_path

from .dataset import scaled_phases, training_list
from .engine import Engine, device_names
from .errors import RequestError
from .parameters import Parameter, read_parameters
from .studies import StudyDatastore

__all__ = ["TrainingTask"]

PARAMETERS: Mapping[str, Parameter] = {
    "max_epochs": Parameter(20, "number of epochs of all phases together", int, None, 1, 100_000),
    "epoch_pairs": Parameter(100, "number of pairs drawn for each epoch, all there are at most", int, None, 1, 1e6),
    "pretrained": Parameter(True, "whether to go on from the weights in use; false starts anew", bool),
    "learning_rate": Parameter(0.0, "learning rate of all phases, or 0 for their own", float, None, 0, 1),
    "label_weight": Parameter(0.0, "weight of the Dice loss on final labels, or 0 for none", float, None, 0, 1e6),
    "val_split": Parameter(0.2, "part of the labelled images held out for validation", float, None, 0, 0.9),
    "seed": Parameter(0, "seed", int, None, 0, 2**32 - 1),
    "device": Parameter(device_names()[0], "device", choices=device_names()),
}
_LIST_LIMIT = 10_000  # pairs listed; each epoch draws its own from them
_LINES = 30
logger = logging.getLogger(__name__)


class TrainingTask(TrainTask):
    """Trains the bundle's network on the pairs of the datastore's images, and puts the result to use.

    Each run has a folder of its own in ``avsm/runs`` of the studies, with the data list, all settings
    (``overrides.json``, by which the run can be repeated without this server), checkpoints and pictures. When it is
    complete its best weights are copied to ``avsm/model.pt``, which the other tasks then register with.

    MONAI Label runs it in a process of its own, and kills that with its children when it is asked to stop.

    Args:
        datastore: of the studies.
        engine: knows the configs and the weights in use.
    """

    def __init__(self, datastore: StudyDatastore, engine: Engine) -> None:
        super().__init__("Trains the registration network on the pairs of the datastore's images")
        self.datastore = datastore
        self.engine = engine
        self.parameters = PARAMETERS
        self.stats_file = datastore.home / "training.json"

    def config(self) -> dict[str, Any]:
        """The options that clients show."""
        return {name: parameter.option() for name, parameter in PARAMETERS.items()}

    def stats(self) -> dict[str, Any]:
        """The run in progress, or else the last one: ``epoch``, ``total_epochs``, ``best_metric`` (Dice), times."""
        try:
            return json.loads(self.stats_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def check(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of a request, checked against the datastore as well.

        Raises:
            RequestError: for what cannot be served.
            InputError: for a label map that cannot be used.
        """
        settings = read_parameters(request, PARAMETERS)
        training_list(self.datastore, settings["val_split"], settings["label_weight"] > 0, settings["seed"])
        return settings

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Train.

        Args:
            request: `PARAMETERS`.
            datastore: not looked at: it is the app's own.

        Returns:
            What `stats` gives of this run.

        Raises:
            RequestError: for a bad request, or input that the bundle's training refuses.
            RuntimeError: when the training dies; its last line is in the message.
        """
        settings = self.check(request)
        listed = training_list(self.datastore, settings["val_split"], settings["label_weight"] > 0, settings["seed"])
        folder = self._new_run()
        _write_json(folder / "dataset.json", listed["dataset"])
        overrides = self._overrides(settings, listed, folder)
        _write_json(folder / "overrides.json", overrides)
        stats: dict[str, Any] = {
            "run": str(folder.relative_to(self.datastore.root)),
            "images": listed["images"],
            "validation": listed["validation"],
            "validation_held_out": listed["held_out"],
            "epoch": 0,
            "total_epochs": settings["max_epochs"],
            "start_ts": int(time.time()),
        }
        _write_json(self.stats_file, stats)
        begin = time.monotonic()
        self._run(folder, stats)
        stats.update(self._publish(folder, listed), total_time=round(time.monotonic() - begin, 1))
        _write_json(self.stats_file, stats)
        return stats

    def _new_run(self) -> Path:
        """A new folder, named by the time."""
        runs = self.datastore.home / "runs"
        name = time.strftime("%Y%m%d_%H%M%S")
        for number in range(1, 1000):
            folder = runs / (name if number == 1 else f"{name}_{number}")
            with contextlib.suppress(FileExistsError):
                folder.mkdir(parents=True)
                return folder
        raise RuntimeError(f"{runs}: no name is left for a new run.")

    def _overrides(self, settings: Mapping[str, Any], listed: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """Ids of the bundle's ``train.json`` for this run."""
        phases = ConfigParser.load_config_files(self.engine.training_configs)["phases"]
        rate = settings["learning_rate"] or None
        pairs = min(listed["pairs"], _LIST_LIMIT)
        return {
            "bundle_root": str(BUNDLE),
            "model": self.engine.network_file.stem,
            "output_dir": str(folder),
            "dataset_dir": str(folder / "dataset.json"),
            "device": f"$torch.device('{settings['device']}')",
            "threads": self.engine.threads,
            "seed": settings["seed"],
            "pair_mode": "cross_subject",
            "train_pairs": pairs,
            "epoch_pairs": min(settings["epoch_pairs"], pairs),
            "train_holdout": 0.0,
            "val_section": "registration_val",
            "val_pairs": listed["val_pairs"],
            "val_interval": 1,
            "labels": listed["labels"] or [1],
            "label_weight": settings["label_weight"],
            "initial_weights": str(self.engine.weights("auto").path) if settings["pretrained"] else None,
            "phases": scaled_phases(phases, settings["max_epochs"], rate),
        }

    def _run(self, folder: Path, stats: dict[str, Any]) -> None:
        """Run the bundle's training, showing what it says and keeping the statistics up to date."""
        configs = [*self.engine.training_configs, folder / "overrides.json"]
        command = [sys.executable, "-m", "monai.bundle", "run", "training"]
        command += ["--meta_file", str(BUNDLE / "configs" / "metadata.json")]
        command += ["--logging_file", str(BUNDLE / "configs" / "logging.conf")]
        command += ["--config_file", str([str(file) for file in configs])]
        environment = {**os.environ, "PYTHONPATH": str(BUNDLE), "PYTHONUNBUFFERED": "1"}
        logger.info(f"training: {' '.join(command)}")
        lines: deque[str] = deque(maxlen=_LINES)
        process = subprocess.Popen(
            command, cwd=BUNDLE, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            for line in process.stdout:
                line = line.rstrip()
                if line:
                    lines.append(line)
                    print(line, flush=True)
                if _update(stats, folder):
                    _write_json(self.stats_file, stats)
        finally:
            process.kill()
            code = process.wait()
            process.stdout.close()
        if code != 0:
            said = lines[-1] if lines else "it said nothing"
            if said.startswith("error: "):
                raise RequestError(f"train: {said.removeprefix('error: ')}")
            raise RuntimeError(f"training ended with status {code}: {said}")
        _update(stats, folder)

    def _publish(self, folder: Path, listed: Mapping[str, Any]) -> dict[str, Any]:
        """Put the best weights of a complete run to use."""
        with atomic_path(self.engine.trained) as temporary:
            shutil.copy(folder / "model.pt", temporary)
        return {"weights_sha256": weights_hash(self.engine.trained)}


def _update(stats: dict[str, Any], folder: Path) -> bool:
    """Take epoch and best Dice from the run's last checkpoint; whether there is a new one."""
    path = folder / "checkpoint_last.pt"
    try:
        changed = path.stat().st_mtime_ns
        if stats.get("checkpoint") == changed:
            return False
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except OSError:
        return False
    stats.update(checkpoint=changed, epoch=found["epoch"], best_epoch=found["best"]["epoch"])
    metric = found["best"]["metric"]
    # Clients draw a bar of it, so what is not defined is left out.
    if metric is not None and math.isfinite(metric):
        stats["best_metric"] = metric
    return True


def _write_json(path: Path, content: Any) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
