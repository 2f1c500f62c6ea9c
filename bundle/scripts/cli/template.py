"""``avsm template``: an unbiased average of images."""

from __future__ import annotations

import argparse
import functools

from ..errors import InputError
from ..settings import AVERAGES, PRESETS, SIMILARITIES, TRANSFORMS, config_values
from .options import given_path, number, whole_number

_DESCRIPTION = """\
Build an average of images of many people, or of many visits. All images are registered to the average, and the average
moves to their middle, round by round: rigid, affine, then deformable. The output folder gets:
  template.nii.gz      the average, in the mean of the images' intensities
  deviation.nii.gz     how much the moved images differ, standard deviation of intensities in [0, 1]
  label.nii.gz         the label that most images have (with labels)
  template.json        what was done; how far from the middle the average is (mm), and how sharp, after each round
  NAME/                of each image: transform.h5 (points of the AVERAGE to the image, so that it warps the image onto
                       the average), inverse_transform.h5 (the other way), moved.nii.gz, moved_label.nii.gz
  rounds/              what was found on the way; run again to go on where it stopped

The transforms' mean over the images is the identity: none of the images is preferred, nor any order of them. Each of
FIXED (the average) and MOVING (an image) is as in avsm register."""

_EPILOG = """\
examples:
  avsm template a.nii.gz b.nii.gz c.nii.gz --output average
  avsm template --images subjects.csv --output average --average median     (columns image, perhaps label, name)
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "template", help="an unbiased average of images", description=_DESCRIPTION, epilog=_EPILOG
    )
    parser.add_argument("image", metavar="IMAGE", nargs="*", type=given_path, help="two images or more")
    parser.add_argument(
        "--images", metavar="LIST", type=given_path, help="list of images (.csv) with the columns image, label, name"
    )
    parser.add_argument("--output", "-o", metavar="FOLDER", type=given_path, required=True, help="for the results")
    parser.add_argument(
        "--rounds", metavar="N", type=whole_number(1, 100), default=4, help="deformable rounds (default: 4)"
    )
    parser.add_argument(
        "--transform",
        choices=[kind for kind in TRANSFORMS if kind != "similarity"],
        default="deformable",
        help="the last kind of transform (default: deformable)",
    )
    parser.add_argument(
        "--average", choices=AVERAGES, default=AVERAGES[0], help=f"of the moved images (default: {AVERAGES[0]})"
    )
    parser.add_argument(
        "--spacing", metavar="MM", type=number(1e-3), help="of the average (default: the images' median)"
    )
    parser.add_argument(
        "--preset", choices=[name for name, preset in PRESETS.items() if preset.stages], help="see register"
    )
    parser.add_argument("--similarity", choices=SIMILARITIES, help="see register")
    parser.add_argument("--threads", metavar="N", type=whole_number(1, 1024), help="see register")


def run(options: argparse.Namespace) -> int:
    """Build.

    Args:
        options: as parsed.

    Returns:
        The exit status.

    Raises:
        InputError: for files or options that cannot be used.
    """
    if bool(options.image) == (options.images is not None):
        options.usage_error("give images, or --images with a list of them")
    from .files import check_inputs

    check_inputs([*options.image, options.images])
    rows = [{"image": str(path)} for path in options.image] if options.images is None else _listed(options.images)
    given = {name: getattr(options, name) for name in ("preset", "similarity", "threads")}
    values = config_values(given)
    import torch

    from ..registration import Registrar, Template, subjects_of

    subjects = subjects_of(rows)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    registrar = functools.cache(lambda kind: Registrar(**{**values, **config_values({"transform": kind})}))
    build = Template(
        subjects, options.output, registrar, options.rounds, options.transform, options.average, options.spacing
    )
    last = build.build()["rounds"][-1]
    middle, gradient = last["mean_displacement_mm"], last["mean_gradient"]
    told = f"at most {middle:.3f} mm from their middle; mean gradient {gradient:.4f} of the range a mm"
    print(f"{options.output}: average of {len(subjects)} images, {told}")
    return 0


def _listed(path: str) -> list[dict]:
    """The rows of a list; paths are from the list's folder."""
    import pandas as pd

    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (ValueError, OSError) as error:
        raise InputError(
            f"{path}: is no table of images ({' '.join(str(error).split())[:100]}); need a CSV file"
        ) from error
    if "image" not in table:
        raise InputError(f"{path}: has no column 'image'; its first line names the columns image, label, name")
    files = [name for name in ("image", "label") if name in table]
    for name in files:
        table[name] = [str(path.parent / entry) if entry else "" for entry in table[name]]
    return table.to_dict("records")
