"""The weights and the network of a TorchScript file, as the bundle's config wants them.

A registration needs more of the network than the exported forward pass gives (velocities, for the inverse; the affine
part), so the file serves as the carrier of its weights and of the config that it was exported with: MONAI's
``ckpt_export`` puts that in, as ``extra/inference.json`` and perhaps a data set's overrides beside it.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from scripts.errors import InputError
from scripts.networks.weights import check_archive
from scripts.settings import BUNDLE

__all__ = ["NAME", "Model", "unpack_model"]

NAME = "avsm"
"""The model's folder in the models folder: ``models/avsm/model.ts``."""

_MEND = "write one with MONAI's ckpt_export as the README says"
# What the weights were trained for; everything else of the embedded config is the exporting machine's.
_OWN = ("network_def", "grid", "grid_voxels", "network_spacing", "orientation", "extent", "affine_steps", "vsvf_steps")


@dataclass(frozen=True)
class Model:
    """What a model file holds.

    Attributes:
        path: the file.
        sha256: of the file.
        weights: its state dict as a file, for the config's ``ckpt_path``.
        config: a file with the ids of the bundle's ``inference.json`` that the config inside decides.
    """

    path: Path
    sha256: str
    weights: Path
    config: Path


def unpack_model(path: Path, folder: Path) -> Model:
    """Take weights and config out of a TorchScript file.

    Args:
        path: the file, such as ``models/avsm/model.ts``.
        folder: where the state dict and the configs are written.

    Raises:
        InputError: when it is no TorchScript of an AVSM network.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        check_archive(path)
        state = torch.jit.load(str(path), map_location="cpu").state_dict()
    except (RuntimeError, ValueError, OSError, zipfile.BadZipFile) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise InputError(f"{path}: cannot be read as TorchScript ({reason}); {_MEND}") from error
    # An adapter around the network puts its own name before every other.
    mark = next((name for name in state if name.startswith("affine_net.") or ".affine_net." in name), None)
    if mark is None:
        raise InputError(f"{path}: TorchScript, but not of an AVSM network; {_MEND}")
    prefix = mark[: mark.index("affine_net.")]
    weights = folder / "weights.pt"
    torch.save({name.removeprefix(prefix): value for name, value in state.items()}, weights)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    config = folder / "model.json"
    config.write_text(json.dumps(_config(path, folder)))
    return Model(path, digest, weights, config)


def _config(path: Path, folder: Path) -> dict[str, Any]:
    """What the config inside says of the network; the bundle's own config stands for what it leaves open."""
    files = []
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            inside = Path(name)
            if inside.parent.name == "extra" and inside.suffix == ".json" and inside.name != "metadata.json":
                files.append(folder / inside.name)
                files[-1].write_bytes(archive.read(name))
    # Overrides come after what they override.
    files.sort(key=lambda file: file.name != "inference.json")
    try:
        config = ConfigParser.load_config_files(files) if files else {}
    except (ValueError, KeyError) as error:
        raise InputError(f"{path}: the config inside cannot be read ({error}); {_MEND}") from error
    # What the config looks up in the network's file, ours looks up in its own.
    own = {name: config[name] for name in _OWN if name in config and not str(config[name]).startswith("$")}
    named = config.get("model")
    if "network_def" not in own and named is not None:
        if named not in {file.stem for file in (BUNDLE / "models").glob("*.json")}:
            raise InputError(
                f"{path}: no config inside has the network {named!r}; export it with its models/{named}.json"
            )
        own["model"] = named
    return own
