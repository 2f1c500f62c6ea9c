"""The two images of an input folder: two series of a DICOM study, or two image files; refused before any work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydicom.uid import CTImageStorage, MRImageStorage

from scripts.errors import InputError
from scripts.formats.dicom_objects import Series, constant

from .request import FILE, ROLES, Request
from .study import link_files, read_study, select_series

__all__ = ["Pair", "find_pair"]

_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
_MOVED_AS = {CTImageStorage: "CT", MRImageStorage: "MR"}


@dataclass(frozen=True)
class Pair:
    """What is to be registered.

    Attributes:
        fixed: the fixed image, a series or a file.
        moving: the moving image, likewise.
        study: all image series of the input folder; empty for files.
    """

    fixed: Series | Path
    moving: Series | Path
    study: tuple[Series, ...] = ()

    @property
    def is_dicom(self) -> bool:
        """Whether the two are series."""
        return isinstance(self.fixed, Series)

    def paths(self, folder: Path) -> tuple[Path, Path]:
        """Fixed and moving image as the bundle reads them: files, or a folder for each series made in ``folder``."""
        if not self.is_dicom:
            return self.fixed, self.moving
        return link_files(self.fixed, folder / "fixed"), link_files(self.moving, folder / "moving")


def find_pair(folder: Path, request: Request) -> Pair:
    """The images of an input folder.

    Args:
        folder: with a DICOM study (in subfolders or not), or with ``fixed`` and ``moving`` as NIfTI, NRRD or MetaImage.
        request: see `load_request`.

    Raises:
        InputError: when they are not there, not alone, or such that no DICOM result could be made of them.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: not a folder; give the folder that holds the study or the two image files")
    if FILE in request.conditions["fixed"]:
        return Pair(*(_named_file(folder, request, role) for role in ROLES))
    study = read_study(folder)
    files = {role: _files(folder, role) for role in ROLES}
    if any(files.values()):
        return _file_pair(folder, files, study)
    if len(study) < 2:
        held = f"one image series only, {study[0]}" if study else "no DICOM images, and no fixed and moving image file"
        raise InputError(
            f"{folder}: {held}; give a study with a fixed and a moving series, or fixed.nii.gz and moving.nii.gz"
        )
    pair = Pair(*(select_series(folder, study, role, request.conditions[role]) for role in ROLES), tuple(study))
    _check_series(folder, pair.fixed, pair.moving)
    return pair


def _named_file(folder: Path, request: Request, role: str) -> Path:
    """The file that a condition names, which must lie in the input folder."""
    name = request.conditions[role][FILE]
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise InputError(f"{request.path}: {role}: {FILE} {name!r} lies outside {folder}; name a file in it")
    if not path.is_file():
        raise InputError(f"{path}: file does not exist; correct {FILE} of {role} in {request.path}")
    return path


def _files(folder: Path, role: str) -> list[Path]:
    """Image files of the folder itself that are named for a role."""
    return [path for suffix in _SUFFIXES if (path := folder / f"{role}{suffix}").is_file()]


def _file_pair(folder: Path, files: dict[str, list[Path]], study: list[Series]) -> Pair:
    """The two files, if there are just these."""
    if study:
        named = next(path for paths in files.values() for path in paths)
        raise InputError(f"{folder}: {named.name} lies beside DICOM images, {study[0]}; give a folder with one of both")
    for role, paths in files.items():
        if len(paths) != 1:
            found = ", ".join(path.name for path in paths)
            what = f"{len(paths)} files may be the {role} image, {found}" if paths else f"no {role}.nii.gz"
            raise InputError(f"{folder}: {what}; give one fixed and one moving image")
    return Pair(files["fixed"][0], files["moving"][0])


def _check_series(folder: Path, fixed: Series, moving: Series) -> None:
    """Refuse series that no derived series and no registration object can be made of."""
    if fixed is moving:
        raise InputError(f"{folder}: {fixed} is both the fixed and the moving image; correct the rules in request.json")
    for role, series in (("fixed", fixed), ("moving", moving)):
        for keyword in ("FrameOfReferenceUID", "StudyInstanceUID", "SOPClassUID"):
            if not constant(series, keyword):
                raise InputError(
                    f"{folder}: {role} series {series}: its images have no {keyword} in common, which the result must "
                    "name; export the series again"
                )
    kind = moving.header.SOPClassUID
    if kind not in _MOVED_AS:
        raise InputError(
            f"{folder}: moving series {moving} is of {kind.name}; a derived series is written of CT and MR images only"
        )
    ids = [constant(series, "PatientID") for series in (fixed, moving)]
    if ids[0] != ids[1]:
        raise InputError(
            f"{folder}: fixed {fixed} and moving {moving} are of different patients, {ids[0]!r} and {ids[1]!r}; "
            "correct the rules in request.json, or the Patient ID"
        )
