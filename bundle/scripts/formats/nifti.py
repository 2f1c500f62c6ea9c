"""NIfTI files as volumes in the world."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from ..errors import InputError
from ..spatial.frame import Frame, apply_matrix
from .reading import Voxels, check_spacing, check_volume, count_left, in_rows, one_line, opened, read_array, unreadable

GRID_TOLERANCE = 0.02
"""How far, in the smallest voxel size, places of one grid may be apart: headers round, DICOM's to micrometres."""

_ENDLESS = 1 << 62  # bytes of a packed file, of which nobody knows
_FARTHEST = 1 << 24  # bytes of extensions before the voxels of a packed file
_LEAST_SLOPE = float(np.finfo(float).eps)  # that ITK does not take for 1
_OTHERS = "ITK, ANTs and Slicer"

# NIfTI's codes of spatial units; any other code is read as mm, as every reader does.
_MM_PER_UNIT = {1: (1e3, "metres"), 3: (1e-3, "micrometres")}


def corner_gap(shape: tuple[int, int, int], first: np.ndarray, second: np.ndarray) -> float:
    """Largest distance in mm between a grid's corner voxels under two affines ``(4, 4)``."""
    corners = np.array(list(product(*((0, n - 1) for n in shape))))
    return float(np.linalg.norm(apply_matrix(first, corners) - apply_matrix(second, corners), axis=1).max())


def read_vectors(
    file: Path, sizes: Callable[[Path, Sequence[int]], tuple[int, ...]]
) -> tuple[Voxels, nib.Nifti1Header]:
    """Read one volume, or field, from a ``.nii`` or ``.nii.gz`` file; no further than its header tells.

    nibabel's header is filled without its checks: those mend values in silence that change an image's place.

    Args:
        file: packed or not, whatever its name says.
        sizes: turns the lengths of all axes into those that are read, or refuses them; the first three make the grid.

    Returns:
        The array of ``sizes``, scaled as the header says, with its frame, by nibabel's rule (sform, else qform, else
        the voxel sizes alone); and the header. InputError if the file holds no sound volume.
    """
    with opened(file) as (stream, packed):
        header, begun = _header(file, stream)
        shape = sizes(file, _sizes(file, header))
        try:
            frame, notes = _placed(file, header, shape)
            left = None if packed else file.stat().st_size - begun
            slope = header.get_slope_inter()[0]
            array, more = _voxels(file, header, shape, stream, begun, left)
        except (HeaderDataError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise unreadable(file, error) from error
    if more:
        notes.append(f"holds {more} bytes more than the header tells of")
    if packed != file.name.lower().endswith(".gz"):
        kind = "compressed" if packed else "not compressed"
        notes.append(f"is {kind}, which its name does not say: other programs may refuse it")
    step = abs(slope) if slope and array.dtype.kind == "f" and _kind(file, header).kind in "iu" else 0.0
    return Voxels(array, frame, tuple(notes), step), header


def read_nifti(file: Path) -> Voxels:
    """Read one volume; see `read_vectors`."""
    return read_vectors(file, check_volume)[0]


def read_frames(file: Path) -> Iterator[Voxels | nib.Nifti1Header]:
    """The header of a 4-D file, then its volumes one by one, each read when it is asked for.

    InputError if the file is not 4-D, or holds no sound volumes.
    """
    with opened(file) as (stream, packed):
        header, begun = _header(file, stream)
        sizes = _sizes(file, header)
        if len(sizes) < 4 or any(n != 1 for n in sizes[4:]):
            raise InputError(f"{file}: not 4-D, its shape is {tuple(sizes)}; give a series, or its volumes' files")
        shape = check_volume(file, sizes[:3])
        try:
            frame, notes = _placed(file, header, shape)
            yield header
            left = _ENDLESS if packed else file.stat().st_size - begun
            for _ in range(sizes[3]):
                array, left = _voxels(file, header, shape, stream, begun, left)
                begun = int(header["vox_offset"])
                yield Voxels(array, frame, tuple(notes))
        except (HeaderDataError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise unreadable(file, error) from error
        if packed:
            count_left(stream, 0)  # its checksum comes last


def _placed(file: Path, header: nib.Nifti1Header, shape: Sequence[int]) -> tuple[Frame, list[str]]:
    """The grid of a header's volumes, and what is odd about it."""
    if np.isinf([float(header["scl_slope"]), float(header["scl_inter"])]).any():
        # Other readers then leave the values as stored.
        raise InputError(f"{file}: the scale in its header is infinite; write it anew")
    affine, notes = in_mm(header, _affine(file, header))
    frame = Frame(shape[:3], affine, str(file))
    return frame, [*notes, *_place_notes(header, frame), *_scaling_notes(header)]


def _header(file: Path, stream: BinaryIO) -> tuple[nib.Nifti1Header, int]:
    """The NIfTI-1 or NIfTI-2 header, unchecked, and the bytes that were read for it."""
    data = b""
    for kind, magic in ((nib.Nifti1Header, b"n+1"), (nib.Nifti2Header, b"n+2")):
        data += stream.read(kind.sizeof_hdr - len(data))
        if len(data) == kind.sizeof_hdr and kind.may_contain_header(data):
            header = kind(data, check=False)
            if header["magic"].item()[:3] == magic:
                return header, len(data)
    raise unreadable(file, "it has no header of a single NIfTI file")


def _sizes(file: Path, header: nib.Nifti1Header) -> list[int]:
    dim = [int(n) for n in header["dim"]]
    sizes = dim[1 : dim[0] + 1]
    if not 1 <= dim[0] <= 7 or min(sizes) < 1:
        raise InputError(f"{file}: the sizes in its header, dim = {dim}, are not those of an image; mend the header")
    return sizes


def _affine(file: Path, header: nib.Nifti1Header) -> np.ndarray:
    """Voxel to world in the header's unit, ``(4, 4)``."""
    if header["sform_code"] > 0:
        return header.get_sform()
    check_spacing(file, header["pixdim"][1:4], "pixdim")
    return _qform(header) if header["qform_code"] > 0 else header.get_base_affine()


def in_mm(header: nib.Nifti1Header, affine: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """An affine in the header's unit as one in mm, and a note where that is another unit."""
    scale, unit = _MM_PER_UNIT.get(int(header["xyzt_units"]) & 7, (1.0, "mm"))
    scaled = np.array(affine, dtype=np.float64)
    scaled[:3] *= scale
    return scaled, [] if unit == "mm" else [f"the header counts in {unit}; turned to mm"]


def _qform(header: nib.Nifti1Header) -> np.ndarray:
    """The qform, ``(4, 4)``; HeaderDataError or ValueError if its numbers make none."""
    numbers = [header["pixdim"][:4], *(header[f"quatern_{k}"] for k in "bcd"), *(header[f"qoffset_{k}"] for k in "xyz")]
    if not np.isfinite(np.hstack(numbers)).all():
        raise HeaderDataError("a number of the qform is not finite")
    if header["pixdim"][0] == 0:
        header["pixdim"][0] = 1  # NIfTI: of qfac, 0 means +1
    return header.get_qform()


def _place_notes(header: nib.Nifti1Header, frame: Frame) -> list[str]:
    """What is odd about a header that gave this frame."""
    notes = []
    if header["sform_code"] > 0:
        if header["qform_code"] > 0:
            notes += _qform_notes(header, frame)
        sizes = np.diag(in_mm(header, np.diag([*header["pixdim"][1:4], 1.0]))[0])[:3]
        if not np.allclose(sizes, frame.spacing, rtol=1e-3, atol=0):
            notes.append(
                f"pixdim says voxels of {_short(sizes)} mm, the sform {_short(frame.spacing)} mm; the sform is used, "
                f"{_OTHERS} take pixdim's: mend the header"
            )
    elif header["qform_code"] <= 0:
        notes.append(
            "neither sform nor qform is set: the place and the orientation in the world (left and right, too) are a "
            f"guess from the voxel sizes, nibabel's; {_OTHERS} guess otherwise: set the sform"
        )
    return notes


def _qform_notes(header: nib.Nifti1Header, frame: Frame) -> list[str]:
    """How the qform disagrees with the sform that is used."""
    try:
        gap = corner_gap(frame.shape, frame.affine, in_mm(header, _qform(header))[0])
    except (HeaderDataError, ValueError) as error:
        return [f"the qform is broken ({one_line(error)}); the sform is used"]
    if gap <= GRID_TOLERANCE * frame.spacing.min():
        return []
    said = f"sform and qform place a corner {gap:.4g} mm apart; the sform is used"
    if header["sform_code"] == 1:
        return [said]
    return [f"{said}, but {_OTHERS} use the qform, as sform_code is {int(header['sform_code'])}: set both forms alike"]


def _scaling_notes(header: nib.Nifti1Header) -> list[str]:
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    unscaled = slope == 0 or np.isnan(slope)
    if abs(slope) >= _LEAST_SLOPE or not np.isfinite(inter) or (unscaled and inter == 0):
        return []
    ours = "are not scaled, as NIfTI says" if unscaled else "are scaled so"
    return [
        f"scl_slope {slope:g}, scl_inter {inter:g}: values {ours}; {_OTHERS} add {inter:g} to them as stored: mend "
        "the header"
    ]


def _short(values: np.ndarray) -> str:
    return " x ".join(f"{v:.6g}" for v in values)


def _voxels(
    file: Path, header: nib.Nifti1Header, shape: tuple[int, ...], stream: BinaryIO, begun: int, left: int | None
) -> tuple[np.ndarray, int]:
    """The array of ``shape``, scaled, in its integer type where nothing is to be scaled; and the bytes after it.

    ``begun`` bytes of the stream are read; ``left`` come after them, None where that is not known, as they are packed.
    """
    kind = _kind(file, header)
    offset = float(header["vox_offset"])  # 0 is refused, too: nibabel reads from there, ITK from byte 348
    if not header.single_vox_offset <= offset <= (_FARTHEST if left is None else begun + left):
        of = "" if left is None else f" of {begun + left}"
        raise unreadable(file, f"truncated, or a bad header: its voxels start at byte {offset:g}{of}")
    stream.read(int(offset) - begun)
    stored, more = read_array(file, stream, shape, kind, None if left is None else left - (int(offset) - begun))
    slope, inter = header.get_slope_inter()
    if (slope or 1.0, inter or 0.0) == (1.0, 0.0):
        return in_rows(stored, kind.newbyteorder("=")), more
    # Single precision holds any 16-bit integer and what the header's own slope says of it.
    array = in_rows(stored, np.result_type(kind.newbyteorder("="), np.float32))
    with np.errstate(over="ignore", invalid="ignore"):
        array *= slope
        array += inter
    return array, more


def _kind(file: Path, header: nib.Nifti1Header) -> np.dtype:
    """The type of voxels on disk: one real number of at most 64 bits."""
    try:
        kind = header.get_data_dtype()
    except KeyError as error:
        raise unreadable(file, f"unknown data type code {int(header['datatype'])}") from error
    if kind.kind == "c":
        raise InputError(f"{file}: complex values ({kind}); save the magnitude image")
    if kind.names:
        raise InputError(f"{file}: RGB voxels, {len(kind.names)} values in each; save an image of one value per voxel")
    if kind.kind not in "iuf" or kind.itemsize > 8:
        raise InputError(f"{file}: voxels of type {kind} are not supported; save them as float32 or an integer type")
    return kind
