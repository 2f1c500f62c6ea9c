"""``avsm longitudinal``: the visits of one person in their own middle."""

from __future__ import annotations

import argparse

from ..settings import LONGITUDINAL, LONGITUDINAL_DEFAULTS
from .template import add_images, build

HELP = "the change between one person's visits"
USAGE = "FILE FILE --output FOLDER"
DESCRIPTION = """\
Compare two or more visits of one person in their unbiased average: every visit is registered to every other one, rigid,
then deformable. No visit is preferred, nor any order of them; poses are no change. The output folder gets:
  template.nii.gz      the average, with the volumes of their mean
  NAME/                of each visit: transform.h5 (points of the AVERAGE to the visit, so that it warps the visit onto
                       the average), inverse_transform.h5 (the other way), moved.nii.gz, moved_label.nii.gz,
                       and jacobian.nii.gz, how much larger the visit is, at each voxel of the average
  change.nii.gz        the last visit's volume over the first one's, at each voxel of the average: 0.98 is a loss of 2 %
  template.json        what was done, and the rest of what avsm template writes

In the words of avsm register the average is the FIXED image, and each visit a MOVING one."""

EPILOG = """\
examples:
  avsm longitudinal 2019.nii.gz 2021.nii.gz --output patient
  avsm longitudinal --visits visits.csv --output patient     (columns image, perhaps label, name; in order of time)
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_images(parser, "visits", LONGITUDINAL, LONGITUDINAL_DEFAULTS)


def run(options: argparse.Namespace) -> int:
    """Compare."""
    found = build(options, "visits", LONGITUDINAL)["change"]
    low, high = found["percent"]["5"], found["percent"]["95"]
    print(f"{options.output}: change of volume {found['percent']['50']:+.2f} %, from {low:+.2f} to {high:+.2f} %")
    return 0
