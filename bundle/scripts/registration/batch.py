"""A batch of pairs, registered one by one: what fails is reported and left, what is done is not done again."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents
from torch.utils.data import Dataset
from tqdm import tqdm

from ..errors import InputError, input_error
from ..metrics.summary import PAIRS, SUMMARY, summarise
from ..processes import launched
from ..storage import atomic_path, write_json
from .write import METRICS, PairWriter, guarded, output_folder

__all__ = ["Batch", "only_item"]

FAILED = "failed.json"
logger = logging.getLogger(__name__)
_silent = logging.getLogger(f"{__name__}.engine")
_silent.setLevel(logging.CRITICAL)


def only_item(items: Sequence[Any]) -> Any:
    """Collate a batch of one pair: volumes of several pairs differ in size and cannot be stacked."""
    (item,) = items
    return item


class Batch:
    """Runs an evaluator over the pairs of a list, one at a time.

    A pair of a list is done when its folder holds ``metrics.json`` of the same files and settings; it is then skipped.
    A single pair without a name is always done anew, and its error is raised as it comes. Under ``torchrun`` every
    process takes its share of the list; each needs no word with the others, so that one that dies leaves the rest
    alone and a second run does what is missing.

    Beside the pairs' folders, ``pairs.csv`` and ``summary.json`` hold the figures of all pairs that are done, and
    ``failed.json`` (with the process's number under ``torchrun``) says why others are not. Every process writes the
    tables when its share is done, so that those of the last one are complete.

    Args:
        evaluator: registers what its data loader holds; that is set here.
        dataset: the pairs, read and sampled one by one.
        data: the entries of ``dataset`` as listed.
        writer: the handler of ``evaluator`` that writes a pair's files.
        facts: what decides a result beside the pair's files; a pair that was registered with other facts is not done.
        handlers: of the run over all pairs (Ignite's, such as a tracker); an iteration is a pair.
    """

    def __init__(
        self,
        evaluator: SupervisedEvaluator,
        dataset: Dataset,
        data: Sequence[Mapping[str, Any]],
        writer: PairWriter,
        facts: Mapping[str, Any],
        handlers: Sequence[Any] = (),
    ) -> None:
        self.evaluator = evaluator
        self.dataset = dataset
        self.data = data
        self.writer = writer
        self.facts = facts
        self.rank, self.world_size = launched()
        self.single = len(data) == 1 and not data[0].get("name")
        self.failed: dict[str, dict[str, str]] = {}
        self.bar: tqdm | None = None
        evaluator.add_event_handler(
            IterationEvents.FORWARD_COMPLETED, lambda: self._stage("transform, measure and write")
        )
        self.engine = Engine(lambda _, index: self._step(index))
        self.engine.state.device = evaluator.state.device
        # Ignite logs that an exception ended a run; whoever catches it says so in one line.
        self.engine.logger = evaluator.logger = _silent
        # Handlers that look at the tables come after what writes them.
        self.engine.add_event_handler(Events.COMPLETED, lambda _: self._report())
        for handler in handlers:
            handler.attach(self.engine)

    def run(self) -> None:
        """Register all pairs of this process's share.

        Raises:
            InputError: when a single pair fails, at the end when pairs of a list have failed, or before all when the
                table of results would overwrite a list of pairs.
        """
        self._check_table()
        mine = range(self.rank, len(self.data), self.world_size)
        missing = [index for index in mine if self.single or not self._done(index)]
        if len(missing) < len(mine):
            logger.info(f"{len(mine) - len(missing)} of {len(mine)} pairs are done already and are skipped")
        self.failed = {}
        options = {"dynamic_ncols": True, "mininterval": 0.5 if sys.stderr.isatty() else 30}
        with output_folder(self.writer.output_dir):
            if not missing:
                self._report()
                return
            # A single pair shows its stages, on a terminal.
            total, label, off = (3, "read", None) if self.single else (len(missing), "register", False)
            with tqdm(total=total, desc=label, disable=off, **options) as self.bar:
                self.engine.run(missing, max_epochs=1)
        if self.failed:
            raise InputError(
                f"{self._failed_file()}: {len(self.failed)} of {len(mine)} pairs failed; "
                "mend them and run the same again"
            )

    def _step(self, index: int) -> None:
        """One pair; what it dies of is kept for the end, unless it is the only one."""
        if self.single:
            self._register(index)
            return
        name = self.data[index]["name"]
        try:
            self._register(index)
        except Exception as error:
            reason = input_error(error)
            text = str(reason) if reason else f"{type(error).__name__}: {error}"
            self.failed[name] = {"error": text.splitlines()[0]}
            if reason is None:
                self.failed[name]["traceback"] = traceback.format_exc()
            self.bar.write(f"{name}: failed: {self.failed[name]['error']}", file=sys.stderr)
        self.bar.update()

    def _stage(self, label: str) -> None:
        """What a single pair has come to."""
        if self.single:
            self.bar.set_description(label)
            self.bar.update()

    def _register(self, index: int) -> None:
        """Read, register and write one pair."""
        try:
            item = self.dataset[index]
            self.writer.check(item["pair"])
            self.writer.request = self._request(index)
            self.evaluator.data_loader = [item]
            self.evaluator.state.epoch_length = 1
            self._stage("register")
            self.evaluator.run()
            self._stage("done")
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            raise InputError(
                f"{self.data[index]['fixed']}, {self.data[index]['moving']}: not enough memory to register them; "
                "give a smaller grid, or crop or resample the images"
            ) from error
        finally:
            # Volumes of a pair are large; the next pair must not find them in memory.
            self.evaluator.data_loader = []
            self.evaluator.state.batch = self.evaluator.state.output = None

    def _request(self, index: int) -> str:
        """What was asked for, in short: the pair's files (path, size, time of change) and all settings."""
        files = {}
        for key, value in sorted(self.data[index].items()):
            path = Path(str(value))
            state = path.stat() if key != "name" and path.exists() else None
            files[key] = [str(value), *((state.st_size, state.st_mtime_ns) if state else ())]
        text = json.dumps(
            [files, self.facts, self.writer.dtype, self.writer.learn2reg, self.writer.report], default=str
        )
        return hashlib.sha256(text.encode()).hexdigest()

    def _done(self, index: int) -> bool:
        """Whether a pair's folder holds the result of the same request."""
        metrics = _metrics(self.writer.folder(self.data[index].get("name")))
        return metrics is not None and metrics["request"] == self._request(index)

    def _check_table(self) -> None:
        """Refuse an output folder whose ``pairs.csv`` is a list of pairs, such as the one that is registered."""
        file = self.writer.output_dir / PAIRS
        try:
            with open(file, encoding="utf-8-sig") as stream:
                columns = next(csv.reader(stream), [])
        except (OSError, UnicodeDecodeError, csv.Error):
            return
        if {"fixed", "moving"} <= {name.strip() for name in columns}:
            raise InputError(f"{file}: a list of pairs, which the table of results would overwrite; write elsewhere")

    def _failed_files(self) -> list[Path]:
        """Where each of the processes writes its failures."""
        ranks = [""] if self.world_size == 1 else [f"_{rank}" for rank in range(self.world_size)]
        return [self.writer.output_dir / FAILED.replace(".json", f"{rank}.json") for rank in ranks]

    def _failed_file(self) -> Path:
        return self._failed_files()[self.rank if self.world_size > 1 else 0]

    def _report(self) -> None:
        """Write the table of what is done, and the list of what has failed."""
        folder = self.writer.output_dir
        # Those of an earlier run, perhaps of more processes, count no more.
        for file in folder.glob("failed*.json"):
            old = file == self._failed_file() or file not in self._failed_files()
            if old and re.fullmatch(r"failed(_\d+)?\.json", file.name):
                file.unlink(missing_ok=True)
        if self.failed:
            guarded(self._failed_file(), folder, lambda path: write_json(self.failed, path))
        rows = self._rows()
        while True:
            self._write_tables(rows)
            # A process that ended in the meantime knew of more pairs, and its tables have just been written over.
            now = self._rows()
            if now == rows:
                return
            rows = now

    def _rows(self) -> list[dict[str, Any]]:
        """The table's rows of all pairs that are done by now, whoever did them."""
        failed = set(self.failed)
        for file in self._failed_files():
            failed |= (_json(file) or {}).keys()
        rows = []
        for entry in self.data:
            metrics = _metrics(self.writer.folder(entry.get("name")))
            # What a pair that fails now left in an earlier run, perhaps of other settings, is no row of this table.
            if metrics is not None and entry.get("name") not in failed:
                rows.append(_row(metrics))
        return rows

    def _write_tables(self, rows: Sequence[Mapping[str, Any]]) -> None:
        folder, table = self.writer.output_dir, pd.DataFrame(rows)
        numbers = table.drop(columns="name", errors="ignore").to_dict("records")
        guarded(folder / PAIRS, folder, lambda path: _write_table(table, path))
        guarded(folder / SUMMARY, folder, lambda path: write_json(summarise(numbers), path))


def _write_table(table: pd.DataFrame, path: Path) -> None:
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)


def _metrics(folder: Path) -> dict[str, Any] | None:
    """The ``metrics.json`` of a pair's folder; None where there is none of this program's."""
    metrics = _json(folder / METRICS)
    return metrics if metrics is not None and "request" in metrics else None


def _json(file: Path) -> dict[str, Any] | None:
    """The object in a file; None where there is none."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _out_of_memory(error: BaseException | None) -> bool:
    """Whether an allocation failed behind an error: NumPy's, PyTorch's on a GPU, or its plain one on a CPU."""
    while error is not None:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _row(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """A pair's row of the table; what it does not have is absent."""
    row: dict[str, Any] = {"name": metrics["name"] or Path(metrics["moving"]["path"]).name}
    mean = metrics.get("labels", {}).get("mean", {})
    for name in ("dice", "hd95", "assd"):
        row.update({f"{name}_{stage}": value for stage, value in mean.get(name, {}).items()})
    row.update({f"ncc_{stage}": value for stage, value in metrics["similarity"]["ncc"].items()})
    row["folds"] = metrics["folds"]
    row["std_log_jacobian"] = metrics["jacobian"]["std_log"]
    row["inverse_consistency_mm"] = metrics["inverse_consistency_mm"]["mean"]
    row["seconds"] = metrics["seconds"]["total"]
    return {key: value for key, value in row.items() if value is not None}
