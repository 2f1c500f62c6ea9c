"""Time and memory of every piece and of the whole, beside a plain implementation of the paper's choices.

From the repository root: ``make bench``, or ``python benchmarks/speed.py --help``. Writes ``bench.json`` and
``bench.md``; ``--check FILE`` compares the ratios with a stored baseline and exits with 1 where one has fallen by more
than ``--tolerance``.

Every measurement is a process of its own: its peak memory is that of the case, and ours and the reference's take turns.
Seconds are the median of the repeats: of processor time on one CPU thread, which other work on the machine disturbs
least, otherwise of wall time. On CUDA memory is what PyTorch allocated.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

from speed_names import CASES, PIECES, WHOLE

HERE = Path(__file__).resolve().parent
GB = 1e9
WARM_SECONDS = 3.0


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["192x192x80"], help="image sizes DxHxW")
    parser.add_argument("--cases", nargs="+", default=["pieces", "whole"], help="pieces, whole, or names of cases")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="bfloat16: autocast, ours")
    parser.add_argument("--network", default="fast", help="fast, wide or half: see speed_ours.NETWORKS")
    parser.add_argument("--batch", type=int, default=1, help="pairs at once (ours only)")
    parser.add_argument("--compile", action="store_true", help="torch.compile the momentum network of ours")
    parser.add_argument("--repeats", type=int, default=3, help="runs after the first, which warms up where it is short")
    parser.add_argument("--no-reference", action="store_true", help="ours only")
    parser.add_argument("--output", type=Path, default=Path("bench"), help="folder of bench.json and bench.md")
    parser.add_argument("--plot", action="store_true", help="also draw cost over size")
    parser.add_argument("--check", type=Path, help="stored baseline to compare ratios with")
    parser.add_argument("--tolerance", type=float, default=0.3, help="part of a baseline's ratio that may be lost")
    parser.add_argument("--measure", nargs=2, metavar=("CASE", "SIDE"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    for size in options.sizes:
        if len(size.split("x")) != 3 or not all(n.isdigit() and int(n) >= 8 for n in size.split("x")):
            parser.error(f"--sizes: '{size}'; give DxHxW with at least 8 voxels an axis, such as 192x192x80")
    if options.repeats < 1 or options.threads < 1 or options.batch < 1:
        parser.error("--repeats, --threads and --batch must be at least 1")
    if not 0 <= options.tolerance < 1:
        parser.error("--tolerance must lie in [0, 1)")
    return options


def resident(field: str = "VmRSS") -> float:
    """Memory of this process in GB: resident now, or at its peak (``VmHWM``)."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024 / GB
    raise RuntimeError(f"/proc/self/status has no {field}")


def measure(options: argparse.Namespace) -> dict:
    """Measure one case on one side, in this process."""
    os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))
    sys.path[:0] = [str(HERE), str(HERE.parent / "bundle")]
    import torch

    torch.set_num_threads(options.threads)
    from speed_cases import Setting

    if options.measure[1] == "ours":
        from speed_ours import build

        from scripts.layers import keep_large_blocks

        keep_large_blocks()  # as every workflow of the bundle does when it begins
    else:
        from speed_reference import build

    case, side = options.measure
    device = torch.device(options.device)
    cuda = device.type == "cuda"
    torch.manual_seed(0)
    imported = resident()
    setting = Setting(
        tuple(int(n) for n in options.sizes[0].split("x")),
        device,
        getattr(torch, options.dtype),
        options.network,
        options.batch if side == "ours" else 1,
        options.compile and side == "ours",
    )
    work = build(case, setting)
    if work is None:
        return {}
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    clock = time.process_time if not cuda and options.threads == 1 else time.perf_counter

    def once() -> float:
        if cuda:
            torch.cuda.synchronize()
        begin = clock()
        work()
        if cuda:
            torch.cuda.synchronize()
        return clock() - begin

    first = once()
    times = [once() for _ in range(options.repeats - (first > WARM_SECONDS))]
    # A first run of seconds has long paid for its warming up, and is one of the repeats.
    times += [first] if first > WARM_SECONDS else []
    peak = torch.cuda.max_memory_allocated() / GB if cuda else resident("VmHWM")
    return {"seconds": statistics.median(times), "peak_gb": peak, "growth_gb": peak - (0 if cuda else imported)}


def in_a_process(options: argparse.Namespace, case: str, size: str, side: str) -> dict:
    """Measure one case on one side in a fresh process."""
    command = [sys.executable, __file__, "--measure", case, side, "--sizes", size]
    for name in ("threads", "device", "dtype", "network", "batch", "repeats"):
        command += [f"--{name}", str(getattr(options, name))]
    command += ["--compile"] if options.compile else []
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "MKL_NUM_THREADS": str(options.threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SystemExit(f"{case}, {size}, {side}: exit {done.returncode}: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def cases_of(names: list[str]) -> list[str]:
    """Expand ``pieces`` and ``whole``."""
    cases = [case for name in names for case in {"pieces": PIECES, "whole": WHOLE}.get(name, (name,))]
    for case in cases:
        if case not in CASES:
            raise SystemExit(f"--cases: '{case}' is unknown; give pieces, whole, or one of: {', '.join(CASES)}")
    return cases


def run(options: argparse.Namespace) -> list[dict]:
    """Measure all cases at all sizes, ours and the reference in turn."""
    rows = []
    for size in options.sizes:
        for case in cases_of(options.cases):
            row = {"case": case, "size": size, "threads": options.threads, "device": options.device}
            row |= {"dtype": options.dtype, "network": options.network, "batch": options.batch}
            mine = in_a_process(options, case, size, "ours")
            theirs = {} if options.no_reference else in_a_process(options, case, size, "reference")
            row |= {
                "seconds": mine["seconds"],
                "reference_seconds": theirs.get("seconds"),
                "ratio": theirs["seconds"] / mine["seconds"] if theirs else None,
                "peak_gb": mine["peak_gb"],
                "growth_gb": mine["growth_gb"],
                "reference_peak_gb": theirs.get("peak_gb"),
                "reference_growth_gb": theirs.get("growth_gb"),
            }
            rows.append(row)
            print(
                " | ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()), flush=True
            )
    return rows


def machine(options: argparse.Namespace) -> dict:
    """What the figures were taken on."""
    model = platform.processor()
    cpu = Path("/proc/cpuinfo")
    if cpu.is_file():
        model = next(
            (
                x.split(":")[1].strip()
                for x in cpu.read_text(encoding="utf-8").splitlines()
                if x.startswith("model name")
            ),
            model,
        )
    from importlib.metadata import version

    clock = "processor" if options.device == "cpu" and options.threads == 1 else "wall"
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "torch": version("torch"),
        "clock": clock,
        "repeats": options.repeats,
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure, write, compare; 1 when a ratio has regressed."""
    options = parse(arguments)
    if options.measure:
        print(json.dumps(measure(options)))
        return 0
    import speed_tables

    if options.check is not None and not options.check.is_file():
        raise SystemExit(f"--check: {options.check} not found; give a bench.json of an earlier run")
    baseline = json.loads(options.check.read_text()) if options.check else None
    bench = {"machine": machine(options), "rows": run(options)}
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "bench.json").write_text(json.dumps(bench, indent=1) + "\n")
    (options.output / "bench.md").write_text(speed_tables.markdown(bench))
    if options.plot:
        speed_tables.plot(bench["rows"], options.output / "scaling.png")
    lost = speed_tables.regressions(bench["rows"], baseline["rows"], options.tolerance) if baseline else []
    for line in lost:
        print(line, file=sys.stderr)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
