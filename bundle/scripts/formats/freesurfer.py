"""FreeSurfer's transforms: affines (``.lta``) and warps (``.m3z``, ``.mgz``).

An LTA goes from ``src``, the moving image, to ``dst``, the fixed one. A warp says for the nodes of a grid on the fixed
image, its ``atlas``, where they lie in the moving one, its ``image``. All hold the geometry of both. An LTA is read by
nitransforms. Warps are read here: no package reads ``.m3z``, and surfa's reader of ``.mgz`` does not run
with NumPy 2.3.
"""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path

import numpy as np
from isal import igzip

from ..errors import InputError
from ..spatial.frame import Frame, apply_matrix
from ..spatial.transform import WorldTransform
from .reading import check_memory, check_size, opened, parsing, read_array

_MOST = 1 << 20  # bytes of an LTA
# All big-endian. Version, nodes along each axis, their distance in voxels, an exponent that plays no part here.
_HEADER = struct.Struct(">f4if")
_NODE = np.dtype([("before", ">f4", 3), ("place", ">f4", 3), ("node", ">i4", 3)])
_GEOMETRY = struct.Struct(">4i15f512s")  # valid, sizes; spacing, axes, middle; file
_GEOMETRIES, _TYPE, _LABELS, _AFFINE = 10, 11, 12, 31  # TAG_GCAMORPH_GEOM, TAG_GCAMORPH_TYPE, ..., TAG_MGH_XFORM
_AFFINE_BYTES = 1612
_MGH = struct.Struct(">4i3ih15f194x")  # version, sizes, frames, type, degrees of freedom, placed; spacing, axes, middle
_IMAGE, _WARP = 1, 0x301  # the version, and with the intent of a warp
_FLOAT, _SCAN = 3, 20  # MRI_FLOAT; bytes of scan parameters behind the numbers
_META, _DISPLACED_RAS = 13, 3  # TAG_GCAMORPH_META; voxels, displaced voxels, RAS and displaced RAS are 0 to 3
_RAS, _VOXELS = 1, 2  # what places are: GCAM_RAS, GCAM_VOX
_AREA = 20.0  # the exponent as FreeSurfer sets it


def read_lta(path: str | os.PathLike) -> np.ndarray:
    """The affine of an LTA, ``(4, 4)``, fixed (``dst``) to moving (``src``), RAS mm; InputError for other content."""
    path = Path(path)
    try:
        from nitransforms.io.lta import FSLinearTransformArray
    except ImportError as error:
        raise InputError(f"{path}: FreeSurfer's files are read by nitransforms; pip install nitransforms") from error
    with parsing(path, "LTA of FreeSurfer that can be read"):
        if path.stat().st_size > _MOST:
            raise InputError(f"{path}: is too large for an LTA of FreeSurfer; give another file")
        matrices = np.asarray(FSLinearTransformArray.from_string(path.read_text(encoding="utf-8")).to_ras(), np.float64)
        if matrices.shape != (1, 4, 4):
            raise InputError(f"{path}: holds {len(matrices)} transforms, need one; write it anew")
        matrix = matrices[0]
        if not np.isfinite(matrix).all() or not np.allclose(matrix[3], (0, 0, 0, 1)):
            raise InputError(f"{path}: its matrix is none of an affine; write it anew")
        return matrix


def lta_text(matrix: np.ndarray, fixed: Frame, moving: Frame) -> str:
    """An LTA, RAS to RAS, as FreeSurfer writes it: from ``src``, the moving image, to ``dst``, the fixed one."""
    rows = [" ".join(f"{value:.15e}" for value in row) + " " for row in np.linalg.inv(matrix)]
    head = ["type      = 1", "nxforms   = 1", "mean      = 0.0000 0.0000 0.0000", "sigma     = 1.0000", "1 4 4"]
    return "\n".join([*head, *rows, *_volume("src", moving), *_volume("dst", fixed), ""])


def _volume(name: str, frame: Frame) -> list[str]:
    """The geometry of a volume."""
    spacing, *vectors = _geometry(frame)
    return [
        f"{name} volume info",
        "valid = 1  # volume info valid",
        f"filename = {frame.name or name}",
        "volume = " + " ".join(map(str, frame.shape)),
        "voxelsize = " + " ".join(f"{value:.15e}" for value in spacing),
        *(
            f"{axis}   = " + " ".join(f"{value:.15e}" for value in vector)
            for axis, vector in zip(("xras", "yras", "zras", "cras"), vectors, strict=True)
        ),
    ]


def read_m3z(path: Path) -> WorldTransform:
    """The warp of an ``.m3z`` file, linear between its nodes; InputError for other content.

    Where the nodes are marked invalid the displacement of the nearest valid one counts.
    """
    with opened(path) as (stream, _):
        head = stream.read(_HEADER.size)
        if len(head) < _HEADER.size or (numbers := _HEADER.unpack(head))[0] != 1 or min(numbers[1:5]) < 1:
            raise InputError(f"{path}: is no .m3z file of FreeSurfer; copy it again or write it anew")
        shape, distance = numbers[1:4], numbers[4]
        needed = _NODE.itemsize * int(np.prod(shape, dtype=object))
        check_memory(path, 2 * needed)
        data = stream.read(needed)
        check_size(path, len(data), needed)
        nodes, frames, places = np.frombuffer(data, _NODE).reshape(shape), [], _VOXELS
        # Tags tell no length: one that is not known ends the reading.
        while tag := int.from_bytes(stream.read(4), "big"):
            if tag == _GEOMETRIES:
                frames = [_unpacked(path, stream.read(_GEOMETRY.size)) for _ in range(2)]
            elif tag == _TYPE:
                places = int.from_bytes(stream.read(4), "big")
            elif tag in (_LABELS, _AFFINE):
                stream.read(_AFFINE_BYTES if tag == _AFFINE else 4 * nodes.size)
            else:
                break
    if not frames or places not in (_RAS, _VOXELS):
        raise InputError(f"{path}: does not say where its images lie; write it anew by mri_ca_register")
    moving, fixed = frames
    grid = Frame(shape, fixed.affine @ np.diag([distance, distance, distance, 1]), str(path))
    there = nodes["place"].astype(np.float64)
    if places == _VOXELS:
        there = moving.voxel_to_world(there)
    vectors = there - grid.places
    invalid = ~(nodes["place"].any(axis=-1) | nodes["before"].any(axis=-1))
    if invalid.any() and not invalid.all():
        from scipy.ndimage import distance_transform_edt

        nearest = distance_transform_edt(invalid, return_distances=False, return_indices=True)
        vectors = vectors[tuple(nearest)]
    return WorldTransform(np.eye(4), vectors.astype(np.float32), grid)


def write_m3z(places: np.ndarray, fixed: Frame, moving: Frame, path: str | os.PathLike) -> None:
    """Write where the fixed grid's voxels lie in the moving image, ``(D, H, W, 3)`` RAS mm, as an ``.m3z`` file."""
    nodes = np.empty(fixed.shape, _NODE)
    nodes["place"] = nodes["before"] = moving.world_to_voxel(places)
    nodes["node"] = np.stack(np.indices(fixed.shape), axis=-1)
    parts = [
        _HEADER.pack(1, *fixed.shape, 1, _AREA),
        nodes.tobytes(),
        _volumes(fixed, moving),
        b"".join(number.to_bytes(4, "big") for number in (_TYPE, _VOXELS)),
    ]
    with igzip.open(path, "wb", 2) as stream:
        stream.writelines(parts)


def _unpacked(path: Path, data: bytes) -> Frame:
    """The grid of a volume."""
    if len(data) < _GEOMETRY.size:
        raise InputError(f"{path}: is cut off; copy it again or write it anew")
    numbers = _GEOMETRY.unpack(data)
    spacing, *columns, middle = np.reshape(numbers[4:19], (5, 3))
    affine = np.eye(4)
    affine[:3, :3] = np.stack(columns, axis=1) * spacing
    affine[:3, 3] = middle - affine[:3, :3] @ (np.asarray(numbers[1:4]) / 2)
    return Frame(numbers[1:4], affine, str(path))


def _geometry(frame: Frame) -> list[np.ndarray]:
    """Of a grid as FreeSurfer says it: spacing, the three axes, and the place of the voxel at half its sizes; RAS."""
    return [frame.spacing, *frame.direction.T, apply_matrix(frame.affine, np.asarray(frame.shape) / 2)]


def read_mgz(path: Path) -> WorldTransform:
    """The warp of an ``.mgz`` file as FreeSurfer 8 writes it; InputError for other content."""
    with opened(path) as (stream, _):
        head = stream.read(_MGH.size)
        numbers = _MGH.unpack(head) if len(head) == _MGH.size else (0,) * 22
        if numbers[0] != _WARP or numbers[4:6] != (3, _FLOAT) or min(numbers[1:4]) < 1:
            what = "is an image" if numbers[0] == _IMAGE else "is no warp of FreeSurfer"
            raise InputError(f"{path}: {what}; give a transform or a displacement field")
        shape = numbers[1:4]
        array, _ = read_array(path, stream, (*shape, 3), np.dtype(">f4"), math.inf)
        stream.read(_SCAN)
        frames, kind = [], -1
        while tag := int.from_bytes(stream.read(4), "big"):
            if tag == _GEOMETRIES:
                frames = [_unpacked(path, stream.read(_GEOMETRY.size)) for _ in range(2)]
                continue
            content = stream.read(int.from_bytes(stream.read(8), "big"))
            if tag == _META:
                kind = int.from_bytes(content[:4], "big")
    if not frames or not 0 <= kind <= _DISPLACED_RAS:
        raise InputError(f"{path}: does not say what its numbers are; write it anew by mri_warp_convert")
    moving, fixed = frames
    grid = Frame(shape, fixed.affine, str(path))
    there = array.astype(np.float64)
    if kind % 2:  # displacements of what they count, voxels or mm
        there += np.stack(np.indices(shape), axis=-1) if kind == 1 else grid.places
    if kind < 2:
        there = moving.voxel_to_world(there)
    return WorldTransform(np.eye(4), (there - grid.places).astype(np.float32), grid)


def write_mgz(places: np.ndarray, fixed: Frame, moving: Frame, path: str | os.PathLike) -> None:
    """Write where the fixed grid's voxels lie in the moving image, ``(D, H, W, 3)`` RAS mm, as an ``.mgz`` warp."""
    vectors = (places - fixed.places).astype(">f4")
    parts = [
        _MGH.pack(_WARP, *fixed.shape, 3, _FLOAT, 1, 1, *np.concatenate(_geometry(fixed)[:5])),
        vectors.tobytes(order="F"),
        bytes(_SCAN),
        _volumes(fixed, moving),
        struct.pack(">iqiif", _META, 12, _DISPLACED_RAS, 1, 0),
    ]
    with igzip.open(path, "wb", 2) as stream:
        stream.writelines(parts)


def _volumes(fixed: Frame, moving: Frame) -> bytes:
    """The tag that holds the geometry of both images."""
    volumes = (_GEOMETRY.pack(1, *frame.shape, *np.concatenate(_geometry(frame)), b"") for frame in (moving, fixed))
    return _GEOMETRIES.to_bytes(4, "big") + b"".join(volumes)
