"""The registration benchmark: methods × data sets, then Tables 1 and 2 and Figures 4 to 8.

From the repository root: ``make benchmark DATA=FOLDER BENCH_OPTIONS="--pairs 3"``, or

    python benchmarks/benchmark.py run --data FOLDER       measure what is missing, then tables and figures
    python benchmarks/benchmark.py report                  tables and figures of what has been measured
    python benchmarks/benchmark.py ablation --minutes 20   train and measure the rows of Table 2

Rows are kept below ``--output`` as they come; the same command goes on where a killed one was. ``--publish`` also
writes them to ``benchmarks/results/rows``, compressed; what lies there counts as measured.
"""

from __future__ import annotations

import argparse
import ast
import logging
import os
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
ARCHIVE = RESULTS / "rows"


def _setting(text: str) -> tuple[str, Any]:
    """``KEY=VALUE``, the value as Python writes it, or else a word."""
    key, found, value = text.partition("=")
    if not found or not key:
        raise argparse.ArgumentTypeError(f"'{text}': give KEY=VALUE, such as grid=[80,96,96]")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def _list(text: str) -> tuple[str, Path]:
    name, found, path = text.partition("=")
    if not found or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"'{text}': give NAME=FILE, such as oai_longitudinal=pairs.csv")
    return name, Path(path).expanduser().absolute()


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}': give a whole number of at least 1")
    return int(text)


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, default=Path("bench/registration"), help="folder of rows and results")
    parser.add_argument(
        "--publish", type=Path, nargs="?", const=RESULTS, help="also write tables, figures and rows here"
    )
    parser.add_argument("--archive", type=Path, default=ARCHIVE, help="rows of earlier sessions, as published")
    parser.add_argument("--data", type=Path, default=os.environ.get("AVSM_DATA"), help="folder of the data sets")
    parser.add_argument("--size", default="192x192x80", help="of knees: in plane, in plane, slices")
    parser.add_argument("--seed", type=int, default=0, help="of generated pairs (and trainings)")
    parser.add_argument("--list", type=_list, action="append", default=[], metavar="NAME=FILE", help="your own pairs")
    parser.add_argument("--weights", type=Path, help="of our networks; default: the shipped ones")
    parser.add_argument("--config", type=Path, action="append", default=[], help="config file for our networks")
    parser.add_argument("--set", type=_setting, action="append", default=[], metavar="KEY=VALUE", help="config id")
    parser.add_argument("--variant", help="a word for rows of ours with these settings, to keep them beside others")
    parser.add_argument("--examples", type=_words, default=[], help="data sets to draw Figures 4 and 6 of")
    parser.add_argument("--example-method", default="avsm-2", help="method of Figure 4")
    parser.add_argument("--example-pairs", type=_positive, default=4, help="columns of Figure 4")


def _measuring(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pairs", type=_positive, help="the first so many of each set; default: all")
    parser.add_argument("--count", type=_positive, default=20, help="pairs of a generated set")
    parser.add_argument("--threads", type=_positive, default=1, help="CPU threads of every method")
    parser.add_argument("--no-symmetry", action="store_true", help="do not register pairs exchanged, for Figure 7")
    parser.add_argument("--retry-failed", action="store_true", help="try again what failed before")
    parser.add_argument("--verify", action="store_true", help="measure again, compare, write nothing")
    parser.add_argument("--times", action="store_true", help="as verify, and keep the times beside the first ones")
    parser.add_argument("--learn2reg", action="store_true", help="write fields for Learn2Reg and check its measures")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure, then tables and figures")
    _common(run)
    _measuring(run)
    run.add_argument("--only", type=_words, help="methods, such as header,avsm-2,demons or avsm-*; default: all")
    run.add_argument("--dataset", type=_words, help="data sets, such as hippocampus or knees_*; default: all")
    report = commands.add_parser("report", help="tables and figures of what has been measured")
    _common(report)
    ablation = commands.add_parser("ablation", help="train and measure Table 2")
    _common(ablation)
    _measuring(ablation)
    ablation.add_argument("--base", default="phantom", help="phantom or hippocampus")
    ablation.add_argument("--minutes", type=float, default=20.0, help="processor minutes of training for each row")
    ablation.add_argument("--rows", type=_words, help="such as I,II,V; default: all nine")
    commands.add_parser("list", help="names of methods and data sets, and why they cannot run here").add_argument(
        "--data", type=Path, default=os.environ.get("AVSM_DATA"), help="folder of the data sets"
    )
    return parser.parse_args(arguments)


def _places(options: argparse.Namespace) -> Any:
    from registration.datasets import Places, parse_size

    root = None if options.data is None else Path(options.data).expanduser().absolute()
    if root is not None and not root.is_dir():
        from scripts.errors import InputError

        raise InputError(f"{root}: no such folder; give that of the data sets by --data or AVSM_DATA")
    return Places(root, parse_size(options.size), options.seed, getattr(options, "count", 20), dict(options.list))


def _overrides(options: argparse.Namespace) -> dict[str, Any]:
    from registration.ours import weights_of

    return {**weights_of(options.weights), **dict(options.set)}


def _store(options: argparse.Namespace) -> Any:
    from registration.rows import Store

    return Store(options.output, options.archive)


def _runner(options: argparse.Namespace) -> Any:
    from registration.learn2reg import official_measures, write_field
    from registration.runner import Runner

    def learn2reg(data_set: str, method: str, case: Any, answer: Any) -> dict[str, Any]:
        path = write_field(case, answer, options.output / "learn2reg" / data_set / method)
        return {"learn2reg": official_measures(path, case.fixed_label, case.moving_label)}

    extra = learn2reg if options.learn2reg else None
    return Runner(
        _store(options),
        options.threads,
        symmetry=not options.no_symmetry,
        retry_failed=options.retry_failed,
        verify=options.verify,
        times=options.times,
        extra=extra,
    )


def _tell(outcome: Any) -> int:
    """Say what a run came to; 1 when a verified row differs."""
    for line in outcome.differing:
        print(f"not repeated: {line}", file=sys.stderr)
    print(f"{outcome.measured} rows measured, {outcome.kept} kept, {outcome.failed} failed", file=sys.stderr)
    return 1 if outcome.differing else 0


def run(options: argparse.Namespace) -> int:
    """Measure what is asked for."""
    from registration.datasets import data_sets
    from registration.methods import build_methods
    from registration.runner import chosen

    sets = chosen(options.dataset, data_sets(_places(options)), "dataset")
    makers = chosen(options.only, build_methods(_overrides(options), options.config, options.variant), "only")
    status = _tell(_runner(options).run({name: make() for name, make in makers.items()}, sets, options.pairs))
    return status or (0 if options.verify else report(options))


def ablation(options: argparse.Namespace) -> int:
    """Train and measure the rows of Table 2."""
    from registration.ablate import BASES, Ablation
    from registration.datasets import data_sets

    places = _places(options)
    work = Ablation(
        options.base, places.root, options.output, options.minutes, options.threads, options.seed, dict(options.set)
    )
    from registration.tables import ABLATION_ROWS

    methods = work.methods(options.rows or ABLATION_ROWS)
    sets = {name: one for name, one in data_sets(places).items() if name in BASES[options.base].sets}
    status = _tell(_runner(options).run(methods, sets, options.pairs))
    return status or (0 if options.verify else report(options))


def report(options: argparse.Namespace) -> int:
    """Tables and figures of what has been measured."""
    from registration.archive import write_archive
    from registration.figures import write_figures
    from registration.rows import current
    from registration.tables import write_tables

    store = _store(options)
    everything = store.rows()
    rows, left = current(everything)
    if left:
        print(f"{left} rows of older settings are left out of the tables", file=sys.stderr)
    if not rows:
        print(f"{options.output}: nothing has been measured yet", file=sys.stderr)
        return 0
    for folder in (options.output, options.publish):
        if folder is not None:
            written = write_tables(rows, store.absent(), folder, csv_files=folder == options.output)
            written += write_figures(rows, folder)
            written += _examples(options, folder)
            if folder == options.publish:
                written += write_archive(everything, folder / "rows")
            print("\n".join(map(str, written)))
    return 0


def _examples(options: argparse.Namespace, folder: Path) -> list[Path]:
    """Figures 4 and 6, which need images and so register again."""
    if not options.examples:
        return []
    from registration.datasets import data_sets
    from registration.examples import write_examples
    from registration.methods import build_methods
    from registration.runner import chosen

    makers = build_methods(_overrides(options), options.config, options.variant)
    (make,) = chosen([options.example_method], makers, "example-method").values()
    sets = chosen(options.examples, data_sets(_places(options)), "examples")
    return write_examples(sets, make(), options.output, folder, options.example_pairs, dict(options.set))


def names(options: argparse.Namespace) -> int:
    """Print methods and data sets."""
    from registration.datasets import Places, data_sets
    from registration.methods import build_methods

    root = None if options.data is None else Path(options.data).expanduser().absolute()
    for title, entries in (
        ("methods", {name: make() for name, make in build_methods().items()}),
        ("data sets", data_sets(Places(root))),
    ):
        print(title)
        for name, one in entries.items():
            print(f"  {name:22} {one.missing() or getattr(one, 'title', None) or one.name}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run a command; bad input ends with one line and status 1."""
    options = parse(arguments)
    # Engines read these when they are loaded.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
        os.environ.setdefault(name, str(getattr(options, "threads", 1)))
    sys.path[:0] = [path for path in (str(HERE), str(HERE.parent / "bundle")) if path not in sys.path]
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    from scripts.errors import InputError

    try:
        return {"run": run, "report": report, "ablation": ablation, "list": names}[options.command](options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
