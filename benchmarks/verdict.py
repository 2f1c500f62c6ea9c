"""The verdict on registrations whose truth is known: calibrates its limits, and measures it on pairs that are held out.

    PYTHONPATH=bundle python benchmarks/verdict.py run DATA WORK       # resumable; --sets, --kinds, --preset
    PYTHONPATH=bundle python benchmarks/verdict.py report WORK         # benchmarks/results/verdict.md, .jsonl, .png

A failure is a result whose Dice or landmark error is no better than that of the affine of a good run, or whose Dice is
more than 0.10 below what the pair reaches in any run; every pair of different anatomies is one. Of a cut image only the
part that is left counts, and nothing is known where a good run itself has a Dice below 0.5 there.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.ndimage import map_coordinates, zoom
from scipy.spatial.transform import Rotation
from scipy.stats import spearmanr

from scripts.errors import InputError
from scripts.formats import Image, read_image, read_label, read_points
from scripts.registration import Pair, Registrar
from scripts.registration.result import Result
from scripts.report.verdict import FAIL, LIMITS, PASS, judge
from scripts.spatial import Frame, resample_labels
from scripts.synthetic import KneeLabels

_VOXELS = 150_000  # of the grid that is registered on
_KNOWN = 0.5  # Dice
RESULTS = Path(__file__).with_name("results")
# A header that is turned by so many degrees and shifted, and the initialisation that meets it.
_TURNED = {
    "turned 30": (30, "geometry"),
    "turned 60": (60, "geometry"),
    "turned 180": (180, "geometry"),
    "searched 90": (90, "auto"),
    "searched 150": (150, "auto"),
}
ALL = ("plain", *_TURNED, "mirrored", "mirrored, geometry", "inverted", "remapped", "cut", "own warp")
_CONTRASTS = ("plain", "inverted", "remapped", "turned 60")
FEW = tuple(kind for kind in ALL if kind not in ("turned 30", "searched 150", "remapped"))


@dataclass(frozen=True, eq=False)
class Subject:
    """An image and what is known of it: a label map on its grid, or points in RAS mm that other subjects have, too."""

    image: Image
    label: Image | None = None
    points: np.ndarray | None = None

    def turned(self, degrees: float, random: np.random.Generator) -> Subject:
        """Under a header that is turned about a random axis and shifted by half the field of view."""
        frame, axis = self.image.frame, random.normal(size=3)
        turn = np.eye(4)
        turn[:3, :3] = Rotation.from_rotvec(np.radians(degrees) * axis / np.linalg.norm(axis)).as_matrix()
        turn[:3, 3] = frame.centre - turn[:3, :3] @ frame.centre + frame.extent / 2
        return self._with(lambda array: array, turn @ frame.affine, turn)

    def mirrored(self) -> Subject:
        """The mirror image, left for right along the first axis of the world."""
        affine = self.image.frame.affine
        axis = int(np.argmax(np.abs(affine[0, :3])))
        mirror = np.eye(4)
        mirror[axis, axis], mirror[axis, 3] = -1, self.image.frame.shape[axis] - 1
        return self._with(lambda array: np.flip(array, axis), affine, affine @ mirror @ np.linalg.inv(affine))

    def cut(self, axis: int, second: bool) -> Subject:
        """One half of the field of view."""
        affine, half = self.image.frame.affine.copy(), self.image.frame.shape[axis] // 2
        part = [slice(None)] * 3
        part[axis] = slice(half, None) if second else slice(half)
        affine[:3, 3] += second * half * affine[:3, axis]
        return self._with(lambda array: array[tuple(part)], affine, np.eye(4))

    def recoloured(self, values: Callable[[np.ndarray], np.ndarray]) -> Subject:
        """With other grey values, a function of those from 0 to 1."""
        array = self.image.array.astype(np.float32)
        low, high = array.min(), np.percentile(array, 99.9)
        grey = values(np.clip((array - low) / (high - low), 0, 1)).astype(np.float32)
        return replace(self, image=replace(self.image, array=grey))

    def warped(self, size: float, random: np.random.Generator) -> tuple[Subject, np.ndarray]:
        """Warped by a smooth field with a largest displacement of ``size`` of the extent; points here and there."""
        frame = self.image.frame
        shift = np.stack(
            [
                zoom(random.normal(size=(4, 4, 4)), np.array(frame.shape) / 4, order=3, mode="nearest", grid_mode=True)
                for _ in range(3)
            ]
        )
        shift *= size / 2 * (min(frame.shape) * frame.spacing.min()) / np.abs(shift).max()
        where = np.indices(frame.shape) + shift / frame.spacing[:, None, None, None]
        low, noise = self.image.array.min(), 0.03 * np.percentile(self.image.array, 99)
        array = map_coordinates(self.image.array.astype(np.float32), where, order=1, cval=float(low))
        array = (array + noise * random.normal(size=array.shape)).astype(np.float32)
        seen = np.argwhere(array > low + 0.2 * (np.percentile(array, 99) - low))
        some = seen[random.choice(len(seen), min(200, len(seen)), replace=False)]
        there = frame.voxel_to_world(some)
        here = frame.voxel_to_world(where[:, some[:, 0], some[:, 1], some[:, 2]].T)
        return replace(self, image=replace(self.image, array=array), label=None, points=there), here

    def thinned(self, step: float) -> Subject:
        """On a grid of this spacing in mm."""
        frame = self.image.frame
        factor = frame.spacing / step
        array = zoom(self.image.array.astype(np.float32), factor, order=1, grid_mode=True, mode="nearest")
        affine = frame.affine.copy()
        ratio = np.array(frame.shape) / np.array(array.shape)
        affine[:3, :3] *= ratio
        affine[:3, 3] += frame.affine[:3, :3] @ ((ratio - 1) / 2)
        return replace(self, image=replace(self.image, array=array, frame=Frame(array.shape, affine)))

    def _with(self, values: Callable, affine: np.ndarray, carry: np.ndarray) -> Subject:
        images = []
        for one in (self.image, self.label):
            array = None if one is None else np.ascontiguousarray(values(one.array))
            images.append(None if one is None else replace(one, array=array, frame=Frame(array.shape, affine)))
        points = None if self.points is None else self.points @ carry[:3, :3].T + carry[:3, 3]
        return Subject(*images, points)


@dataclass(frozen=True, eq=False)
class Case:
    """A pair under a circumstance; ``wrong``: of different anatomies."""

    group: str
    kind: str
    fixed: Subject
    moving: Subject
    initialisation: str = "auto"
    wrong: bool = False


def circumstances(group: str, fixed: Subject, moving: Subject, kinds: tuple[str, ...] = ALL) -> Iterator[Case]:
    """A pair as it is, and under circumstances."""
    random = np.random.default_rng(sum(map(ord, group)))
    half = int(np.argmax(moving.image.frame.extent)), bool(random.integers(2))
    warped, here = fixed.warped(random.uniform(0.1, 0.3), random)
    cases = [
        Case(group, "plain", fixed, moving),
        *(Case(group, kind, fixed, moving.turned(turn, random), start) for kind, (turn, start) in _TURNED.items()),
        Case(group, "mirrored", fixed, moving.mirrored()),
        Case(group, "mirrored, geometry", fixed, moving.mirrored(), "geometry"),
        Case(group, "inverted", fixed, moving.recoloured(lambda grey: 1 - grey)),
        Case(group, "remapped", fixed, moving.recoloured(lambda grey: np.abs(grey - 0.4))),
        Case(group, "cut", fixed, moving.cut(*half)),
        Case(group, "own warp", replace(fixed, points=here, label=None), warped),
    ]
    yield from (case for case in cases if case.kind in kinds)


def hippocampi(root: Path, first: int, last: int, seed: int = 0) -> Iterator[Subject]:
    """Hippocampi of a part of the training list, in random order."""
    folder = root / "Task04_Hippocampus"
    listed = json.loads((folder / "dataset.json").read_text())["training"][first:last]
    for index in np.random.default_rng(seed).permutation(len(listed)):
        image = read_image(str(folder / listed[index]["image"]))
        yield Subject(image, read_label(str(folder / listed[index]["label"]), image))


def knees(root: Path, seed: int, size: tuple[int, int, int] = (48, 96, 96)) -> tuple[Subject, Subject]:
    """A pair of knees, rendered from the labels of a real one."""
    made = KneeLabels(str(root / "knee_labels" / "pymskt_dess_right_label.nrrd"), size)
    item, frame, subjects = made.pair(seed, "cross_subject", False), Frame(size, np.asarray(made.affine)), []
    for role in ("fixed", "moving"):
        image = Image(np.asarray(item[role]), frame, f"knee {role}")
        subjects.append(Subject(image, replace(image, array=np.asarray(item[f"{role}_label"]).astype(np.int16))))
    return tuple(subjects)


def brains(root: Path) -> dict[str, Subject]:
    """Templates with landmarks."""
    files = {"Colin27": "colin27_brain", "MNI152NLin2009cAsym": "mni2009c_brain", "PD25": "pd25_fusion"}
    folder, found = root / "brain_templates", {}
    for name, file in files.items():
        points = read_points(str(folder / f"{name}.fcsv")).coordinates
        found[name] = Subject(read_image(str(folder / f"{file}.nii.gz")), points=points).thinned(2.0)
    return found


def liver(root: Path, subject: str, state: str) -> Subject:
    """A breathing state with landmarks."""
    base = root / "eth_liver_4dmri" / f"liver{subject}_{state}"
    return Subject(read_image(f"{base}.mha"), points=read_points(f"{base}LMliver.vtk", "LPS").coordinates)


def heads(root: Path) -> dict[str, Subject]:
    """One patient's T1 and FLAIR scans of two studies; those of one study lie on each other."""
    folder = root / "open_ms_longitudinal"
    names = [f"study{study}_{contrast}" for study in (1, 2) for contrast in ("T1W", "FLAIR")]
    return {name: Subject(read_image(str(folder / f"patient01_{name}.nii.gz"))).thinned(2.0) for name in names}


def warped_heads(root: Path) -> Iterator[Case]:
    """Heads and their own warps, of one contrast and of two."""
    random, scans = np.random.default_rng(0), heads(root)
    for name, scan in scans.items():
        other = scans[name.replace("T1W", "x").replace("FLAIR", "T1W").replace("x", "FLAIR")]
        for size in (0.15, 0.35):
            warped, here = scan.warped(size, random)
            group = f"head {name} {size:g}"
            yield Case(group, "plain", replace(scan, points=here), warped)
            yield Case(group, "cross-modal", replace(other, points=here), warped)
            if size > 0.2:
                yield Case(group, "turned 60", replace(scan, points=here), warped.turned(60, random), "geometry")
                turned = warped.turned(60, np.random.default_rng(1))
                yield Case(group, "cross-modal, turned 60", replace(other, points=here), turned, "geometry")
                yield Case(group, "mirrored, geometry", replace(scan, points=here), warped.mirrored(), "geometry")
                yield Case(group, "cross-modal, mirrored", replace(other, points=here), warped.mirrored(), "geometry")
                yield Case(group, "inverted", replace(scan, points=here), warped.recoloured(lambda grey: 1 - grey))


def wrong_pairs(name: str, kinds: Mapping[str, list[Subject]], count: int) -> Iterator[Case]:
    """Pairs of different anatomies."""
    random = np.random.default_rng(0)
    for number in range(count):
        names = random.choice(list(kinds), 2, replace=False)
        pick = [kinds[kind][random.integers(len(kinds[kind]))] for kind in names]
        yield Case(f"{name} {number}", " and ".join(names), *pick, wrong=True)


def _pairs(subjects: Iterator[Subject], count: int) -> list[tuple[Subject, Subject]]:
    return [(next(subjects), next(subjects)) for _ in range(count)]


def calibration(root: Path) -> dict[str, Callable[[], Iterator[Case]]]:
    """Set → its cases, on which the limits are set."""

    def hippocampus() -> Iterator[Case]:
        for number, pair in enumerate(_pairs(hippocampi(root, 0, 110), 14)):
            yield from circumstances(f"hippocampus a{number}", *pair)

    def contrast(name: str, seed: int, kinds: tuple[str, ...]) -> Iterator[Case]:
        for number, pair in enumerate(_pairs(hippocampi(root, 0, 110, seed), 20)):
            yield from circumstances(f"hippocampus {name}{number}", *pair, kinds)

    def knee() -> Iterator[Case]:
        for seed in range(3):
            yield from circumstances(f"knee a{seed}", *knees(root, seed), FEW)

    def wrong() -> Iterator[Case]:
        kinds = {"knee": list(knees(root, 0)), "head": list(heads(root).values())}
        kinds["hippocampus"] = list(_pairs(hippocampi(root, 0, 110, 1), 1)[0])
        yield from wrong_pairs("wrong a", kinds, 12)

    sets = {"hippocampus_a": hippocampus, "contrast_a": lambda: contrast("d", 3, _CONTRASTS)}
    sets |= {"contrast_b": lambda: contrast("e", 7, _CONTRASTS[:3]), "knee_a": knee}
    return sets | {"head": lambda: warped_heads(root), "wrong_a": wrong}


def held_out(root: Path) -> dict[str, Callable[[], Iterator[Case]]]:
    """Set → its cases, on which the verdict is measured."""

    def hippocampus() -> Iterator[Case]:
        for number, pair in enumerate(_pairs(hippocampi(root, 110, 170), 12)):
            yield from circumstances(f"hippocampus b{number}", *pair)

    def more() -> Iterator[Case]:
        for number, pair in enumerate(_pairs(hippocampi(root, 110, 170, 2), 8)):
            yield from circumstances(f"hippocampus c{number}", *pair)

    def brain() -> Iterator[Case]:
        templates = brains(root)
        pairs = [(one, other) for one in templates for other in templates if one != other]
        for number, (one, other) in enumerate(pairs):
            kinds = FEW if number % 2 else ("plain", "searched 90", "own warp")
            yield from circumstances(f"brain {one} {other}", templates[one], templates[other], kinds)

    def livers() -> Iterator[Case]:
        for subject, state in (("18", "cyc_3_10"), ("19", "cyc_1_6"), ("19", "cyc_1_9")):
            pair = liver(root, subject, "exhMaster"), liver(root, subject, state)
            yield from circumstances(f"liver {subject} {state}", *pair, FEW)

    def knee() -> Iterator[Case]:
        for seed in (100, 101):
            yield from circumstances(f"knee b{seed}", *knees(root, seed), FEW)

    def wrong() -> Iterator[Case]:
        kinds = {"knee": list(knees(root, 100)), "brain": list(brains(root).values())}
        kinds["liver"] = [liver(root, "18", "exhMaster"), liver(root, "19", "exhMaster")]
        kinds["hippocampus"] = list(_pairs(hippocampi(root, 110, 170, 1), 1)[0])
        yield from wrong_pairs("wrong b", kinds, 14)

    sets = {"hippocampus_b": hippocampus, "hippocampus_c": more}
    return sets | {"brain": brain, "liver": livers, "knee_b": knee, "wrong_b": wrong}


def measured(case: Case, result: Result, plain: Result | None) -> dict[str, Any]:
    """A row: what the verdict says of a case, and the truth.

    Args:
        case: what was registered.
        result: of it.
        plain: of the same pair as it is, for what is cut: only what it carries into the cut image counts.
    """
    row: dict[str, Any] = {"group": case.group, "kind": case.kind, "wrong": case.wrong}
    verdict = result.metrics["verdict"]
    row |= {"outcome": verdict["outcome"], "doubt": verdict["doubt"], **verdict["measures"]}
    optimisation = result.metrics.get("optimisation", {})
    row["optimised"] = optimisation.get("similarity") if "after" in optimisation else None
    row["std_log_jacobian"], row["shortened"] = result.metrics["jacobian"]["std_log"], result.accepted.length
    stages = {"before": result.initial, "affine": result.accepted.affine, "final": result.accepted.transform}
    fixed, moving = case.fixed, case.moving
    if case.wrong:
        return row
    if fixed.points is not None and moving.points is not None:
        errors = {name: np.linalg.norm(one.apply(fixed.points) - moving.points, axis=1) for name, one in stages.items()}
        row["tre"] = {name: float(error.mean()) for name, error in errors.items()}
        if case.kind in ("own warp", "plain") and len(fixed.points) > 50:
            where = np.clip(np.round(fixed.image.frame.world_to_voxel(fixed.points)).astype(int), 0, None)
            told = result.doubt_map()[tuple(np.minimum(where, np.array(fixed.image.frame.shape) - 1).T)]
            row["rank"] = float(spearmanr(told, errors["final"]).statistic)
            row["told_mm"], row["off_mm"] = (float(np.sqrt((one**2).mean())) for one in (told, errors["final"]))
    elif fixed.label is not None:
        row["dice"] = _dices(fixed.label, moving.label, stages)
        if case.kind == "cut" and plain is not None:
            frame, there = fixed.label.frame, moving.label.frame
            voxels = frame.voxel_to_world(np.stack(np.indices(frame.shape), axis=-1))
            kept = there.contains_voxel(there.world_to_voxel(plain.accepted.transform.apply(voxels)))
            of_plain = {"affine": plain.accepted.affine, "final": plain.accepted.transform}
            row["dice"] = _dices(fixed.label, moving.label, stages, kept)
            row["dice_plain"] = _dices(fixed.label, plain.pair.moving_label, of_plain, kept)
    return row


def _dices(fixed: Image, moving: Image, stages: Mapping[str, Any], where: np.ndarray | None = None) -> dict[str, float]:
    """Mean Dice of all labels at every stage, perhaps only in a part of the fixed image."""
    found = {}
    for name, transform in stages.items():
        pair = [fixed.array, resample_labels(moving.array, moving.frame, fixed.frame, [transform])]
        one, other = pair if where is None else [array[where] for array in pair]
        values = [
            2 * ((one == label) & (other == label)).sum() / max(((one == label).sum() + (other == label).sum()), 1)
            for label in np.unique(fixed.array)
            if label
        ]
        found[name] = float(np.mean(values))
    return found


def failures(rows: list[dict[str, Any]]) -> list[bool | None]:
    """Which rows are failures; None where nothing is known."""
    groups: dict[str, dict[str, dict]] = {}
    for row in rows:
        groups.setdefault(row["group"], {})[row["kind"]] = row

    def failed(row: dict[str, Any]) -> bool | None:
        group = groups[row["group"]]
        if row["wrong"]:
            return True
        if "tre" in row:
            good = row if row["kind"] == "own warp" else group["plain"]
            return row["tre"]["final"] >= good["tre"]["affine"]
        if "dice_plain" in row:
            good, reach = row["dice_plain"]["affine"], row["dice_plain"]["final"]
            if reach < _KNOWN:
                return None
        else:
            good = group["plain"]["dice"]["affine"]
            reach = max(one["dice"]["final"] for one in group.values() if "dice" in one and one["kind"] != "cut")
        return row["dice"]["final"] <= good or row["dice"]["final"] < reach - 0.1

    return [failed(row) for row in rows]


def run(options: argparse.Namespace) -> None:
    """Register what is missing of the sets, a line of JSON each."""
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    sets = {**calibration(options.root), **held_out(options.root)}
    options.work.mkdir(parents=True, exist_ok=True)
    registrars: dict[str, Registrar] = {}
    for name in options.sets or sets:
        file, plain = options.work / f"{name}.jsonl", None
        done = {(row["group"], row["kind"]) for row in read_rows(file)}
        for case in sets[name]():
            wanted = (case.group, case.kind) not in done and case.kind in (options.kinds or [case.kind])
            if not wanted and case.kind != "plain":
                continue
            if not wanted and (case.group, "cut") in done:
                continue
            if case.initialisation not in registrars:
                # Of images that are larger than a hippocampus, as much as takes seconds.
                settings = {"initialisation": case.initialisation, "grid_voxels": _VOXELS, "grid": None}
                settings |= {"preset": options.preset} if options.preset else {}
                registrars[case.initialisation] = Registrar(**settings)
            labels = (case.fixed.label, case.moving.label)
            pair = Pair(case.fixed.image, case.moving.image, *(labels if None not in labels else ()))
            try:
                result = registrars[case.initialisation](pair)
            except InputError as error:
                print(f"{case.group}, {case.kind}: {error}", flush=True)
                continue
            if case.kind == "plain":
                plain = result
            row = measured(case, result, plain if plain is not None and case.kind == "cut" else None)
            if wanted:
                with file.open("a") as stream:
                    stream.write(json.dumps(row) + "\n")
                print(case.group, case.kind, row["outcome"], row.get("dice", row.get("tre", "")), flush=True)


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Lines of JSON; none where there is no file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def report(options: argparse.Namespace) -> None:
    """Write what was found: rows, table and curves."""
    names = [name for sets in (calibration(Path()), held_out(Path())) for name in sets]
    rows = {name: read_rows(options.work / f"{name}.jsonl") for name in names}
    for some in rows.values():
        plain = {row["group"] for row in some if row["wrong"] or row["kind"] == "plain"}
        some[:] = [row for row in some if row["group"] in plain]
        for row, failed in zip(some, failures(some), strict=True):
            verdict = judge(row, {}, optimised=row["optimised"])
            row |= {"failed": failed, "outcome": verdict.outcome, "doubt": verdict.doubt}
        some[:] = [row for row in some if row["failed"] is not None]
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "verdict.jsonl").open("w") as stream:
        stream.writelines(json.dumps({"set": name, **row}) + "\n" for name, some in rows.items() for row in some)
    lines = ["| set | good | of them PASS | failures | of them FAIL or CHECK | FAIL |", "|---|---|---|---|---|---|"]
    for title, sets in (("calibration", calibration(Path())), ("held out", held_out(Path()))):
        lines += [_line(name, rows[name]) for name in sets if rows[name]]
        lines.append(_line(f"**{title}**", [row for name in sets for row in rows[name]]))
    lines += ["", "Failures that pass:", ""]
    for name, some in rows.items():
        lines += [
            f"- {name}: {row['group']}, {row['kind']}" for row in some if row["failed"] and row["outcome"] == PASS
        ]
    ranks = [row for some in rows.values() for row in some if "rank" in row and not row["failed"]]
    if ranks:
        middle = {key: float(np.median([row[key] for row in ranks])) for key in ("rank", "told_mm", "off_mm")}
        lines += [
            "",
            f"Uncertainty and the error of {len(ranks)} known warps, medians: rank correlation {middle['rank']:.2f}, "
            f"root mean square {middle['told_mm']:.2f} mm told, {middle['off_mm']:.2f} mm true.",
        ]
    (options.out / "verdict.md").write_text("\n".join(lines) + "\n")
    _curves([row for some in rows.values() for row in some], options.out / "verdict.png")


def _line(name: str, rows: list[dict[str, Any]]) -> str:
    good, bad = ([row["outcome"] for row in rows if row["failed"] == failed] for failed in (False, True))
    passed, seen = good.count(PASS), len(bad) - bad.count(PASS)
    cells = [f"{passed} ({passed / max(len(good), 1):.0%})", len(bad), f"{seen} ({seen / max(len(bad), 1):.0%})"]
    return "| " + " | ".join(map(str, [name, len(good), *cells, bad.count(FAIL)])) + " |"


def _curves(rows: list[dict[str, Any]], path: Path) -> None:
    """The share of good results and of failures up to each value of every measure, with its limits."""
    figure = Figure(figsize=(3 * len(LIMITS), 3), layout="constrained")
    for axes, (name, limit) in zip(figure.subplots(1, len(LIMITS), sharey=True), LIMITS.items(), strict=True):
        for failed, label, colour in ((False, "good", "tab:green"), (True, "failures", "tab:red")):
            values = np.sort([row[name] for row in rows if row["failed"] == failed])
            axes.step(values, np.arange(1, len(values) + 1) / max(len(values), 1), color=colour, label=label)
        axes.axvline(limit.check, color="grey", linestyle="--")
        axes.axvline(limit.fail, color="black", linestyle=":")
        axes.set(title=name, xlim=(0, 3 if name == "rival" else None))
    axes.legend(title="dashed CHECK, dotted FAIL", loc="lower right")
    figure.savefig(path, dpi=90)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    first = commands.add_parser("run")
    first.add_argument("root", type=Path)
    first.add_argument("work", type=Path)
    first.add_argument("--sets", nargs="*")
    first.add_argument("--kinds", nargs="*", help="of circumstances, plain among them")
    first.add_argument("--preset", help="another than the default; in a folder WORK of its own")
    first.set_defaults(do=run)
    second = commands.add_parser("report")
    second.add_argument("work", type=Path)
    second.add_argument("--out", type=Path, default=RESULTS)
    second.set_defaults(do=report)
    options = parser.parse_args()
    options.do(options)


if __name__ == "__main__":
    main()
