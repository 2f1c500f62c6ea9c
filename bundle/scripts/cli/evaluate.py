"""``avsm evaluate``: what a reader of a registration paper asks for, from files."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import InputError
from ..settings import check_measured
from .options import add_file, add_space, add_transform

HELP = "Dice, surface distances, landmark errors, folds and correlation of a registration"
USAGE = "--fixed-label FILE --moved-label FILE"
DESCRIPTION = """\
Measure a registration. Each pair of options adds its measures; any of them may be left out.

  --fixed-label --moved-label      Dice, HD95 and ASSD (mm) of each label, and their means over the labels
  --fixed-points --moving-points   target registration error in mm: mean, std, median, max; before and, with
                                   --transform, after
  --transform --reference          folds, std of ln |J|, range of |J| on the reference's grid
  --fixed --moved [--mask]         normalised cross correlation, over the mask where there is one

Direction: a registration's transform.h5 carries points of the FIXED image to the MOVING image: fixed points are carried
over and compared with the moving ones, in the order of the files. "Moved" images and labels are those of the moving
image pulled onto the fixed one's grid ("avsm apply" does it); they are compared voxel by voxel with the fixed ones.

A label's Dice is not defined (nan, in JSON null) where the fixed image lacks it, its distances where either image does;
means leave these out. HD95 is the larger of the two directed 95th percentiles of the distances between surface voxels,
ASSD the mean over both surfaces."""

EPILOG = """\
example:
  avsm evaluate --fixed-label fixed_seg.nii.gz --moved-label moved_seg.nii.gz --transform transform.h5 \\
      --reference fixed.nii.gz --fixed-points fixed.csv --moving-points moving.csv --space LPS --output measures.json
"""


_FILES = (
    "fixed_label",
    "moved_label",
    "label_names",
    "fixed_points",
    "moving_points",
    "reference",
    "fixed",
    "moved",
    "mask",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_file(parser, "--fixed-label", "L", "label map of the fixed image")
    add_file(parser, "--moved-label", "L", "moving label map on the fixed image's grid")
    parser.add_argument(
        "--labels", metavar="N", type=int, nargs="+", help="label values to measure (default: all but 0 that occur)"
    )
    add_file(parser, "--label-names", "FILE", "what the values stand for: ITK-SNAP's label descriptions")
    add_file(parser, "--fixed-points", "P", "landmarks of the fixed image: .csv, .mrk.json, .fcsv or .vtk, in mm")
    add_file(parser, "--moving-points", "P", "the same landmarks in the moving image, in the same order")
    add_space(parser)
    add_transform(parser, required=False)
    add_file(parser, "--reference", "R", "image on whose grid the transform's Jacobian is measured")
    add_file(parser, "--fixed", "I", "fixed image")
    add_file(parser, "--moved", "I", "moving image on the fixed image's grid")
    add_file(parser, "--mask", "M", "where to correlate: label map on the fixed image's grid, 0 is outside")
    add_file(parser, "--output", "JSON", "file to write the measures to (default: print them only)")


def run(options: argparse.Namespace) -> int:
    """Measure, print a table, and write JSON where asked."""
    given = {name: getattr(options, name) for name in ("labels", "space", *_FILES)}
    try:
        check_measured({**given, "transform": options.transform or None})
    except InputError as error:
        options.usage_error(str(error))
    from .files import check_inputs, check_output

    files = [*(given[name] for name in _FILES if given[name] is not None), *options.transform]
    check_inputs(files)
    if options.output is not None:
        check_output(options.output, (".json",), files)
    from ..api import evaluate
    from ..storage import write_json, writing
    from ..transform import Transform

    result = evaluate(transform=Transform.read(*options.transform) if options.transform else None, **given)
    print(_table(result))
    if options.output is not None:
        with writing(options.output):
            write_json(result, options.output)
    return 0


def _table(result: dict[str, Any]) -> str:
    """The measures as text."""
    lines = []
    if "labels" in result:
        lines.append(f"{'label':>8} {'Dice':>8} {'HD95 mm':>8} {'ASSD mm':>8}")
        for name, values in (*result["labels"].items(), ("mean", result["mean"])):
            called = result.get("label_names", {}).get(name, "")
            lines.append(
                f"{name:>8} {values['dice']:8.4f} {values['hd95']:8.3f} {values['assd']:8.3f} {called}".rstrip()
            )
    for key, title in (("tre_before", "TRE before"), ("tre", "TRE after")):
        if key in result:
            values = result[key]
            figures = "  ".join(f"{name} {values[name]:.3f}" for name in ("mean", "std", "median", "max"))
            lines.append(f"{title + ' mm':<14}{figures}  ({values['count']} points)")
    if "jacobian" in result:
        values = result["jacobian"]
        lines.append(
            f"{'Jacobian':<14}folds {values['folds']} of {values['voxels']} voxels  "
            f"std ln|J| {values['std_log_jacobian']:.4f}  "
            f"range {values['jacobian_min']:.4f} to {values['jacobian_max']:.4f}"
        )
    if "ncc" in result:
        lines.append(f"{'NCC':<14}{result['ncc']:.5f}")
    return "\n".join(lines)
