"""``avsm template``: an unbiased average of images."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from ..settings import TEMPLATE, TEMPLATE_DEFAULTS, Setting, default
from .files import check_inputs
from .options import given_path
from .register import add_setting

HELP = "an unbiased average of images"
USAGE = "FILE FILE --output FOLDER"
DESCRIPTION = """\
Build an average of images of many people, or of many visits. All images are registered to the average, and the average
moves to their middle, round by round: rigid, then deformable. The output folder gets:
  template.nii.gz      the average, in the mean of the images' intensities
  deviation.nii.gz     how much the moved images differ, standard deviation of intensities in [0, 1]
  label.nii.gz         the label that most images have (with labels)
  template.json        what was done; how far from the middle the average is (mm), and how sharp, after each round
  NAME/                of each image: transform.h5 (points of the AVERAGE to the image, so that it warps the image onto
                       the average), inverse_transform.h5 (the other way), moved.nii.gz, moved_label.nii.gz,
                       and jacobian.nii.gz, how much larger the image is, at each voxel of the average
  rounds/              what was found on the way; run again to go on where it stopped; torchrun shares the work

The transforms' mean over the images is the identity: none of the images is preferred, nor any order of them. In the
words of avsm register the average is the FIXED image, and each image a MOVING one."""

EPILOG = """\
examples:
  avsm template a.nii.gz b.nii.gz c.nii.gz --output average
  avsm template --images subjects.csv --output average --average median     (columns image, perhaps label, name)
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_images(parser, "images", TEMPLATE, TEMPLATE_DEFAULTS)


def add_images(
    parser: argparse.ArgumentParser, what: str, table: Sequence[Setting], defaults: Mapping[str, Any]
) -> None:
    """Add the options of an average of images, or of visits."""
    parser.add_argument("image", metavar="IMAGE", nargs="*", type=given_path, help=f"two {what} or more")
    parser.add_argument(
        f"--{what}", metavar="LIST", type=given_path, help=f"list of {what} (.csv) with the columns image, label, name"
    )
    parser.add_argument("--output", "-o", metavar="FOLDER", type=given_path, required=True, help="for the results")
    for setting in table:
        add_setting(parser, setting, defaults[setting.name] if setting.name in defaults else default(setting.name))


def run(options: argparse.Namespace) -> int:
    """Build."""
    facts = build(options, "images", TEMPLATE)
    last = facts["rounds"][-1]
    middle, gradient = last["mean_displacement_mm"], last["mean_gradient"]
    told = f"at most {middle:.3f} mm from their middle; sharpness (gradient) {gradient:.4f} of the grey range per mm"
    print(f"{options.output}: average of {len(facts['images'])} images, {told}")
    return 0


def build(options: argparse.Namespace, what: str, table: Sequence[Setting]) -> dict[str, Any]:
    """The average of images, or of visits; what it writes into ``template.json``.

    Raises:
        InputError: for files or options that cannot be used.
    """
    listed = getattr(options, what)
    if bool(options.image) == (listed is not None):
        options.usage_error(f"give {what}, or --{what} with a list of them")
    check_inputs([*options.image, listed])
    from .. import api

    make = api.template if what == "images" else api.longitudinal
    given = {setting.name: getattr(options, setting.name) for setting in table}
    return make(listed or options.image, options.output, **given)
