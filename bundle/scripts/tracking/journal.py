"""The local log of a tracked run: whatever is meant for MLflow is written here first, and sent from here."""

from __future__ import annotations

import json
import os
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["FINISHED", "FOLDER", "Journal"]

FOLDER = "tracking"
FINISHED = "FINISHED"


class Journal:
    """The log of one run, a line of JSON for each record, ``tracking/<run name>.jsonl`` in the folder of the run.

    The first line says what the run is called and when it began; then come records of kind ``params``, ``metrics``,
    ``image``, ``artifact``, ``model`` and ``status``. Files are named by their path in the run's folder. A run that is
    resumed goes on in its log; what it does a second time (iterations after its last checkpoint) is not written twice.

    Args:
        path: the log; must exist, see `create`.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self.output_dir = self.path.parent.parent
        self.parameters: set[str] = set()
        self.steps: dict[str, int] = {}
        self.status: str | None = None
        self.header: dict[str, Any] = {}
        for record, _ in self.read():
            self._note(record)
        with open(self.path, "rb") as stream:
            # A line cut short by a power failure must not take the next one with it.
            stream.seek(-1, os.SEEK_END)
            self._torn = stream.read(1) != b"\n"

    @classmethod
    def find(cls, output_dir: str | os.PathLike, run_name: str) -> Journal | None:
        """The newest log of a run name in a folder, or None.

        Args:
            output_dir: the folder of the run.
            run_name: as given to `create`.
        """
        folder, stem = Path(output_dir) / FOLDER, _file_name(run_name)
        numbered = [path for path in folder.glob("*.jsonl") if re.fullmatch(re.escape(stem) + r"(~\d+)?", path.stem)]
        return cls(max(numbered, key=_number)) if numbered else None

    @classmethod
    def create(
        cls,
        output_dir: str | os.PathLike,
        run_name: str,
        experiment_name: str,
        tags: Mapping[str, str] | None = None,
    ) -> Journal:
        """Begin the log of a new run, beside those that are there.

        Args:
            output_dir: the folder of the run.
            run_name: shown by MLflow.
            experiment_name: MLflow's experiment.
            tags: of the run.
        """
        folder = Path(output_dir) / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        last = cls.find(output_dir, run_name)
        stem = _file_name(run_name) + ("" if last is None else f"~{_number(last.path) + 1}")
        header = {
            "kind": "run",
            "time": _now(),
            "id": uuid.uuid4().hex,
            "run_name": run_name,
            "experiment_name": experiment_name,
            "tags": dict(tags or {}),
        }
        path = folder / f"{stem}.jsonl"
        path.write_text(json.dumps(header) + "\n")
        return cls(path)

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end."""
        return self.status == FINISHED

    def read(self, start: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
        """The records from a byte on, each with the byte behind it.

        Args:
            start: the byte; 0, or one that was given with a record.
        """
        with open(self.path, "rb") as stream:
            stream.seek(start)
            for line in stream:
                start += len(line)
                try:
                    record = json.loads(line)
                except ValueError:  # cut short by a power failure
                    continue
                yield record, start

    def add(self, kind: str, **content: Any) -> None:
        """Append a record.

        Args:
            kind: see the class.
            content: of the record; whatever JSON can hold.
        """
        record = {"kind": kind, "time": _now(), **content}
        with open(self.path, "a") as stream:
            stream.write(("\n" if self._torn else "") + json.dumps(record) + "\n")
        self._torn = False
        self._note(record)

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Parameters; one that is there already keeps its first value, as MLflow wants it."""
        new = {name: str(value) for name, value in values.items() if name not in self.parameters}
        if new:
            self.add("params", values=new)

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Values at a step; those of a step that is there already are left out, as a repeated step gives the same."""
        new = {name: float(value) for name, value in values.items() if step > self.steps.get(name, -1)}
        if new:
            self.add("metrics", values=new, step=step)

    def log_image(self, path: str | os.PathLike, key: str, step: int) -> None:
        """A picture of a series over the steps; ``path`` lies in the folder of the run."""
        if step > self.steps.get(f"image {key}", -1):
            self.add("image", path=self._inside(path), key=key, step=step)

    def log_artifact(self, path: str | os.PathLike, folder: str | None = None, name: str | None = None) -> None:
        """A file.

        Args:
            path: in the folder of the run; taken as it is when it is sent.
            folder: where MLflow puts it.
            name: what MLflow calls it, where that is not its name.
        """
        self.add("artifact", path=self._inside(path), folder=folder, name=name)

    def log_model(self, weights: str | os.PathLike, name: str, settings: Mapping[str, Any]) -> None:
        """Weights to register as a model.

        Args:
            weights: a weights file in the folder of the run, as it is when it is sent.
            name: of the registered model.
            settings: what the weights need in ``configs/inference.json``.
        """
        self.add("model", path=self._inside(weights), name=name, settings=dict(settings))

    def log_status(self, status: str) -> None:
        """MLflow's status of the run: RUNNING, FINISHED, FAILED or KILLED."""
        self.add("status", status=status)

    def _inside(self, path: str | os.PathLike) -> str:
        return Path(path).resolve().relative_to(self.output_dir.resolve()).as_posix()

    def _note(self, record: Mapping[str, Any]) -> None:
        """Keep in mind what the log holds."""
        kind = record["kind"]
        if kind == "run":
            self.header = dict(record)
        elif kind == "params":
            self.parameters.update(record["values"])
        elif kind == "metrics":
            for name in record["values"]:
                self.steps[name] = max(record["step"], self.steps.get(name, -1))
        elif kind == "image":
            self.steps[f"image {record['key']}"] = record["step"]
        elif kind == "status":
            self.status = record["status"]


def _now() -> int:
    return int(time.time() * 1000)


def _file_name(run_name: str) -> str:
    return re.sub(r"[^\w.-]", "_", run_name)


def _number(path: Path) -> int:
    """Which of the logs of one run name."""
    found = re.search(r"~(\d+)$", path.stem)
    return int(found.group(1)) if found else 1
