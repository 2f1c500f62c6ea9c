"""``avsm register``: register any two images, or a list of pairs, by the bundle's ``configs/inference.json``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .options import given_path, plain_word, whole_number

_DESCRIPTION = """\
Register a moving image to a fixed image: affine, then deformable, by the bundle's network or by optimisation alone; in
true physical space.

Both may be NIfTI (.nii, .nii.gz), NRRD (.nrrd, .nhdr), MetaImage (.mha, .mhd) or a folder with one DICOM series, of any
size, spacing and orientation. The output folder gets:
  moved.nii.gz            the moving image on the fixed image's grid, interpolated once
  moved_label.nii.gz      the moving label map likewise (with --moving-label)
  transform.h5            ITK composite transform, LPS mm: carries points of the FIXED image to the MOVING image, and so
                          pulls images from moving to fixed (as antsApplyTransforms, SimpleITK and Slicer use it)
  inverse_transform.h5    the model's own inverse: points of the moving image to the fixed image
  affine.tfm              the affine part alone, initialisation included
  displacement.nii.gz     the displacement field of the fixed grid, LPS mm, as ITK and ANTs read it
  jacobian.nii.gz         determinant of the Jacobian, 1 where volume is kept, below 0 where space folds
  metrics.json            similarity, folds, round trip in mm, Dice and HD95 (with labels), times, versions, settings
  report.png, report.html pictures and figures to judge the registration by"""

_EPILOG = """\
examples:
  avsm register --fixed fixed.nii.gz --moving moving.nii.gz --output result
  avsm register --fixed a.mha --moving b.mha --output result --optimisation-steps 50
  avsm register --fixed a.mha --moving b.mha --output result --method vsvf-opt
  avsm register --fixed study1/ --moving study2/ --output result --initialisation header --affine-only
  avsm register --pairs pairs.csv --output results        (columns fixed, moving, perhaps fixed_label, moving_label,
                                                           fixed_mask, moving_mask, name; run again to resume)
"""

BUNDLE = Path(__file__).resolve().parents[2]
METHODS = ("avsm", "affine-opt", "vsvf-opt")
DTYPES = ("float32", "float64", "int16", "uint16", "uint8", "int32", "same")
_FILES = ("fixed", "moving", "fixed_label", "moving_label", "fixed_mask", "moving_mask")
# Option of the command → id in the config, for options that are passed on only when they are given.
_SETTINGS = {
    "method": "method",
    "weights": "ckpt_path",
    "initialisation": "initialisation",
    "extent": "extent",
    "grid": "grid",
    "grid_voxels": "grid_voxels",
    "affine_steps": "affine_steps",
    "vsvf_steps": "vsvf_steps",
    "optimisation_steps": "optimisation_steps",
    "interpolation": "interpolation",
    "label_interpolation": "label_interpolation",
    "dtype": "output_dtype",
    "device": "device",
    "threads": "threads",
    "seed": "seed",
}


# Options that mean nothing without the network.
_NETWORK_OPTIONS = ("model", "weights", "affine_steps", "vsvf_steps", "optimisation_steps")


def models() -> dict[str, Path]:
    """Networks by name, the default one included: name → config file that comes after ``inference.json``."""
    return {path.stem: path for path in sorted((BUNDLE / "models").glob("*.json"))}


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "register", help="register two images, or a list of pairs", description=_DESCRIPTION, epilog=_EPILOG
    )
    what = parser.add_argument_group("what to register")
    what.add_argument(
        "--fixed", metavar="F", type=given_path, help="fixed image: a file, or a folder with one DICOM series"
    )
    what.add_argument("--moving", metavar="M", type=given_path, help="moving image, likewise")
    what.add_argument(
        "--pairs", metavar="LIST", type=given_path, help="list of pairs (.csv, .json) or folder with a dataset.json"
    )
    what.add_argument("--section", type=plain_word, help="section of a dataset.json (default: registration_val)")
    what.add_argument(
        "--output", metavar="O", type=given_path, required=True, help="folder for the results, created if need be"
    )
    what.add_argument(
        "--fixed-label", metavar="L", type=given_path, help="label map on the fixed image's grid; only measured with"
    )
    what.add_argument(
        "--moving-label", metavar="L", type=given_path, help="label map on the moving image's grid; moved along"
    )
    what.add_argument(
        "--fixed-mask", metavar="K", type=given_path, help="where in the fixed image the similarity counts"
    )
    what.add_argument(
        "--moving-mask", metavar="K", type=given_path, help="where in the moving image the similarity counts"
    )
    how = parser.add_argument_group("how")
    how.add_argument(
        "--method",
        choices=METHODS,
        help="avsm (default): the network; affine-opt, vsvf-opt: optimisation of this pair, without network or "
        "weights: affine alone, or affine and deformable",
    )
    how.add_argument(
        "--model",
        type=plain_word,
        metavar="NAME",
        help=f"network of the bundle, with its weights and grid: {', '.join(models())} (default: general)",
    )
    how.add_argument(
        "--initialisation",
        choices=("geometry", "moments", "header"),
        help="what is laid on what at first: centres of the fields of view (default), centres of mass, or nothing "
        "moved (trust the world coordinates); part of every transform that is written",
    )
    how.add_argument("--affine-only", action="store_true", help="no deformable stage")
    how.add_argument(
        "--affine-steps",
        type=whole_number(0),
        metavar="N",
        help="steps of the affine network (default: 5, or the --model's)",
    )
    how.add_argument(
        "--vsvf-steps", type=whole_number(0), metavar="N", help="steps of the deformable stage (default: 3)"
    )
    how.add_argument(
        "--optimisation-steps",
        type=whole_number(0),
        metavar="N",
        help="go on from the network's result for this pair alone, by so many steps (default: 0); never a worse "
        "objective, never more folds; 100 is a good number for anatomy that the weights do not know",
    )
    how.add_argument(
        "--weights",
        metavar="FILE",
        type=given_path,
        help="weights of the network (default: the bundle's models/model.pt)",
    )
    how.add_argument(
        "--grid",
        type=whole_number(4),
        nargs=3,
        metavar="N",
        help="size of the network's grid (default: that of the --model, or else as --grid-voxels 150000)",
    )
    how.add_argument(
        "--grid-voxels",
        type=whole_number(4096),
        metavar="N",
        help="in place of --grid: let the field of view choose a grid of at most so many voxels (default: 150000)",
    )
    how.add_argument(
        "--extent",
        choices=("common", "own"),
        help="common (default): the grid spans the same millimetres of both images; own: each image's own field of "
        "view, as in the paper",
    )
    out = parser.add_argument_group("what to write")
    out.add_argument("--interpolation", choices=("linear", "bspline"), help="of the moved image (default: linear)")
    out.add_argument(
        "--label-interpolation", choices=("nearest", "linear"), help="linear: per label, then the largest wins"
    )
    out.add_argument(
        "--dtype", choices=DTYPES, help="type of moved.nii.gz (default: float32; 'same': the moving image's)"
    )
    out.add_argument("--learn2reg", action="store_true", help="also write displacement_voxel.nii.gz, in voxels")
    out.add_argument("--no-report", action="store_true", help="write no report")
    run_on = parser.add_argument_group("where to run")
    run_on.add_argument("--device", type=plain_word, help="such as cpu or cuda:0 (default: a GPU where there is one)")
    run_on.add_argument("--threads", type=whole_number(1), metavar="N", help="CPU threads")
    run_on.add_argument("--seed", type=whole_number(0), help="default: 0")


def overrides(options: argparse.Namespace, bundle: Path) -> dict[str, Any]:
    """What the options change in ``inference.json``.

    Args:
        options: as parsed.
        bundle: the bundle's folder.

    Returns:
        Config id → value. Paths are absolute, as the caller's folder need not be the bundle's, and no strings, in which
        the config's parser would read '#' as a reference.
    """
    result: dict[str, Any] = {"bundle_root": str(bundle), "output_dir": options.output}
    names = {**{name: name for name in _FILES}, "pairs": "dataset_dir", "section": "section", **_SETTINGS}
    for name, key in names.items():
        value = getattr(options, name)
        if value is not None:
            result[key] = value
    if options.grid_voxels is not None:
        result["grid"] = None
    result["affine_only"] = options.affine_only
    result["learn2reg"] = options.learn2reg
    result["report"] = not options.no_report
    return result


def run(options: argparse.Namespace) -> int:
    """Register, and say where the result lies.

    Args:
        options: as parsed.

    Returns:
        The exit status.

    Raises:
        InputError: for files or options that cannot be used.
    """
    if options.pairs is None and (options.fixed is None or options.moving is None):
        options.usage_error("give --fixed and --moving, or --pairs")
    both = [f"--{name.replace('_', '-')}" for name in _FILES if getattr(options, name) is not None]
    if options.pairs is not None and both:
        options.usage_error(f"{both[0]}: --pairs is given as well; give one of the two")
    if options.method not in (None, "avsm"):
        idle = [name for name in _NETWORK_OPTIONS if getattr(options, name) is not None]
        if idle:
            options.usage_error(f"--{idle[0].replace('_', '-')}: is the network's; --method {options.method} has none")
        if options.affine_only and options.method == "vsvf-opt":
            options.usage_error("--affine-only: vsvf-opt is deformable; give --method affine-opt")
    if options.grid is not None and options.grid_voxels is not None:
        options.usage_error("--grid-voxels: --grid is given as well; give one of the two")
    if options.pairs is None and options.section is not None:
        options.usage_error("--section needs --pairs")
    if options.model is not None and options.model not in models():
        options.usage_error(f"--model {options.model}: no such network; give one of {', '.join(models())}")
    import logging

    from monai.bundle import ConfigWorkflow

    from ..registration.options import usable_device

    # It warns that it leaves the log alone, which is what it was told.
    logging.getLogger(ConfigWorkflow.__module__).setLevel(logging.ERROR)
    if options.device is not None:
        usable_device(options.device)
    files = [BUNDLE / "configs" / "inference.json"]
    if options.model is not None:
        files.append(models()[options.model])
    workflow = ConfigWorkflow(
        config_file=[str(path) for path in files],
        workflow_type="infer",
        logging_file=False,
        **overrides(options, BUNDLE),
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    return 0
