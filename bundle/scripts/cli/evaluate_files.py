"""The work of ``avsm evaluate``: reading what is to be compared, and telling the measures."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from ..errors import InputError
from ..formats.images import read_image, read_label, read_mask
from ..formats.points import read_points
from ..losses import global_correlation
from ..metrics import label_metrics, mean_metrics, target_registration_error, world_jacobian
from .files import Chain, check_output, noted, read_grid, write_json

_SOURCES = ("fixed_label", "moved_label", "fixed_points", "moving_points", "reference", "fixed", "moved", "mask")


def _labels(options: argparse.Namespace) -> dict[str, Any]:
    """Overlap and distances; keys of labels are words, as in JSON."""
    fixed = noted(read_label(options.fixed_label))
    moved = noted(read_label(options.moved_label, fixed))
    measures = label_metrics(moved.array, fixed.array, fixed.frame.spacing, options.labels)
    return {"labels": {str(label): values for label, values in measures.items()}, "mean": mean_metrics(measures)}


def _points(options: argparse.Namespace, chain: Chain) -> dict[str, Any]:
    """Landmark errors before and, with transforms, after."""
    fixed, moving = (read_points(path, options.space) for path in (options.fixed_points, options.moving_points))
    try:
        result = {"tre_before": target_registration_error(fixed, moving)}
        if chain.transforms:
            with chain.warnings_for(options.fixed_points):
                result["tre"] = target_registration_error(fixed, moving, chain.transforms)
    except InputError as error:
        raise InputError(f"{options.fixed_points}, {options.moving_points}: {error}") from error
    return result


def _images(options: argparse.Namespace) -> dict[str, Any]:
    """Correlation of the images."""
    fixed = noted(read_image(options.fixed))
    moved = noted(read_image(options.moved))
    if not moved.frame.same_as(fixed.frame):
        raise InputError(
            f"{moved.path}: is not on the grid of {fixed.path} (of {moved.frame.shape} and {fixed.frame.shape} voxels, "
            "perhaps elsewhere in the world); resample it with avsm apply"
        )
    volumes = [torch.from_numpy(image.array.astype("float64"))[None, None] for image in (moved, fixed)]
    mask = None
    if options.mask is not None:
        mask = torch.from_numpy(noted(read_mask(options.mask, fixed)).array.astype("float64"))[None, None]
    return {"ncc": global_correlation(*volumes, eps=0.0, mask=mask).item()}


def _table(result: dict[str, Any]) -> str:
    """The measures as text."""
    lines = []
    if "labels" in result:
        lines.append(f"{'label':>8} {'Dice':>8} {'HD95 mm':>8} {'ASSD mm':>8}")
        for name, values in (*result["labels"].items(), ("mean", result["mean"])):
            lines.append(f"{name:>8} {values['dice']:8.4f} {values['hd95']:8.3f} {values['assd']:8.3f}")
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


def evaluate_files(options: argparse.Namespace) -> int:
    """Measure what the options name, print a table, and write JSON where asked.

    Args:
        options: of ``avsm evaluate``, complete in pairs.

    Returns:
        The exit status.

    Raises:
        InputError: for files that can't be read, do not fit together, or can't be written.
    """
    sources = [path for path in (getattr(options, name) for name in _SOURCES) if path is not None]
    if options.output is not None:
        check_output(options.output, (".json",), [*sources, *options.transform])
    chain = Chain(options.transform)
    result: dict[str, Any] = {}
    if options.fixed_label is not None:
        result.update(_labels(options))
    if options.fixed_points is not None:
        result.update(_points(options, chain))
    if options.reference is not None:
        reference = read_grid(options.reference)
        with chain.warnings_for(options.reference):
            result["jacobian"] = world_jacobian(chain.transforms, reference).measures
    if options.fixed is not None:
        result.update(_images(options))
    print(_table(result))
    if options.output is not None:
        write_json(result, options.output)
    return 0
