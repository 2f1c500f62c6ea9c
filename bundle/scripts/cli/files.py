"""Files as the subcommands take and give them: transforms in order, images, and outputs that are whole or absent."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import itk
import numpy as np
from numpy.typing import DTypeLike

from ..errors import InputError
from ..formats.images import Image, read_volume
from ..formats.points import SUFFIXES as POINT_SUFFIXES
from ..formats.transform_files import read_transforms
from ..formats.volumes import save_volume, storable
from ..spatial.frame import LPS_FLIP, Frame, ras_to_lps
from ..spatial.inversion import InverseNotReachedWarning, NumericalInverse, invert_transforms, merge_warnings
from ..spatial.transform import WorldTransform
from ..storage import atomic_path

NIFTI_SUFFIXES = (".nii", ".nii.gz")
ITK_SUFFIXES = (".nrrd", ".mha")
IMAGE_SUFFIXES = NIFTI_SUFFIXES + ITK_SUFFIXES


class Chain:
    """Transforms of several files, in the order in which they act on a point.

    Args:
        paths: transform files, first listed, first applied to a point (ANTs' order).
        inverse: turn the whole chain round.

    Raises:
        InputError: as `read_transforms`.
    """

    def __init__(self, paths: Sequence[str | os.PathLike], inverse: bool = False) -> None:
        self.transforms: list[WorldTransform | NumericalInverse] = []
        self.files: list[str] = []
        for path in paths:
            parts = read_transforms(path)
            self.transforms += parts
            self.files += [os.fspath(path)] * len(parts)
        if inverse:
            self.transforms = invert_transforms(self.transforms)
            self.files.reverse()

    @contextmanager
    def warnings_for(self, path: str | os.PathLike | None = None) -> Iterator[None]:
        """Pass on the warnings of the block with the names of the file at work and of the transform's file."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
        messages = [w.message for w in caught if isinstance(w.message, UserWarning)]
        missed = [message for message in messages if isinstance(message, InverseNotReachedWarning)]
        messages = [message for message in messages if message not in missed]
        if missed:
            messages.append(merge_warnings(missed))
        prefix = "" if path is None else f"{path}: "
        for message in messages:
            text = re.sub(r"^transforms\[(\d+)\]", lambda match: self.files[int(match[1])], str(message))
            warnings.warn(prefix + text, stacklevel=4)


def is_points(path: str | os.PathLike) -> bool:
    """Whether a file's name is that of landmarks."""
    return os.fspath(path).lower().endswith(POINT_SUFFIXES)


def read_grid(path: str | os.PathLike) -> Frame:
    """The grid of a reference image, which may be constant.

    Raises:
        InputError: as `read_image`, but for constant images.
    """
    return noted(read_volume(path)).frame


def noted(image: Image) -> Image:
    """The image, after a warning for every oddity of its header."""
    for note in image.notes:
        warnings.warn(f"{image.path}: {note}", stacklevel=3)
    return image


def check_output(path: str | os.PathLike, suffixes: Iterable[str], sources: Iterable[str | os.PathLike] = ()) -> Path:
    """Refuse, before any work, an output that could not be written or would overwrite what is read.

    Args:
        path: of a file.
        suffixes: what its name may end with.
        sources: files that are read.

    Returns:
        The path.

    Raises:
        InputError: if the path has another suffix, is a folder or a source, or its folder is absent or not writable.
    """
    target = Path(path)
    suffixes = tuple(suffixes)
    if target.is_dir():
        raise InputError(f"{target}: is a folder; name a file to write")
    if not target.name.lower().endswith(suffixes):
        raise InputError(
            f"{target}: can't be written as this kind of file; its name must end with {', '.join(suffixes)}"
        )
    if not target.parent.is_dir():
        raise InputError(f"{target}: its folder does not exist; create it first")
    if not os.access(target.parent, os.W_OK):
        raise InputError(f"{target}: its folder is not writable; change its permissions or write elsewhere")
    if any(target.resolve() == Path(source).resolve() for source in sources):
        raise InputError(f"{target}: is read as well; write to another file")
    return target


@contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Turn what can go wrong while a file is written into one line that names the file itself.

    Raises:
        InputError: for a full disk, missing permission, or values that the file's type can't hold.
    """
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        mend = "free some space or write elsewhere" if full else "see that the folder can be written to"
        raise InputError(f"{path}: can't be written ({error.strerror or error}); {mend}") from error
    except ValueError as error:
        raise InputError(f"{path}: can't be written: {error}") from error


def write_volume(array: np.ndarray, frame: Frame, path: str | os.PathLike, dtype: DTypeLike | None = None) -> None:
    """Write an image or label map, whole or not at all.

    Args:
        array: ``(D, H, W)``.
        frame: its grid.
        path: ends with one of `IMAGE_SUFFIXES`.
        dtype: type on disk, see ``io.save_volume``.

    Raises:
        InputError: if the file can't be written or ``dtype`` can't hold the values.
    """
    with writing(path):
        if os.fspath(path).lower().endswith(NIFTI_SUFFIXES):
            save_volume(array, frame.affine, path, dtype)
            return
        image = itk.image_from_array(np.ascontiguousarray(storable(array, dtype).transpose(2, 1, 0)))
        image.SetSpacing(frame.spacing.tolist())
        image.SetOrigin(ras_to_lps(frame.origin).tolist())
        image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(LPS_FLIP[:3, :3] @ frame.direction)))
        with atomic_path(path) as temporary:
            try:
                itk.imwrite(image, os.fspath(temporary), compression=True)
            except RuntimeError as error:
                raise OSError(str(error).strip().splitlines()[-1].strip()) from error


def write_json(content: Any, path: str | os.PathLike) -> None:
    """Write JSON, whole or not at all; NaN and infinity, which JSON does not know, become null.

    Raises:
        InputError: if the file can't be written.
    """
    with writing(path), atomic_path(path) as temporary:
        temporary.write_text(json.dumps(plain(content), indent=2) + "\n")


def plain(content: Any) -> Any:
    """The content with null for every number that is not finite."""
    if isinstance(content, dict):
        return {key: plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [plain(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
