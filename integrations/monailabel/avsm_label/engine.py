"""The bundle at work: which weights, and one pair registered in memory or into a folder of files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

import scripts
from scripts.errors import InputError
from scripts.formats.images import Image
from scripts.networks.weights import weights_hash
from scripts.registration.grids import INITIALISATIONS
from scripts.registration.options import usable_device
from scripts.registration.pair import PairRegistrar, RegisteredPair
from scripts.registration.read import ReadPaird
from scripts.registration.write import METRICS

from .parameters import Parameter

__all__ = ["BUNDLE", "SETTINGS", "Engine", "Weights", "device_names"]

BUNDLE = Path(scripts.__file__).resolve().parents[1]
_KEPT = 2  # registrars, each with its network


def device_names() -> list[str]:
    """Devices of this machine, the default first."""
    return [*(f"cuda:{index}" for index in range(torch.cuda.device_count())), "cpu"]


SETTINGS: Mapping[str, Parameter] = {
    "weights": Parameter(
        "auto", "weights: those trained here where there are any (auto), or one kind", choices=("trained", "bundle")
    ),
    "optimisation_steps": Parameter(
        0, "number of steps of instance optimisation, for anatomy that the weights do not know", int, None, 0, 10_000
    ),
    "initialisation": Parameter("geometry", "initialisation", choices=INITIALISATIONS),
    "device": Parameter(device_names()[0], "device", choices=device_names()),
}
"""Parameters of every task that registers."""


@dataclass(frozen=True)
class Weights:
    """Weights of the network.

    Attributes:
        path: the file.
        source: ``trained``, by this server on these studies, or ``bundle``.
    """

    path: Path
    source: str

    def facts(self) -> dict[str, str]:
        """What a result says of them."""
        return {"source": self.source, "sha256": weights_hash(self.path)}


class Engine:
    """Registers pairs by the bundle's ``inference.json``.

    Args:
        home: folder of this app in the studies folder; weights trained here lie in it.
        config_files: configs after ``inference.json`` and ``train.json``, such as ``../models/hippocampus.json``; a
            relative path is looked for in the bundle's ``configs``.
        threads: CPU threads of torch, for training, which has a process of its own; None leaves the choice to it.

    Raises:
        InputError: for a config that does not exist.
    """

    def __init__(
        self, home: str | os.PathLike, config_files: Sequence[str | os.PathLike] = (), threads: int | None = None
    ) -> None:
        self.home = Path(home)
        self.threads = threads
        self.config_files = [BUNDLE / "configs" / file for file in config_files]
        for file in self.config_files:
            if not file.is_file():
                raise InputError(f"{file}: config file does not exist; correct config_files")
        self._registrars: dict[tuple, PairRegistrar] = {}

    @property
    def trained(self) -> Path:
        """Where weights that were trained on these studies are put."""
        return self.home / "model.pt"

    def config(self, workflow: str) -> ConfigParser:
        """A workflow's config with the app's overrides, nothing of it built yet.

        Args:
            workflow: ``inference`` or ``train``.
        """
        parser = ConfigParser()
        parser.read_config([str(file) for file in (BUNDLE / "configs" / f"{workflow}.json", *self.config_files)])
        parser.update({"bundle_root": str(BUNDLE)})
        return parser

    def weights(self, choice: str = "auto") -> Weights:
        """The weights to register with.

        Args:
            choice: ``auto``, ``trained`` or ``bundle``.

        Raises:
            InputError: for ``trained`` where nothing has been trained yet.
        """
        if choice != "bundle" and self.trained.is_file():
            return Weights(self.trained, "trained")
        if choice == "trained":
            raise InputError("weights: nothing has been trained on these studies yet; train, or give 'bundle'")
        return Weights(Path(self.config("inference").get_parsed_content("ckpt_path")), "bundle")

    def register(
        self,
        fixed: str | os.PathLike,
        moving: str | os.PathLike,
        settings: Mapping[str, Any],
        moving_label: str | os.PathLike | None = None,
    ) -> tuple[RegisteredPair, dict[str, Image], list[str]]:
        """Register two images in memory.

        Args:
            fixed: path of the fixed image.
            moving: path of the moving image.
            settings: values of `SETTINGS`.
            moving_label: path of a label map on the moving image's grid, which is read and checked as well.

        Returns:
            The registration; the images by role; notes for the user.

        Raises:
            InputError: for files that cannot be used.
        """
        item = ReadPaird()({"fixed": fixed, "moving": moving, "moving_label": moving_label})
        images = item["images"]
        pair = self._registrar(settings)(images["fixed"], images["moving"])
        return pair, images, [*item["notes"], *pair.registered.notes]

    def register_to_folder(
        self, files: Mapping[str, str | None], settings: Mapping[str, Any], folder: Path, **overrides: Any
    ) -> dict[str, Any]:
        """Register two images and write what ``avsm register`` writes.

        Args:
            files: ``fixed``, ``moving``, perhaps ``fixed_label`` and ``moving_label``: paths.
            settings: values of `SETTINGS`.
            folder: for the results.
            overrides: further ids of ``inference.json``.

        Returns:
            The content of ``metrics.json``.

        Raises:
            InputError: for files that cannot be used.
        """
        parser = self.config("inference")
        parser.update({**self._overrides(settings), **files, "output_dir": str(folder), **overrides})
        parser.get_parsed_content("cohort").run()
        return json.loads((folder / METRICS).read_text())

    def _overrides(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Ids of ``inference.json`` for the settings of a request."""
        return {
            "ckpt_path": str(self.weights(settings["weights"]).path),
            "device": usable_device(settings["device"]),
            "optimisation_steps": settings["optimisation_steps"],
            "initialisation": settings["initialisation"],
        }

    def _registrar(self, settings: Mapping[str, Any]) -> PairRegistrar:
        """The registrar of some settings; the last few are kept, as building one reads its weights."""
        overrides = self._overrides(settings)
        state = os.stat(overrides["ckpt_path"])
        key = (state.st_size, state.st_mtime_ns, *map(str, overrides.values()))
        registrar = self._registrars.pop(key, None) or PairRegistrar("avsm", self.config_files, **overrides)
        while len(self._registrars) >= _KEPT:
            self._registrars.pop(next(iter(self._registrars)))
        self._registrars[key] = registrar
        return registrar
