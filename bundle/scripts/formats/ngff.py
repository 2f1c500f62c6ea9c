"""Transforms as OME-Zarr 0.6 tells them (RFC-5), by ngff-zarr: axes z, y, x, of LPS millimetres.

A displacement field lies there along the axes of the world. One that does not is told between two affines, which turn
its grid into the world's axes and back, so that nothing is resampled.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..spatial.frame import LPS_FLIP
from ..spatial.transform import WorldTransform
from .itk_transforms import Entry, to_world
from .reading import parsing

_VERSION, _FIELD = "0.6", "displacements"
_DIMS = ("z", "y", "x")
# From RAS mm to the axes z, y, x in LPS mm; its inverse is its transpose.
_TURN = np.eye(4)[[2, 1, 0, 3]] @ LPS_FLIP


def write_ngff(transform: WorldTransform, path: str | os.PathLike) -> None:
    """Write a transform without spline as a store of OME-Zarr, whole or not at all; InputError where there is one."""
    ngff = _library(path)
    from ngff_zarr.v06.zarr_metadata import Affine, Displacements, TransformSequence

    def affine(matrix: np.ndarray) -> Affine:
        return Affine(affine=matrix[:3].tolist())

    target = Path(path)
    if target.exists():
        raise InputError(f"{path}: is there already; remove it, or write elsewhere")
    stage = target.with_name(f".{target.name}.part")
    shutil.rmtree(stage, ignore_errors=True)
    try:
        found = affine(_TURN @ transform.linear @ _TURN.T)
        if transform.frame is not None:
            frame, straight = transform.frame, np.eye(4)
            # From the world to the grid's own axes in mm, reversed, as the array's.
            straight[:3, :3] = frame.direction.T[::-1]
            vectors = np.einsum("ij,xyzj->izyx", straight[:3, :3], transform.displacement)
            vectors[vectors == 0] = -0.0  # chunks of the fill value, +0, are left out, as if they were lost
            field = ngff.NgffImage(
                vectors,
                ("c", *_DIMS),
                scale=dict(zip(("c", *_DIMS), (1.0, *frame.spacing[::-1].tolist()), strict=True)),
                translation=dict(zip(("c", *_DIMS), (0.0, *(straight[:3, :3] @ frame.origin).tolist()), strict=True)),
                axes_units=dict.fromkeys(_DIMS, "millimeter"),
                axes_types={"c": "displacement"},
            )
            ngff.to_ome_zarr(stage / _FIELD, ngff.to_multiscales(field, scale_factors=[]), version=_VERSION)
            parts = [
                affine(straight @ _TURN.T),
                Displacements(path=_FIELD, interpolation="linear"),
                affine(_TURN @ transform.linear @ np.linalg.inv(straight)),
            ]
            found = TransformSequence(transformations=parts)
        ngff.to_ome_zarr(stage, found, version=_VERSION, overwrite=False)
        stage.rename(target)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def read_ngff(path: Path) -> list[WorldTransform]:
    """The transforms of a store of OME-Zarr, fixed to moving, first to act first; InputError for other content."""
    ngff = _library(path)
    if not path.is_dir():
        raise InputError(f"{path}: is a file, but OME-Zarr's are folders; copy the folder again")
    with parsing(path, "transformation of OME-Zarr 0.6 that is read"):
        return list(_parts(path, ngff, ngff.from_ome_zarr(path, kind="transformation")))


def _parts(path: Path, ngff: Any, transform: Any) -> Iterator[WorldTransform]:
    if transform.type == "sequence":
        for one in transform.transformations:
            yield from _parts(path, ngff, one)
        return
    place = getattr(transform, "path", None)
    fields = {place: ngff.from_ome_zarr(path / place)} if place else None
    if place and (lacking := _lacking(path / place)):
        warnings.warn(f"{path}: {lacking} chunks of its field are missing and count as 0; is it whole?", stacklevel=2)
    (found,) = ngff.ngff_transform_to_itk_transform(transform, _DIMS, fields=fields)
    kind = f"{found.transformType.transformParameterization.value}Transform"
    yield from to_world([Entry(kind, found.parameters, found.fixedParameters)], str(path))


def _lacking(folder: Path) -> int:
    """How many chunks of the arrays of a store there are no files of."""
    lacking = 0
    for file in folder.rglob("zarr.json"):
        told = json.loads(file.read_bytes())
        if told["node_type"] == "array":
            sizes = zip(told["shape"], told["chunk_grid"]["configuration"]["chunk_shape"], strict=True)
            lacking += math.prod(-(-n // m) for n, m in sizes)
            lacking -= sum(other.is_file() for other in file.parent.rglob("*")) - 1
    return lacking


def _library(path: str | os.PathLike) -> Any:
    try:
        import ngff_zarr
    except ImportError as error:
        raise InputError(f"{path}: OME-Zarr is read and written by ngff-zarr; pip install 'avsm[ngff]'") from error
    return ngff_zarr
