"""BIDS: the images of a data set as a list of pairs, and results by the standard's names as a derivative data set."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..storage import atomic_path, file_stem, write_json

BIDS_VERSION = "1.9.0"
_README = """Images registered by AVSM. Each `xfm` file is an ITK transform that warps images from its `from-` space to
its `to-` space, as antsApplyTransforms and SimpleITK take it. Reports and measures are in `sourcedata/avsm`.
"""
_IMAGES = (".nii.gz", ".nii")


def bids_pairs(dataset: Path, output: Path, suffix: str = "T1w", template: Path | None = None) -> list[dict[str, Any]]:
    """Every image to a template; without one, the later sessions of every subject to the first.

    Images are those of a ``suffix``; of several of a session, such as runs, the first by name counts. Pairs are as
    `read_datalist` gives them, with ``name`` (``sub-01_ses-1``), ``folder``, ``suffix``, and between which spaces they
    lead: ``from`` and ``to``. InputError for a folder that is no BIDS data set, or has no such images, or an output
    that is another data set.
    """
    if not (dataset / "dataset_description.json").is_file():
        raise InputError(f"{dataset}: is no BIDS data set, it has no dataset_description.json; give its root folder")
    described = output / "dataset_description.json"
    if described.is_file() and "avsm" not in described.read_text(encoding="utf-8"):
        raise InputError(
            f"{output}: is another data set, whose description would be overwritten; write to a folder of its own"
        )
    sessions: dict[str, dict[str, Path]] = {}
    for file in sorted(dataset.glob(f"sub-*/**/anat/*_{suffix}.nii*")):
        found = re.match(r"(sub-[A-Za-z0-9]+)(?:_ses-([A-Za-z0-9]+))?_", file.name)
        if found and file.name.endswith(_IMAGES):
            sessions.setdefault(found[1], {}).setdefault(found[2] or "", file)
    pairs = []
    for subject, images in sessions.items():
        (first, reference), *later = images.items()
        space = None if template is None else _label(template)
        for session, image in images.items() if template is not None else later:
            name = f"{subject}_ses-{session}" if session else subject
            there = suffix if template is not None else f"ses{session}"
            pairs.append(
                {
                    "fixed": str(template or reference),
                    "moving": str(image),
                    "name": name,
                    "folder": str(image.parent.relative_to(dataset)),
                    "suffix": suffix,
                    "from": there,
                    "to": space or f"ses{first}",
                }
            )
    if not pairs:
        wanted = "images" if template is not None else "subjects with two sessions of images"
        mend = "correct the suffix" if template is not None else "correct the suffix, or give template"
        raise InputError(f"{dataset}: has no {wanted} named sub-*/[ses-*/]anat/*_{suffix}.nii.gz; {mend}")
    return pairs


def _label(template: Path) -> str:
    """A template's name in file names: TemplateFlow's ``tpl-NAME``, or letters and digits of its own."""
    found = re.match(r"tpl-([A-Za-z0-9]+)", template.name)
    return found[1] if found else re.sub(r"[^A-Za-z0-9]", "", file_stem(template)) or "template"


def name_results(pairs: Sequence[dict[str, Any]], results: Path, output: Path, version: str) -> None:
    """Give the results of `bids_pairs` the standard's names; they take no more space where the disk knows links.

    ``results`` is the folder of their folders, ``output`` that of the derivative data set.
    """
    description = {
        "Name": "AVSM registrations",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "avsm", "Version": version}],
    }
    write_json(description, output / "dataset_description.json")
    for name, text in ((".bidsignore", "*_xfm.*\n"), ("README.md", _README)):
        with atomic_path(output / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    for pair in pairs:
        done = results / pair["name"]
        if not (done / "metrics.json").is_file():
            continue
        folder = output / pair["folder"]
        folder.mkdir(parents=True, exist_ok=True)
        stem, ends = folder / pair["name"], (pair["from"], pair["to"])
        moved = f"{stem}_space-{pair['to']}_desc-avsm_{pair['suffix']}"
        forth, back = (f"{stem}_from-{a}_to-{b}_mode-image_xfm" for a, b in (ends, ends[::-1]))
        _link(done / "moved.nii.gz", Path(f"{moved}.nii.gz"))
        _link(done / "transform.h5", Path(f"{forth}.h5"))
        _link(done / "inverse_transform.h5", Path(f"{back}.h5"))
        verdict = json.loads((done / "metrics.json").read_text(encoding="utf-8"))["verdict"]["outcome"]
        facts = {"Sources": [pair["moving"]], "SpatialReference": pair["fixed"], "SkullStripped": False}
        write_json({**facts, "Verdict": verdict}, Path(f"{moved}.json"))
        for name, image in ((forth, pair["fixed"]), (back, pair["moving"])):
            write_json({"Sources": [pair["fixed"], pair["moving"]], "SpatialReference": image}, Path(f"{name}.json"))


def _link(source: Path, target: Path) -> None:
    """The same file by another name, or a copy of it."""
    if target.exists() and target.samefile(source):
        return  # to put a file in its own place leaves the other name
    with atomic_path(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
