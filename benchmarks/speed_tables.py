"""Tables, plot and comparison of what `speed.py` measured."""

from __future__ import annotations

import math
from pathlib import Path

KEY = ("case", "size", "threads", "device", "dtype", "network", "batch")


def voxels(size: str) -> int:
    """Number of voxels of ``DxHxW``."""
    return math.prod(int(n) for n in size.split("x"))


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}g}"


def markdown(bench: dict) -> str:
    """The rows as a Markdown table, with the machine above it."""
    machine = bench["machine"]
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, PyTorch {machine['torch']}; median of {machine['repeats']}, "
        f"{machine['clock']} time.",
        "",
        "| case | size | threads | device | seconds | reference | ratio | peak GB (growth) | reference's |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in bench["rows"]:
        memory = f"{_number(row['peak_gb'])} ({_number(row['growth_gb'])})"
        other = row["reference_peak_gb"]
        other = "" if other is None else f"{_number(other)} ({_number(row['reference_growth_gb'])})"
        cells = [row["case"], row["size"], row["threads"], row["device"], _number(row["seconds"])]
        cells += [_number(row["reference_seconds"]), _number(row["ratio"]), memory, other]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def regressions(rows: list[dict], baseline: list[dict], tolerance: float) -> list[str]:
    """One line for every case whose ratio to the reference fell by more than ``tolerance`` of the baseline's.

    Ratios are compared and not seconds, so that a baseline holds on any machine. Cases that only one of the two has are
    left out.
    """
    stored = {tuple(row.get(k) for k in KEY): row["ratio"] for row in baseline}
    lines = []
    for row in rows:
        before = stored.get(tuple(row.get(k) for k in KEY))
        if before is None or row["ratio"] is None:
            continue
        if row["ratio"] < before * (1 - tolerance):
            lines.append(
                f"regression: {row['case']} at {row['size']}: {row['ratio']:.2f} times the reference's speed, "
                f"the baseline has {before:.2f} (tolerance {tolerance:.0%})"
            )
    return lines


def plot(rows: list[dict], path: Path) -> None:
    """Seconds and memory over voxels, log-log, with a line of linear growth through the smallest size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(10, 4))
    for panel, key, label in zip(
        panels, ("seconds", "growth_gb"), ("seconds", "memory beyond imports, GB"), strict=True
    ):
        for case in dict.fromkeys(row["case"] for row in rows):
            points = sorted((voxels(row["size"]), row[key]) for row in rows if row["case"] == case)
            panel.loglog(*zip(*points, strict=True), marker="o", label=case)
            x = [points[0][0], points[-1][0]]
            panel.loglog(x, [points[0][1] * n / x[0] for n in x], "k:", linewidth=0.8)
        panel.set(xlabel="voxels", ylabel=label)
        panel.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
