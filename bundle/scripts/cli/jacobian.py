"""``avsm jacobian``: local change of volume under a transform, and where it folds."""

from __future__ import annotations

import argparse

from .options import add_file, add_transform

HELP = "Jacobian determinant of transforms as an image, with folds and spread"
USAGE = "--transform FILE --reference FILE --output FILE"
DESCRIPTION = """\
Write the Jacobian determinant of a transform as an image, and print its figures as one line of JSON.

Direction: a registration's transform.h5 carries points of the FIXED image to the MOVING image; take the fixed image as
--reference. The determinant is local volume in the moving image for one in the fixed image: above 1 where the fixed
image's tissue is larger in the moving image, below 0 where space folds. All transforms and their affine parts count;
it is that of the map in mm, whatever the reference's orientation and spacing.

The image holds central differences between the reference's voxels. "folds" counts the voxels at which any of the eight
combinations of forward and backward differences is negative, which central differences would miss; "folds_sum" is the
sum of the most negative ones. "std_log_jacobian" and "jacobian_min", "_max", "_mean" are of the image."""

EPILOG = """\
example:
  avsm jacobian --transform transform.h5 --reference fixed.nii.gz --output jacobian.nii.gz
  avsm jacobian --transform warp.nii.gz affine.mat --reference fixed.nii.gz --log --output log_jacobian.nii.gz
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_transform(parser)
    add_file(parser, "--reference", "R", "image on whose grid to measure", required=True)
    add_file(parser, "--output", "J", "image to write: .nii, .nii.gz, .nrrd or .mha, float32", required=True)
    parser.add_argument(
        "--log",
        action="store_true",
        help="write the natural logarithm of the determinant; what is below 1e-9, as at folds, counts as 1e-9",
    )
    parser.add_argument(
        "--without-affine",
        action="store_true",
        help="divide the image by the determinant of the transform's affine parts: local change alone, 1 where the "
        "deformation keeps volume; the figures stay those of the whole transform",
    )


def run(options: argparse.Namespace) -> int:
    """Measure, write, and print one line of JSON."""
    from .files import IMAGE_SUFFIXES, check_inputs, check_output, write_volume

    check_inputs([*options.transform, options.reference])
    check_output(options.output, IMAGE_SUFFIXES, [options.reference, *options.transform])
    import json

    import numpy as np

    from ..api import grid_of
    from ..metrics import world_jacobian
    from ..metrics.regularity import FLOOR
    from ..storage import plain
    from ..transform import Transform

    transform = Transform.read(*options.transform)
    reference = grid_of(options.reference)
    with transform.named(options.reference):
        jacobian = world_jacobian(transform.parts, reference)
    volume = jacobian.determinant
    if options.without_affine:
        volume = volume / abs(transform.affine_determinant)
    if options.log:
        volume = np.log(np.maximum(volume, FLOOR))
    write_volume(volume.astype(np.float32), reference, options.output)
    print(json.dumps(plain({"output": options.output, **jacobian.measures})))
    return 0
