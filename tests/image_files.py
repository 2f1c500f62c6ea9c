"""Image files made byte by byte, so that a header can say what no writer would."""

import struct
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

SHAPE = (6, 7, 8)
CT = "1.2.840.10008.5.1.4.1.1.2"


def voxels(dtype=np.int16, shape=SHAPE, seed=0):
    """Random voxels (D, H, W)."""
    return np.random.default_rng(seed).integers(0, 100, shape).astype(dtype)


def nifti(array=None, affine=None, kind=nib.Nifti1Image, **fields):
    """Bytes of a NIfTI file whose header's fields are overwritten as given; `pixdim` and `dim` by their heads."""
    array = voxels() if array is None else array
    image = kind(array, np.diag((1.0, 2.0, 3.0, 1.0)) if affine is None else affine, dtype=array.dtype)
    data = bytearray(image.to_bytes())
    size = image.header.sizeof_hdr
    header = np.frombuffer(data, image.header.template_dtype, 1)[0]
    for name, value in fields.items():
        if np.ndim(value):
            header[name][: len(value)] = value
        else:
            header[name] = value
    data[:size] = header.tobytes()
    return bytes(data)


def mgh(array=None, **fields):
    """Bytes of a .mgh file whose header's fields are overwritten as given."""
    data = bytearray(nib.MGHImage(voxels() if array is None else array, np.diag((1.0, 2.0, 3.0, 1.0))).to_bytes())
    header = np.frombuffer(data, nib.freesurfer.mghformat.header_dtype, 1)[0].copy()
    for name, value in fields.items():
        header[name] = value
    data[: header.nbytes] = header.tobytes()
    return bytes(data)


def turned_image(path, shape, spacing, turn, flip=1):
    """Save smooth noise on an oblique grid, whose first axis may be flipped, by both forms of a NIfTI header."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(turn).as_matrix() @ np.diag(np.array(spacing) * (flip, 1, 1))
    matrix[:3, 3] = -matrix[:3, :3] @ (np.array(shape) - 1) / 2 + (11, -23, 31)
    file = nib.Nifti1Image(1000 * gaussian_filter(np.random.default_rng(1).normal(size=shape), 2), matrix, dtype="f4")
    file.set_sform(matrix, 1)
    file.set_qform(matrix, 1)
    nib.save(file, path)


def metaimage(array=None, data=None, **fields):
    """Bytes of a .mha file; a field of None is left out."""
    array = voxels() if array is None else array
    values = {
        "ObjectType": "Image", "NDims": array.ndim, "BinaryData": "True", "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False", "TransformMatrix": "1 0 0 0 1 0 0 0 1", "Offset": "4 5 6",
        "ElementSpacing": "1 2 3", "DimSize": " ".join(map(str, array.shape)), "ElementType": "MET_SHORT", **fields,
    }  # fmt: skip
    values["ElementDataFile"] = values.pop("ElementDataFile", "LOCAL")
    text = "".join(f"{name} = {value}\n" for name, value in values.items() if value is not None)
    return text.encode("latin-1") + (array.tobytes(order="F") if data is None else data)


def nrrd(array=None, data=None, **fields):
    """Bytes of a .nrrd file; a field of None is left out, `_` in a field's name stands for a blank."""
    array = voxels() if array is None else array
    values = {
        "type": "short", "dimension": array.ndim, "space": "left-posterior-superior",
        "sizes": " ".join(map(str, array.shape)), "space_directions": "(1,0,0) (0,2,0) (0,0,3)", "endian": "little",
        "encoding": "raw", "space_origin": "(4,5,6)", **fields,
    }  # fmt: skip
    text = "".join(f"{name.replace('_', ' ')}: {value}\n" for name, value in values.items() if value is not None)
    return b"NRRD0004\n" + text.encode("latin-1") + b"\n" + (array.tobytes(order="F") if data is None else data)


def _element(group, number, vr, value):
    value = value if isinstance(value, bytes) else value.encode()
    if len(value) % 2:
        value += b"\0" if vr in ("UI", "OB") else b" "
    length = struct.pack("<HI", 0, len(value)) if vr in ("OB", "OW") else struct.pack("<H", len(value))
    return struct.pack("<HH2s", group, number, vr.encode()) + length + value


def dicom(pixels, tags=(), kind=CT):
    """Bytes of one DICOM image of pixels (rows, columns) or (rows, columns, 3).

    `tags` maps (group, element) to (value representation, text or bytes), or to None to leave it out.
    """
    bits, colour = 8 * pixels.dtype.itemsize, pixels.ndim == 3
    numbers = {
        (0x28, 0x02): 3 if colour else 1, (0x28, 0x10): pixels.shape[0], (0x28, 0x11): pixels.shape[1],
        (0x28, 0x100): bits, (0x28, 0x101): bits, (0x28, 0x102): bits - 1,
        (0x28, 0x103): int(pixels.dtype.kind == "i"),
    }  # fmt: skip
    fields = {
        (0x08, 0x16): ("UI", kind), (0x08, 0x18): ("UI", "1.2.3.4.1"), (0x08, 0x60): ("CS", "CT"),
        (0x28, 0x04): ("CS", "RGB" if colour else "MONOCHROME2"),
        **{tag: ("US", struct.pack("<H", value)) for tag, value in numbers.items()},
        (0x7FE0, 0x10): ("OW", pixels.tobytes()), **dict(tags),
    }  # fmt: skip
    if colour:
        fields[0x28, 0x06] = ("US", struct.pack("<H", 0))
    meta = b"".join(
        _element(2, number, vr, value)
        for number, vr, value in (
            (0x01, "OB", b"\0\1"),
            (0x02, "UI", kind),
            (0x03, "UI", "1.2.3.4.1"),
            (0x10, "UI", "1.2.840.10008.1.2.1"),
            (0x12, "UI", "1.2.3.9"),
        )
    )
    body = b"".join(_element(*tag, *fields[tag]) for tag in sorted(fields) if fields[tag] is not None)
    return bytes(128) + b"DICM" + _element(2, 0, "UL", struct.pack("<I", len(meta))) + meta + body


def decimals(values):
    """Numbers as DICOM writes them."""
    return ("DS", "\\".join(f"{v:.10g}" for v in values))


def series(folder, array=None, direction=None, spacing=(0.7, 1.1, 2.5), origin=(-10.0, 20.0, 30.0), at=None,
           uid="1.2.3.4.5", name="s", tags=None):  # fmt: skip
    """Write one DICOM series of an array (D, H, W), a file for each slice; returns its folder.

    Direction and origin are LPS, `at` has each slice's place in units of the spacing, `tags` a slice's further tags.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    array = voxels() if array is None else array
    direction = np.eye(3) if direction is None else np.asarray(direction, dtype=float)
    for k in range(array.shape[2]):
        place = np.asarray(origin) + direction[:, 2] * spacing[2] * (k if at is None else at[k])
        known = {
            (0x08, 0x103E): ("LO", f"series {uid}"), (0x20, 0x0E): ("UI", uid), (0x20, 0x13): ("IS", str(k + 1)),
            (0x20, 0x32): decimals(place), (0x20, 0x37): decimals(direction[:, :2].T.ravel()),
            (0x28, 0x30): decimals((spacing[1], spacing[0])), **(tags(k) if tags else {}),
        }  # fmt: skip
        pixels = np.ascontiguousarray(np.moveaxis(array[:, :, k], 0, 1))
        (folder / f"{name}{k:03d}.dcm").write_bytes(dicom(pixels, known))
    return folder
