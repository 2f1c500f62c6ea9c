"""ITK's transforms as numbers: their files, ``.h5``, text and ``.mat``, and what the numbers mean.

ITK's own readers are not asked: of a text or ``.mat`` file that is cut off they make the identity, or read beyond its
end, and of an HDF5 file four copies. ITK counts in LPS and gives a field by index (x, y, z), which is the array's
(D, H, W) with reversed memory order; both turns happen here. A composite transform is a stack: the transform added last
is applied to a point first. The lists of this package run the other way, as ANTs' command line: first listed, first
applied to a point.
"""

from __future__ import annotations

import os
import re
import struct
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from isal import isal_zlib
from numpy.typing import DTypeLike

from ..errors import InputError
from ..spatial.frame import LPS_FLIP, Frame, ras_to_lps
from ..spatial.transform import WorldTransform
from .reading import check_memory

_COMPOSITE, _FIELD, _SPLINE = "CompositeTransform", "DisplacementFieldTransform", "BSplineTransform"
_AFFINE_KINDS = ("AffineTransform", "MatrixOffsetTransformBase")
_TYPE = re.compile(r"(\w+?)_(?:double|float)_(\d+)_(\d+)(?:_(\d))?")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_TEXT_HEAD = "#Insight Transform File V1.0\n"
_MOST_TEXT, _MOST_MAT = 1 << 30, 1 << 26  # bytes
_MOST_PACKED = 1100  # deflate makes no more of a byte
_CHUNK, _LEVEL = 1 << 16, 2
_LARGEST = 1e12  # mm
_LARGEST_HEAP = 1 << 20
_MOST_LINEAR = 64  # parameters
# What h5py raises of files that are damaged or hold something else.
_HDF5_ERRORS = (OSError, LookupError, ValueError, TypeError, RuntimeError, ArithmeticError, AttributeError)
_HDF5_ERRORS += (MemoryError, struct.error)
_PROBE = 1024.0  # mm; a power of two, so that dividing by it is exact


@dataclass(frozen=True, eq=False)
class Entry:
    """One transform of a file.

    Attributes:
        kind: ITK's class, such as ``AffineTransform``.
        parameters: ``(N,)``.
        fixed: ITK's fixed parameters, ``(M,)``.
        order: of a B-spline; 3 for all else.
    """

    kind: str
    parameters: np.ndarray
    fixed: np.ndarray
    order: int = 3

    @property
    def type(self) -> str:
        """As files name it."""
        return f"{self.kind}_double_3_3" + ("" if self.order == 3 else f"_{self.order}")


def _entry(name: str, text: str, parameters: np.ndarray, fixed: np.ndarray) -> Entry:
    match = _TYPE.fullmatch(text.strip())
    if match is None:
        raise InputError(f"{name}: holds a transform of the unknown type {text.strip()[:60]!r}; write it anew")
    if match[2] != "3" or match[3] != "3":
        raise InputError(f"{name}: holds a {match[1]} from {match[2]}-D to {match[3]}-D; need a 3-D transform")
    for values in (parameters, fixed):
        if values.size and not (values.max() < _LARGEST and values.min() > -_LARGEST):
            raise InputError(f"{name}: a number of its {match[1]} is not finite or beyond all images; write it anew")
    return Entry(match[1], parameters, fixed, int(match[4] or 3))


def _cut(name: str, what: str) -> InputError:
    return InputError(f"{name}: cannot be read as a transform: {what}; copy it again or write it anew")


# Files


def read_hdf5(path: Path) -> list[Entry]:
    """The transforms of an ``.h5`` file, a composite before its parts; InputError if it is damaged or holds none."""
    import h5py

    if not h5py.is_hdf5(path):
        raise InputError(f"{path}: is not a sound HDF5 file; copy it again or write the transform anew")
    try:
        with h5py.File(path, "r", locking=False) as file:
            group = file["TransformGroup"]
            return [_hdf5_entry(path, group[str(index)]) for index in range(len(group))]
    except _HDF5_ERRORS as error:
        if isinstance(error, InputError):
            raise
        raise _cut(os.fspath(path), "its HDF5 data are truncated, damaged or no transform's") from error


def _hdf5_entry(path: Path, group: Any) -> Entry:
    text = _hdf5_text(path, group["TransformType"])
    composite = text.startswith(_COMPOSITE.encode())
    fixed = _hdf5_numbers(path, group, "FixedParameters", _MOST_LINEAR, composite)
    # A field's or a spline's fixed parameters begin with the sizes of its grid.
    large = fixed.size == 18 and np.isfinite(fixed[:3]).all()
    most = 3 * int(np.prod(fixed[:3])) if large else _MOST_LINEAR
    parameters = _hdf5_numbers(path, group, "Parameters", most, composite)
    return _entry(os.fspath(path), text.decode("ascii"), parameters, fixed)


def _hdf5_text(path: Path, data: Any) -> bytes:
    """One text. Of any length, as ITK keeps it, it lies in a heap, where HDF5 can look for hours for a damaged one.

    The place in the file has the text's length, and the place of the heap and the number in it; the heap is a list of
    numbers, lengths and contents.
    """
    import h5py

    kind = h5py.check_string_dtype(data.dtype)
    if kind is None or data.size != 1:
        raise ValueError("no text")
    if kind.length is not None:
        return bytes(np.ravel(data[()])[0])
    with path.open("rb") as stream:
        stream.seek(data.id.get_offset())
        length, heap, wanted = struct.unpack("<IQI", stream.read(16))
        stream.seek(heap)
        magic, size = struct.unpack("<4s4xQ", stream.read(16))
        content = stream.read(min(size, _LARGEST_HEAP))
    place = 0 if magic == b"GCOL" else len(content)
    while place < len(content):
        number, size = struct.unpack_from("<H6xQ", content, place)
        if number == wanted:
            return content[place + 16 : place + 16 + length]
        place += 16 + -(-size // 8) * 8
    raise ValueError("no text")


def _hdf5_numbers(path: Path, group: Any, name: str, most: int, optional: bool) -> np.ndarray:
    """One array of numbers, native, in the precision that it is stored in; nothing outside of the file is read."""
    # ITK before version 5 spelled them so.
    data = group.get(f"Transform{name}", group.get(f"Tranform{name}"))
    if data is None and optional:
        return np.empty(0)
    if data.ndim != 1 or data.dtype.kind != "f" or data.is_virtual or data.external or data.file.filename != str(path):
        raise ValueError("no plain array of real numbers")
    if data.nbytes > _MOST_PACKED * data.id.get_storage_size():
        raise _cut(os.fspath(path), f"it tells of {data.size} numbers and holds {data.id.get_storage_size()} bytes")
    if data.size > most:
        raise _cut(os.fspath(path), f"it has {data.size} parameters, not {most} at most")
    check_memory(path, data.nbytes)
    values = data[()]
    return values.astype(np.float32 if data.dtype.itemsize <= 4 else np.float64, copy=False)


def write_hdf5(entries: Sequence[Entry], path: str | os.PathLike, large: DTypeLike = np.float32) -> None:
    """Write an ``.h5`` file that ITK reads, compressed and with checksums; more than one entry become a composite.

    ``large`` is the type of displacements on disk; ITK reads either. OSError if it cannot be written.
    """
    import h5py

    entries = [Entry(_COMPOSITE, np.empty(0), np.empty(0)), *entries]
    text = h5py.string_dtype("ascii")
    # In memory first: HDF5 can leave a full disk unsaid until it lets go of the file, and end the program then.
    with h5py.File("transform.h5", "w", driver="core", backing_store=False, block_size=1 << 22) as file:
        for index, entry in enumerate(entries):
            group = file.create_group(f"TransformGroup/{index}")
            group.create_dataset("TransformType", data=[entry.type], dtype=text)
            if entry.kind == _COMPOSITE:
                continue
            values = entry.parameters.astype(large, copy=False) if entry.kind == _FIELD else entry.parameters
            for name, data in (("TransformParameters", values), ("TransformFixedParameters", entry.fixed)):
                if data.size > _CHUNK:
                    _write_packed(group, name, data)
                else:
                    group.create_dataset(name, data=data, chunks=(max(data.size, 1),), fletcher32=True)
        file.flush()
        content = file.id.get_file_image()
    Path(path).write_bytes(content)


def _write_packed(group: Any, name: str, data: np.ndarray) -> None:
    """A dataset as HDF5's filters ``shuffle`` and ``gzip`` would write it, packed by isal in a fifth of their time."""
    how = {"chunks": (_CHUNK,), "compression": "gzip", "compression_opts": 1, "shuffle": True}
    dataset = group.create_dataset(name, data.shape, data.dtype, **how)
    for start in range(0, data.size, _CHUNK):
        part = np.zeros(_CHUNK, data.dtype)
        part[: data.size - start] = data[start : start + _CHUNK]
        # Checksums are zlib's own.
        shuffled = np.ascontiguousarray(part.view(np.uint8).reshape(_CHUNK, -1).T)
        dataset.id.write_direct_chunk((start,), isal_zlib.compress(shuffled, _LEVEL))


def read_text(path: Path) -> str:
    """The text of a file; InputError if it is too long, or no text."""
    if path.stat().st_size > _MOST_TEXT:
        raise InputError(f"{path}: is no text of a transform, it has {path.stat().st_size} bytes; check the path")
    try:
        return path.read_bytes().decode("ascii")
    except UnicodeDecodeError as error:
        raise _cut(os.fspath(path), "it holds bytes that are no text") from error


def parse_text(name: str, text: str) -> list[Entry]:
    """The transforms of ITK's text file, a composite before its parts; InputError for what is none of such a file."""
    if text and not text.endswith("\n"):
        raise _cut(name, "its last line has no end, as if it were cut off")
    found: list[dict[str, str]] = []
    announced = False
    for number, line in enumerate(text.split("\n"), start=1):
        tag, colon, value = line.strip(" \t\r").partition(":")
        if tag.startswith("#"):
            announced = announced or tag.startswith("#Transform ")
        elif tag == "Transform" and colon:
            found.append({tag: value})
            announced = False
        elif tag in ("Parameters", "FixedParameters") and colon and found and tag not in found[-1] and not announced:
            found[-1][tag] = value
        elif tag:
            raise _cut(name, f"line {number}, {line.strip()[:40]!r}, has no place in it")
    if not found or announced:
        raise _cut(name, "it ends where a transform should follow")
    entries = []
    for item in found:
        missing = {"Parameters", "FixedParameters"} - item.keys()
        if missing and _COMPOSITE not in item["Transform"]:
            raise _cut(name, f"the {item['Transform'].strip()[:60]} has no line {' and '.join(sorted(missing))}")
        numbers = [_numbers(name, item.get(tag, "")) for tag in ("Parameters", "FixedParameters")]
        entries.append(_entry(name, item["Transform"], *numbers))
    return entries


def _numbers(name: str, text: str) -> np.ndarray:
    words = text.split()
    for word in words:
        if not _NUMBER.fullmatch(word):
            raise _cut(name, f"{word[:40]!r} is not a number")
    return np.array([float(word) for word in words])


def text_of(entry: Entry) -> str:
    """ITK's text file of one transform, with all digits."""
    lines = [f"#Transform 0\nTransform: {entry.type}"]
    for tag, values in (("Parameters", entry.parameters), ("FixedParameters", entry.fixed)):
        lines.append(f"{tag}: {' '.join(repr(float(value)) for value in values)}")
    return _TEXT_HEAD + "\n".join(lines) + "\n"


def read_mat(path: Path) -> list[Entry]:
    """The transform of a binary ``.mat`` file, as ANTs writes it: a matrix named as the type, and ``fixed``."""
    from scipy.io import loadmat

    try:
        if path.stat().st_size > _MOST_MAT:
            raise ValueError("too large")
        content = loadmat(path, appendmat=False)
        fixed = content.pop("fixed")
        ((kind, parameters),) = content.items()
        if any(min(values.shape) > 1 or np.iscomplexobj(values) for values in (parameters, fixed)):
            raise ValueError("no vectors")
        numbers = [np.asarray(values, dtype=np.float64) for values in (parameters, fixed)]
    except Exception as error:  # whatever SciPy comes across in a file that is none
        raise _cut(os.fspath(path), "its data are truncated, damaged or no transform's") from error
    return [_entry(os.fspath(path), kind, *(values.ravel() for values in numbers))]


# What they mean


def to_world(entries: Sequence[Entry], name: str) -> list[WorldTransform]:
    """World transforms of a file's entries, in the order in which they act on a point.

    An affine that acts right after a field is one `WorldTransform` with it, so that what `from_world` made comes back
    as one. ``name`` is what errors call the file: an InputError for a kind that is neither linear, a displacement field
    nor a B-spline; for numbers that make none; for several that are not of one composite.
    """
    if len(entries) > 1 and entries[0].kind == _COMPOSITE:
        entries = entries[:0:-1]
    elif len(entries) != 1:
        raise InputError(f"{name}: holds {len(entries)} transforms without saying how they combine; need one")
    result: list[WorldTransform] = []
    for entry in entries:
        part = _part(entry, name)
        if result and part.frame is None:
            last = result.pop()
            part = WorldTransform(part.linear @ last.linear, last.displacement, last.frame, last.spline)
        result.append(part)
    return result


def _part(entry: Entry, name: str) -> WorldTransform:
    if entry.kind == _COMPOSITE:
        raise _cut(name, "it holds a composite transform without parts, or within another")
    try:
        if entry.kind not in (_FIELD, _SPLINE):
            return WorldTransform(LPS_FLIP @ _linear(entry, name) @ LPS_FLIP)
        _check_counts(entry, name, None, (18,))
        frame = Frame.from_parts(
            tuple(entry.fixed[:3].tolist()), entry.fixed[6:9], entry.fixed[3:6], entry.fixed[9:], "LPS", name
        )
        _check_counts(entry, name, 3 * int(np.prod(frame.shape, dtype=object)), (18,))
        if entry.kind == _FIELD:
            vectors = entry.parameters.reshape(*frame.shape[::-1], 3).transpose(2, 1, 0, 3)
        else:
            vectors = entry.parameters.reshape(3, *frame.shape[::-1]).transpose(3, 2, 1, 0)
        return WorldTransform(np.eye(4), ras_to_lps(vectors), frame, entry.order if entry.kind == _SPLINE else None)
    except InputError as error:
        raise error if str(error).startswith(name) else InputError(f"{name}: {error}") from error


def _check_counts(entry: Entry, name: str, parameters: int | None, fixed: Sequence[int]) -> None:
    """Refuse another number of parameters (None: any) or fixed parameters."""
    found = (len(entry.parameters), len(entry.fixed))
    if (parameters is not None and found[0] != parameters) or found[1] not in fixed:
        raise _cut(
            name,
            f"its {entry.kind} has {found[0]} parameters and {found[1]} fixed ones"
            + ("" if parameters is None else f", not {parameters} and {fixed[-1]}"),
        )


def _linear(entry: Entry, name: str) -> np.ndarray:
    """The matrix ``(4, 4)``, LPS, of a linear transform."""
    matrix = np.eye(4)
    if entry.kind == "IdentityTransform":
        _check_counts(entry, name, 0, (0,))
    elif entry.kind == "TranslationTransform":
        _check_counts(entry, name, 3, (0,))
        matrix[:3, 3] = entry.parameters
    elif entry.kind in _AFFINE_KINDS:
        _check_counts(entry, name, 12, (3,))
        matrix[:3, :3] = entry.parameters[:9].reshape(3, 3)
        matrix[:3, 3] = entry.parameters[9:] + entry.fixed - matrix[:3, :3] @ entry.fixed
    else:
        transform = _itk_instance(entry, name)
        matrix[:3, 3] = np.asarray(transform.TransformPoint((0.0, 0.0, 0.0)))
        for axis, point in enumerate((np.eye(3) * _PROBE).tolist()):
            matrix[:3, axis] = (np.asarray(transform.TransformPoint(point)) - matrix[:3, 3]) / _PROBE
    return matrix


def _itk_instance(entry: Entry, name: str) -> Any:
    """SimpleITK's transform of a linear kind whose parameters are not those of a matrix."""
    import SimpleITK

    refused = InputError(
        f"{name}: holds a {entry.kind}, which is not read; write it as an AffineTransform, or turn it into a field "
        "first (SimpleITK: TransformToDisplacementField)"
    )
    made = getattr(SimpleITK, entry.kind, None)
    try:
        if made is not None:
            transform = made(3) if entry.kind == "ScaleTransform" else made()
        else:
            # ITK knows more kinds than SimpleITK has names for. Without parameters it makes one at rest.
            with tempfile.TemporaryDirectory() as folder:
                rest = Path(folder) / "rest.tfm"
                rest.write_text(f"{_TEXT_HEAD}#Transform 0\nTransform: {entry.type}\n")
                transform = SimpleITK.ReadTransform(os.fspath(rest))
    except (RuntimeError, KeyError, TypeError) as error:
        raise refused from error
    if not transform.IsLinear() or transform.GetDimension() != 3:
        raise refused
    fixed = len(transform.GetFixedParameters())
    # Euler angles had no fourth, the order of their turns, in older files; ITK then takes it as 0.
    _check_counts(entry, name, len(transform.GetParameters()), (3, 4) if entry.kind == "Euler3DTransform" else (fixed,))
    transform.SetFixedParameters(np.pad(entry.fixed, (0, fixed - len(entry.fixed))).tolist())
    transform.SetParameters(entry.parameters.tolist())
    if not np.allclose(transform.GetParameters(), entry.parameters, rtol=1e-6, atol=1e-9):
        raise _cut(name, f"the parameters of its {entry.kind} make no such transform")
    return transform


def from_world(transforms: Sequence[WorldTransform]) -> list[Entry]:
    """The parts of a composite: of each transform, the first to act first, the affine, then on top of it its field."""
    entries = []
    for part in reversed(transforms):
        if part.frame is None or not np.array_equal(part.linear, np.eye(4)):
            entries.append(linear_entry(part))
        if part.frame is None:
            continue
        frame, vectors = part.frame, ras_to_lps(part.displacement)
        fixed = [*frame.shape, *ras_to_lps(frame.origin), *frame.spacing, *(LPS_FLIP[:3, :3] @ frame.direction).ravel()]
        fixed = np.array(fixed, dtype=np.float64)
        if part.spline is None:
            entries.append(Entry(_FIELD, vectors.transpose(2, 1, 0, 3).ravel(), fixed))
        else:
            numbers = vectors.transpose(3, 2, 1, 0).ravel().astype(np.float64)
            entries.append(Entry(_SPLINE, numbers, fixed, part.spline))
    return entries


def affine_entry(linear: np.ndarray) -> Entry:
    """ITK's affine of an RAS matrix ``(4, 4)``."""
    matrix = LPS_FLIP @ linear @ LPS_FLIP + 0.0
    return Entry("AffineTransform", np.concatenate([matrix[:3, :3].ravel(), matrix[:3, 3]]), np.zeros(3))


def linear_entry(transform: WorldTransform) -> Entry:
    """ITK's transform of the linear part, of the class of its kind.

    Angles and versors have right angles whatever their digits, so that the file is of the kind exactly.
    """
    entry = affine_entry(transform.linear)
    if transform.kind == "affine":
        return entry
    from scipy.spatial.transform import Rotation

    matrix, shift = entry.parameters[:9].reshape(3, 3), entry.parameters[9:]
    scale = np.cbrt(np.linalg.det(matrix))
    turn = Rotation.from_matrix(matrix / scale)
    if transform.kind == "similarity":
        versor = turn.as_quat(canonical=True)[:3]
        return Entry("Similarity3DTransform", np.concatenate([versor, shift, [scale]]), np.zeros(3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # turned by 90 degrees about the first axis, the third angle is free
        z, x, y = turn.as_euler("ZXY")
    return Entry("Euler3DTransform", np.array([x, y, z, *shift]), np.zeros(4))
