"""Whether a registration ends where it should when headers lie about the pose: one table of what each case ended with.

Every case is a pair of real images whose moving header was turned, shifted, permuted or flipped, with the labels or
landmarks that belong to it. Truthful headers follow the array, others do not, so that the content lies turned or
mirrored in the world. A case is right where it ends within 0.02 Dice, or 0.3 mm of landmark error, of its plain pair.

    python benchmarks/poses.py --data DATA [--cases 120] [--starts] [--preset NAME] [--output FOLDER]

Run again to resume: each case is a line of ``FOLDER/poses.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bundle"))

from verdict import read_rows

from scripts.formats import Image, read_image, read_label, read_points
from scripts.metrics import label_metrics, mean_metrics, target_registration_error
from scripts.registration import Pair, Registrar
from scripts.spatial import Frame, WorldTransform, resample_labels

ANGLES = (15, 30, 60, 90, 135, 180)
AXES = {"x": (1, 0, 0), "y": (0, 1, 0), "z": (0, 0, 1), "diagonal": (1, 1, 1)}
WITHIN = {"hippocampus": 0.02, "brain": 0.3}
BRAINS = {
    "colin27": ("colin27_brain.nii.gz", "Colin27.fcsv"),
    "mni2009c": ("mni2009c_brain.nii.gz", "MNI152NLin2009cAsym.fcsv"),
    "pd25": ("pd25_fusion.nii.gz", "PD25.fcsv"),
}
HIPPOCAMPI = 20
PLAIN = "plain"


@dataclass(frozen=True)
class Change:
    """What is done to a moving image and its header.

    Attributes:
        name: of the case.
        kind: ``plain``, ``turned``, ``truthful`` or ``lying`` (mirrored or turned content).
        turn: a rotation of the header about the image's centre, ``(3, 3)``.
        shift: of the header, parts of the image's extent along its axes.
        order: of the array's axes.
        flips: which of the axes, after that, run backwards.
    """

    name: str
    kind: str
    turn: np.ndarray | None = None
    shift: float = 0.0
    order: tuple[int, int, int] = (0, 1, 2)
    flips: tuple[int, ...] = ()

    def __call__(self, image: Image) -> tuple[Image, np.ndarray]:
        """The changed image, and the motion of its content in the world, ``(4, 4)``."""
        array = np.flip(np.transpose(image.array, self.order), self.flips)
        back = np.zeros((4, 4))  # from the new array's voxels to the old one's
        back[3, 3] = 1
        for new, old in enumerate(self.order):
            back[old, new] = -1 if new in self.flips else 1
            back[old, 3] = array.shape[new] - 1 if new in self.flips else 0
        frame = Frame(array.shape, image.frame.affine @ back)
        if self.kind == "lying":  # the header of an array that was neither permuted nor flipped
            spacing = np.diag([*(frame.spacing / image.frame.spacing), 1.0])
            frame = Frame(array.shape, image.frame.affine @ spacing)
        if self.turn is not None:
            centre, motion = frame.centre, np.eye(4)
            motion[:3, :3] = self.turn
            motion[:3, 3] = centre - self.turn @ centre + frame.direction @ (self.shift * frame.extent)
            frame = Frame(array.shape, motion @ frame.affine)
        changed = replace(image, array=np.ascontiguousarray(array), frame=frame)
        return changed, frame.affine @ np.linalg.inv(image.frame.affine @ back)


def changes() -> list[Change]:
    """All changes, the plain one first."""
    found = [Change(PLAIN, PLAIN), Change("0 shifted", "turned", np.eye(3), 0.5)]
    for degrees in ANGLES:
        for name, axis in AXES.items():
            turn = Rotation.from_rotvec(np.radians(degrees) * np.array(axis) / np.linalg.norm(axis)).as_matrix()
            found.append(Change(f"{degrees} {name}", "turned", turn, 0.5))
    for kind in ("truthful", "lying"):
        found += [Change(f"{kind} flip {axis}", kind, flips=(axis,)) for axis in range(3)]
        found += [
            Change(f"{kind} order {''.join(map(str, order))}", kind, order=order)
            for order in permutations(range(3))
            if order != (0, 1, 2)
        ]
    return found


@dataclass(frozen=True)
class Subject:
    """A pair of real images, with labels or with landmarks, RAS mm."""

    name: str
    family: str
    fixed: Image
    moving: Image
    truth: tuple

    def measure(self, change: Change, registrar: Registrar, plain: dict | None = None) -> dict:
        """What the changed pair ended with.

        Args:
            change: what is done to it.
            registrar: what registers.
            plain: the row of the plain pair, which a case that begins where it does ends like; None: register all.
        """
        moving, motion = change(self.moving)
        start = time.process_time()
        sampled = registrar.sampling({"pair": Pair(fixed=self.fixed, moving=moving)})["sampled"]
        middle, grids = time.process_time(), sampled.grids
        row = {
            "subject": self.name,
            "family": self.family,
            "case": change.name,
            "kind": change.kind,
            "mirrored": bool(np.linalg.det(motion[:3, :3]) < 0),
            "pose": {"method": grids.method, **({} if grids.pose is None else grids.pose.facts)},
            "search_s": round(middle - start, 3),
            "start": (np.linalg.inv(motion) @ grids.initial.linear).tolist(),
        }
        if plain is not None and same_start(row["start"], plain["start"], grids.fixed.centre):
            return row | {"score": plain["score"], "registered": False}
        found = registrar.method(sampled.to(registrar.device)).registration
        transform = WorldTransform.from_network(grids.fixed, grids.moving, found.affine, found.displacement)
        if self.family == "brain":
            fixed, there = self.truth
            there = replace(there, coordinates=there.coordinates @ motion[:3, :3].T + motion[:3, 3])
            score = target_registration_error(fixed, there, [transform])["mean"]
        else:
            fixed, label = self.truth
            label, _ = change(label)
            moved = resample_labels(label.array, label.frame, fixed.frame, [transform])
            score = mean_metrics(label_metrics(moved, fixed.array, fixed.frame.spacing))["dice"]
        return row | {"score": float(score), "registered": True}


def same_start(one: list, other: list, centre: np.ndarray) -> bool:
    """Whether two affines ``(4, 4)`` lie within a degree, and a millimetre at the centre, of each other."""
    apart = np.array(one) - np.array(other)
    chord = np.linalg.norm(apart[:3, :3]) / np.sqrt(8)
    shift = np.linalg.norm(apart[:3] @ np.append(centre, 1))
    return bool(chord <= np.sin(np.radians(0.5)) and shift <= 1)


def subjects(data: Path) -> Iterator[Subject]:
    """The pairs: brain templates both ways, and hippocampi drawn from the training list."""
    folder = data / "brain_templates"
    brains = {
        name: (read_image(folder / image), read_points(folder / marks)) for name, (image, marks) in BRAINS.items()
    }
    for one, other in permutations(brains, 2):
        (fixed, here), (moving, there) = brains[one], brains[other]
        yield Subject(f"{other} to {one}", "brain", fixed, moving, (here, there))
    folder = data / "Task04_Hippocampus"
    training = json.loads((folder / "dataset.json").read_text())["training"]
    random = np.random.default_rng(25)
    for _ in range(HIPPOCAMPI):
        pair = [training[index] for index in random.choice(len(training), 2, replace=False)]
        (fixed, label), (moving, moving_label) = (
            (read_image(folder / entry["image"]), read_label(folder / entry["label"])) for entry in pair
        )
        name = " to ".join(Path(entry["image"]).name.split(".")[0] for entry in reversed(pair))
        yield Subject(name, "hippocampus", fixed, moving, (label, moving_label))


def drawn(pairs: list[Subject], count: int | None, family: str | None) -> list[tuple[Subject, Change]]:
    """All cases, or so many that every pair and every change has its share; the plain pairs are always among them."""
    every = changes()
    pairs = [pair for pair in pairs if family in (None, pair.family)]
    plain = [(pair, every[0]) for pair in pairs]
    others = [(pair, change) for pair in pairs for change in every[1:]]
    if count is None or count >= len(others):
        return plain + others
    random = np.random.default_rng(0)
    queues = {pair.name: list(random.permutation(len(every) - 1) + 1) for pair in pairs}
    seen, chosen = [0] * len(every), []
    while len(chosen) < count:
        for pair in pairs:  # the change that was drawn least
            queue = queues[pair.name]
            index = queue.pop(min(range(len(queue)), key=lambda place: seen[queue[place]]))
            seen[index] += 1
            chosen.append((pair, every[index]))
    return plain + chosen[:count]


def judged(rows: list[dict]) -> list[dict]:
    """Rows with ``loss``, by how much they are worse than their plain pair, and ``right``."""
    plain = {row["subject"]: row["score"] for row in rows if row["kind"] == PLAIN}
    found = []
    for row in rows:
        if row["kind"] != PLAIN and row["subject"] in plain:
            loss = (row["score"] - plain[row["subject"]]) * (1 if row["family"] == "brain" else -1)
            found.append({**row, "loss": loss, "right": loss <= WITHIN[row["family"]]})
    return found


def table(rows: list[dict]) -> str:
    """Markdown: the share that is right by family and kind, seconds, and each case that is not right."""
    found = judged(rows)
    lines = ["| images | headers | right | of | worst | search, processor s |", "|---|---|---|---|---|---|"]
    for family in WITHIN:
        for kind in ("turned", "truthful", "lying, turned", "lying, mirrored"):
            some = [
                row
                for row in found
                if row["family"] == family
                and (row["kind"] + (", mirrored" if row["mirrored"] else ", turned") * (row["kind"] == "lying") == kind)
            ]
            if some:
                seconds = np.array([row["search_s"] for row in some])
                lines.append(
                    f"| {family} | {kind} | {sum(row['right'] for row in some)} | {len(some)} | "
                    f"{max(row['loss'] for row in some):.3f} | {np.median(seconds):.2f}, at most {seconds.max():.2f} |"
                )
    right = sum(row["right"] for row in found)
    lines += ["", f"{right} of {len(found)} right ({100 * right / max(len(found), 1):.1f} %).", ""]
    wrong = [row for row in found if not row["right"]]
    if wrong:
        lines += ["| not right | case | plain | here | pose |", "|---|---|---|---|---|"]
        plain = {row["subject"]: row["score"] for row in rows if row["kind"] == PLAIN}
        lines += [
            f"| {row['subject']} | {row['case']} | {plain[row['subject']]:.3f} | {row['score']:.3f} | {row['pose']} |"
            for row in wrong
        ]
    return "\n".join(lines)


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with brain_templates and Task04_Hippocampus")
    parser.add_argument("--output", type=Path, default=Path("eval/poses"), help="folder of the rows")
    parser.add_argument("--cases", type=int, help="so many, each kind with its share; default: all")
    parser.add_argument("--family", choices=tuple(WITHIN))
    parser.add_argument("--preset", help="default: the default one")
    parser.add_argument("--starts", action="store_true", help="register only what does not begin like its plain pair")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    file = options.output / "poses.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = read_rows(file)
    done = {(row["subject"], row["case"]) for row in rows}
    registrar = Registrar(device="cpu", **({"preset": options.preset} if options.preset else {}))
    cases = drawn(list(subjects(options.data)), options.cases, options.family)
    for subject, change in cases:
        if (subject.name, change.name) in done:
            continue
        plain = next((row for row in rows if (row["subject"], row["case"]) == (subject.name, PLAIN)), None)
        rows.append(subject.measure(change, registrar, plain if options.starts else None))
        with file.open("a") as stream:
            stream.write(json.dumps(rows[-1]) + "\n")
        print(f"{subject.name}, {change.name}: {rows[-1]['score']:.3f}", file=sys.stderr, flush=True)
    asked = {(subject.name, change.name) for subject, change in cases}
    print(table([row for row in rows if (row["subject"], row["case"]) in asked]))


if __name__ == "__main__":
    main()
