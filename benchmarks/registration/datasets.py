"""The data sets: real hippocampi, generated knees at the paper's geometry, and lists of a user's own such as OAI's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scripts.data import evaluation_pairs
from scripts.errors import InputError
from scripts.formats import Image, read_image, read_label
from scripts.registration import sample
from scripts.spatial import Frame, network_frame, resample_labels
from scripts.synthetic import KneeLabels, KneePhantom, generated_pairs
from scripts.synthetic.generated import EXTENT_MM
from scripts.synthetic.warps import WarpRange

from .cases import MODES, Case, PairSet

__all__ = ["PAPER_SIZE", "GeneratedSet", "ListedSet", "Places", "data_sets", "parse_size"]

PAPER_SIZE = (192, 192, 80)
CARTILAGE = {1: "femoral cartilage", 2: "tibial cartilage"}
HIPPOCAMPUS = {1: "anterior hippocampus", 2: "posterior hippocampus"}
_HIPPOCAMPUS_FOLDER = "Task04_Hippocampus"
_KNEE_FILE = "knee_labels/pymskt_dess_right_label.nrrd"
_OAI_FILES = {"longitudinal": "oai/longitudinal.csv", "cross_subject": "oai/cross_subject.csv"}
_COUNT = 20
# Small poses and bent bones: the affine that fits the cartilage of such a pair best leaves it at 0.4 to 0.7 Dice.
_BENT = WarpRange(degrees=2.0, shift=0.01, scale=0.05, shear=0.02, displacement=0.055, gradient=1.8, controls=(6, 9))


def parse_size(text: str) -> tuple[int, int, int]:
    """A size in the paper's order, in plane, in plane, slices, as ``192x192x80``.

    Raises:
        InputError: for what is no size.
    """
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdigit() and int(part) >= 16 for part in parts):
        raise InputError(f"size={text}: give three numbers of at least 16, in plane, in plane, slices: 192x192x80")
    return tuple(int(part) for part in parts)


def _grid(size: Sequence[int]) -> tuple[int, int, int]:
    """A sagittal scan's size in plane, in plane, slices as a grid along (R, A, S)."""
    return size[2], size[0], size[1]


@dataclass(frozen=True)
class Places:
    """Where data lie and how large knees are made.

    Attributes:
        root: folder of the data sets; None where there is none.
        size: of generated knees and of listed ones, in the paper's order (in plane, in plane, slices).
        seed: of generated pairs.
        count: pairs of a generated set.
        lists: name → list file of a user's own pairs; ``NAME_longitudinal`` has that mode, others are cross-subject.
    """

    root: Path | None
    size: tuple[int, int, int] = PAPER_SIZE
    seed: int = 0
    count: int = _COUNT
    lists: Mapping[str, Path] | None = None

    def file(self, name: str) -> Path | None:
        """A file or folder below the root."""
        return None if self.root is None else self.root / name


class ListedSet(PairSet):
    """Pairs of a ``dataset.json`` or of a list (``.csv``, ``.json``) with labels.

    Args:
        name: of the set.
        family: see `PairSet`.
        mode: see `PairSet`.
        path: the list; None where no folder of data is given.
        labels: see `PairSet`.
        title: see `PairSet`.
        grid: resample images (anti-aliased) and labels (nearest) to this many voxels over their own extent, axes in
            (R, A, S) order; None leaves them on their own grids.
        help: how to get the list, for the line that says that it is missing.
    """

    def __init__(
        self,
        name: str,
        family: str,
        mode: str,
        path: Path | None,
        labels: Mapping[int, str],
        title: str,
        grid: Sequence[int] | None = None,
        help: str = "name the folder of the data by --data or AVSM_DATA",
    ) -> None:
        self.name, self.family, self.mode, self.labels, self.title = name, family, mode, labels, title
        self.path, self.grid, self.help = path, None if grid is None else tuple(grid), help
        self._pairs: list[dict] | None = None

    @property
    def pairs(self) -> list[dict]:
        """The entries of the list.

        Raises:
            InputError: when the list cannot be read or a pair lacks a label.
        """
        if self._pairs is None:
            pairs = evaluation_pairs(self.path)
            for pair in pairs:
                if "fixed_label" not in pair or "moving_label" not in pair:
                    raise InputError(f"{self.path}: pair {pair['name']} lacks a label; list fixed_label, moving_label")
            self._pairs = pairs
        return self._pairs

    def missing(self) -> str | None:
        """Why it cannot be had here."""
        if self.path is None or not self.path.exists():
            return f"{self.name}: no list of pairs{'' if self.path is None else f' at {self.path.name}'}; {self.help}"
        return None

    def parameters(self) -> dict[str, Any]:
        """The grid; files are told by `fingerprint`."""
        return {"set": self.name, "grid": self.grid}

    def names(self) -> list[str]:
        """Names of the pairs."""
        return [pair["name"] for pair in self.pairs]

    def fingerprint(self, index: int) -> Any:
        """Names and sizes of a pair's files."""
        pair = self.pairs[index]
        files = [Path(pair[key]) for key in ("fixed", "moving", "fixed_label", "moving_label")]
        return [pair["name"], *([file.name, file.stat().st_size if file.is_file() else 0] for file in files)]

    def case(self, index: int) -> Case:
        """Read a pair.

        Raises:
            InputError: for a file that cannot be used.
        """
        pair, found = self.pairs[index], {}
        for role in ("fixed", "moving"):
            image = read_image(pair[role])
            label = read_label(pair[f"{role}_label"], image)
            found[role], found[f"{role}_label"] = image, label
            if self.grid is not None:
                found[role], found[f"{role}_label"] = _resized(image, label, self.grid)
        return Case(pair["name"], **found)


def _resized(image: Image, label: Image, grid: Sequence[int]) -> tuple[Image, Image]:
    """Image and label on a grid of other size over the same field of view, whole voxels counted."""
    order = [int(axis) for axis in np.argmax(np.abs(image.frame.direction), axis=1)]
    fields = [image.frame.shape[axis] * image.frame.spacing[axis] for axis in order]
    frame = network_frame(image.frame, grid, [field / n for field, n in zip(fields, grid, strict=True)])
    if frame.same_as(image.frame):
        return image, label
    return (
        Image(sample(image.array, image.frame, frame), frame, image.path),
        Image(resample_labels(label.array, label.frame, frame), frame, label.path),
    )


class GeneratedSet(PairSet):
    """Pairs of a generator of knees; their seeds are those that trainings never draw.

    Args:
        name: of the set.
        family: see `PairSet`.
        mode: see `PairSet`.
        build: makes the generator, when the first pair is asked for.
        settings: what decides the generator.
        labels: see `PairSet`.
        title: see `PairSet`.
        count: number of pairs.
        seed: of the list of pairs.
        needs: a file that the generator needs; None for none.
    """

    def __init__(
        self,
        name: str,
        family: str,
        mode: str,
        build: Callable[[], KneePhantom | KneeLabels],
        settings: Mapping[str, Any],
        labels: Mapping[int, str],
        title: str,
        count: int,
        seed: int,
        needs: tuple[str, Path | None] | None = None,
    ) -> None:
        self.name, self.family, self.mode, self.labels, self.title = name, family, mode, labels, title
        self.build, self.settings, self.seed, self.needs = build, dict(settings), seed, needs
        self.entries = generated_pairs(count, mode, seed, "held_out")
        self._generator: KneePhantom | KneeLabels | None = None

    def missing(self) -> str | None:
        """The file that is not there."""
        if self.needs is not None and (self.needs[1] is None or not self.needs[1].is_file()):
            return f"{self.name}: {self.needs[0]} not found; name the folder of the data by --data or AVSM_DATA"
        return None

    def parameters(self) -> dict[str, Any]:
        """Generator and size."""
        return {"set": self.name, **self.settings}

    def names(self) -> list[str]:
        """Numbers of the pairs and their seeds."""
        return [f"{number:03d}_{entry['seed']:x}" for number, entry in enumerate(self.entries)]

    def case(self, index: int) -> Case:
        """Make a pair."""
        if self._generator is None:
            self._generator = self.build()
        entry, name = self.entries[index], self.names()[index]
        pair = self._generator.pair(entry["seed"], entry["mode"])
        frame = Frame(self._generator.shape, self._generator.affine, f"{self.name} {name}")
        images = {
            role: Image(pair[role].numpy(), frame, Path(self.name, name, f"{role}.nii.gz"))
            for role in ("fixed", "moving", "fixed_label", "moving_label")
        }
        return Case(name, **images, true_map=pair["true_map"].numpy())


def _spacing(grid: Sequence[int]) -> tuple[float, ...]:
    return tuple(round(extent / (n - 1), 6) for extent, n in zip(EXTENT_MM, grid, strict=True))


def _knees(places: Places, mode: str) -> dict[str, PairSet]:
    """The generated sets of one mode."""
    grid, short, kind = _grid(places.size), mode.removesuffix("_subject"), mode.replace("_", "-")
    spacing, file = _spacing(grid), places.file(_KNEE_FILE)
    settings = {"grid": grid, "spacing": spacing, "seed": places.seed}
    common = {"mode": mode, "labels": CARTILAGE, "count": places.count, "seed": places.seed}
    size = "×".join(map(str, places.size))
    return {
        f"phantom_{short}": GeneratedSet(
            f"phantom_{short}",
            "phantom",
            build=lambda: KneePhantom(grid, spacing),
            settings=settings,
            title=f"knee phantom, {kind}, {size}",
            **common,
        ),
        **{
            f"{family}_{short}": GeneratedSet(
                f"{family}_{short}",
                family,
                # One modality, contrasts as of sequences in use: what all methods of the tables are made for.
                build=lambda bounds=bounds: KneeLabels(file, grid, spacing, 0.0, 0.0, bounds),
                settings={**settings, "multimodal": 0.0, "random_contrast": 0.0, **changes},
                title=f"knees rendered from a real label map{words}, {kind}, {size}",
                needs=(_KNEE_FILE, file),
                **common,
            )
            for family, words, bounds, changes in (
                ("knees", "", None, {}),
                ("bent", ", bones and cartilage bent", _BENT, {"bounds": asdict(_BENT)}),
            )
        },
    }


def data_sets(places: Places) -> dict[str, PairSet]:
    """All data sets by name, those that are missing here included.

    Args:
        places: where data lie and how knees are made.
    """
    sets: dict[str, PairSet] = {
        "hippocampus": ListedSet(
            "hippocampus",
            "hippocampus",
            "cross_subject",
            places.file(_HIPPOCAMPUS_FOLDER),
            HIPPOCAMPUS,
            "hippocampus MR, the 30 registration_val pairs on their own 1 mm grids",
        )
    }
    for mode in MODES:
        sets.update(_knees(places, mode))
        kind = mode.replace("_", "-")
        sets[f"oai_{mode.removesuffix('_subject')}"] = ListedSet(
            f"oai_{mode.removesuffix('_subject')}",
            "oai",
            mode,
            places.file(_OAI_FILES[mode]),
            CARTILAGE,
            f"OAI knees, {kind}, {'×'.join(map(str, places.size))}",
            _grid(places.size),
            f"put {_OAI_FILES[mode]} below the folder of the data, see benchmarks/results/README.md",
        )
    for name, path in (places.lists or {}).items():
        mode = "longitudinal" if name.endswith("_longitudinal") else "cross_subject"
        family = name.removesuffix("_longitudinal").removesuffix("_cross")
        sets[name] = ListedSet(name, family, mode, path, {}, f"{name}: {path.name}", None, f"{path} does not exist")
    return sets
