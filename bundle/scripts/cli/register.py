"""``avsm register``: register any two images, or a list of pairs, by the bundle's ``configs/inference.json``."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from .. import __version__
from ..errors import InputError
from ..settings import (
    CHANNELS,
    FILES,
    INVERSE,
    SETTINGS,
    Setting,
    TransformFile,
    check_landmarks,
    config_values,
    default,
    models,
)
from .files import check_inputs
from .options import given_path, number, path_word, plain_word

HELP = "register two images, or a list of pairs"
USAGE = "--fixed FILE --moving FILE --output FOLDER"
DESCRIPTION = """\
Register a moving image to a fixed image: affine, then deformable, by optimisation for this pair or by the bundle's
network; in true physical space.

Both may be NIfTI (.nii, .nii.gz), NRRD (.nrrd, .nhdr), MetaImage (.mha, .mhd), FreeSurfer's .mgz or a folder with one
DICOM series, of any size, spacing and orientation. The output folder gets:
  moved.nii.gz            the moving image on the fixed image's grid, interpolated once
  moved_label.nii.gz      the moving label map likewise (with --moving-label)
  transform.h5            ITK composite transform, LPS mm: carries points of the FIXED image to the MOVING image, and so
                          warps images from moving to fixed (as antsApplyTransforms, SimpleITK and Slicer use it)
  inverse_transform.h5    its inverse: points of the moving image to the fixed image
  affine.tfm              the affine part alone, initialisation included
  displacement.nii.gz     the displacement field of the fixed grid, LPS mm, as ITK and ANTs read it
  jacobian.nii.gz         determinant of the Jacobian, 1 where volume is kept, below 0 where space folds
  metrics.json            verdict (PASS, CHECK or FAIL) and its reasons, similarity, folds, inverse consistency in mm,
                          Dice and HD95 (with labels), times, settings
  report.png, report.html pictures and figures to judge the registration by"""

EPILOG = """\
examples:
  avsm register --fixed fixed.nii.gz --moving moving.nii.gz --output result
  avsm register --fixed a.mha --moving b.mha --output result --preset best
  avsm register --fixed a.mha --moving b.mha --output result --preset fast --model hippocampus_labels
  avsm register --fixed study1/ --moving study2/ --output result --initialisation header --transform rigid
  avsm register --fixed a.mha --moving b.mha --output result --initial-transform warp.nii.gz inverse:affine.tfm
  avsm register --pairs pairs.csv --output results        (columns fixed, moving, perhaps fixed_label, moving_label,
                                                           fixed_mask, moving_mask, fixed_points,
                                                           moving_points, name; fixed_channels, moving_channels:
                                                           files with ; between; run again to resume)
"""

FAILED = 3
"""Exit status with ``--strict`` where a verdict is FAIL."""

# Written only without the option.
_NEGATED = ("report",)
_NAMED = 5  # pairs in a line


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    what = parser.add_argument_group("what to register")
    for name, text in FILES.items():
        short = (f"-{name[0]}",) if name in ("fixed", "moving") else ()
        what.add_argument(f"--{name.replace('_', '-')}", *short, metavar="FILE", type=given_path, help=text)
    for name, text in CHANNELS.items():
        option = f"--{name.replace('_', '-')}"
        what.add_argument(option, metavar="FILE", type=given_path, nargs="+", action="extend", help=text)
    what.add_argument(
        "--series",
        metavar="S",
        nargs="+",
        type=plain_word,
        help="of folders with several DICOM series, the fixed and the moving one: number, UID or description",
    )
    what.add_argument(
        "--pairs", metavar="LIST", type=given_path, help="list of pairs (.csv, .json) or folder with a dataset.json"
    )
    what.add_argument(
        "--bids",
        metavar="DATASET",
        type=given_path,
        help="BIDS data set: every image to --template or, without one, later sessions to the first; --output becomes "
        "a derivative data set",
    )
    what.add_argument("--template", metavar="FILE", type=given_path, help="with --bids: the fixed image of all")
    what.add_argument("--suffix", type=plain_word, help="with --bids: of the images, such as T2w (default: T1w)")
    what.add_argument("--section", type=plain_word, help="section of a dataset.json (default: registration_val)")
    what.add_argument(
        "--output", "-o", metavar="FOLDER", type=given_path, required=True, help="for the results, created if need be"
    )
    what.add_argument(
        "--strict",
        action="store_true",
        help=f"end with status {FAILED} when the verdict of a pair is FAIL; all files are written all the same",
    )
    how = parser.add_argument_group("how")
    for setting in SETTINGS:
        add_setting(how, setting, default(setting.name))


def add_setting(group: argparse._ArgumentGroup, setting: Setting, value: Any) -> None:
    """Add the option of a setting, whose default help shows."""
    if setting.kind is bool:
        if setting.name in _NEGATED:
            group.add_argument(
                f"--no-{setting.name}",
                dest=setting.name,
                action="store_const",
                const=False,
                help=f"do not {setting.help}",
            )
        else:
            group.add_argument(setting.option, action="store_const", const=True, help=setting.help)
        return
    shown = "" if value is None else f" (default: {value})"
    kinds = {kind: number(kind, setting.least, setting.most) for kind in (int, float)}
    kinds |= {str: plain_word, TransformFile: _transform_file}
    choices = tuple(models()) if setting.name == "model" else setting.choices
    group.add_argument(
        setting.option,
        type=kinds.get(setting.kind, given_path),
        nargs={0: "+", 1: None}.get(setting.count, setting.count),
        action="extend" if setting.count == 0 else "store",
        choices=choices or None,
        metavar=None if choices else {int: "N", float: "X", str: "NAME", TransformFile: "T"}.get(setting.kind, "FILE"),
        help=setting.help.replace("%", "%%") + shown,
    )


def _transform_file(text: str) -> TransformFile:
    """A transform's file, perhaps with ``inverse:`` before it."""
    path_word(text.removeprefix(INVERSE))
    return TransformFile(text)


def _series(options: argparse.Namespace) -> list[str]:
    """The DICOM series of the fixed and of the moving folder; empty where none are named."""
    if options.series is None:
        return []
    if len(options.series) > 2 or not (options.fixed and options.moving):
        options.usage_error("--series: give one or two, with --fixed and --moving; lists name FOLDER/SERIES")
    if several := [folder for folder in (options.fixed, options.moving) if not folder.is_dir()]:
        options.usage_error(f"--series: {several[0]} is no folder of several series; leave --series away")
    if options.fixed == options.moving and len(set(options.series)) == 1:
        options.usage_error(f"--series: {options.series[0]} is the fixed and the moving image; give two")
    return (options.series * 2)[:2]


def run(options: argparse.Namespace) -> int:
    """Register, and say where the result lies."""
    files = {name: getattr(options, name) for name in (*FILES, *CHANNELS) if getattr(options, name) is not None}
    for role, series in zip(("fixed", "moving"), _series(options), strict=False):
        files[role] = files[role] / series
    given_list = options.pairs or options.bids
    if given_list is None and not {"fixed", "moving"} <= files.keys():
        options.usage_error("give --fixed and --moving, or --pairs")
    if options.bids is not None and (options.pairs is not None or files):
        options.usage_error("--bids: other files are given as well; give one of the two")
    if options.bids is not None and options.label_weight:
        options.usage_error("--label-weight: --bids has no label maps; list them with --pairs")
    if options.bids is None and (options.template or options.suffix):
        options.usage_error("--template and --suffix need --bids")
    if options.pairs is not None and files:
        options.usage_error(f"--{next(iter(files)).replace('_', '-')}: --pairs is given as well; give one of the two")
    if options.pairs is None and options.section is not None:
        options.usage_error("--section needs --pairs")
    try:
        given = {setting.name: getattr(options, setting.name) for setting in SETTINGS}
        values = config_values(given)
        if given_list is None:
            check_landmarks(given, files)
    except InputError as error:
        options.usage_error(str(error))
    check_inputs([options.bids, options.template])
    listed, results = options.pairs, options.output
    if options.bids is not None:
        from ..data.bids import bids_pairs, name_results
        from ..storage import write_json

        pairs = bids_pairs(options.bids, options.output, options.suffix or "T1w", options.template)
        # A place that validators of BIDS leave alone.
        results = options.output / "sourcedata" / "avsm"
        results.mkdir(parents=True, exist_ok=True)
        listed = results / "bids.json"
        write_json(
            {"registration_val": [{key: pair[key] for key in ("fixed", "moving", "name")} for pair in pairs]}, listed
        )
    given = {**files, "dataset_dir": listed, "section": options.section, "output_dir": results}
    values.update({name: value for name, value in given.items() if value is not None})
    named = [one for value in files.values() for one in (value if isinstance(value, list) else [value])]
    check_inputs([*named, *(file.path for file in values.get("initial_transform", ()))])
    if sys.stderr.isatty():
        print("avsm: loading", file=sys.stderr, flush=True)
    from ..registration import Registrar

    batch = Registrar(options.model, begin=True, **values).batch()
    try:
        batch.run()
    finally:
        if options.bids is not None:
            name_results(pairs, results, options.output, __version__)
    failed = [name for name, outcome in batch.outcomes.items() if outcome == "FAIL"]
    if not options.strict or not failed:
        return 0
    named = ", ".join(failed[:_NAMED]) + (f" and {len(failed) - _NAMED} more" if len(failed) > _NAMED else "")
    print(f"error: {options.output}: verdict FAIL of {named}; see the report", file=sys.stderr)
    return FAILED
