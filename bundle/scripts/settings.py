"""The settings of a registration that users give: one table for the command line, Python and services.

Defaults stand in ``configs/inference.json`` and in the networks' files (``models/NAME.json``), and nowhere else. This
module imports nothing heavy, so that ``--help`` and errors about options answer at once.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .errors import InputError, shown

PACKAGE = __name__.split(".")[0]
"""The name under which this code is imported: ``scripts`` from the bundle's folder, ``avsm`` when installed."""

_HERE = Path(__file__).resolve().parent
BUNDLE = _HERE.parent if (_HERE.parent / "configs").is_dir() else _HERE / "bundle"
"""The folder with ``configs`` and ``models``."""

FILES = {
    "fixed": "fixed image; the result has its grid",
    "moving": "moving image, which is warped",
    "fixed_label": "label map on the fixed image's grid; measured with, and, with --label-weight, registered by",
    "moving_label": "label map on the moving image's grid; warped along",
    "fixed_mask": "where in the fixed image the similarity counts",
    "moving_mask": "where in the moving image the similarity counts",
    "fixed_points": "landmarks of the fixed image (.csv, .mrk.json, .fcsv, .vtk; mm), to be carried onto those of "
    "--moving-points; they are measured and, unless --point-weight is 0, registered by",
    "moving_points": "the same landmarks in the moving image, in the same order",
}
"""The files of a pair, by the names that lists, configs and the command line give them, and what each is."""

CHANNELS = {
    "fixed_channels": "further images in the space of the fixed image, such as another contrast, each on its own grid, "
    "to be compared with those of --moving-channels while all are registered by one transform",
    "moving_channels": "as many in the space of the moving image, in the same order",
}
"""Further images of a pair, several each."""

DEFAULT_MODEL = "general"
SEARCHES = ("auto", "search")
PLACINGS = ("geometry", "moments", "header")
INITIALISATIONS = (*SEARCHES, *PLACINGS)
TRANSFORMS = ("rigid", "similarity", "affine", "deformable")
SIMILARITIES = ("auto", "lncc", "nmi", "mind", "ssd")
AVERAGES = ("sharpened", "mean", "median")
TOOLS = ("itk", "elastix", "fsl", "greedy", "niftyreg", "spm")
"""Whose transforms are written, where files of one suffix differ."""
EXTENTS = ("common", "own")
SPACES = ("RAS", "LPS")
SPACE_HELP = "world of points in files that do not say it themselves: all CSV files and most VTK files (ANTs' are LPS)"
DTYPES = ("float32", "float64", "int16", "uint16", "uint8", "int32", "same")


STAGES = ("before", "affine", "final")
"""What is measured: the initialisation alone, with the affine, with the deformation."""

INVERSE = "inverse:"
"""Before a transform's file: its inverse is meant."""

_LONGEST = 200  # characters of a word


class TransformFile(str):
    """A transform's file as the caller's folder sees it, or ``inverse:`` before it."""

    def __new__(cls, given: str | os.PathLike) -> TransformFile:
        """Make a path absolute, behind ``inverse:`` and with a user's home, too."""
        text = os.fspath(given)
        prefix = INVERSE if text.startswith(INVERSE) else ""
        return super().__new__(cls, prefix + os.path.abspath(os.path.expanduser(text.removeprefix(prefix))))

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.removeprefix(INVERSE))


@dataclass(frozen=True)
class Preset:
    """How a pair is registered: where affines come from, then which deformable stages, each begun by the one before.

    Stages are ``network`` (the model and its weights) and ``engine`` (`RegistrationEngine`, `AffineEngine`, with their
    settings of the preset's name, no weights).

    Attributes:
        help: in a few words.
        affines: what is asked for an affine; the most similar goes on.
        stages: the deformable stages, in their order.
        grid_voxels: the most voxels of the grid that both images are sampled on.
        native: whether that grid is at most as fine as the images, so that small images are not interpolated.
        settled: below so much (`metrics.settled`) the engine begins once more, from the best rigid motion.
    """

    help: str
    affines: tuple[str, ...]
    stages: tuple[str, ...]
    grid_voxels: int
    native: bool = False
    settled: float = 0.0

    @property
    def network(self) -> bool:
        """Whether it needs a network and weights."""
        return "network" in (*self.affines, *self.stages)

    @property
    def drivable(self) -> bool:
        """Whether labels and landmarks can drive it: its deformation does not come from a network alone."""
        return self.stages != ("network",)


_NETWORK_VOXELS, _ENGINE_VOXELS = 150_000, 3_000_000
_BOTH, _NETWORK, _ENGINE = ("network", "engine"), ("network",), ("engine",)
PRESETS = {
    "fast": Preset("a network, for anatomy that it knows", _BOTH, _NETWORK, _NETWORK_VOXELS),
    "default": Preset("optimisation of this pair from coarse to fine", _ENGINE, _ENGINE, _ENGINE_VOXELS, True, 0.8),
    "best": Preset("the same with more steps", _ENGINE, _ENGINE, _ENGINE_VOXELS, True, 1.0),
    "affine-opt": Preset("an affine alone", _ENGINE, (), _NETWORK_VOXELS),
    "vsvf-opt": Preset("the paper's optimiser", _ENGINE, _ENGINE, _NETWORK_VOXELS),
    "instance": Preset("the network, then optimisation from there", _BOTH, (*_NETWORK, *_ENGINE), _NETWORK_VOXELS),
}
"""Every way to register, by name."""
WITH_NETWORK = "give preset " + " or ".join(name for name, preset in PRESETS.items() if preset.network)
DRIVABLE = "give another preset, such as default"


@dataclass(frozen=True)
class Setting:
    """One setting, and the schema of its values, from wherever they come.

    Attributes:
        name: of the Python keyword; with hyphens, of the option.
        help: what it does, without its default.
        config: its id in ``configs/inference.json``, where that is another than ``name``.
        kind: ``str``, ``int``, ``float``, ``bool``, ``Path`` or `TransformFile`.
        choices: all values that it may have.
        least: the lowest number.
        most: the highest number.
        count: how many values it takes; 0: one or more, as a list.
        network: whether it means nothing to presets without a network.
    """

    name: str
    help: str
    config: str = ""
    kind: type = str
    choices: tuple[str, ...] = ()
    least: float = 0
    most: float = math.inf
    count: int = 1
    network: bool = False

    @property
    def option(self) -> str:
        """Its name on the command line."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def id(self) -> str:
        """Its id in ``configs/inference.json``."""
        return self.config or self.name

    def checked(self, value: Any) -> Any:
        """A value that the setting may have, InputError for another: no text that MONAI's parser would run passes."""
        values = list(value) if self.count != 1 and isinstance(value, list | tuple) else [value]
        if self.count and len(values) != self.count:
            raise InputError(f"{self.name}={shown(value)}: give {self.count} values")
        if not values or not all(map(self.may_be, values)):
            raise InputError(f"{self.name}={shown(value)}: give {self.wanted}")
        if self.kind in _PATHS:
            values = [_PATHS[self.kind](one) for one in values]
        return values if self.count != 1 else values[0]

    @property
    def wanted(self) -> str:
        """What values it may have, in words."""
        if self.kind in (int, float):
            number = "a whole number" if self.kind is int else "a number"
            limit = "on" if self.most == math.inf else f"to {self.most:.10g}"
            return f"{number} from {self.least:.10g} {limit}"
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        return {bool: "true or false", Path: "a path", TransformFile: "paths"}.get(
            self.kind, f"a plain word of at most {_LONGEST} characters"
        )

    def may_be(self, value: Any) -> bool:
        """Whether it may have a value."""
        if self.kind in (int, float):
            kinds = int if self.kind is int else int | float
            number = isinstance(value, kinds) and not isinstance(value, bool)
            return number and -math.inf < value < math.inf and self.least <= value <= self.most
        if self.kind is bool:
            return isinstance(value, bool)
        if self.kind in _PATHS:
            return isinstance(value, str | Path) and str(value).removeprefix(INVERSE).strip() != ""
        word = isinstance(value, str) and value.strip() != "" and len(value) <= _LONGEST and is_plain(value)
        return word and (not self.choices or value in self.choices)


SETTINGS = (
    Setting(
        "preset",
        "how to register; " + "; ".join(f"{name}: {preset.help}" for name, preset in PRESETS.items()),
        choices=tuple(PRESETS),
    ),
    Setting("model", "network of the bundle, with its weights and grid", network=True),
    Setting("weights", "weights of the network", "ckpt_path", Path, network=True),
    Setting(
        "initialisation",
        "how the moving image is laid on the fixed one at first: by a search over all turns and shifts that leaves "
        "the headers' orientation only for a better one (auto) or takes the best (search), by the centres of the "
        "fields of view (geometry), by centres of mass (moments), or not at all: the world coordinates are trusted "
        "(header); part of every transform that is written",
        choices=INITIALISATIONS,
    ),
    Setting(
        "initial_transform",
        "transforms to start from, in place of an initialisation: fixed to moving points, in any format that avsm "
        "apply reads; the first listed acts on a point first (ANTs' order); inverse:T for the inverse of T; part of "
        "every transform that is written",
        kind=TransformFile,
        count=0,
    ),
    Setting(
        "transform",
        "kind of transform: rigid (a turn and a shift), similarity (with one scale), affine, or an affine and a "
        "deformation; an initial transform is kept whole, of whatever kind, as in ANTs",
        choices=TRANSFORMS,
    ),
    Setting(
        "similarity",
        "what images are compared by; lncc: local correlation, for one contrast; mind: self-similarity, for any two, "
        "after an affine by mutual information; nmi: mutual information; ssd: squared differences, for equal greys; "
        "auto: lncc or mind, by the pair",
        choices=SIMILARITIES,
    ),
    Setting(
        "label_weight",
        "of the overlap (soft Dice) of both label maps in what is optimised; 0: labels are measured with, not "
        "registered by",
        "overlap_weight",
        float,
    ),
    Setting("label_names", "what label values stand for in the report: ITK-SNAP's label descriptions", kind=Path),
    Setting(
        "point_weight",
        "of the distances of landmarks in what is optimised; 0: they are measured, not registered by",
        kind=float,
    ),
    Setting(
        "channel_weights",
        "of the images of --fixed-channels and --moving-channels, one for each, that of --fixed and --moving being 1; "
        "unset: 1 each",
        kind=float,
        count=0,
    ),
    Setting("point_tolerance", "mm within which landmarks are to be carried onto each other", kind=float, least=1e-3),
    Setting("space", SPACE_HELP, choices=SPACES),
    Setting("affine_steps", "steps of the affine network", kind=int, most=1000, network=True),
    Setting("vsvf_steps", "deformable steps of the network", kind=int, most=1000, network=True),
    Setting(
        "grid",
        "size of the grid that both images are sampled on; unset, the field of view, the images' own voxels and "
        "--grid-voxels decide",
        kind=int,
        least=4,
        most=10_000,
        count=3,
    ),
    Setting(
        "grid_voxels",
        f"in place of --grid: the most voxels it may have; unset: {_NETWORK_VOXELS}, and {_ENGINE_VOXELS} for default "
        "and best",
        kind=int,
        least=4096,
        most=10**12,
    ),
    Setting(
        "extent",
        "common: the grid spans the same millimetres of both images; own: each image's own field of view, as in the "
        "paper",
        choices=EXTENTS,
    ),
    Setting("interpolation", "of the moved image", choices=("linear", "bspline")),
    Setting(
        "label_interpolation",
        "of the moved label; linear: per label, then the largest wins",
        choices=("nearest", "linear"),
    ),
    Setting("dtype", "type of moved.nii.gz; same: the moving image's own", "output_dtype", choices=DTYPES),
    Setting("learn2reg", "also write displacement_voxel.nii.gz, in voxels", kind=bool),
    Setting("uncertainty", "also write uncertainty.nii.gz: how far structures may be off, mm", kind=bool),
    Setting("report", "write report.html and report.png", kind=bool),
    Setting("device", "such as cpu or cuda:0; unset: a GPU where there is one"),
    Setting(
        "max_memory",
        "MB that a pair may take; one that needs more is refused before the work; unset: none is refused",
        kind=int,
        least=1000,
    ),
    Setting("threads", "CPU threads; unset: PyTorch's choice", kind=int, least=1, most=1024),
    Setting("seed", "of everything random", kind=int, most=2**32 - 1),
)
_OF_SERIES = ("initialisation", "similarity", "grid_voxels", "interpolation", "dtype", "device", "threads", "seed")
SERIES = (
    Setting("transform", "kind of transform of each volume", choices=TRANSFORMS[:-1]),
    *(setting for setting in SETTINGS if setting.name in _OF_SERIES),
)
"""The settings of a series, see `registration.register_series`."""
SERIES_TRANSFORM = "rigid"
_OF_TEMPLATE = ("similarity", "device", "threads")
LONGITUDINAL = (
    Setting("average", "of the moved images", choices=AVERAGES),
    Setting("spacing", "mm of the average's voxels; unset: the images' median", kind=float, least=1e-3),
    Setting("preset", "see register", choices=tuple(name for name, preset in PRESETS.items() if preset.stages)),
    *(setting for setting in SETTINGS if setting.name in _OF_TEMPLATE),
)
TEMPLATE = (
    Setting("rounds", "deformable rounds, after a rigid one", kind=int, least=1, most=100),
    Setting("transform", "the last kind of transform", choices=("rigid", "affine", "deformable")),
    *LONGITUDINAL,
)
"""The settings of an average, see `registration.Template`; of one person's visits: `LONGITUDINAL`."""
TEMPLATE_DEFAULTS = {"rounds": 2, "transform": "deformable", "average": AVERAGES[0], "spacing": None}
LONGITUDINAL_DEFAULTS = {"average": "mean", "spacing": None}
_PAIRED = (("fixed_label", "moved_label"), ("fixed_points", "moving_points"), ("fixed", "moved"))
_BELONG = (*_PAIRED, *(pair[::-1] for pair in _PAIRED))
_BELONG += (
    ("labels", "fixed_label"),
    ("label_names", "fixed_label"),
    ("space", "fixed_points"),
    ("mask", "fixed"),
    ("reference", "transform"),
)
_PATHS = {Path: lambda given: Path(os.path.expanduser(given)).absolute(), TransformFile: TransformFile}
_BY_NAME = {setting.name: setting for setting in SETTINGS}


def models() -> dict[str, Path]:
    """Networks that are shipped with weights: name → its file, beside the weights."""
    files = {path.stem: path for path in sorted((BUNDLE / "models").glob("*.json"))}
    return {name: path for name, path in files.items() if _shipped(path)["ckpt_path"] is not None}


@functools.cache
def _shipped(path: Path) -> dict[str, Any]:
    """The content of a config or a network's file of the bundle, read once: every option asks for its default."""
    return json.loads(path.read_text(encoding="utf-8"))


def is_plain(text: str) -> bool:
    """Whether MONAI's config parser takes a text as it is, and not as an expression, a reference or a macro."""
    return text.lstrip()[:1] not in ("$", "@", "%")


def preset_of(name: str) -> Preset:
    """The preset of a name; InputError for another name."""
    return PRESETS[checked("preset", name)]


def named_in(config_files: Sequence[str | os.PathLike], name: str) -> Any:
    """What the last of some configs that has an id says of it; None where none has it."""
    found = [json.loads(Path(file).read_text(encoding="utf-8")).get(name) for file in config_files]
    return next((value for value in reversed(found) if value is not None), None)


def network_file(config_files: Sequence[str | os.PathLike] = (), model: str | None = None) -> Path:
    """The network's file: ``model``, or the one that some configs name, as recipes do, or the default."""
    return BUNDLE / "models" / f"{model or named_in(config_files, 'model') or DEFAULT_MODEL}.json"


def default(name: str) -> Any:
    """The default of a setting; None where it is unset or follows from the machine."""
    if name == "model":
        return DEFAULT_MODEL
    value = _shipped(BUNDLE / "configs" / "inference.json")[_BY_NAME[name].id]
    if isinstance(value, str) and "network_setting(" in value:
        value = _shipped(BUNDLE / "models" / f"{DEFAULT_MODEL}.json").get(_BY_NAME[name].id)
    return None if isinstance(value, str) and value.startswith("$") else value


def checked(name: str, value: Any) -> Any:
    """A setting's value, see `Setting.checked`; InputError for a name that is no setting, or a bad value."""
    if name not in _BY_NAME:
        raise InputError(f"{shown(name)}: no such setting; give one of {', '.join(_BY_NAME)}")
    setting = _BY_NAME[name]
    if name == "model":
        setting = replace(setting, choices=tuple(models()))
    return setting.checked(value)


def config_values(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What settings, by name, change in ``configs/inference.json``: config id → checked value; None is the default.

    ``model`` is checked and left out, as it names a file and no id. InputError as `checked`, or for settings that
    contradict each other.
    """
    given = {name: checked(name, value) for name, value in settings.items() if value is not None}
    preset = given.get("preset", default("preset"))
    idle = [name for name in given if _BY_NAME[name].network]
    if idle and not PRESETS[preset].network:
        raise InputError(f"{idle[0]}: belongs to a network, and preset {preset} uses none; {WITH_NETWORK}")
    kind = given.get("transform")
    if kind == "deformable" and not PRESETS[preset].stages:
        raise InputError(f"transform={kind}: preset {preset} is an affine alone; give another preset or transform")
    if kind not in (None, "deformable") and "vsvf_steps" in given:
        raise InputError(f"vsvf_steps: are deformable, which transform {kind} is not; leave one of them away")
    if given.get("similarity") in SIMILARITIES[2:] and PRESETS[preset].stages == _NETWORK:
        raise InputError(
            f"similarity={given['similarity']}: the deformation of preset {preset} is the network's, which learnt "
            "by local correlation; give preset default"
        )
    if given.get("label_weight") and not PRESETS[preset].drivable:
        raise InputError(f"label_weight: nothing drives the network of preset {preset}; {DRIVABLE}")
    if "initial_transform" in given and "initialisation" in given:
        raise InputError(
            f"initialisation={given['initialisation']}: initial_transform says where to start; give one of the two"
        )
    if "initial_transform" in given and given.get("extent") == "own":
        raise InputError("extent=own: lays each image's own box; with initial_transform leave it away")
    if "grid" in given and "grid_voxels" in given:
        raise InputError("grid_voxels: grid is given as well; give one of the two")
    values = {_BY_NAME[name].id: value for name, value in given.items() if name != "model"}
    if "grid_voxels" in given:
        values["grid"] = None
    return values


def check_landmarks(settings: Mapping[str, Any], files: Mapping[str, Any]) -> None:
    """InputError for settings of landmarks for a pair that has none; both by name, None where not given."""
    if all(files.get(f"{role}_points") is None for role in ("fixed", "moving")):
        for name in ("point_weight", "point_tolerance", "space"):
            if settings.get(name) is not None:
                mend = "give fixed_points and moving_points, or leave it away"
                raise InputError(f"{name}: is of landmarks, and there are none; {mend}")


def check_measured(given: Mapping[str, Any]) -> None:
    """InputError where an evaluation lacks what belongs to something given, or has nothing to measure; all by name."""
    there = {name for name, value in given.items() if value is not None}
    for name, other in _BELONG:
        if name in there and other not in there:
            raise InputError(f"{name}: needs {other}")
    if "transform" in there and not there & {"reference", "fixed_points"}:
        raise InputError("transform: needs reference, or points")
    if not there:
        raise InputError("nothing to measure; give labels, points, images, or a transform with a reference")


def series_values(settings: Mapping[str, Any], fixed: bool) -> dict[str, Any]:
    """As `config_values`, of the settings of a series (`SERIES`); ``fixed``: whether there is a fixed image."""
    _check(settings, SERIES)
    if settings.get("initialisation") is not None and not fixed:
        raise InputError("initialisation: without a fixed image the volumes lie as their header says; leave it away")
    return config_values({**settings, "transform": settings.get("transform") or SERIES_TRANSFORM})


def template_values(settings: Mapping[str, Any], visits: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """What an average is asked for, with its defaults, and the settings of its registrations; both by name.

    ``settings`` are of `TEMPLATE` or, for one person's visits, of `LONGITUDINAL`. InputError as `config_values`.
    """
    _check(settings, LONGITUDINAL if visits else TEMPLATE)
    asked = LONGITUDINAL_DEFAULTS if visits else TEMPLATE_DEFAULTS
    given = {name: value for name, value in settings.items() if value is not None}
    engine = {name: value for name, value in given.items() if name not in asked}
    config_values(engine)
    return {name: given.get(name, value) for name, value in asked.items()}, engine


def _check(settings: Mapping[str, Any], table: Sequence[Setting]) -> None:
    """InputError for a name that is not in a table, or a value that its setting cannot have."""
    known = {setting.name: setting for setting in table}
    for name, value in settings.items():
        if name not in known:
            raise InputError(f"{shown(name)}: no such setting here; give one of {', '.join(known)}")
        if value is not None:
            known[name].checked(value)
