"""The command ``avsm`` in whole processes, beside antspyx, greedy and an earlier build of its own.

From the repository root: ``make bench-cli``, or ``python benchmarks/command.py --help``. Every measurement is a process
of its own, from its start to its exit, on as many threads as asked for; the sides take turns. The table shows medians;
the JSON file holds every run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from command_peers import DISTRIBUTIONS

# No library here: at its start a process's peak memory is that of the process which started it.
ROOT = Path(__file__).resolve().parent.parent
BEFORE = "1fa446a"
"""The last build whose every command loaded all that the package has."""
CASES = {  # shape and mm of the pair that is generated; fixed and moving below the folder of data, where they are real
    "demo": ((48, 64, 48), None, ()),
    "hippocampus": ((35, 50, 36), (1, 1, 1), ("Task04_Hippocampus", "hippocampus_311", "hippocampus_394")),
    "knee": ((80, 192, 192), (1.5, 0.73, 0.73), ()),
    "brain": ((193, 229, 193), (1, 1, 1), ("brain_templates", "mni2009c_brain", "colin27_brain")),
}
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
MB = 1e6


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="pairs (default: all)")
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS), help="(default: all)")
    parser.add_argument("--runs", type=int, default=5, help="of every process (default: 5)")
    parser.add_argument("--threads", type=int, default=1, help="of every process (default: 1)")
    parser.add_argument("--peers", nargs="*", choices=DISTRIBUTIONS, default=list(DISTRIBUTIONS), help="(default: all)")
    parser.add_argument("--before", default=BEFORE, help=f"git revision to compare with, or none (default: {BEFORE})")
    parser.add_argument("--data", type=Path, default=os.environ.get("AVSM_DATA"), help="of data sets (AVSM_DATA)")
    parser.add_argument("--output", type=Path, default=Path("bench"), help="folder of command.json (default: bench)")
    parser.add_argument("--check", action="store_true", help="end with 1 where one of the limits is not kept")
    options = parser.parse_args(arguments)
    if options.runs < 1 or options.threads < 1:
        parser.error("--runs and --threads must be at least 1")
    return options


# ---------------------------------------------------------------------------------------------------------------------
# What is run. A command is a function of (folder of the pair, folder to write to, threads), which gives the words.


def _register(pair: Path, output: Path, threads: int, *more: str) -> list[str]:
    files = ["--fixed", "fixed.nii.gz", "--moving", "moving.nii.gz"]
    return ["register", *files, "--output", str(output), "--threads", str(threads), *more]


def _list(pair: Path, output: Path, threads: int, count: int) -> list[str]:
    lines = ["fixed,moving,name", *(f"fixed.nii.gz,moving.nii.gz,pair{number}" for number in range(count))]
    (pair / f"pairs{count}.csv").write_text("\n".join(lines) + "\n")
    words = ["register", "--pairs", f"pairs{count}.csv", "--output", str(output), "--threads", str(threads)]
    return [*words, "--no-report"]


def _apply(pair: Path, output: Path, threads: int, *more: str) -> list[str]:
    words = ["apply", "--transform", "transform.h5", "--reference", "fixed.nii.gz", *more]
    return [*words, "--output", str(output / ("moved_label.nii.gz" if "--label" in more else "moved.nii.gz"))]


def _jacobian(pair: Path, output: Path, threads: int) -> list[str]:
    words = ["jacobian", "--transform", "transform.h5", "--reference", "fixed.nii.gz"]
    return [*words, "--output", str(output / "jacobian.nii.gz")]


def _evaluate(pair: Path, output: Path, threads: int) -> list[str]:
    words = ["evaluate", "--transform", "transform.h5", "--reference", "fixed.nii.gz"]
    words += ["--fixed", "fixed.nii.gz", "--moved", "moved.nii.gz", "--output", str(output / "measures.json")]
    if (pair / "moved_label.nii.gz").exists():
        words += ["--fixed-label", "fixed_label.nii.gz", "--moved-label", "moved_label.nii.gz"]
    return words


COMMANDS: dict[str, Callable[..., list[str]]] = {
    "help": lambda pair, output, threads: ["--help"],
    "wrong file": lambda pair, output, threads: _register(pair, output, threads, "--moving", "absent.nii.gz"),
    "register": lambda *place: _register(*place, "--no-report"),
    "register, fast": lambda *place: _register(*place, "--preset", "fast", "--no-report"),
    "register, report": _register,
    "list of 1": lambda *place: _list(*place, 1),
    "list of 3": lambda *place: _list(*place, 3),
    "apply": lambda *place: _apply(*place, "--input", "moving.nii.gz"),
    "apply, label": lambda *place: _apply(*place, "--label", "--input", "moving_label.nii.gz"),
    "jacobian": _jacobian,
    "evaluate": _evaluate,
}


def prepare(case: str, options: argparse.Namespace) -> Path:
    """The folder of a pair: ``fixed``, ``moving`` and, where there are any, their labels, real or generated."""
    folder = (options.output / "pairs" / case).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shape, spacing, place = CASES[case]
    if place and options.data is not None and (options.data / place[0]).is_dir():
        for role, name in zip(("fixed", "moving"), place[1:], strict=True):
            root = Path(options.data, place[0]).resolve()
            if (root / "labelsTr").is_dir():
                (folder / f"{role}_label.nii.gz").symlink_to(root / "labelsTr" / f"{name}.nii.gz")
                root = root / "imagesTr"
            (folder / f"{role}.nii.gz").symlink_to(root / f"{name}.nii.gz")
        return folder
    code = f"from scripts.synthetic import phantom; phantom.write_phantom_pair('.', {shape}, 27, spacing={spacing})"
    run([sys.executable, "-c", code], folder, environment(ROOT / "bundle", options))
    for role in ("fixed", "moving"):
        for kind, suffix in (("images", ""), ("labels", "_label")):
            (file,) = (folder / f"{kind}Tr").glob(f"*_{role}.nii.gz")
            file.rename(folder / f"{role}{suffix}.nii.gz")
    return folder


# ---------------------------------------------------------------------------------------------------------------------
# Measuring.


def environment(bundle: Path, options: argparse.Namespace) -> dict[str, str]:
    """Variables of a process: the code that it runs, and its threads."""
    return {**os.environ, **dict.fromkeys(THREADS, str(options.threads)), "PYTHONPATH": str(bundle)}


def run(words: list[str], folder: Path, variables: dict[str, str], status: int = 0) -> dict[str, float]:
    """Run one process to its end: seconds of the processor and of the wall, peak memory in MB."""
    with tempfile.TemporaryFile() as said:
        start = time.perf_counter()
        process = subprocess.Popen(words, cwd=folder, env=variables, stdout=said, stderr=said)
        _, ended, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(ended)
        said.seek(0)
        if process.returncode != status:
            text = said.read().decode(errors="replace")[-2000:]
            sys.exit(f"error: ended with {process.returncode}: {' '.join(words)}\n{text}")
    scale = 1024 if sys.platform.startswith("linux") else 1
    return {"cpu": used.ru_utime + used.ru_stime, "wall": wall, "peak": used.ru_maxrss * scale / MB}


def measure(command: str, side: str, pair: Path, bundle: Path, options: argparse.Namespace) -> dict[str, float]:
    """One run of a command by a side; what registrations leave behind is weighed, and kept where others need it."""
    with tempfile.TemporaryDirectory() as name:
        output, words = Path(name), ["-m", "scripts.cli"]
        if side in DISTRIBUTIONS:
            words = [str(ROOT / "benchmarks" / "command_peers.py"), side, "fixed.nii.gz", "moving.nii.gz", name]
            words.append(str(options.threads))
        else:
            words += COMMANDS[command](pair, output, options.threads)
        found = run([sys.executable, *words], pair, environment(bundle, options), int(command == "wrong file"))
        found["files"] = sum(file.stat().st_size for file in output.rglob("*") if file.is_file()) / MB
        times = [json.loads(file.read_text())["seconds"] for file in output.rglob("metrics.json")]
        if times:
            # Wall from wall: the method tells no other time of itself.
            method = ("start", "network", "optimise")
            found["beside"] = found["wall"] - sum(one.get(stage, 0) for one in times for stage in method)
        for kept in ("transform.h5", "inverse_transform.h5", "moved.nii.gz", "moved_label.nii.gz"):
            if side == "ours" and (output / kept).exists():
                if command != "register, fast":
                    shutil.copy(output / kept, pair)
                found[kept] = (output / kept).stat().st_size / MB
    return found


def sides_of(command: str, pair: Path, options: argparse.Namespace) -> list[str]:
    """Who runs a command on a pair."""
    if command == "apply, label" and not (pair / "moving_label.nii.gz").exists():
        return []
    peers = [peer for peer in options.peers if command == "register"]
    before = options.before != "none" and command != "register, fast"  # earlier builds have no presets
    return ["ours", *(["before"] if before else []), *peers]


def measure_all(options: argparse.Namespace, bundles: dict[str, Path]) -> dict[tuple[str, str, str], dict[str, list]]:
    """Every run of everything, by case, command and side."""
    rows: dict[tuple[str, str, str], dict[str, list]] = {}
    commands = [name for name in COMMANDS if name in options.commands]
    for case in options.cases:
        pair = prepare(case, options)
        first, later = ("register", "apply, label"), {"apply", "apply, label", "jacobian", "evaluate"}
        if later & {*commands} and not {*first} <= {*commands}:  # what the first write the later ones read
            for command in first:
                for side in sides_of(command, pair, options)[:1]:
                    measure(command, side, pair, bundles[side], options)
        for number in range(options.runs):
            for command in commands:
                for side in sides_of(command, pair, options):
                    print(f"{case}: {command}, {side}, run {number + 1}", file=sys.stderr, flush=True)
                    found = measure(command, side, pair, bundles.get(side, ROOT), options)
                    row = rows.setdefault((case, command, side), {})
                    for key, value in found.items():
                        row.setdefault(key, []).append(value)
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# Telling.


def limits(rows: dict[tuple[str, str, str], dict[str, list]]) -> Iterator[tuple[str, float, float]]:
    """What the command is meant to keep: its name, the value measured, the limit; what was not measured is left out."""

    def value(case: str, command: str, key: str = "cpu", side: str = "ours") -> float:
        return statistics.median(rows.get((case, command, side), {}).get(key, [float("nan")]))

    small, large = "hippocampus", "brain"
    register, ants = value(small, "register"), value(small, "register", side="ants")
    checks = [
        ("hippocampus: register ÷ before, processor", register / value(small, "register", side="before"), 0.2),
        ("hippocampus: report, processor s", value(small, "register, report") - register, 1.5),
    ]
    for command in ("register", "register, fast"):
        checks += [
            (f"hippocampus: {command} ÷ antspyx, processor", value(small, command) / ants, 1.3),
            (f"hippocampus: {command}, MB", value(small, command, "peak"), 500),
            (f"brain: {command} beside the method, wall s", value(large, command, "beside"), 8),
            (f"brain: {command}, MB", value(large, command, "peak"), 1500),
            (f"brain: {command}, transform.h5, MB", value(large, command, "transform.h5"), 40),
            (f"brain: {command}, inverse_transform.h5, MB", value(large, command, "inverse_transform.h5"), 40),
        ]
    for command in ("apply", "apply, label", "jacobian", "evaluate"):
        checks.append((f"hippocampus: {command}, processor s", value(small, command), 1.0))
        checks.append((f"hippocampus: {command}, MB", value(small, command, "peak"), 200))
    for command in ("help", "wrong file"):
        checks.append((f"{command}, processor s", value(small, command), 0.3))
    further = (value(small, "list of 3", "beside") - value(small, "list of 1", "beside")) / 2
    checks.append(("hippocampus: a further pair of a list beside the method, wall s", further, 0.5))
    return (check for check in checks if check[1] == check[1])


def table(rows: dict[tuple[str, str, str], dict[str, list]]) -> str:
    """The medians, and how many times ours takes what the others take."""
    lines = ["| pair | command | side | processor s | wall s | peak MB | files MB | ours ÷ this |", "|---" * 8 + "|"]
    for (case, command, side), row in rows.items():
        middle = {key: statistics.median(values) for key, values in row.items()}
        own = statistics.median(rows[case, command, "ours"]["cpu"])
        ratio = "" if side == "ours" else f"{own / middle['cpu']:.2f}"
        figures = f"{middle['cpu']:.2f} | {middle['wall']:.2f} | {middle['peak']:.0f} | {middle['files']:.1f}"
        lines.append(f"| {case} | {command} | {side} | {figures} | {ratio} |")
    return "\n".join(lines)


def _versions(options: argparse.Namespace) -> dict[str, Any]:
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    revision = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    peers = {DISTRIBUTIONS[peer]: metadata.version(DISTRIBUTIONS[peer]) for peer in options.peers}
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    return {"revision": revision, "before": options.before, **machine, "threads": options.threads, **peers}


def main() -> int:
    """Measure, tell, and compare with the limits where asked."""
    options = parse()
    for peer in options.peers:
        try:
            metadata.version(DISTRIBUTIONS[peer])
        except metadata.PackageNotFoundError:
            sys.exit(f"error: {DISTRIBUTIONS[peer]} is not installed; pip install '.[peers]', or choose --peers")
    bundles = {"ours": ROOT / "bundle"}
    with tempfile.TemporaryDirectory() as name:
        if options.before != "none":
            archive = ["git", "-C", str(ROOT), "archive", "--format=tar", f"--output={name}/before.tar"]
            subprocess.run([*archive, options.before, "bundle"], check=True)
            shutil.unpack_archive(f"{name}/before.tar", name, filter="data")
            bundles["before"] = Path(name, "bundle")
        for bundle in bundles.values():
            subprocess.run([sys.executable, "-m", "compileall", "-q", str(bundle / "scripts")], check=True)
        rows = measure_all(options, bundles)
    found = list(limits(rows))
    content = [{"case": case, "command": command, "side": side, **row} for (case, command, side), row in rows.items()]
    kept = [{"limit": text, "measured": value, "allowed": limit} for text, value, limit in found]
    result = {"machine": _versions(options), "rows": content, "limits": kept}
    (options.output / "command.json").write_text(json.dumps(result, indent=1) + "\n")
    print(table(rows), "", sep="\n")
    for text, value, limit in found:
        print(f"{'kept' if value <= limit else 'MISSED'}: {text}: {value:.2f} (at most {limit:g})")
    return int(options.check and any(value > limit for _, value, limit in found))


if __name__ == "__main__":
    sys.exit(main())
