"""Data list files: Learn2Reg and Decathlon `dataset.json`, and plain lists of pairs as JSON or CSV."""

import csv
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any, NoReturn

from ..errors import InputError, shown
from ..settings import CHANNELS, FILES, is_plain
from ..storage import file_stem, is_there

IMAGE_SECTIONS = ("training", "test")
PAIR_SECTIONS = ("registration_val", "registration_test")

# What the files of both challenges say about themselves, misspellings included; none of it is needed here.
# fmt: off
_DESCRIPTIVE_KEYS = frozenset((
    "name", "description", "licence", "license", "reference", "release", "relase", "version", "authors",
    "tensorImageSize", "tensorImageShape", "tensorImageSpacing", "modality", "labels", "channel_names",
    "file_ending", "numTraining", "numTest", "numRegistration_val", "numRegistration_test", "numPairedImages",
    "numPairedTraining", "numPairedTest", "numPairedRegistration_val", "training_paired_images",
    "test_paired_images", "pairings", "provided_data", "registration_direction", "img_shift",
))
# fmt: on
# `mask` and `keypoints` occur in Learn2Reg entries and are not used.
_IMAGE_KEYS = frozenset(("image", "label", "subject", "time", "mask", "keypoints"))
_PAIR_KEYS = frozenset((*FILES, *CHANNELS, "name", "fixed_subject", "moving_subject"))
# Files beside the pairs' folders, of which a pair cannot have the name.
_TAKEN = re.compile(r"pairs\.csv|summary\.json|failed(_\d+)?\.json|mlruns.*|mlflow_run_name\.txt|config_.*\.json", re.I)
_LONGEST = 240  # bytes of a name; most file systems take 255
_MOST = 1e300  # of a time; neither infinity nor NaN, nor a whole number that is none of floats
_LARGEST = 1 << 28  # bytes of a list


def _check_name(name: Any) -> None:
    """Refuse a pair's name that its folder could not have."""
    plain = isinstance(name, str) and name.isprintable() and not name.startswith(".") and is_plain(name)
    if not plain or not name.strip() or any(c in name for c in "/\\:"):
        raise InputError(f"pair name {shown(name)} cannot be a file name; use letters, digits, '-' and '_'")
    if len(name.encode()) > _LONGEST:
        raise InputError(f"pair name {shown(name)} is longer than {_LONGEST} bytes; give the pair a shorter name")
    if _TAKEN.fullmatch(name):
        raise InputError(f"pair name {name!r} is that of a file of results; give the pair another name")


def name_pairs(pairs: Iterable[dict]) -> list[dict]:
    """Give every pair a unique `name`, `<moving stem>_to_<fixed stem>`, fit for a file name; one present is kept.

    Stems that do not tell two pairs apart (`p1/t1.nii.gz`, `p2/t1.nii.gz`) are led by their folder's name, and what is
    equal even then is numbered. InputError where two pairs carry one name, or a name that cannot be a file name.
    """
    pairs = [dict(pair) for pair in pairs]
    taken: set[str] = set()
    for pair in pairs:
        if (name := pair.get("name")) is None:
            continue
        _check_name(name)
        if name in taken:
            raise InputError(f"pair name {name!r} occurs twice; make the names unique or leave them out")
        taken.add(name)

    files: dict[str, set[str]] = {}
    for pair in pairs:
        for key in ("fixed", "moving"):
            files.setdefault(file_stem(pair[key]), set()).add(pair[key])

    def tag(path: str) -> str:
        stem = file_stem(path)
        return stem if len(files[stem]) == 1 else f"{Path(path).parent.name}-{stem}"

    numbers: Counter[str] = Counter()
    for pair in pairs:
        if pair.get("name") is None:
            base = name = f"{tag(pair['moving'])}_to_{tag(pair['fixed'])}"
            while name in taken:
                numbers[base] += 1
                name = f"{base}_{numbers[base] + 1}"
            _check_name(name)
            taken.add(name)
            pair["name"] = name
    return pairs


def find_datalist(path: str | PathLike) -> Path:
    """The absolute path of a list, `.json` or `.csv`, or of the `dataset.json` in a folder.

    InputError where there is none, or the file is empty or of another kind.
    """
    place = _absolute(path, Path.cwd(), shown(os.fspath(path)))
    kind = _kind(place)
    if kind is None:
        listed = place.suffix.lower() in (".json", ".csv")
        what = "list of pairs" if listed else "data set folder"
        mend = "correct the path" if listed else "give a folder with a dataset.json, or a .json or .csv list"
        raise InputError(f"{_cut(place)}: {what} does not exist; {mend}")
    if stat.S_ISDIR(kind.st_mode):
        kind = _kind(place / "dataset.json")
        if kind is None:
            raise InputError(f"{place}: no dataset.json in this folder; add one or name a .json or .csv list instead")
        place = place / "dataset.json"
    if not stat.S_ISREG(kind.st_mode):
        raise InputError(f"{place}: no regular file; give a .json or .csv file")
    if place.suffix.lower() not in (".json", ".csv"):
        raise InputError(f"{place}: unknown kind of data list '{place.suffix}'; give a .json or .csv file")
    if kind.st_size == 0:
        raise InputError(f"{place}: file is empty (0 bytes); copy or export it again")
    if kind.st_size > _LARGEST:
        raise InputError(f"{place}: {kind.st_size} bytes are no list of pairs; give a .json or .csv file with one")
    return place


def _absolute(value: str | PathLike, folder: Path, named: str) -> Path:
    """A path as a folder sees it, the home of a user included.

    Not resolve(): a link keeps its own name, from which stems and label paths are made.
    """
    try:
        return Path(os.path.normpath(Path(folder, Path(value).expanduser())))
    except RuntimeError as error:
        raise InputError(f"{named}: there is no such user's home folder; correct the path") from error


def _kind(path: Path) -> os.stat_result | None:
    """What a path is; None where there is nothing, or where it cannot be a path."""
    with suppress(OSError, ValueError):
        return os.stat(path)
    return None


def _cut(path: Path) -> str:
    text = str(path)
    return text if len(text) <= 300 and text.isprintable() else shown(text)


class _ListFile:
    """One list file being read: resolves paths against its folder and names itself in every error."""

    def __init__(self, file: Path):
        self.file = file
        self.label_of: dict[str, str] = {}

    def fail(self, where: str, problem: str) -> NoReturn:
        raise InputError(f"{self.file}: {where}: {problem}")

    def absolute(self, value: str) -> Path:
        return _absolute(value.strip(), self.file.parent, f"{self.file}: {shown(value)}")

    def path(self, value: Any, where: str, folder: bool = False) -> str:
        if not isinstance(value, str) or not value.strip():
            self.fail(where, f"{shown(value)} is not a file path; give a path relative to the list's folder")
        path = self.absolute(value)
        kind = _kind(path)
        known = stat.S_ISREG(kind.st_mode) or (folder and stat.S_ISDIR(kind.st_mode)) if kind else folder
        if not known or not is_there(path):
            self.fail(where, f"file {_cut(path)} does not exist; correct the entry or add the file")
        return str(path)

    def keys(self, entry: Any, known: Iterable[str], where: str) -> None:
        if not isinstance(entry, dict):
            self.fail(where, f"{shown(entry)} is not an object; see the known keys {sorted(known)}")
        if unknown := sorted(str(k) for k in entry if k not in known):
            self.fail(where, f"unknown key {shown(unknown[0])}; known keys are {sorted(known)}")

    def subject(self, value: Any, where: str) -> str:
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            self.fail(where, f"{shown(value)} is no subject; give a text or a number")
        return str(value)

    def image(self, entry: Any, where: str) -> dict:
        """One entry of `training` or `test`: {image, label?, subject, time?}."""
        if isinstance(entry, str):
            entry = {"image": entry}
        self.keys(entry, _IMAGE_KEYS, where)
        if "image" not in entry:
            self.fail(where, "key 'image' is missing; add the image's path")
        item = {"image": self.path(entry["image"], f"{where}.image")}
        if entry.get("label") is not None:
            item["label"] = self.path(entry["label"], f"{where}.label")
        item["subject"] = self.subject(entry.get("subject") or file_stem(item["image"]), f"{where}.subject")
        if (time := entry.get("time")) is not None:
            if isinstance(time, bool) or not isinstance(time, int | float) or not abs(time) < _MOST:
                self.fail(f"{where}.time", f"{shown(time)} is not a number; give the time as one")
            item["time"] = time
        return item

    def pair(self, entry: Any, where: str) -> dict:
        """One pair; labels not given are looked for where the Decathlon layout keeps them."""
        self.keys(entry, _PAIR_KEYS, where)
        entry = {k: v for k, v in entry.items() if v is not None and v != ""}
        for key in ("fixed", "moving"):
            if key not in entry:
                self.fail(where, f"key {key!r} is missing; every pair needs fixed and moving")
        # An image may be a folder with a DICOM series.
        pair = {
            key: self.path(entry[key], f"{where}.{key}", folder=key in ("fixed", "moving"))
            for key in FILES
            if key in entry
        }
        for key in ("fixed", "moving"):
            if f"{key}_label" not in pair and (label := self.find_label(pair[key])):
                pair[f"{key}_label"] = label
            if f"{key}_subject" in entry:
                pair[f"{key}_subject"] = self.subject(entry[f"{key}_subject"], f"{where}.{key}_subject")
        for key in CHANNELS:
            if key in entry:
                given = entry[key].split(";") if isinstance(entry[key], str) else entry[key]
                given = given if isinstance(given, list) else [given]
                pair[key] = [self.path(one, f"{where}.{key}", folder=True) for one in given]
        if "name" in entry:
            pair["name"] = entry["name"]
        return pair

    def find_label(self, image: str) -> str | None:
        if image in self.label_of:
            return self.path(self.label_of[image], f"training label of {image}")
        path = Path(image)
        folder = path.parent.name
        if folder.startswith("images"):
            label = path.parent.with_name("labels" + folder.removeprefix("images")) / path.name
            if label.is_file():
                return str(label)
        return None

    def named(self, pairs: list[dict]) -> list[dict]:
        try:
            return name_pairs(pairs)
        except InputError as error:
            raise InputError(f"{self.file}: {error}") from error


def read_table(file: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of a CSV table, as UTF-8 with or without byte-order mark; a row's number is its index plus 2.

    InputError when it can't be read, names a column twice, or has rows of another length than its first line.
    """
    kind = _kind(file)
    if kind is not None and not stat.S_ISREG(kind.st_mode):
        raise InputError(f"{file}: no regular file; give a CSV table")
    try:
        with open(file, newline="", encoding="utf-8-sig") as stream:
            lines = [line for line in csv.reader(stream, skipinitialspace=True, strict=True) if line]
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{file}: not a CSV table ({error}); save it as comma-separated UTF-8") from error
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); correct the path or its permissions") from error
    columns = [name.strip() for name in lines[0]] if lines else []
    for name, count in Counter(columns).items():
        if count > 1:
            raise InputError(f"{file}: column {shown(name)} is there {count} times; leave one")
    for row, line in enumerate(lines[1:], start=2):
        if len(line) != len(columns):
            problem = "it has more or fewer cells than the header; quote cells that hold commas"
            raise InputError(f"{file}: row {row}: {problem}")
    return columns, [dict(zip(columns, line, strict=True)) for line in lines[1:]]


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=_once)
    except RecursionError as error:
        raise InputError(f"{file}: nested too deeply for a data list; correct the file") from error
    except ValueError as error:  # no JSON, no UTF-8, a whole number of thousands of digits, a key that is there twice
        raise InputError(f"{file}: not JSON ({error}); correct the file") from error
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); correct the path or its permissions") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object none of whose keys that count is there twice."""
    content = dict(pairs)
    if len(content) < len(pairs):
        for key, count in Counter(key for key, _ in pairs).items():
            if count > 1 and key in {*_IMAGE_KEYS, *_PAIR_KEYS, *IMAGE_SECTIONS, *PAIR_SECTIONS}:
                raise ValueError(f"key {key!r} is there {count} times in one object")
    return content


def read_datalist(path_or_dir: str | PathLike, sections: Iterable[str] | None = None) -> dict[str, list[dict]]:
    """Read a data list.

    A Learn2Reg or Decathlon `dataset.json` gives its sections: `training` and `test` as lists of {image, label?,
    subject, time?}, `registration_val` and `registration_test` as lists of {fixed, moving, fixed_label?, moving_label?,
    name, ...}. A plain list of pairs (a JSON list of objects, or a CSV table with those headers) gives one section
    `pairs`. Paths come back absolute; relative ones are taken from the list's folder. The label of a pair's image is,
    unless the pair names it, the one `training` lists for the image, or else `labelsX/name` beside `imagesX/name` if
    that file exists. Without `subject` every image is its own subject.

    Args:
        path_or_dir: a folder holding `dataset.json`, or a `.json` or `.csv` file.
        sections: of a dataset.json, read only these; None reads all that are present. Files of other sections need
            not exist. A section asked for and absent is an error.

    Raises:
        InputError: the list cannot be read, holds an unknown key, lacks a section or a key, names a file that
            does not exist, or is empty.
    """
    source = _ListFile(find_datalist(path_or_dir))
    table = source.file.suffix.lower() == ".csv"
    content = read_table(source.file)[1] if table else _read_json(source.file)
    if isinstance(content, list):
        if not content:
            raise InputError(f"{source.file}: the list holds no pair; add at least one")
        where, start = ("row", 2) if table else ("pair", 0)
        return {"pairs": source.named([source.pair(e, f"{where} {n}") for n, e in enumerate(content, start)])}

    source.keys(content, {*IMAGE_SECTIONS, *PAIR_SECTIONS, *_DESCRIPTIVE_KEYS}, "top level")
    present = [name for name in (*IMAGE_SECTIONS, *PAIR_SECTIONS) if name in content]
    for name in present:
        if not isinstance(content[name], list):
            source.fail(name, f"{type(content[name]).__name__} found where a list is needed; write a list of entries")
    wanted = list(present if sections is None else sections)
    for name in wanted:
        if not content.get(name):
            source.fail(
                f"section {name!r}", f"absent or empty; sections with entries are {[n for n in present if content[n]]}"
            )

    for item in content.get("training", []):
        if isinstance(item, dict) and isinstance(item.get("image"), str) and isinstance(item.get("label"), str):
            source.label_of[str(source.absolute(item["image"]))] = item["label"]
    found: dict[str, list[dict]] = {}
    for name in (name for name in present if name in wanted):
        read = source.image if name in IMAGE_SECTIONS else source.pair
        found[name] = [read(entry, f"{name}[{number}]") for number, entry in enumerate(content[name])]
        if name in PAIR_SECTIONS:
            found[name] = source.named(found[name])
        elif twice := [image for image, n in Counter(item["image"] for item in found[name]).items() if n > 1]:
            source.fail(name, f"image {twice[0]} is listed twice; list it once")
    return found
