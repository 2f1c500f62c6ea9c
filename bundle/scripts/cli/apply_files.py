"""The work of ``avsm apply``: what is to be done to which file, and doing it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.lists import read_table
from ..errors import InputError
from ..formats.points import SUFFIXES as POINT_SUFFIXES
from ..formats.points import Points, read_points, write_points
from ..storage import file_stem, is_there, writing
from .files import IMAGE_SUFFIXES, check_inputs, check_output, write_volume

if TYPE_CHECKING:
    from ..spatial.frame import Frame
    from ..transform import Transform

KINDS = ("image", "label", "points")
_LABEL_MODES = {"nearest": "nearest", "label-linear": "linear"}


@dataclass(frozen=True)
class Job:
    """One file to transform.

    Attributes:
        input: path read.
        output: path written.
        kind: one of `KINDS`.
    """

    input: Path
    output: Path
    kind: str


def _is_points(path: Path) -> bool:
    """Whether a file's name is that of landmarks."""
    return path.name.lower().endswith(POINT_SUFFIXES)


def _kind(path: Path, options: argparse.Namespace) -> str:
    """What a file is, by its name and the options."""
    if _is_points(path):
        return "points"
    return "label" if options.label or options.interpolation in _LABEL_MODES else "image"


def _name_in_folder(path: Path) -> str:
    """What an input's result is called in an output folder."""
    if _is_points(path) or path.name.lower().endswith(IMAGE_SUFFIXES):
        return path.name
    return f"{path.name if path.is_dir() else file_stem(path)}.nii.gz"


def _given_jobs(options: argparse.Namespace) -> list[Job]:
    """The jobs of ``--input`` and ``--output``."""
    inputs, outputs = [Path(path) for path in options.input], [Path(path) for path in options.output]
    if len(outputs) == 1 and outputs[0].is_dir():
        outputs = [outputs[0] / _name_in_folder(path.absolute()) for path in inputs]
    elif len(outputs) == 1 and len(inputs) > 1:
        raise InputError(
            f"{outputs[0]}: --output for {len(inputs)} inputs is not a folder that exists; create it first, or give as "
            "many outputs as inputs"
        )
    elif len(outputs) != len(inputs):
        options.usage_error(
            f"--output: {len(outputs)} for {len(inputs)} inputs; give as many outputs as inputs, or one folder"
        )
    return [Job(path, output, _kind(path, options)) for path, output in zip(inputs, outputs, strict=True)]


def _listed_jobs(path: Path, options: argparse.Namespace) -> list[Job]:
    """The jobs of a table."""
    columns, rows = read_table(path)
    if sorted(columns) not in (["input", "output"], ["input", "kind", "output"]):
        raise InputError(
            f"{path}: its first line must name the columns input, output and perhaps kind, got {','.join(columns)!r}"
        )
    jobs = []
    for line, row in enumerate(rows, start=2):
        cells = {name: text.strip() for name, text in row.items()}
        if not (cells["input"] and cells["output"]):
            raise InputError(f"{path}, line {line}: needs an input and an output; mend the line")
        source, target = path.parent / cells["input"], path.parent / cells["output"]
        kind = cells.get("kind") or _kind(source, options)
        if kind not in KINDS:
            raise InputError(f"{path}, line {line}: kind must be one of {', '.join(KINDS)} or empty, got {kind!r}")
        if (kind == "points") != _is_points(source):
            raise InputError(
                f"{path}, line {line}: kind {kind} does not go with {source.name}; points files end with "
                f"{', '.join(POINT_SUFFIXES)}"
            )
        jobs.append(Job(source, target, kind))
    if not jobs:
        raise InputError(f"{path}: lists no files; add at least one line")
    return jobs


def jobs_of(options: argparse.Namespace) -> list[Job]:
    """What the options ask for, checked as far as can be without reading images.

    Raises:
        InputError: for a bad list, files that do not exist, or outputs that can't be written, are named twice, or are
            read as well.
        SystemExit: for unequal numbers of inputs and outputs.
    """
    jobs = _listed_jobs(Path(options.list), options) if options.list else _given_jobs(options)
    check_inputs([*options.transform, options.reference])
    read = [*(job.input for job in jobs), *options.transform]
    read += [path for path in (options.reference, options.list) if path is not None]
    taken: set[Path] = set()
    for job in jobs:
        if not is_there(job.input):
            raise InputError(f"{job.input}: input does not exist; correct the path")
        check_output(job.output, POINT_SUFFIXES if job.kind == "points" else IMAGE_SUFFIXES, read)
        place = job.output.resolve()
        if place in taken:
            raise InputError(f"{job.output}: two inputs would be written to it; give each an output of its own")
        taken.add(place)
    return jobs


def _apply_points(job: Job, transform: Transform, options: argparse.Namespace) -> None:
    """Carry the points of one file; the result is in the world that the input is in."""
    points = read_points(job.input, options.space)
    carried = transform.points(points.coordinates)
    with writing(job.output):
        write_points(Points(carried, points.names), job.output, points.space)


def _apply_image(job: Job, reference: Frame, transform: Transform, options: argparse.Namespace) -> None:
    """Warp one image or label map onto the reference."""
    from ..api import noted
    from ..formats.images import read_label, read_volume
    from ..formats.volumes import check_holds

    label = job.kind == "label"
    image = noted(read_label(job.input) if label else read_volume(job.input))
    mode = _LABEL_MODES.get(options.interpolation) if label else options.interpolation
    if options.dtype is not None:
        check_holds(image.array, options.dtype, f"{job.input}: --dtype {options.dtype}", exact=label)
        check_holds(options.default_value, options.dtype, f"--default-value: --dtype {options.dtype}")
    array = transform.warp(image, reference, label, mode, options.default_value)
    write_volume(array, reference, job.output, options.dtype, clip=not label)


def apply_all(jobs: Sequence[Job], options: argparse.Namespace) -> int:
    """Do all jobs; each that fails is reported in a line and leaves no output.

    Returns:
        The exit status: 1 if any failed.

    Raises:
        InputError: if a transform or the reference can't be read.
    """
    from ..api import grid_of
    from ..transform import Transform

    transform = Transform.read(*options.transform)
    if options.inverse:
        transform = transform.inverse()
    reference = None if options.reference is None else grid_of(options.reference)
    failed = 0
    for job in jobs:
        try:
            with transform.named(job.input):
                if job.kind == "points":
                    _apply_points(job, transform, options)
                else:
                    _apply_image(job, reference, transform, options)
        except (InputError, OSError) as error:
            named = str(job.input) in str(error) or str(job.output) in str(error)
            print(f"error: {error}" if named else f"error: {job.input}: {error}", file=sys.stderr)
            failed += 1
        else:
            print(job.output)
    if failed and len(jobs) > 1:
        print(f"error: {failed} of {len(jobs)} files failed", file=sys.stderr)
    return 1 if failed else 0
