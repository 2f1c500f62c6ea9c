"""The studies folder as MONAI Label's datastore, with a fence: nothing outside of it is read or written."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.datastore import DefaultLabelTag

from scripts.errors import InputError
from scripts.formats.images import read_image, read_label
from scripts.formats.text_headed import read_header

from .errors import CONFLICT, NOT_FOUND, RequestError

__all__ = ["FINAL", "HOME", "ORIGINAL", "SUFFIXES", "StudyDatastore", "plain_name"]

FINAL, ORIGINAL = DefaultLabelTag.FINAL.value, DefaultLabelTag.ORIGINAL.value
SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")
"""Image files of one piece. Headers with their voxels in another file (.nhdr, .mhd) could name any file at all."""
HOME = "avsm"
"""Folder of this app in the studies folder: training runs, trained weights, similarities."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+ -]{0,99}")
logger = logging.getLogger(__name__)


# Whatever looks at or changes the table of images and labels.
_TABLE_METHODS = (
    *("_init_from_datastore_file", "_reconcile_datastore", "add_image", "datalist", "final_label"),
    *("get_dataset_archive", "get_image", "get_image_uri", "get_label", "get_label_by_image_id", "get_label_uri"),
    *("get_labeled_images", "get_labels_by_image_id", "get_unlabeled_images", "json", "list_images"),
    *("remove_image", "remove_label", "save_label", "status"),
)
# The same for what is asked of one entry, which must be in it: method → how many arguments name it, id or id and tag.
_INFO_METHODS = {"get_image_info": 1, "update_image_info": 1, "get_label_info": 2, "update_label_info": 2}


def _guarded(method: Callable, named: int = 0) -> Callable:
    """A method of a datastore that no other thread's call interrupts; see `_INFO_METHODS` for ``named``."""

    @functools.wraps(method)
    def call(self: StudyDatastore, *args: Any, **kwargs: Any) -> Any:
        with self._turn:
            if named:
                (self._known, self._known_label)[named - 1](*args[:named])
            return method(self, *args, **kwargs)

    return call


def _one_at_a_time(store: type) -> type:
    """Let the methods that share the table wait for each other.

    MONAI Label's watcher of the folder rebuilds the table in a thread of its own, emptying it first, while requests
    read and change it: one in the midst of that finds nothing, or ends the watcher, and no later file is noticed.
    """
    for name in (*_TABLE_METHODS, *_INFO_METHODS):
        setattr(store, name, _guarded(getattr(store, name), _INFO_METHODS.get(name, 0)))
    return store


@_one_at_a_time
class StudyDatastore(LocalDatastore):
    """A folder of images, with labels in ``labels/TAG/IMAGE.*``, as MONAI Label keeps them.

    Every path that is handed out is resolved first, links included, and must lie in the folder; so must every path that
    is written. Images and annotations that are uploaded must be readable, an annotation on its image's grid.

    Args:
        folder: the studies folder.
        auto_reload: follow files that come and go.
        read_only: do not look for new files at the start.

    Raises:
        InputError: when the folder for labels or for this app leads out of the studies folder.
    """

    def __init__(self, folder: str | os.PathLike, auto_reload: bool = False, read_only: bool = False) -> None:
        self.root = Path(folder).resolve()
        self._turn = threading.RLock()
        for name in ("labels", HOME, "datastore_v2.json", ".lock"):
            if not self._inside(self.root / name):
                raise InputError(f"{self.root / name}: leads out of the studies folder; replace the link")
        super().__init__(
            str(self.root),
            extensions=[f"*{suffix}" for suffix in SUFFIXES],
            auto_reload=auto_reload,
            read_only=read_only,
        )
        self.home = self.root / HOME
        self.home.mkdir(exist_ok=True)

    # ---- reading

    def get_image_uri(self, image_id: str) -> str:
        """The file of an image.

        Raises:
            RequestError: for an image that is not in the datastore, or a file that leads out of the studies folder.
        """
        self._known(image_id)
        return str(self._fenced(super().get_image_uri(image_id), f"image {image_id!r}"))

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """The file of a label.

        Raises:
            RequestError: for a label that is not in the datastore, or a file that leads out of the studies folder.
        """
        self._known_label(label_id, label_tag)
        return str(self._fenced(super().get_label_uri(label_id, label_tag), f"label {label_tag!r} of {label_id!r}"))

    def final_label(self, image_id: str) -> str | None:
        """The file of an image's final label, the annotator's; None where there is none."""
        return self.get_label_uri(image_id, FINAL) if self._datastore.label(image_id, FINAL) else None

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Image and final label of every labelled image.

        Args:
            full_path: False gives paths relative to the studies folder.
        """
        pairs = [{"image": self.get_image_uri(i), "label": self.get_label_uri(i, FINAL)} for i in self.labelled()]
        if full_path:
            return pairs
        return [{key: str(Path(path).relative_to(self.root)) for key, path in pair.items()} for pair in pairs]

    def labelled(self) -> list[str]:
        """Images with a final label, in order of their names."""
        return sorted(self.get_labeled_images())

    def unlabelled(self) -> list[str]:
        """Images without a final label, in order of their names."""
        return sorted(self.get_unlabeled_images())

    def get_dataset_archive(self, limit_cases: int | None) -> str:
        """A ZIP file of all labelled images.

        Raises:
            RequestError: where no image has a final label.
        """
        if not self.labelled():
            raise RequestError("dataset: no image has a final label yet; save one first", NOT_FOUND)
        return super().get_dataset_archive(limit_cases)

    # ---- writing

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Take an uploaded image into the datastore.

        Raises:
            RequestError: for a name that cannot be a file's or is taken, or a file that is no readable image.
        """
        suffix = _suffix(image_filename)
        if suffix is None:
            raise RequestError(f"file: not one of {', '.join(SUFFIXES)}; name the uploaded file by its kind")
        image_id = plain_name("image", image_id or self._to_id(os.path.basename(image_filename))[0])
        if image_id in self._datastore.objects:
            raise RequestError(f"image: {image_id!r} is in the datastore already; delete it first", CONFLICT)
        self._writable(Path(self._datastore.image_path()) / f"{image_id}{suffix}")
        _checked(image_filename, f"image {image_id!r}", lambda path: read_image(path))
        return super().add_image(image_id, image_filename, image_info)

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Store a file under a tag of an image; annotations must be label maps on the image's grid.

        Raises:
            RequestError: for an image that is not in the datastore, a tag that cannot be a folder's name, or an
                annotation (tags ``final`` and ``original``) that does not fit its image.
        """
        tag = plain_name("tag", getattr(label_tag, "value", label_tag))
        if tag in (FINAL, ORIGINAL):
            if _suffix(label_filename) is None:
                raise RequestError(f"label: not one of {', '.join(SUFFIXES)}; name the uploaded file by its kind")
            image = read_image(self.get_image_uri(image_id))
            _checked(label_filename, f"label of {image_id!r}", lambda path: read_label(path, image))
        self._known(image_id)
        suffix = self._to_id(os.path.basename(label_filename))[1]
        self._writable(Path(self._datastore.label_path(tag)) / f"{image_id}{suffix}")
        before = self._datastore.label(image_id, tag)
        if before is not None and before.ext != suffix:
            # Another kind of file would stay behind under the same name.
            with contextlib.suppress(RequestError):
                Path(self.get_label_uri(image_id, tag)).unlink(missing_ok=True)
        return super().save_label(image_id, label_filename, tag, label_info)

    def remove_image(self, image_id: str) -> None:
        """Remove an image and its labels.

        Raises:
            RequestError: for an image that is not in the datastore, or lies outside.
        """
        self.get_image_uri(image_id)
        super().remove_image(image_id)
        self.refresh()

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a label.

        Raises:
            RequestError: for a label that is not in the datastore.
        """
        super().remove_label(label_id, label_tag)
        # The watcher does not look at tags that came after its start.
        self.refresh()

    # ---- the fence

    def _inside(self, path: str | os.PathLike) -> bool:
        """Whether a path, all links followed, lies in the studies folder."""
        return Path(path).resolve().is_relative_to(self.root)

    def _known(self, image_id: Any) -> None:
        if not isinstance(image_id, str) or image_id not in self._datastore.objects:
            raise RequestError(
                f"image: {image_id!r} is not in the datastore; GET /datastore/?output=all lists what is", NOT_FOUND
            )

    def _known_label(self, label_id: Any, tag: Any) -> None:
        self._known(label_id)
        if self._datastore.label(label_id, tag) is None:
            tags = ", ".join(sorted(self._datastore.objects[label_id].labels)) or "none"
            raise RequestError(f"label: {label_id!r} has no label with tag {tag!r}; it has {tags}", NOT_FOUND)

    def _fenced(self, path: str, what: str) -> Path:
        """A file of the datastore that may be read."""
        if not self._inside(path):
            raise RequestError(f"{what}: leads out of the studies folder; put the file itself there")
        _check_one_piece(Path(path), what)
        return Path(path)

    def _writable(self, path: Path) -> None:
        """Refuse a target that a link, or a name, leads out of the studies folder."""
        if not self._inside(path):
            raise RequestError(f"{path.name}: leads out of the studies folder; replace the link at its place")

    def _list_files(self, path: str, patterns: list[str]) -> dict[str, str]:
        """Files of a folder as MONAI Label lists them, without those that lead out."""
        if not self._inside(path):
            logger.warning(f"{path}: leads out of the studies folder and is left out")
            return {}
        found = super()._list_files(path, patterns)
        for name in [name for name, file in found.items() if not self._inside(Path(path) / file)]:
            logger.warning(f"{Path(path) / name}: leads out of the studies folder and is left out")
            del found[name]
        return found


def _suffix(path: str | os.PathLike) -> str | None:
    """The suffix of an image file that this app reads."""
    name = os.path.basename(path).lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def plain_name(what: str, name: Any) -> str:
    """A client's name for a file or folder.

    Args:
        what: the parameter, for the message.
        name: the client's.

    Raises:
        RequestError: if it could be anything but a name in one folder.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or ".." in name:
        raise RequestError(f"{what}: {name!r} cannot be a file name; use letters, digits, '_', '-' and '.'")
    return name


def _check_one_piece(path: Path, what: str) -> None:
    """Refuse a header that names other files for its voxels: those could lie anywhere.

    Raises:
        RequestError: if it does, or cannot be read.
    """
    if not path.name.lower().endswith((".nrrd", ".mha")):
        return
    try:
        data = read_header(path).data
    except InputError:
        data = None  # its message might tell whether a file elsewhere exists
    if data != [path]:
        raise RequestError(f"{what}: not readable, or its voxels are in another file; save header and voxels as one")


def _checked(path: str, what: str, read: Any) -> None:
    """Read an uploaded file, so that what is no image never comes in.

    Raises:
        RequestError: naming what was uploaded, not where it lies for now.
    """
    _check_one_piece(Path(path), what)
    try:
        read(path)
    except InputError as error:
        raise RequestError(str(error).replace(str(path), what)) from error
