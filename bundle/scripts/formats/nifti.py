"""NIfTI files as volumes in the world."""

from __future__ import annotations

import gzip
import zlib
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from ..errors import InputError
from ..spatial.frame import Frame, apply_matrix
from .reading import check_size, check_spacing, check_volume, damaged, one_line, unreadable

GRID_TOLERANCE_MM = 1e-3

# NIfTI's codes of spatial units; any other code is read as mm, as every reader does.
_MM_PER_UNIT = {1: (1e3, "metres"), 3: (1e-3, "micrometres")}


def corner_gap(shape: tuple[int, int, int], first: np.ndarray, second: np.ndarray) -> float:
    """Largest distance in mm between a grid's corner voxels under two affines ``(4, 4)``."""
    corners = np.array(list(product(*((0, n - 1) for n in shape))))
    return float(np.linalg.norm(apply_matrix(first, corners) - apply_matrix(second, corners), axis=1).max())


def read_nifti(file: Path) -> tuple[np.ndarray, Frame, tuple[str, ...]]:
    """Read one volume from a ``.nii`` or ``.nii.gz`` file.

    nibabel's header is filled without its checks: those mend values in silence that change an image's place.

    Returns:
        The array ``(D, H, W)``, scaled as the header says; its frame, by nibabel's rule (sform, else qform, else the
        voxel sizes alone); and notes on the header.

    Raises:
        InputError: if the file holds no sound volume.
    """
    data = _content(file)
    header = _header(file, data)
    shape = check_volume(file, _sizes(file, header))
    try:
        frame = Frame(shape, _affine(file, header), str(file))
        return _voxels(file, header, data, shape), frame, _notes(header, frame)
    except (HeaderDataError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise unreadable(file, error) from error


def _content(file: Path) -> bytes:
    """The file's bytes, unpacked to the checksum at their end."""
    data = file.read_bytes()
    if not file.name.lower().endswith(".gz"):
        return data
    try:
        return gzip.decompress(data)
    except (EOFError, zlib.error, OSError) as error:
        raise damaged(file, error) from error


def _header(file: Path, data: bytes) -> nib.Nifti1Header:
    """The NIfTI-1 or NIfTI-2 header, unchecked."""
    for kind, magic in ((nib.Nifti1Header, b"n+1"), (nib.Nifti2Header, b"n+2")):
        if not kind.may_contain_header(data):
            continue
        header = kind(data[: kind.sizeof_hdr], check=False)
        if header["magic"].item()[:3] == magic:
            return header
    raise unreadable(file, "it has no header of a single NIfTI file")


def _sizes(file: Path, header: nib.Nifti1Header) -> list[int]:
    """Lengths of all axes."""
    dim = [int(n) for n in header["dim"]]
    sizes = dim[1 : dim[0] + 1]
    if not 1 <= dim[0] <= 7 or min(sizes) < 1:
        raise InputError(f"{file}: the sizes in its header, dim = {dim}, are not those of an image; mend the header")
    return sizes


def _affine(file: Path, header: nib.Nifti1Header) -> np.ndarray:
    """Voxel to world in mm, ``(4, 4)``."""
    if header["sform_code"] > 0:
        return _in_mm(header, header.get_sform())
    check_spacing(file, header["pixdim"][1:4], "pixdim")
    return _in_mm(header, _qform(header) if header["qform_code"] > 0 else header.get_base_affine())


def _in_mm(header: nib.Nifti1Header, affine: np.ndarray) -> np.ndarray:
    """An affine in the header's unit as one in mm."""
    scaled = np.array(affine, dtype=np.float64)
    scaled[:3] *= _unit(header)[0]
    return scaled


def _unit(header: nib.Nifti1Header) -> tuple[float, str]:
    """Millimetres of the header's spatial unit, and its name."""
    return _MM_PER_UNIT.get(int(header["xyzt_units"]) & 7, (1.0, "mm"))


def _qform(header: nib.Nifti1Header) -> np.ndarray:
    """The qform, ``(4, 4)``; HeaderDataError or ValueError if its numbers make none."""
    numbers = [header["pixdim"][:4], *(header[f"quatern_{k}"] for k in "bcd"), *(header[f"qoffset_{k}"] for k in "xyz")]
    if not np.isfinite(np.hstack(numbers)).all():
        raise HeaderDataError("a number of the qform is not finite")
    if header["pixdim"][0] == 0:
        header["pixdim"][0] = 1  # NIfTI: of qfac, 0 means +1
    return header.get_qform()


def _notes(header: nib.Nifti1Header, frame: Frame) -> tuple[str, ...]:
    """What is odd about a header that gave this frame."""
    scale, unit = _unit(header)
    notes = [] if unit == "mm" else [f"the header counts in {unit}; turned to mm"]
    if header["sform_code"] > 0:
        if header["qform_code"] > 0:
            notes += _qform_notes(header, frame)
        sizes = scale * header["pixdim"][1:4].astype(np.float64)
        if not np.allclose(sizes, frame.spacing, rtol=1e-3, atol=0):
            notes.append(
                f"pixdim says voxels of {_short(sizes)} mm, the sform {_short(frame.spacing)} mm; the sform is used"
            )
    elif header["qform_code"] <= 0:
        notes.append(
            "neither sform nor qform is set: the place and the orientation in the world (left and right, too) are a "
            "guess from the voxel sizes"
        )
    return tuple(notes)


def _qform_notes(header: nib.Nifti1Header, frame: Frame) -> list[str]:
    """How the qform disagrees with the sform that is used."""
    try:
        gap = corner_gap(frame.shape, frame.affine, _in_mm(header, _qform(header)))
    except (HeaderDataError, ValueError) as error:
        return [f"the qform is broken ({one_line(error)}); the sform is used"]
    if gap <= GRID_TOLERANCE_MM:
        return []
    return [f"sform and qform place a corner {gap:.4g} mm apart; the sform is used"]


def _short(values: np.ndarray) -> str:
    return " x ".join(f"{v:.6g}" for v in values)


def _voxels(file: Path, header: nib.Nifti1Header, data: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    """The array ``(D, H, W)``, scaled; kept in its integer type where nothing is to be scaled."""
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
    offset = float(header["vox_offset"]) or header.single_vox_offset
    if not header.single_vox_offset <= offset <= len(data):
        raise unreadable(file, f"truncated, or a bad header: its voxels start at byte {offset:g} of {len(data)}")
    check_size(file, len(data) - int(offset), int(np.prod(shape, dtype=object)) * kind.itemsize)
    stored = np.ndarray(shape, kind, data, int(offset), order="F")
    slope, inter = header.get_slope_inter()
    if (slope or 1.0, inter or 0.0) == (1.0, 0.0):
        return np.array(stored, kind.newbyteorder("="), order="C")
    # Single precision holds any 16-bit integer and what the header's own slope says of it.
    array = np.array(stored, np.result_type(kind.newbyteorder("="), np.float32), order="C")
    with np.errstate(over="ignore", invalid="ignore"):
        array *= slope
        array += inter
    return array
