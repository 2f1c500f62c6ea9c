"""Files as the subcommands take and give them: inputs that exist, outputs that are whole or absent."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from ..settings import TransformFile
from ..storage import is_there, writing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike

    from ..spatial.frame import Frame

IMAGE_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha")


def check_inputs(paths: Iterable[str | os.PathLike | None]) -> None:
    """Refuse, before anything heavy is loaded, files that are not there; None stands for one that is not given.

    Raises:
        InputError: if a path leads nowhere, or ``inverse:`` and a path.
    """
    for path in paths:
        if path is not None and not is_there(file := TransformFile(path).path):
            raise InputError(f"{file}: file does not exist; correct the path")


def check_output(path: str | os.PathLike, suffixes: Iterable[str], sources: Iterable[str | os.PathLike] = ()) -> Path:
    """The path of an output, refused before any work if it could not be written or would overwrite a source.

    Raises:
        InputError: if the path has another suffix, is a folder or a source, or its folder is absent or not writable.
    """
    target = Path(path)
    suffixes = tuple(suffixes)
    if target.is_dir():
        raise InputError(f"{target}: is a folder; name a file to write")
    if not target.name.lower().endswith(suffixes):
        raise InputError(
            f"{target}: cannot be written as this kind of file; its name must end with {', '.join(suffixes)}"
        )
    if not target.parent.is_dir():
        raise InputError(f"{target}: its folder does not exist; create it first")
    if not os.access(target.parent, os.W_OK):
        raise InputError(f"{target}: its folder is not writable; change its permissions or write elsewhere")
    if any(target.resolve() == Path(source).resolve() for source in sources):
        raise InputError(f"{target}: is read as well; write to another file")
    return target


def write_volume(
    array: np.ndarray, frame: Frame, path: str | os.PathLike, dtype: DTypeLike | None = None, clip: bool = False
) -> None:
    """Write an image or label map ``(D, H, W)``, whole or not at all; ``dtype`` and ``clip`` as of `save_volume`.

    Raises:
        InputError: if the file can't be written or ``dtype`` can't hold the values.
    """
    from ..formats.volumes import save_volume

    with writing(path):
        save_volume(array, frame.affine, path, dtype, clip)
