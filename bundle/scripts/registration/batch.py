"""A batch of pairs, registered one by one: what fails is reported and left, what is done is not done again."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import logging
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from tqdm import tqdm

from ..errors import InputError, input_error
from ..formats import files_of
from ..metrics.summary import PAIRS, SUMMARY, summarise
from ..processes import launched
from ..report.verdict import OUTCOMES
from ..settings import CHANNELS, FILES
from ..storage import atomic_path, clear_unfinished, file_state, guarded, output_folder, read_json, write_json
from .pair import ReadPaird
from .progress import DONE, READ, SHARES, Tell, nothing
from .write import METRICS, PairWriter

if TYPE_CHECKING:
    from ignite.engine import Engine

    from .result import Result

__all__ = ["Batch", "Registers"]

FAILED = "failed.json"
logger = logging.getLogger(__name__)


class Registers(Protocol):
    """Registers pairs that have been read: a `Registrar`, or a `ByEvaluator`."""

    device: Any

    def register(self, item: Mapping[str, Any], tell: Tell = nothing) -> Result:
        """The result of the ``pair`` of an item; ``tell`` gets how far it has come."""


class Batch:
    """Registers the pairs of a list, one at a time; the next one is read, and the last one written, meanwhile.

    A pair of a list is done when its folder holds ``metrics.json`` of the same files (by path, size and time of change,
    all those that hold voxels) and settings; it is then skipped.
    A single pair without a name is always done anew, and its error is raised as it comes. Under ``torchrun`` every
    process takes its share of the list; each needs no word with the others, so that one that dies leaves the rest
    alone and a second run does what is missing.

    Beside the pairs' folders, ``pairs.csv`` and ``summary.json`` hold the figures of all pairs that are done, and
    ``failed.json`` (with the process's number under ``torchrun``) says why others are not. Every process writes the
    tables when its share is done, so that those of the last one are complete.

    Args:
        registrar: registers a pair.
        data: the pairs as listed, see `requested_pairs`.
        writer: writes a pair's files.
        facts: what decides a result beside the pair's files; a pair that was registered with other facts is not done.
        handlers: of the run over all pairs (Ignite's, such as a tracker); an iteration is a pair.
        reading: reads a pair; None for `ReadPaird` as it is.
    """

    def __init__(
        self,
        registrar: Registers,
        data: Sequence[Mapping[str, Any]],
        writer: PairWriter,
        facts: Mapping[str, Any],
        handlers: Sequence[Any] = (),
        reading: ReadPaird | None = None,
    ) -> None:
        self.registrar, self.data, self.writer, self.facts, self.handlers = registrar, data, writer, facts, handlers
        self.reading = reading or ReadPaird()
        self.rank, self.world_size = launched()
        self.single = len(data) == 1 and not data[0].get("name")
        self.failed: dict[str, dict[str, str]] = {}
        self.outcomes: dict[str, str] = {}  # of every pair that is done, the most doubtful first
        self.bar: tqdm | None = None
        self._begun = READ
        self._missing: list[int] = []
        self._later: dict[int, int] = {}  # the pair after each
        self._read: dict[int, Future] = {}
        self._requests: dict[int, str] = {}
        self._written: tuple[int, Future] | None = None

    def run(self) -> None:
        """Register all pairs of this process's share.

        Raises:
            InputError: when a single pair fails, at the end when pairs of a list have failed, or before all when the
                table of results would overwrite a list of pairs, or another run is writing to the folder.
        """
        self._check_table()
        mine = range(self.rank, len(self.data), self.world_size)
        self._missing = [index for index in mine if self.single or not self._done(index)]
        self._later = dict(itertools.pairwise(self._missing))
        if len(self._missing) < len(mine):
            logger.info(f"{len(mine) - len(self._missing)} of {len(mine)} pairs are done already and are skipped")
        self.failed = {}
        with output_folder(self.writer.output_dir, self.rank or None) as folder:
            if self.world_size == 1:
                clear_unfinished(folder, PAIRS, SUMMARY, FAILED)
            if self._missing:
                self._run()
            else:
                self._report()
        if self.failed:
            raise InputError(
                f"{self._failed_file()}: {len(self.failed)} of {len(mine)} pairs failed; "
                "mend them and run the same again"
            )

    def _run(self) -> None:
        """Register what is missing, and write the tables."""
        options = {"dynamic_ncols": True, "mininterval": 0.5 if sys.stderr.isatty() else 30}
        # A single pair shows its stages, on a terminal.
        total, label, off = (1, READ, None) if self.single else (len(self._missing), "register", False)
        if self.single:
            options["bar_format"] = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
        with tqdm(total=total, desc=label, disable=off, **options) as self.bar, ThreadPoolExecutor(2) as self.pool:
            if self.handlers:
                self._engine().run(self._missing, max_epochs=1)
                return
            for index in self._missing:
                self._step(index)
            self._report()

    def _engine(self) -> Engine:
        """An engine whose iterations are the pairs, for handlers."""
        from ignite.engine import Engine, Events

        engine = Engine(lambda _, index: self._step(index))
        engine.state.device = self.registrar.device
        # Ignite logs that an exception ended a run; whoever catches it says so in one line.
        engine.logger = logging.getLogger(f"{__name__}.engine")
        engine.logger.setLevel(logging.CRITICAL)
        # Handlers that look at the tables come after what writes them.
        engine.add_event_handler(Events.COMPLETED, lambda _: self._report())
        for handler in self.handlers:
            handler.attach(engine)
        return engine

    def _step(self, index: int) -> None:
        """One pair: read by now, registered here, written while the next one is registered."""
        later = self._later.get(index)
        with self._excused(index):
            if index not in self._read:
                self._read[index] = self.pool.submit(self._item, index)
            item = self._read.pop(index).result()
            if later is not None:
                self._read[later] = self.pool.submit(self._item, later)
            result = self.registrar.register(item, self._stage)
            self._wait()
            if later is not None:
                self._written = index, self.pool.submit(self.writer.write, result, self._requests.pop(index))
            else:
                self.writer.write(result, self._requests.pop(index))
        if later is None:
            self._wait()
        self._stage(1.0, DONE)
        if not self.single:
            self.bar.update()

    def _wait(self) -> None:
        """Wait until the last pair is written."""
        if self._written is not None:
            (index, future), self._written = self._written, None
            with self._excused(index):
                future.result()

    def _item(self, index: int) -> dict[str, Any]:
        """Read a pair; what could not be written is refused."""
        # Before it is read: a file that changes from now on is another one when the list is resumed.
        self._requests[index] = self._request(index)
        item = self.reading(self.data[index])
        self.writer.check(item["pair"])
        return item

    @contextmanager
    def _excused(self, index: int) -> Iterator[None]:
        """What a pair dies of inside the block is kept for the end, unless it is the only one."""
        try:
            try:
                yield
            except (MemoryError, RuntimeError) as error:
                if not _out_of_memory(error):
                    raise
                raise InputError(
                    f"{self.data[index]['fixed']}, {self.data[index]['moving']}: not enough memory to register them; "
                    "give a smaller grid, or crop or resample the images"
                ) from error
        except Exception as error:
            if self.single:
                raise
            reason = input_error(error)
            text = str(reason) if reason else f"{type(error).__name__}: {error}"
            name = self.data[index]["name"]
            self.failed[name] = {"error": text.splitlines()[0]}
            if reason is None:
                self.failed[name]["traceback"] = traceback.format_exc()
            self.bar.write(f"{name}: failed: {self.failed[name]['error']}", file=sys.stderr)

    def _stage(self, part: float, what: str) -> None:
        """What a single pair has come to, see `Tell`."""
        if self.single:
            begins = what in SHARES
            self._begun = what if begins else self._begun
            start, end = SHARES[self._begun]
            self.bar.set_description(what if begins else f"{self._begun}, {what}", refresh=False)
            self.bar.n = start + part * (end - start)
            self.bar.refresh()

    def _request(self, index: int) -> str:
        """What was asked for, in short: the pair's files (path, size, time of change) and all settings."""
        files = {}
        for key, value in sorted(self.data[index].items()):
            some = value if key in CHANNELS and value else [value] if key in FILES and value else []
            files[key] = [str(value), *(file_state(file) for one in some for file in files_of(one))]
        text = json.dumps(
            [
                files,
                self.facts,
                *(getattr(self.writer, name) for name in ("dtype", "learn2reg", "report", "uncertainty")),
            ],
            default=str,
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
            failed |= (read_json(file) or {}).keys()
        rows = []
        for entry in self.data:
            metrics = _metrics(self.writer.folder(entry.get("name")))
            # What a pair that fails now left in an earlier run, perhaps of other settings, is no row of this table.
            if metrics is not None and entry.get("name") not in failed:
                rows.append(_row(metrics))
        return rows

    def _write_tables(self, rows: Sequence[Mapping[str, Any]]) -> None:
        folder, columns = self.writer.output_dir, list(dict.fromkeys(key for row in rows for key in row))
        numbers = [
            {key: row.get(key, float("nan")) for key in columns if key not in ("name", "verdict")} for row in rows
        ]
        ranked = sorted(rows, key=lambda row: (-OUTCOMES.index(row["verdict"]), -row["doubt"]))
        summary = {
            **summarise(numbers),
            "verdicts": {outcome: [row["verdict"] for row in rows].count(outcome) for outcome in OUTCOMES},
            "by_doubt": [{key: row[key] for key in ("name", "verdict", "doubt")} for row in ranked],
        }
        self.outcomes = {row["name"]: row["verdict"] for row in ranked}
        guarded(folder / PAIRS, folder, lambda path: _write_table(rows, columns, path))
        guarded(folder / SUMMARY, folder, lambda path: write_json(summary, path))


def _write_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], path: Path) -> None:
    """A table with empty cells where a row has no number."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as stream:
        table = csv.DictWriter(stream, columns, lineterminator="\n")
        table.writeheader()
        table.writerows({key: value for key, value in row.items() if value == value} for row in rows)


def _metrics(folder: Path) -> dict[str, Any] | None:
    """The ``metrics.json`` of a pair's folder; None where there is none of this program's."""
    metrics = read_json(folder / METRICS)
    return metrics if metrics is not None and "request" in metrics else None


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
    row.update(verdict=metrics["verdict"]["outcome"], doubt=metrics["verdict"]["doubt"])
    mean = metrics.get("labels", {}).get("mean", {})
    for name in ("dice", "hd95", "assd"):
        row.update({f"{name}_{stage}": value for stage, value in mean.get(name, {}).items()})
    distances = metrics.get("landmarks_mm", {}).get("mean", {})
    row.update({f"landmarks_mm_{stage}": value for stage, value in distances.items()})
    row.update({f"ncc_{stage}": value for stage, value in metrics["similarity"]["ncc"].items()})
    row["folds"] = metrics["folds"]
    row["std_log_jacobian"] = metrics["jacobian"]["std_log"]
    row["inverse_consistency_mm"] = metrics["inverse_consistency_mm"]["mean"]
    row["seconds"] = metrics["seconds"]["total"]
    return {key: value for key, value in row.items() if value is not None}
