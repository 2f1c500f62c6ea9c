"""Runs methods on data sets: every row is kept as it comes, so that a run that is killed goes on where it was."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from scripts.errors import InputError

from .cases import Case, PairSet
from .measures import measure
from .method import Answer, Method
from .protocol import machine, versions
from .rows import Store, settings_key
from .timing import add_timing

__all__ = ["Outcome", "Runner"]

logger = logging.getLogger(__name__)
_VERIFIED = ("dice", "hd95", "folds", "std_log_jacobian", "symmetry_ln")
_SAME = 1e-6


@dataclass
class Outcome:
    """What a run came to.

    Attributes:
        measured: rows that were written.
        kept: rows that were there already.
        failed: rows of pairs that a method failed on, those of earlier runs included.
        differing: lines about rows that a second measurement did not give again (with ``verify``).
    """

    measured: int = 0
    kept: int = 0
    failed: int = 0
    differing: list[str] = field(default_factory=list)


class Runner:
    """Measures methods on data sets.

    A row is done when it lies in the store with the same settings: those of method, data set, pair and threads. Others
    are measured anew. A pair that a method failed on is done, too, unless ``retry_failed``.

    Args:
        store: of the rows.
        threads: CPU threads for every method.
        symmetry: also register every pair with the images exchanged, for Figure 7; doubles the work.
        retry_failed: try again what failed before.
        verify: measure rows that are done a second time and compare them, instead of writing.
        times: as ``verify``, without symmetry, and keep the times of the second measurement beside those of the first.
        extra: further measures of an answer, added to its row: (set, method name, case, answer) → entries.
        quiet: no progress bar.
    """

    def __init__(
        self,
        store: Store,
        threads: int = 1,
        symmetry: bool = True,
        retry_failed: bool = False,
        verify: bool = False,
        times: bool = False,
        extra: Callable[[str, str, Case, Answer], Mapping[str, Any]] | None = None,
        quiet: bool = False,
    ) -> None:
        self.store, self.threads, self.symmetry = store, threads, symmetry and not times
        self.retry_failed, self.verify, self.times = retry_failed, verify or times, times
        self.extra, self.quiet = extra, quiet
        self.machine, self.versions = machine(), versions()
        self._warm: set[tuple[str, str]] = set()

    def run(self, methods: Mapping[str, Method], sets: Mapping[str, PairSet], pairs: int | None = None) -> Outcome:
        """Measure, pair by pair, all methods on a pair before the next.

        Args:
            methods: by the name of their rows.
            sets: by name.
            pairs: the first so many of each set; None for all.

        Returns:
            The `Outcome`; what is missing is kept in the store, too, for the tables.
        """
        ready, usable = self._present(methods, sets)
        keys = {name: method.parameters() for name, method in ready.items()}
        outcome, work = Outcome(), []
        for data_set in usable.values():
            for index in range(len(data_set.names()))[:pairs]:
                for name in ready:
                    state = self._state(data_set, index, name, keys[name])
                    if state == "failed" or state == "done":
                        outcome.kept += 1
                        outcome.failed += state == "failed"
                    if (state == "done") == self.verify and state != "failed":
                        work.append((data_set, index, name))
        case: tuple[PairSet, int, Case] | None = None
        with tqdm(
            total=len(work), desc="benchmark", disable=self.quiet, mininterval=1 if sys.stderr.isatty() else 60
        ) as bar:
            for data_set, index, name in work:
                if case is None or case[:2] != (data_set, index):
                    case = data_set, index, data_set.case(index)
                bar.set_postfix_str(f"{data_set.name} {index} {name}", refresh=False)
                row = self._row(data_set, index, case[2], name, ready[name], keys[name])
                if self.verify:
                    before = self.store.read(data_set.name, name, case[2].name)
                    outcome.differing += self._differences(before, row, ready[name])
                    if self.times and row["status"] == before["status"]:
                        self.store.write(add_timing(before, row))
                        outcome.measured += 1
                else:
                    self.store.write(row)
                    outcome.measured += 1
                    outcome.failed += row["status"] == "failed"
                bar.update()
        return outcome

    def _present(
        self, methods: Mapping[str, Method], sets: Mapping[str, PairSet]
    ) -> tuple[dict[str, Method], dict[str, PairSet]]:
        """What can run here; the lines about the rest go into the store."""
        absent = self.store.absent()
        parts = []
        for kind, asked in (("methods", methods), ("datasets", sets)):
            lines = {name: one.missing() for name, one in asked.items()}
            for name, line in lines.items():
                absent[kind].pop(name, None)
                if line is not None:
                    absent[kind][name] = line
                    logger.warning(f"not run: {line}")
            parts.append({name: one for name, one in asked.items() if lines[name] is None})
        self.store.write_absent(absent)
        return parts[0], parts[1]

    def _settings(self, data_set: PairSet, parameters: Mapping[str, Any]) -> str:
        return settings_key(method=parameters, dataset=data_set.parameters(), threads=self.threads)

    def _state(self, data_set: PairSet, index: int, name: str, parameters: Mapping[str, Any]) -> str:
        """``"done"``, ``"failed"`` (and not to be tried again) or ``"missing"``."""
        row = self.store.read(data_set.name, name, data_set.names()[index])
        if row is None or row["settings"] != self._settings(data_set, parameters):
            return "missing"
        if row["fingerprint"] != settings_key(pair=data_set.fingerprint(index)):
            return "missing"
        if row["status"] == "failed":
            return "missing" if self.retry_failed and not self.verify else "failed"
        return "missing" if self.symmetry and "symmetry_points" not in row else "done"

    def _row(
        self, data_set: PairSet, index: int, case: Case, name: str, method: Method, parameters: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Register and measure; a failure is a row, too."""
        row: dict[str, Any] = {
            "method": name,
            "name": method.name,
            "dataset": data_set.name,
            "family": data_set.family,
            "mode": data_set.mode,
            "title": data_set.title,
            "pair": case.name,
            "shape": list(case.fixed.frame.shape),
            "settings": self._settings(data_set, parameters),
            "fingerprint": settings_key(pair=data_set.fingerprint(index)),
            "parameters": dict(parameters),
            "data": data_set.parameters(),
            "threads": self.threads,
            "machine": self.machine,
            "versions": self.versions,
            "deterministic": method.deterministic,
        }
        try:
            answer, gpu = self._register(data_set, case, name, method)
            back = method(case.moving, case.fixed, self.threads) if self.symmetry else None
            row.update(measure(case, answer, list(data_set.labels), back))
            row.update(status="done", seconds=answer.seconds, cpu_seconds=answer.cpu_seconds, seconds_gpu=gpu)
            row.update(notes=list(answer.notes), extra=answer.extra)
            if self.extra is not None:
                row.update(self.extra(data_set.name, name, case, answer))
        # A peer may raise whatever its engine does; one pair's failure is a finding, not the end of hours of work.
        except Exception as error:
            lines = str(error).strip().splitlines()
            row.update(status="failed", error=f"{type(error).__name__}: {lines[0] if lines else 'no message'}")
            logger.warning(f"{name}, {data_set.name} {case.name}: failed: {row['error']}")
        return {**row, "time": round(time.time())}

    def _register(self, data_set: PairSet, case: Case, name: str, method: Method) -> tuple[Answer, float | None]:
        """The answer, and the seconds on a GPU where there is one that the method can use."""
        import torch

        # The first call pays for loading an engine, or for a network's memory and choice of kernels; the next do not.
        if getattr(method, "warms_up", False) and (data_set.name, name) not in self._warm:
            method(case.fixed, case.moving, self.threads)
            self._warm.add((data_set.name, name))
        answer = method(case.fixed, case.moving, self.threads)
        if not (torch.cuda.is_available() and hasattr(method, "on_gpu")):
            return answer, None
        other = method.on_gpu()
        if (data_set.name, f"{name} on the GPU") not in self._warm:
            other(case.fixed, case.moving, self.threads)
            self._warm.add((data_set.name, f"{name} on the GPU"))
        return answer, other(case.fixed, case.moving, self.threads).seconds

    def _differences(self, before: Mapping[str, Any], row: Mapping[str, Any], method: Method) -> list[str]:
        """What a second measurement of a deterministic method gives that the first did not."""
        if not method.deterministic:
            return []
        place = f"{row['method']}, {row['dataset']} {row['pair']}"
        if row["status"] != before["status"]:
            return [f"{place}: {before['status']} before, now {row['status']}: {row.get('error', '')}"]
        lines = []
        for key in _VERIFIED:
            if key not in row:
                continue  # symmetry, which was not asked for
            old, new = before.get(key), row.get(key)
            old, new = (math.nan if value is None or not math.isfinite(value) else value for value in (old, new))
            if not (math.isnan(old) and math.isnan(new)) and not abs(old - new) <= _SAME * max(1.0, abs(old)):
                lines.append(f"{place}: {key} {old:.8g} before, now {new:.8g}")
        return lines


def chosen(asked: Sequence[str] | None, known: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Those of a registry that are asked for, in the registry's order; all where none is.

    Args:
        asked: names, or beginnings of names that end with ``*``.
        known: name → entry.
        what: how to call the option in an error.

    Raises:
        InputError: for a name that is not known.
    """
    if not asked:
        return dict(known)
    for word in asked:
        if not any(_matches(name, word) for name in known):
            raise InputError(f"{what}={word}: not known; give some of {', '.join(known)}")
    return {name: entry for name, entry in known.items() if any(_matches(name, word) for word in asked)}


def _matches(name: str, word: str) -> bool:
    return name.startswith(word[:-1]) if word.endswith("*") else name == word
