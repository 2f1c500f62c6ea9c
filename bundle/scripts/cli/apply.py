"""``avsm apply``: images, labels and points under transforms."""

from __future__ import annotations

import argparse
import math

from ..settings import DTYPES
from .options import add_file, add_space, add_transform

INTERPOLATIONS = ("linear", "bspline", "nearest", "label-linear")
_SEVERAL = {"action": "extend", "nargs": "+", "default": []}

HELP = "apply transforms to images, labels and points"
USAGE = "--transform FILE --reference FILE --input FILE --output FILE"
DESCRIPTION = """\
Apply transforms to images, label maps and points.

Direction: a registration's transform.h5 carries points of the FIXED image to the MOVING image. So
  - images and label maps of the MOVING image are pulled onto the grid of --reference, the FIXED image;
  - points of the FIXED image come out in the MOVING image.
For the other way round take the registration's inverse_transform.h5, to which other tools have access as well, or
--inverse, which for points between voxels is the more exact one.

What an input is shows in its name: .csv, .mrk.json and .fcsv (Slicer) and .vtk hold points, all else is an image, or
with --label a label map. Points are in mm. An image is interpolated once, however many transforms there are."""

EPILOG = """\
several transforms:
  They are listed in ANTs' order: the first listed acts on a point first. With a warp on the fixed image's grid and an
  affine behind it, "--transform warp.nii.gz affine.mat" carries a fixed point p to affine(warp(p)), as
  "antsApplyTransforms -t warp.nii.gz -t affine.mat" does. --inverse inverts all of them and turns their order round.

examples:
  avsm apply --transform transform.h5 --reference fixed.nii.gz --input moving.nii.gz --output moved.nii.gz
  avsm apply --transform transform.h5 --reference fixed.nii.gz --label --input seg.nii.gz --output moved_seg.nii.gz
  avsm apply --transform transform.h5 --input fixed_points.csv --space LPS --output points_in_moving.csv
  avsm apply --transform warp.nii.gz affine.mat --reference fixed.nii.gz --input t1.nii.gz t2.nii.gz --output moved/
  avsm apply --transform transform.h5 --reference fixed.nii.gz --list files.csv
"""


def _number(text: str) -> float:
    """A finite number."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_transform(parser)
    parser.add_argument(
        "--inverse",
        action="store_true",
        help="apply the inverse: exact for an affine; for a displacement field found numerically to 0.001 mm, with a "
        "warning and the remaining error where that fails",
    )
    add_file(parser, "--reference", "R", "image whose grid the outputs get; points need none")
    add_file(
        parser,
        "--input",
        "X",
        "images (.nii, .nii.gz, .nrrd, .nhdr, .mha, .mhd, .mgz, or a folder with a DICOM series) or points "
        "(.csv, .mrk.json, .fcsv, .vtk)",
        **_SEVERAL,
    )
    add_file(
        parser,
        "--output",
        "Y",
        "a file for each input (.nii, .nii.gz, .nrrd, .mha; .csv, .mrk.json, .fcsv, .vtk for points), or one "
        "folder that exists, in which they keep their names",
        **_SEVERAL,
    )
    add_file(
        parser,
        "--list",
        "CSV",
        "in place of --input and --output: a table with the columns input, output and perhaps kind (image, "
        "label or points); paths are relative to its folder",
    )
    parser.add_argument("--label", action="store_true", help="the inputs are label maps (interpolation: nearest)")
    parser.add_argument(
        "--interpolation",
        choices=INTERPOLATIONS,
        help="images: linear (default) or bspline (cubic, may overshoot). Label maps: nearest (default) or "
        "label-linear (each label is interpolated linearly and the largest wins: smoother borders); these two imply "
        "--label",
    )
    parser.add_argument(
        "--default-value", metavar="V", type=_number, default=0.0, help="value outside the input image (default: 0)"
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES[:-1],  # of several inputs none is the one whose type "same" means
        help="type of the output images (default: label maps keep theirs; images become float32, or stay float64)",
    )
    add_space(parser)


def run(options: argparse.Namespace) -> int:
    """Apply the transforms to every input; a file that fails is told in one line and leaves nothing behind."""
    if bool(options.list) == bool(options.input or options.output):
        options.usage_error("give either --list or --input with --output")
    if options.label and options.interpolation in ("linear", "bspline"):
        options.usage_error(
            f"--label: label maps can't be interpolated by {options.interpolation}; choose label-linear"
        )
    if not options.list and not (options.input and options.output):
        options.usage_error("the following arguments are required: --input, --output")

    from .apply_files import apply_all, jobs_of

    jobs = jobs_of(options)
    if options.reference is None and any(job.kind != "points" for job in jobs):
        options.usage_error("the following arguments are required: --reference (images are resampled onto its grid)")
    return apply_all(jobs, options)
