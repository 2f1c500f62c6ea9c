"""``avsm series``: motion correction of a 4-D image."""

from __future__ import annotations

import argparse
import sys

from ..errors import InputError
from ..settings import SERIES, SERIES_TRANSFORM, default, series_values
from .files import check_inputs
from .options import given_path
from .register import add_setting

HELP = "register the volumes of a series (motion correction)"
USAGE = "--moving FILE --output FOLDER"
DESCRIPTION = """\
Register every volume of a series to one fixed image or, without one, to the series' own mean: motion correction.

FOLDER then holds
  moved.nii.gz            all volumes on the fixed image's grid; without one, in the place of the volume in the middle
  mean.nii.gz             their mean
  motion.tsv, motion.png  a row a volume: shift of the fixed image's middle (mm), turns about the axes to the right, to
                          the front and up (degrees, in this order), framewise displacement (mm, turns as arcs on a
                          sphere of 50 mm), correlation with the fixed image
  transforms/0000.tfm ... ITK transforms, LPS mm, from points of the FIXED image to the volume's, the MOVING image
  metrics.json            what was asked for, means, warnings, versions

A run that was interrupted goes on where it was; memory does not grow with the number of volumes."""

EPILOG = """\
examples:
  avsm series --moving fmri.nii.gz --output result
  avsm series --moving dmri.nii.gz --fixed b0.nii.gz --output result --transform affine
  avsm series --moving t0.nii.gz t1.nii.gz t2.nii.gz --output result
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    what = parser.add_argument_group("what to register")
    what.add_argument(
        "--moving",
        "-m",
        metavar="FILE",
        type=given_path,
        nargs="+",
        required=True,
        help="4-D .nii or .nii.gz, or the files of the volumes in order",
    )
    what.add_argument(
        "--fixed", "-f", metavar="FILE", type=given_path, help="what all are registered to (default: their own mean)"
    )
    what.add_argument(
        "--fixed-mask",
        metavar="FILE",
        type=given_path,
        help="where the similarity counts, on the grid of the fixed image, or of the volumes",
    )
    what.add_argument("--output", "-o", metavar="FOLDER", type=given_path, required=True, help="for the results")
    how = parser.add_argument_group("how")
    for setting in SERIES:
        add_setting(how, setting, SERIES_TRANSFORM if setting.name == "transform" else default(setting.name))


def run(options: argparse.Namespace) -> int:
    """Register, and say where the result lies."""
    try:
        values = series_values({one.name: getattr(options, one.name) for one in SERIES}, options.fixed is not None)
    except InputError as error:
        options.usage_error(str(error))
    check_inputs([*options.moving, options.fixed, options.fixed_mask])
    if sys.stderr.isatty():
        print("avsm: loading", file=sys.stderr, flush=True)
    from ..registration import register_series
    from ..workflow import begin

    begin(options.seed, options.threads, options.output)
    register_series(options.moving, options.output, options.fixed, options.fixed_mask, **values)
    return 0
